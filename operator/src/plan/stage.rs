//! Where a living pipeline is on the way from its spec to running workers.

use penstock_crds::revision::RevisionName;

use super::manifests::workers_made_from;
use super::revision::{Target, target};
use super::shards::{Shard, all_stream, shards};
use super::{PlanError, secrets};
use crate::world::{KnownRevision, WorkerPod, WorkerSet, World};

/// Where a living pipeline is. Set by what is observed alone; each arm says what leads out of it.
#[derive(Debug)]
pub(super) enum Stage<'a> {
    /// The object does not wait for the operator yet. Next: `Mint`, when the finalizer is observed.
    Unguarded,
    /// Somebody else's objects have names the pipeline needs. Next: `Mint`, when they are gone.
    NameTaken(&'a [String]),
    /// Kept revisions cannot be read, so nobody knows what runs. Next: `Mint`, when they can be or are gone.
    Unreadable(&'a [String]),
    /// Two specs have one revision name. Next: `Mint`, when the spec is another.
    Clash(RevisionName),
    /// The spec means a revision that is not the newest. Next: `Hold`, `Stop` or `Run`, when it is.
    Mint(KnownRevision),
    /// Workers cannot start, so those that run are left alone. Next: `Stop` or `Run`, when nothing is missing.
    Hold {
        /// What is missing.
        missing: String,
    },
    /// Another revision's workers stop. Next: `Run`, when their pods are observed gone.
    Stop {
        /// What workers should run.
        target: KnownRevision,
    },
    /// The revision's workers run, or are paused. When they all stream, what others left is removed.
    Run {
        /// What workers run.
        target: KnownRevision,
        /// How many of them there should be: none when it is paused.
        replicas: u16,
        /// How they are.
        shards: Vec<Shard<'a>>,
        /// Those that were made from something older than the spec as it is now.
        outdated: Vec<&'a WorkerPod>,
        /// Secrets that new workers would lack: those that run are left as they are.
        missing: Option<String>,
    },
}

impl<'a> Stage<'a> {
    /// The revision that workers run, or run again after a pause, and how each of its shards is.
    pub(super) fn running(&self) -> Option<(&KnownRevision, &[Shard<'a>])> {
        match self {
            Self::Run { target, shards, .. } => Some((target, shards)),
            Self::Unguarded
            | Self::NameTaken(_)
            | Self::Unreadable(_)
            | Self::Clash(_)
            | Self::Mint(_)
            | Self::Hold { .. }
            | Self::Stop { .. } => None,
        }
    }
}

/// Where a living pipeline is.
pub(super) fn stage(world: &World) -> Result<Stage<'_>, PlanError> {
    if !world.has_finalizer() {
        return Ok(Stage::Unguarded);
    }
    if !world.unreadable.is_empty() {
        return Ok(Stage::Unreadable(&world.unreadable));
    }
    let target = match target(world)? {
        Target::Clash(known) => return Ok(Stage::Clash(known.name)),
        Target::Mint(revision) => return Ok(Stage::Mint(revision)),
        Target::Minted(target) => target,
    };
    if !world.taken.is_empty() {
        return Ok(Stage::NameTaken(&world.taken));
    }
    let is_paused = world.pipeline.spec.paused;
    let runs_already = world.set(&target.name).is_some_and(|set| set.replicas_wanted > 0);
    let missing = secrets::missing(world).filter(|_| !is_paused);
    if let Some(missing) = &missing
        && !runs_already
    {
        return Ok(Stage::Hold { missing: missing.clone() });
    }
    if others_run(world, &target.name) {
        return Ok(Stage::Stop { target });
    }
    let replicas = if is_paused { 0 } else { target.minted.data.shards };
    let shards = shards(world, &target);
    let outdated = outdated(world, &target)?;
    Ok(Stage::Run { target, replicas, shards, outdated, missing })
}

/// Workers of the revision that are not made from the spec as it is now, ending ones too, by name.
fn outdated<'a>(world: &'a World, target: &KnownRevision) -> Result<Vec<&'a WorkerPod>, PlanError> {
    let made_from = workers_made_from(world, target)?;
    let is_outdated = |pod: &&WorkerPod| pod.revision == target.name && pod.made_from != made_from;
    let mut outdated: Vec<&WorkerPod> = world.pods.iter().filter(is_outdated).collect();
    outdated.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(outdated)
}

/// `StatefulSets` of revisions that the spec does not mean.
pub(super) fn others<'a>(world: &'a World, target: &RevisionName) -> impl Iterator<Item = &'a WorkerSet> {
    world.sets.iter().filter(move |set| set.object.revision != *target)
}

/// Whether a worker of another revision may still run. Gone means observed gone: by the StatefulSet's
/// controller and by its pods.
fn others_run(world: &World, target: &RevisionName) -> bool {
    others(world, target).any(|set| !set.is_observed_empty)
        || world.pods.iter().any(|pod| pod.revision != *target)
}

/// Whether what other revisions left can be removed: the new workers were seen streaming.
pub(super) fn others_are_over(stage: &Stage<'_>) -> bool {
    stage.running().is_some_and(|(_, shards)| all_stream(shards))
}
