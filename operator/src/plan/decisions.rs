//! What a decision about a dead end makes of a comparison: of the sink that it left, one that began before it says nothing.

use penstock_crds::report::{Decisions, WorkerPhase};

use super::shards::reporting;
use super::stage::Stage;

/// What a comparison that begins now has to be compared with later, by shard. A shard that does not say it counts as one
/// about which nothing was decided: once it says more, the comparison is outdated.
pub(super) fn noted(stage: &Stage<'_>) -> Vec<Decisions> {
    let noted: Vec<Decisions> = reported(stage).map(Option::unwrap_or_default).collect();
    if noted.iter().all(|decisions| *decisions == Decisions::default()) { Vec::new() } else { noted }
}

/// Whether a worker says that something was decided since.
pub(super) fn is_overtaken(stage: &Stage<'_>, noted: &[Decisions]) -> bool {
    reported(stage).zip(of_shards(noted)).any(|(now, then)| now.is_some_and(|now| now != then))
}

/// Whether every worker says that nothing was decided since. Until it streams it may not know yet that it stands at a
/// dead end.
pub(super) fn is_confirmed(stage: &Stage<'_>, noted: &[Decisions]) -> bool {
    let Some((_, shards)) = stage.running() else { return false };
    let says_so = |(shard, then): (_, Decisions)| {
        reporting(shard)
            .is_some_and(|report| report.phase == WorkerPhase::Streaming && report.decisions == Some(then))
    };
    !shards.is_empty() && shards.iter().zip(of_shards(noted)).all(says_so)
}

/// What the workers say now, by shard.
fn reported<'a>(stage: &'a Stage<'_>) -> impl Iterator<Item = Option<Decisions>> + 'a {
    let shards = stage.running().map_or(&[][..], |(_, shards)| shards);
    shards.iter().map(|shard| reporting(shard)?.decisions)
}

fn of_shards(noted: &[Decisions]) -> impl Iterator<Item = Decisions> {
    noted.iter().copied().chain(std::iter::repeat(Decisions::default()))
}
