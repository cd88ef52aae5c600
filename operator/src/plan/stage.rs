//! Where a living pipeline is on the way from its spec to running workers.

use penstock_crds::revision::RevisionName;

use super::manifests::workers_made_from;
use super::revision::{Target, heads, newest_of_each_lineage, said_to_be_stable, stable_among, target};
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
    /// The spec means a revision that is not minted. Next: `Hold`, `Stop` or `Run`, when it is.
    Mint(KnownRevision),
    /// Workers cannot start, so those that run are left alone. Next: `Stop` or `Run`, when nothing is missing.
    Hold {
        /// What is missing.
        missing: String,
    },
    /// Workers of a revision that goes on as another one stop. Next: `Run`, when their pods are observed gone.
    Stop {
        /// Those that should run.
        lineup: Lineup<'a>,
    },
    /// The workers that should run do, or are paused. When they all stream, what others left is removed.
    Run {
        /// Those that should run.
        lineup: Lineup<'a>,
        /// Secrets that new workers would lack: those that run are left as they are.
        missing: Option<String>,
    },
}

/// The revisions whose workers should run.
#[derive(Debug)]
pub(super) struct Lineup<'a> {
    /// The one that writes the tables which readers know.
    pub(super) stable: Crew<'a>,
    /// The one beside it: a canary, or the one that was promoted over.
    pub(super) beside: Option<Crew<'a>>,
    /// Which of them the spec means.
    pub(super) meant: Meant,
}

/// Which revision the spec means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meant {
    /// The one that writes the tables which readers know.
    Stable,
    /// The one beside it.
    Beside,
    /// One that was found wrong, or rolled back, and is not tried again.
    Barred,
    /// One that is minted when nothing is beside the stable one any more.
    Another,
}

/// The workers of a revision.
#[derive(Debug)]
pub(super) struct Crew<'a> {
    /// What they run.
    pub(super) revision: KnownRevision,
    /// How many of them there should be: none when they are paused, or are removed.
    pub(super) replicas: u16,
    /// How they are.
    pub(super) shards: Vec<Shard<'a>>,
    /// Those that were made from something older than the spec as it is now.
    pub(super) outdated: Vec<&'a WorkerPod>,
}

impl<'a> Stage<'a> {
    /// The revision that workers run, or run again after a pause, and how each of its shards is.
    pub(super) fn running(&self) -> Option<(&KnownRevision, &[Shard<'a>])> {
        let stable = &self.lineup()?.stable;
        Some((&stable.revision, &stable.shards))
    }

    /// The workers that run, or run again after a pause.
    pub(super) fn lineup(&self) -> Option<&Lineup<'a>> {
        match self {
            Self::Run { lineup, .. } => Some(lineup),
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

impl<'a> Lineup<'a> {
    /// All workers that should run.
    pub(super) fn crews(&self) -> impl Iterator<Item = &Crew<'a>> {
        std::iter::once(&self.stable).chain(&self.beside)
    }

    /// Whether this revision's workers should run.
    pub(super) fn has(&self, revision: &RevisionName) -> bool {
        self.crews().any(|crew| crew.revision.name == *revision)
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
    let target = target(world)?;
    match &target {
        Target::Clash(known) => return Ok(Stage::Clash(known.name.clone())),
        // One that is beside the stable revision leaves first.
        Target::Mint(revision) if heads(world).len() < 2 => return Ok(Stage::Mint(revision.clone())),
        Target::Mint(_) | Target::Minted(_) => {}
    }
    if !world.taken.is_empty() {
        return Ok(Stage::NameTaken(&world.taken));
    }
    let Some(lineup) = lineup(world, &target)? else {
        // It is removed, and minted again when it is gone.
        let (Target::Mint(revision) | Target::Minted(revision) | Target::Clash(revision)) = target;
        return Ok(Stage::Mint(revision));
    };
    let runs_already = world.set(&lineup.stable.revision.name).is_some_and(|set| set.replicas_wanted > 0);
    let missing = secrets::missing(world).filter(|_| !world.pipeline.spec.paused);
    if let Some(missing) = &missing
        && !runs_already
    {
        return Ok(Stage::Hold { missing: missing.clone() });
    }
    if others_run(world, &lineup) {
        return Ok(Stage::Stop { lineup });
    }
    Ok(Stage::Run { lineup, missing })
}

/// Who should run: of each lineage that has workers the newest revision, and the one that the spec means.
fn lineup<'a>(world: &'a World, target: &Target) -> Result<Option<Lineup<'a>>, PlanError> {
    let mut crews = heads(world);
    let minted = match target {
        Target::Minted(target) => world.revisions.iter().find(|revision| revision.name == target.name),
        Target::Mint(_) | Target::Clash(_) => None,
    };
    // Its workers may not have been made yet, or somebody has deleted them.
    for wanted in [minted, said_to_be_stable(world)].into_iter().flatten() {
        if !wanted.course.is_leaving && !crews.contains(&wanted) {
            crews.push(wanted);
        }
    }
    newest_of_each_lineage(&mut crews);
    let Some(stable) = stable_among(world, &crews) else { return Ok(None) };
    let beside = crews.iter().copied().find(|crew| crew.name != stable.name);
    let meant = match minted {
        Some(minted) if minted.name == stable.name => Meant::Stable,
        Some(minted) if beside.is_some_and(|beside| beside.name == minted.name) => Meant::Beside,
        Some(minted) if minted.course.is_barred => Meant::Barred,
        Some(_) | None => Meant::Another,
    };
    let beside = beside.map(|beside| crew(world, beside, beside.course.is_leaving)).transpose()?;
    Ok(Some(Lineup { stable: crew(world, stable, false)?, beside, meant }))
}

fn crew<'a>(world: &'a World, revision: &KnownRevision, is_leaving: bool) -> Result<Crew<'a>, PlanError> {
    let is_stopped = world.pipeline.spec.paused || is_leaving;
    Ok(Crew {
        revision: revision.clone(),
        replicas: if is_stopped { 0 } else { revision.minted.data.shards },
        shards: shards(world, revision),
        outdated: outdated(world, revision)?,
    })
}

/// Workers of the revision that are not made from the spec as it is now, ending ones too, by name.
fn outdated<'a>(world: &'a World, revision: &KnownRevision) -> Result<Vec<&'a WorkerPod>, PlanError> {
    let made_from = workers_made_from(world, revision)?;
    let is_outdated = |pod: &&WorkerPod| pod.revision == revision.name && pod.made_from != made_from;
    let mut outdated: Vec<&WorkerPod> = world.pods.iter().filter(is_outdated).collect();
    outdated.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(outdated)
}

/// `StatefulSets` of revisions whose workers should not run.
pub(super) fn others<'a>(world: &'a World, lineup: &Lineup<'_>) -> impl Iterator<Item = &'a WorkerSet> {
    world.sets.iter().filter(move |set| !lineup.has(&set.object.revision))
}

/// Whether a worker of another revision may still run. Gone means observed gone: by the StatefulSet's
/// controller and by its pods.
fn others_run(world: &World, lineup: &Lineup<'_>) -> bool {
    others(world, lineup).any(|set| !set.is_observed_empty)
        || world.pods.iter().any(|pod| !lineup.has(&pod.revision))
}

/// Whether what other revisions left can be removed: the new workers were seen streaming.
pub(super) fn others_are_over(stage: &Stage<'_>) -> bool {
    stage.running().is_some_and(|(_, shards)| all_stream(shards))
}
