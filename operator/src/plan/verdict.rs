//! What there is to say about a pipeline: one phase, one reason, one sentence.

use penstock_crds::conditions::{ConditionReason, OperatorReason};
use penstock_crds::report::{Policy, Problem, Reason, WorkerPhase};
use penstock_crds::revision::RevisionName;
use penstock_crds::status::Phase;

use super::rollout::{Beside, Rollout};
use super::shards::{Shard, reporting};
use super::stage::{Crew, Lineup, Meant, Stage, others};
use crate::names::of_revision;
use crate::world::{KnownRevision, PodTrouble, WorkerPod, World};

/// Status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Truth {
    /// It is so.
    True,
    /// It is not so.
    False,
    /// Nobody knows, which is never good.
    Unknown,
}

impl From<bool> for Truth {
    fn from(is_so: bool) -> Self {
        if is_so { Self::True } else { Self::False }
    }
}

/// Where it goes from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Course {
    /// It stays as it is.
    Settled,
    /// It goes on by itself.
    Moving,
    /// A person is needed.
    Stuck,
}

/// What there is to say about a pipeline.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) phase: Phase,
    pub(super) ready: Truth,
    pub(super) reason: ConditionReason,
    pub(super) message: String,
    pub(super) course: Course,
}

impl Verdict {
    /// It needs a person.
    pub(super) fn stuck(reason: impl Into<ConditionReason>, message: String) -> Self {
        Self {
            phase: Phase::Stalled,
            ready: Truth::False,
            reason: reason.into(),
            message,
            course: Course::Stuck,
        }
    }

    /// It is on the way.
    pub(super) fn moving(phase: Phase, reason: impl Into<ConditionReason>, message: String) -> Self {
        Self { phase, ready: Truth::False, reason: reason.into(), message, course: Course::Moving }
    }

    /// What has to happen before it is settled.
    pub(super) fn waits_for(&self) -> Option<String> {
        match self.course {
            Course::Settled => None,
            Course::Moving | Course::Stuck => Some(format!("{}: {}", self.reason, self.message)),
        }
    }
}

/// What there is to say about a pipeline that the operator cannot observe.
pub(super) fn unobserved(before: Option<Phase>, error: &str) -> Verdict {
    Verdict {
        phase: before.unwrap_or(Phase::Starting),
        ready: Truth::Unknown,
        reason: OperatorReason::ObservationFailed.into(),
        message: format!("The operator cannot see how the pipeline is and tries again: {error}"),
        course: Course::Moving,
    }
}

/// What there is to say about a pipeline that nobody deleted.
pub(super) fn of(world: &World, stage: &Stage<'_>, rollout: &Rollout) -> Verdict {
    if let Some(refusal) = &world.refused {
        return Verdict::stuck(
            OperatorReason::ApiRefused,
            format!("Kubernetes refuses an object of the pipeline: {refusal}"),
        );
    }
    match stage {
        Stage::Unguarded | Stage::Mint(_) => of_mint(world),
        Stage::NameTaken(taken) => Verdict::stuck(
            OperatorReason::NameTaken,
            format!(
                "The pipeline needs these names and somebody else has them: {}. Remove those objects, or create the pipeline under another name",
                taken.join(", ")
            ),
        ),
        Stage::Unreadable(revisions) => Verdict::stuck(
            OperatorReason::RevisionUnreadable,
            format!(
                "Stored revisions cannot be read, so nothing is changed: {}. Run the version of the operator that stored them, or delete them: what the spec says is minted anew",
                revisions.join("; ")
            ),
        ),
        Stage::Clash(name) => Verdict::stuck(
            OperatorReason::RevisionClash,
            format!(
                "The spec hashes to the name {name}, which another revision has. Change it in any way that changes no data, for example list a table that a pattern matches already"
            ),
        ),
        Stage::Hold { missing } => Verdict::stuck(Reason::CredentialsMissing, missing.clone()),
        Stage::Stop { lineup } => of_stop(world, lineup),
        Stage::Run { .. } if world.pipeline.spec.paused => of_pause(world),
        Stage::Run { lineup, missing } => {
            let verdict = of_crew(world, &lineup.stable, missing.as_deref());
            if verdict.course == Course::Settled {
                of_rollout(world, (lineup, missing.as_deref()), rollout).unwrap_or(verdict)
            } else {
                verdict
            }
        }
    }
}

fn of_crew(world: &World, crew: &Crew<'_>, missing: Option<&str>) -> Verdict {
    of_update(&crew.outdated, missing).unwrap_or_else(|| of_run(world, &crew.revision, &crew.shards, missing))
}

/// What there is to say of a revision that the spec means and that does not write the tables which readers know, while another one
/// does as it should.
fn of_rollout(
    world: &World,
    (lineup, missing): (&Lineup<'_>, Option<&str>),
    rollout: &Rollout,
) -> Option<Verdict> {
    let stable = &lineup.stable.revision.name;
    let moving =
        |reason: OperatorReason, message: String| Some(Verdict::moving(Phase::RollingOut, reason, message));
    match (lineup.meant, rollout.beside, &lineup.beside) {
        (Meant::Stable, _, _) => None,
        (Meant::Barred, _, _) => Some(of_barred(world, stable)),
        (Meant::Another, _, _) | (Meant::Beside, None, _) | (_, _, None) => {
            moving(OperatorReason::Removing, "What is beside the stable revision is removed first".into())
        }
        (Meant::Beside, Some(Beside::Leaving), Some(beside)) if beside.revision.course.is_barred => {
            Some(of_barred(world, stable))
        }
        (Meant::Beside, Some(Beside::Leaving), Some(beside)) => moving(
            OperatorReason::Removing,
            format!("Revision {} is removed; it is tried again afterwards", beside.revision.name),
        ),
        (Meant::Beside, Some(Beside::Previous), Some(beside)) => moving(
            OperatorReason::CanaryRunning,
            format!("The tables are given back to revision {}", beside.revision.name),
        ),
        (Meant::Beside, Some(Beside::Canary { waits }), Some(beside)) => {
            let own = of_crew(world, beside, missing);
            let name = &beside.revision.name;
            if own.course != Course::Settled {
                let message = format!(
                    "Revision {stable} applies changes as they arrive. The canary {name}: {}",
                    own.message
                );
                return Some(Verdict { phase: Phase::RollingOut, ready: Truth::False, message, ..own });
            }
            let reason =
                if waits { OperatorReason::WaitsForPromotion } else { OperatorReason::CanaryRunning };
            moving(reason, super::rollout::progress(world, lineup, rollout))
        }
    }
}

/// It is the spec that has to change.
fn of_barred(world: &World, stable: &RevisionName) -> Verdict {
    let barred = world.revisions.iter().filter(|revision| revision.course.is_barred);
    let newest = barred.max_by_key(|revision| revision.number);
    let (name, reason) = newest.map_or_else(Default::default, |revision| {
        let reason = revision.course.outcome.as_ref().map(|outcome| outcome.reason.clone());
        (revision.name.to_string(), reason.unwrap_or_default())
    });
    let message = format!(
        "Revision {stable} applies changes as they arrive. What the spec means, revision {name}, is not tried again: {reason}. Change the \
         spec, or set it back to that of {stable}"
    );
    Verdict { phase: Phase::Streaming, ..Verdict::stuck(OperatorReason::RevisionRejected, message) }
}

fn of_mint(world: &World) -> Verdict {
    let (phase, reason) = if world.sets.is_empty() {
        (Phase::Starting, OperatorReason::Starting)
    } else {
        (Phase::Replacing, OperatorReason::Replacing)
    };
    Verdict::moving(phase, reason, "A revision is made of the spec as it is now".into())
}

fn of_stop(world: &World, lineup: &Lineup<'_>) -> Verdict {
    let target = &lineup.stable.revision;
    let others_pods = world.pods.iter().filter(|pod| !lineup.has(&pod.revision));
    let mut left: Vec<&str> = others_pods.map(|pod| pod.name.as_str()).collect();
    left.sort_unstable();
    let message = if left.is_empty() {
        let sets: Vec<&str> = others(world, lineup).map(|set| set.object.name.as_str()).collect();
        format!("Waits until Kubernetes says that the StatefulSet {} has no pods left", sets.join(", "))
    } else {
        format!("Revision {} starts when these pods are gone: {}", target.name, left.join(", "))
    };
    Verdict::moving(Phase::Replacing, OperatorReason::Replacing, message)
}

fn of_pause(world: &World) -> Verdict {
    let is_still = world.pods.is_empty();
    let message = if is_still {
        "The workers are stopped because spec.paused is true; set it to false to go on. The source keeps its write-ahead log meanwhile"
    } else {
        "The workers finish their batch and stop because spec.paused is true"
    };
    Verdict {
        phase: Phase::Paused,
        ready: Truth::False,
        reason: OperatorReason::Paused.into(),
        message: message.into(),
        course: if is_still { Course::Settled } else { Course::Moving },
    }
}

/// What workers of an older spec say tells nothing about this one.
fn of_update(outdated: &[&WorkerPod], missing: Option<&str>) -> Option<Verdict> {
    if outdated.is_empty() {
        return None;
    }
    if let Some(missing) = missing {
        let message = format!("{missing}. The workers run with the spec as it was before");
        return Some(Verdict::stuck(Reason::CredentialsMissing, message));
    }
    let names: Vec<&str> = outdated.iter().map(|pod| pod.name.as_str()).collect();
    let message =
        format!("The workers restart with the changed spec when these pods are gone: {}", names.join(", "));
    Some(Verdict::moving(Phase::Starting, OperatorReason::Starting, message))
}

/// The worst that any shard has, the lowest shard first.
fn of_run(world: &World, target: &KnownRevision, shards: &[Shard<'_>], missing: Option<&str>) -> Verdict {
    problem(shards, Policy::Halt)
        .map(|(reason, message)| Verdict::stuck(reason, message))
        .or_else(|| trouble(shards))
        .or_else(|| refused_pods(world, target))
        .or_else(|| lacking_secrets(shards, missing))
        .or_else(|| {
            problem(shards, Policy::Retry)
                .map(|(reason, message)| Verdict::moving(Phase::Retrying, reason, message))
        })
        .or_else(|| unschedulable(shards))
        .or_else(|| silent(shards))
        .unwrap_or_else(|| progress(shards))
}

/// `Shard 2: …` where there are several.
fn of_shard(shards: &[Shard<'_>], index: usize, message: &str) -> String {
    if shards.len() > 1 { format!("Shard {index}: {message}") } else { message.to_owned() }
}

fn problem(shards: &[Shard<'_>], policy: Policy) -> Option<(Reason, String)> {
    shards.iter().enumerate().find_map(|(index, shard)| {
        let Problem { reason, message } = reporting(shard)?.problem.as_ref()?;
        (reason.policy() == policy).then(|| (*reason, of_shard(shards, index, message)))
    })
}

fn trouble(shards: &[Shard<'_>]) -> Option<Verdict> {
    shards.iter().enumerate().find_map(|(index, shard)| {
        let Shard::Trouble(trouble) = shard else { return None };
        let (reason, message) = match trouble {
            PodTrouble::ImagePull(message) => (OperatorReason::ImagePullFailed, message),
            PodTrouble::Crashing(message) => (OperatorReason::WorkerCrashing, message),
            PodTrouble::Container(message) => (OperatorReason::ContainerFailed, message),
            PodTrouble::Unschedulable(_) => return None,
        };
        Some(Verdict::stuck(reason, of_shard(shards, index, message)))
    })
}

fn refused_pods(world: &World, target: &KnownRevision) -> Option<Verdict> {
    let is_there =
        |shard: u16| world.pods.iter().any(|pod| pod.revision == target.name && pod.shard == shard);
    let absent: Vec<String> = (0..target.minted.data.shards)
        .filter(|shard| !is_there(*shard))
        .map(|shard| shard.to_string())
        .collect();
    if absent.is_empty() || !world.are_pods_refused() {
        return None;
    }
    let message = format!(
        "Kubernetes makes no pod for the shards {}, mostly because of a quota, Pod Security or a webhook: kubectl describe statefulset {} shows what refuses them",
        absent.join(", "),
        of_revision(world.name(), &target.name),
    );
    Some(Verdict::stuck(OperatorReason::PodsRefused, message))
}

/// A missing Secret explains a pod that does not start; workers that run are not concerned.
fn lacking_secrets(shards: &[Shard<'_>], missing: Option<&str>) -> Option<Verdict> {
    let all_report = shards.iter().all(|shard| reporting(shard).is_some());
    let missing = missing.filter(|_| !all_report)?;
    Some(Verdict::stuck(Reason::CredentialsMissing, missing.to_owned()))
}

fn unschedulable(shards: &[Shard<'_>]) -> Option<Verdict> {
    shards.iter().enumerate().find_map(|(index, shard)| match shard {
        Shard::Trouble(PodTrouble::Unschedulable(message)) => Some(Verdict::moving(
            Phase::Starting,
            OperatorReason::PodUnschedulable,
            of_shard(shards, index, message),
        )),
        Shard::Trouble(PodTrouble::ImagePull(_) | PodTrouble::Crashing(_) | PodTrouble::Container(_))
        | Shard::Starting
        | Shard::Silent(_)
        | Shard::Reporting(_) => None,
    })
}

fn silent(shards: &[Shard<'_>]) -> Option<Verdict> {
    shards.iter().enumerate().find_map(|(index, shard)| {
        let Shard::Silent(error) = shard else { return None };
        let message = format!("The worker runs and does not answer the operator: {error}");
        Some(Verdict {
            phase: Phase::Retrying,
            ready: Truth::Unknown,
            reason: OperatorReason::WorkerUnreachable.into(),
            message: of_shard(shards, index, &message),
            course: Course::Moving,
        })
    })
}

/// No shard has anything to complain of.
fn progress(shards: &[Shard<'_>]) -> Verdict {
    let phases: Vec<Option<WorkerPhase>> = shards.iter().map(phase_of_rows).collect();
    let is_up = |phase: &Option<WorkerPhase>| {
        matches!(phase, Some(WorkerPhase::Snapshotting | WorkerPhase::Streaming))
    };
    if phases.iter().all(|phase| *phase == Some(WorkerPhase::Streaming)) {
        return Verdict {
            phase: Phase::Streaming,
            ready: Truth::True,
            reason: OperatorReason::Streaming.into(),
            message: "Changes are applied as they arrive".into(),
            course: Course::Settled,
        };
    }
    if phases.iter().all(is_up) {
        return Verdict::moving(
            Phase::Snapshotting,
            OperatorReason::Snapshotting,
            "Existing rows are copied".into(),
        );
    }
    let up = phases.iter().filter(|phase| is_up(phase)).count();
    let message = format!("{up} of {} workers are up; the others start", shards.len());
    Verdict::moving(Phase::Starting, OperatorReason::Starting, message)
}

/// A worker that streams while rows are still copied beside it has not everything that was asked for.
fn phase_of_rows(shard: &Shard<'_>) -> Option<WorkerPhase> {
    let report = reporting(shard)?;
    let is_copying = report.phase == WorkerPhase::Streaming && !report.has_all_rows();
    Some(if is_copying { WorkerPhase::Snapshotting } else { report.phase })
}
