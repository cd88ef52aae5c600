//! What people are told once, and when. An event follows from something that changed, so a pipeline at rest
//! tells nothing.

use penstock_crds::comparison::{ComparisonVerdict, LastComparison};
use penstock_crds::conditions::{ConditionReason, ConditionType, OperatorReason};
use penstock_crds::names::LABEL_UID;
use penstock_crds::revision::RevisionName;
use serde::Serialize;

use super::comparison;
use super::shards::reporting;
use super::stage::Stage;
use super::verdict::{Course, Truth, Verdict};
use crate::world::{KnownRevision, OutcomeKind, World};

/// Reason of the event that something is left behind against `deletionPolicy: Delete`.
pub(super) const LEFT_BEHIND: &str = "LeftBehind";

/// Whether an event is a worry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum EventKind {
    /// For information.
    Normal,
    /// Something to look at.
    Warning,
}

/// Something to tell people, as a Kubernetes Event about the pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlannedEvent {
    /// Whether it is a worry.
    pub kind: EventKind,
    /// Stable word.
    pub reason: String,
    /// What the operator did or saw.
    pub action: String,
    /// The sentence.
    pub note: String,
    /// What makes it the same event, for things that happen once; without it, the same reason and
    /// sentence are counted.
    pub once: Option<String>,
    /// Nobody can tell it later: when it cannot be published, the pass ends before the next step.
    pub is_required: bool,
}

impl PlannedEvent {
    fn once(reason: &str, action: &str, key: &str, note: String) -> Self {
        Self {
            kind: EventKind::Normal,
            reason: reason.into(),
            action: action.into(),
            note,
            once: Some(format!("{reason}-{key}")),
            is_required: false,
        }
    }

    /// A revision was minted.
    pub(super) fn minted(revision: &KnownRevision) -> Self {
        let note = format!(
            "Revision {} is number {}: image {}, tables {}",
            revision.name,
            revision.number,
            revision.minted.image,
            revision.minted.data.tables.join(", "),
        );
        Self::once("RevisionMinted", "Mint", &revision.number.to_string(), note)
    }

    /// The workers of another revision are stopped.
    pub(super) fn replacing(old: &RevisionName, target: &KnownRevision) -> Self {
        let note = format!(
            "The workers of revision {old} stop at an exact position; {} goes on from it",
            target.name
        );
        Self::once("Replacing", "Replace", &format!("{}-{old}", target.number), note)
    }

    /// The workers of a revision took over, and what the other left is removed.
    pub(super) fn replaced(old: &RevisionName, target: &KnownRevision) -> Self {
        let note =
            format!("Revision {} applies changes; the workers and volumes of {old} are removed", target.name);
        Self::once("Replaced", "Replace", &format!("{}-{old}", target.number), note)
    }

    /// The canary has the tables that readers know.
    pub(super) fn promoted(revision: &KnownRevision, previous: &KnownRevision) -> Self {
        let note = format!(
            "Revision {} writes the tables that readers know; {} follows the source for the way back",
            revision.name, previous.name
        );
        Self::once("Promoted", "RollOut", &revision.number.to_string(), note)
    }

    /// The rollout of a canary is over.
    pub(super) fn rollout_ended(revision: &KnownRevision, outcome: OutcomeKind, reason: &str) -> Self {
        let kind = if outcome == OutcomeKind::Abandoned { EventKind::Normal } else { EventKind::Warning };
        let note =
            format!("Revision {} is removed, with its tables beside the live ones: {reason}", revision.name);
        let word = format!("{outcome:?}");
        Self { kind, ..Self::once(&word, "RollOut", &revision.number.to_string(), note) }
    }

    /// What `deletionPolicy: Retain` keeps, and how to go on from it.
    pub(super) fn retained(note: String) -> Self {
        Self { is_required: true, ..Self::once("StateRetained", "Delete", "", note) }
    }

    /// The same in a namespace that is being deleted, which takes no Event: then it is in the log alone.
    pub(super) fn retained_unheard(note: String) -> Self {
        Self::once("StateRetained", "Delete", "", note)
    }

    /// Nothing is left in the databases but the copied tables.
    pub(super) fn cleaned_up(adopted: Option<&str>) -> Self {
        let removed = "Replication slots, a managed publication, sink state and volumes are removed; the copied tables stay";
        let note = adopted.map_or_else(
            || removed.to_owned(),
            |uid| {
                format!(
                    "{removed}. Volume claims with the label {LABEL_UID}={uid}, of the pipeline that was adopted, are not needed any more and may be deleted"
                )
            },
        );
        Self::once("CleanedUp", "Delete", "", note)
    }

    /// What a comparison found. That both ends are equal still is known already.
    pub(super) fn compared(world: &World, record: &LastComparison) -> Option<Self> {
        let verdict = record.result.verdict;
        let (kind, reason) = match verdict {
            _ if record.failure.is_some() => (EventKind::Warning, "ComparisonFailed"),
            ComparisonVerdict::Equal => (EventKind::Normal, "SinkMatches"),
            ComparisonVerdict::Different => (EventKind::Warning, "SinkDiffers"),
            ComparisonVerdict::Unknown => (EventKind::Warning, "ComparisonFailed"),
        };
        let before = comparison::recorded(world).map(|last| last.result.verdict);
        if verdict == ComparisonVerdict::Equal && before == Some(verdict) {
            return None;
        }
        let position = record.result.position.as_ref();
        let position = position.map(|at| format!("At {at} of the source's log: ")).unwrap_or_default();
        let note = format!("{position}{}", comparison::sentence(world.name(), record));
        Some(Self { kind, ..Self::once(reason, "Compare", &record.job, note) })
    }

    /// An annotation says nothing that could be done.
    pub(super) fn annotation_invalid(annotation: &str, text: &str, why: &str) -> Self {
        let note = format!("The annotation {annotation} is left alone: {why}");
        let key = penstock_crds::names::uid8(&format!("{annotation}{text}"));
        Self { kind: EventKind::Warning, ..Self::once("AnnotationInvalid", "Direct", &key, note) }
    }

    /// The namespace goes, and with it everything that could clean up.
    pub(super) fn left_behind(note: String) -> Self {
        Self { kind: EventKind::Warning, ..Self::once(LEFT_BEHIND, "Delete", "", note) }
    }

    fn counted(kind: EventKind, reason: String, note: String) -> Self {
        Self { kind, reason, action: "Reconcile".into(), note, once: None, is_required: false }
    }
}

/// What the change from the last status to this verdict is worth telling, and what workers want to have
/// told.
pub(super) fn transitions(world: &World, stage: &Stage<'_>, verdict: &Verdict) -> Vec<PlannedEvent> {
    let mut events: Vec<PlannedEvent> = turn(world, verdict).into_iter().collect();
    events.extend(notices(stage));
    events
}

/// The verdict, if it is another than the last one.
pub(super) fn turn(world: &World, verdict: &Verdict) -> Option<PlannedEvent> {
    let ready = ConditionType::Ready.to_string();
    let conditions = world.pipeline.status.iter().flat_map(|status| &status.conditions);
    let before = conditions.into_iter().find(|condition| condition.type_ == ready);
    let reason = verdict.reason.to_string();
    if before.is_some_and(|before| before.reason == reason) {
        return None;
    }
    let kind = match (verdict.course, verdict.ready, verdict.reason) {
        (Course::Stuck, _, _) | (_, Truth::Unknown, _) | (_, _, ConditionReason::Worker(_)) => {
            EventKind::Warning
        }
        (_, Truth::True, _) => EventKind::Normal,
        (_, _, ConditionReason::Operator(OperatorReason::PodUnschedulable)) => EventKind::Warning,
        (_, _, ConditionReason::Operator(OperatorReason::Paused | OperatorReason::Snapshotting)) => {
            EventKind::Normal
        }
        (_, _, ConditionReason::Operator(_)) => return None,
    };
    Some(PlannedEvent::counted(kind, reason, verdict.message.clone()))
}

fn notices(stage: &Stage<'_>) -> Vec<PlannedEvent> {
    let Some((_, shards)) = stage.running() else { return Vec::new() };
    let reports = shards.iter().filter_map(reporting);
    reports
        .flat_map(|report| {
            report.notices.iter().map(|notice| {
                let epoch = report.epoch.unwrap_or_default();
                let key = format!("{}-{epoch}-{}", report.shard, notice.id);
                let note = format!("Shard {}: {}", report.shard, notice.message);
                PlannedEvent::once(&format!("{:?}", notice.reason), "Run", &key, note)
            })
        })
        .collect()
}
