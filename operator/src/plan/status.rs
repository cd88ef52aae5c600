//! The status that an observation amounts to. What is as it was before stays as it was, time included: at
//! rest nothing is written.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use penstock_crds::conditions::{ConditionReason, ConditionType, OperatorReason};
use penstock_crds::report::{Reachability, Report, WorkerPhase};
use penstock_crds::revision::RevisionName;
use penstock_crds::{CdcPipeline, CdcPipelineStatus};

use super::comparison::Comparison;
use super::rollout::{self, Beside, Rollout};
use super::shards::{Shard, reporting};
use super::stage::Stage;
use super::verdict::{Course, Truth, Verdict};
use crate::names::{selector_text, worker_selector};
use crate::world::World;

/// Conditions that only a pipeline that lives and can be observed has.
const OBSERVED: [ConditionType; 4] = [
    ConditionType::SourceReachable,
    ConditionType::SinkReachable,
    ConditionType::SnapshotComplete,
    ConditionType::SourceMatches,
];

/// One condition before it has a time.
struct Finding {
    kind: ConditionType,
    truth: Truth,
    reason: ConditionReason,
    message: String,
}

impl Finding {
    fn new(
        kind: ConditionType,
        truth: Truth,
        reason: impl Into<ConditionReason>,
        message: impl Into<String>,
    ) -> Self {
        Self { kind, truth, reason: reason.into(), message: message.into() }
    }
}

/// The status of a pipeline that nobody deleted.
pub(super) fn of(
    world: &World,
    stage: &Stage<'_>,
    verdict: &Verdict,
    (comparison, rollout): (&Comparison<'_>, &Rollout),
) -> CdcPipelineStatus {
    let before = before(world);
    let reports = reports(stage);
    let stable_revision =
        stable_revision(stage).map(|name| name.0).or_else(|| before.stable_revision.clone());
    let tables_copied = reports
        .as_deref()
        .and_then(tables_copied)
        .or_else(|| before.tables_copied.clone().filter(|_| stable_revision == before.stable_revision));
    let (slots, publication) = reports
        .as_deref()
        .and_then(names_in_source)
        .unwrap_or_else(|| (before.slots.clone(), before.publication.clone()));
    let mut findings = course(verdict);
    findings.extend(ends(stage, verdict));
    findings.push(snapshot(stage, verdict));
    let (truth, reason, message) = comparison.finding(world.name());
    findings.push(Finding::new(ConditionType::SourceMatches, truth, reason, message));
    findings.extend(of_rollout(world, stage, rollout));
    let beside = |is_it: &dyn Fn(Beside) -> bool| {
        let status = rollout.status.as_ref().filter(|_| rollout.beside.is_some_and(is_it));
        status.map(|status| status.revision.clone())
    };
    let canary_revision = beside(&|is| matches!(is, Beside::Canary { .. }));
    let required = world.pipeline.spec.rollout.comparison.required_matches;
    let matches = rollout.status.as_ref().filter(|_| canary_revision.is_some());
    CdcPipelineStatus {
        stable_revision,
        matches: matches.map(|status| format!("{}/{required}", status.matches.min(required))),
        canary_revision,
        previous_revision: beside(&|is| is == Beside::Previous),
        // Where nobody can look at it, it stands as it did.
        rollout: rollout.status.clone().or_else(|| before.rollout.filter(|_| stage.lineup().is_none())),
        tables_copied,
        slots,
        publication,
        source_comparison: comparison.last.clone(),
        source_comparison_due: comparison.due_since(),
        lag: reports.as_deref().and_then(lag),
        ..common(world, verdict, findings)
    }
}

/// What there is to say while something is beside the stable revision.
fn of_rollout(world: &World, stage: &Stage<'_>, rollout: &Rollout) -> Option<Finding> {
    let lineup = stage.lineup()?;
    let (kind, (truth, reason, message)) = match (rollout.beside?, &lineup.beside, &rollout.status) {
        (Beside::Canary { .. }, _, Some(status)) => {
            (ConditionType::CanaryMatching, rollout::matching(world, lineup, status))
        }
        (Beside::Previous, Some(previous), _) => {
            (ConditionType::RollbackAvailable, rollout::way_back(world, lineup, previous))
        }
        (Beside::Canary { .. } | Beside::Previous | Beside::Leaving, _, _) => return None,
    };
    Some(Finding::new(kind, truth, reason, message))
}

/// The status of a pipeline that is being deleted.
pub(super) fn of_deletion(world: &World, verdict: &Verdict) -> CdcPipelineStatus {
    let before = before(world);
    let mut findings = course(verdict);
    for kind in OBSERVED {
        findings.push(Finding::new(
            kind,
            Truth::Unknown,
            OperatorReason::Deleting,
            "The pipeline is being deleted",
        ));
    }
    CdcPipelineStatus {
        stable_revision: before.stable_revision,
        tables_copied: before.tables_copied,
        slots: before.slots,
        publication: before.publication,
        source_comparison: before.source_comparison,
        rollout: before.rollout,
        ..common(world, verdict, findings)
    }
}

/// The status of a pipeline that cannot be observed: what was said of it before stands no more.
pub(super) fn unobserved(pipeline: &CdcPipeline, now: Timestamp, verdict: &Verdict) -> CdcPipelineStatus {
    let mut findings = course(verdict);
    for kind in OBSERVED {
        let message = "The operator cannot see it now";
        findings.push(Finding::new(kind, Truth::Unknown, OperatorReason::ObservationFailed, message));
    }
    CdcPipelineStatus {
        observed_generation: pipeline.metadata.generation,
        phase: Some(verdict.phase),
        lag: None,
        conditions: timed(pipeline, now, findings),
        ..pipeline.status.clone().unwrap_or_default()
    }
}

fn common(world: &World, verdict: &Verdict, findings: Vec<Finding>) -> CdcPipelineStatus {
    CdcPipelineStatus {
        observed_generation: world.pipeline.metadata.generation,
        phase: Some(verdict.phase),
        shards: i32::try_from(world.pods.iter().filter(|pod| !pod.is_deleting).count()).unwrap_or(i32::MAX),
        selector: Some(selector_text(&worker_selector(world.name(), None))),
        conditions: timed(&world.pipeline, world.now, findings),
        ..CdcPipelineStatus::default()
    }
}

fn before(world: &World) -> CdcPipelineStatus {
    world.pipeline.status.clone().unwrap_or_default()
}

/// Gives each finding its time: now if its status is another than before, else the time it had.
fn timed(pipeline: &CdcPipeline, now: Timestamp, findings: Vec<Finding>) -> Vec<Condition> {
    let before = pipeline.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    findings
        .into_iter()
        .map(|finding| {
            let kind = finding.kind.to_string();
            let status = format!("{:?}", finding.truth);
            let since = before
                .iter()
                .find(|condition| condition.type_ == kind && condition.status == status)
                .map_or_else(|| Time(whole_seconds(now)), |condition| condition.last_transition_time.clone());
            Condition {
                type_: kind,
                status,
                reason: finding.reason.to_string(),
                message: finding.message,
                last_transition_time: since,
                observed_generation: pipeline.metadata.generation,
            }
        })
        .collect()
}

/// Kubernetes stores whole seconds.
pub(super) fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// `Ready`, `Reconciling` and `Stalled`, as kstatus reads them.
fn course(verdict: &Verdict) -> Vec<Finding> {
    let ready = Finding::new(ConditionType::Ready, verdict.ready, verdict.reason, verdict.message.as_str());
    let is_moving = verdict.course == Course::Moving;
    let is_stuck = verdict.course == Course::Stuck;
    let reconciling = if is_moving {
        Finding::new(ConditionType::Reconciling, Truth::True, verdict.reason, verdict.message.as_str())
    } else if is_stuck {
        let message = "Waits for a person; goes on by itself when the cause is gone";
        Finding::new(ConditionType::Reconciling, Truth::False, verdict.reason, message)
    } else {
        let message = "Everything is as the spec says";
        Finding::new(ConditionType::Reconciling, Truth::False, OperatorReason::Settled, message)
    };
    let stalled = if is_stuck {
        Finding::new(ConditionType::Stalled, Truth::True, verdict.reason, verdict.message.as_str())
    } else {
        Finding::new(
            ConditionType::Stalled,
            Truth::False,
            OperatorReason::NotStalled,
            "Nothing waits for a person",
        )
    };
    vec![ready, reconciling, stalled]
}

fn shards_of<'a, 'w>(stage: &'a Stage<'w>) -> &'a [Shard<'w>] {
    stage.running().map_or(&[], |(_, shards)| shards)
}

/// The word of every worker, if there is one of each.
fn reports<'w>(stage: &Stage<'w>) -> Option<Vec<&'w Report>> {
    let shards = shards_of(stage);
    let reports: Option<Vec<&Report>> = shards.iter().map(reporting).collect();
    reports.filter(|reports| !reports.is_empty())
}

/// The revision that was seen writing.
fn stable_revision(stage: &Stage<'_>) -> Option<RevisionName> {
    let writes = |report: &Report| matches!(report.phase, WorkerPhase::Snapshotting | WorkerPhase::Streaming);
    let (target, shards) = stage.running()?;
    shards.iter().filter_map(reporting).any(writes).then(|| target.name.clone())
}

fn ends(stage: &Stage<'_>, verdict: &Verdict) -> [Finding; 2] {
    let shards = shards_of(stage);
    [
        end(ConditionType::SourceReachable, "source", shards, verdict, |report| report.source),
        end(ConditionType::SinkReachable, "sink", shards, verdict, |report| report.sink),
    ]
}

fn end(
    kind: ConditionType,
    name: &str,
    shards: &[Shard<'_>],
    verdict: &Verdict,
    reachability: impl Fn(&Report) -> Reachability,
) -> Finding {
    let known: Vec<Option<Reachability>> =
        shards.iter().map(|shard| reporting(shard).map(&reachability)).collect();
    if let Some(shard) = known.iter().position(|answer| *answer == Some(Reachability::Unreachable)) {
        let problem = shards.get(shard).and_then(reporting).and_then(|report| report.problem.as_ref());
        let message = problem.map_or_else(
            || format!("The worker of shard {shard} does not reach the {name}"),
            |problem| problem.message.clone(),
        );
        return Finding::new(kind, Truth::False, OperatorReason::Unreachable, message);
    }
    if !known.is_empty() && known.iter().all(|answer| *answer == Some(Reachability::Reachable)) {
        let message = format!("Every worker reaches the {name}");
        return Finding::new(kind, Truth::True, OperatorReason::Reachable, message);
    }
    unknown(kind, verdict)
}

/// Nobody knows, for the reason that the pipeline is as it is.
fn unknown(kind: ConditionType, verdict: &Verdict) -> Finding {
    let reason = match verdict.reason {
        ConditionReason::Operator(
            reason @ (OperatorReason::Paused | OperatorReason::Replacing | OperatorReason::WorkerUnreachable),
        ) => reason,
        ConditionReason::Operator(_) | ConditionReason::Worker(_) => OperatorReason::NoReport,
    };
    Finding::new(kind, Truth::Unknown, reason, "No worker says so now")
}

fn snapshot(stage: &Stage<'_>, verdict: &Verdict) -> Finding {
    let kind = ConditionType::SnapshotComplete;
    let Some(reports) = reports(stage) else { return unknown(kind, verdict) };
    if reports.iter().all(|report| report.has_all_rows()) {
        return Finding::new(
            kind,
            Truth::True,
            OperatorReason::AllTablesCopied,
            "The rows of all tables are copied",
        );
    }
    let is_copying =
        |report: &&Report| report.phase == WorkerPhase::Snapshotting || report.snapshot.is_some();
    if reports.iter().any(|report| is_copying(report) && !report.has_all_rows()) {
        let message = tables_copied(&reports).map_or_else(
            || "Existing rows are copied".into(),
            |progress| format!("{progress} tables are copied"),
        );
        return Finding::new(kind, Truth::False, OperatorReason::TablesMissing, message);
    }
    unknown(kind, verdict)
}

/// `3/12`, if every worker knows its part.
fn tables_copied(reports: &[&Report]) -> Option<String> {
    let parts: Option<Vec<_>> = reports.iter().map(|report| report.snapshot).collect();
    let parts = parts?;
    let copied: u32 = parts.iter().map(|part| part.tables_copied).fold(0, u32::saturating_add);
    let tables: u32 = parts.iter().map(|part| part.tables).fold(0, u32::saturating_add);
    Some(format!("{copied}/{tables}"))
}

/// Slots by shard, and the publication, if every worker knows its names.
fn names_in_source(reports: &[&Report]) -> Option<(Vec<String>, Option<String>)> {
    let slots: Option<Vec<String>> = reports.iter().map(|report| report.slot.clone()).collect();
    let publication = reports.first().and_then(|report| report.publication.clone());
    slots.map(|slots| (slots, publication))
}

/// The lag of the slowest worker in steps, if every one knows its own.
fn lag(reports: &[&Report]) -> Option<String> {
    let lags: Option<Vec<f64>> = reports.iter().map(|report| report.lag.map(|lag| lag.seconds)).collect();
    let slowest = lags?.into_iter().fold(0.0, f64::max);
    let steps = [(10.0, "<10s"), (60.0, "<1m"), (600.0, "<10m"), (3600.0, "<1h")];
    let step = steps.into_iter().find(|(limit, _)| slowest < *limit).map_or(">=1h", |(_, step)| step);
    Some(step.to_owned())
}
