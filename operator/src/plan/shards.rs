//! How the workers of one revision are, shard by shard.

use penstock_crds::report::{Report, WorkerPhase};

use crate::world::{Answer, KnownRevision, PodTrouble, WorkerPod, World};

/// How one shard is.
#[derive(Debug)]
pub(super) enum Shard<'a> {
    /// It has no pod, or one that does not run yet.
    Starting,
    /// Its pod cannot run.
    Trouble(&'a PodTrouble),
    /// Its container runs, and its worker does not answer.
    Silent(&'a str),
    /// Its worker says so.
    Reporting(&'a Report),
}

/// The shards of a revision, by number. A pod that is ending speaks only while there is no other.
pub(super) fn shards<'a>(world: &'a World, revision: &KnownRevision) -> Vec<Shard<'a>> {
    (0..revision.minted.data.shards)
        .map(|shard| current_pod(world, revision, shard).map_or(Shard::Starting, |pod| of_pod(world, pod)))
        .collect()
}

/// The pod that speaks for a shard.
pub(super) fn current_pod<'a>(
    world: &'a World,
    revision: &KnownRevision,
    shard: u16,
) -> Option<&'a WorkerPod> {
    let pods = world.pods.iter().filter(|pod| pod.revision == revision.name && pod.shard == shard);
    pods.min_by_key(|pod| pod.is_deleting)
}

fn of_pod<'a>(world: &World, pod: &'a WorkerPod) -> Shard<'a> {
    if let Some(report) = pod.report(world.now) {
        return Shard::Reporting(report);
    }
    if let Some(trouble) = &pod.trouble {
        return Shard::Trouble(trouble);
    }
    match &pod.answer {
        Answer::NotRunning => Shard::Starting,
        Answer::Silent { error } => Shard::Silent(error),
        Answer::Report { .. } => Shard::Silent("its last report is more than 15 seconds old"),
    }
}

/// Whether every shard applies changes as they arrive.
pub(super) fn all_stream(shards: &[Shard<'_>]) -> bool {
    !shards.is_empty() && shards.iter().all(|shard| phase(shard) == Some(WorkerPhase::Streaming))
}

/// What the shard's worker does, if it says so.
pub(super) fn phase(shard: &Shard<'_>) -> Option<WorkerPhase> {
    reporting(shard).map(|report| report.phase)
}

/// What the shard's worker says.
pub(super) fn reporting<'a>(shard: &Shard<'a>) -> Option<&'a Report> {
    match shard {
        Shard::Reporting(report) => Some(report),
        Shard::Starting | Shard::Trouble(_) | Shard::Silent(_) => None,
    }
}
