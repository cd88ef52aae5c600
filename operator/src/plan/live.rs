//! What to do about a pipeline that nobody deleted.

use super::events::{PlannedEvent, transitions};
use super::stage::{Crew, Lineup, Stage, others, others_are_over, stage};
use super::{
    Doomed, DoomedKind, LOOK_AGAIN, Plan, PlanError, Step, comparison, directive, manifests, revision,
    rollout, status, verdict,
};
use crate::world::{ControlSecret, Owned, WorkerSet, World};

/// What to do about a pipeline that nobody deleted.
pub(super) fn plan(world: &World) -> Result<Plan, PlanError> {
    // 1. Where is it?
    let stage = stage(world)?;
    // 2. What brings it further?
    let mut steps = steps(world, &stage)?;
    steps.extend(directive::steps(world, &stage));
    // 3. What is tried beside it?
    let rollout = rollout::rollout(world, &stage)?;
    steps.extend(rollout.steps.iter().cloned());
    // 4. What is there to say about it?
    let verdict = verdict::of(world, &stage, &rollout);
    steps.extend(transitions(world, &stage, &verdict).into_iter().map(Step::Emit));
    // 5. Is the sink what the source is? Last, because nothing else depends on it.
    let comparison = comparison::comparison(world, &stage)?;
    let status = status::of(world, &stage, &verdict, (&comparison, &rollout));
    steps.extend(comparison.steps);
    Ok(Plan { steps, waits_for: verdict.waits_for(), status: Some(status), look_again: Some(LOOK_AGAIN) })
}

fn steps(world: &World, stage: &Stage<'_>) -> Result<Vec<Step>, PlanError> {
    match stage {
        Stage::Unguarded => Ok(vec![Step::AddFinalizer]),
        Stage::NameTaken(_) | Stage::Unreadable(_) | Stage::Clash(_) | Stage::Hold { .. } => Ok(Vec::new()),
        Stage::Mint(revision) => Ok(vec![
            Step::Apply(manifests::controller_revision(world, revision)?),
            Step::Emit(PlannedEvent::minted(revision)),
        ]),
        Stage::Stop { lineup } => stop_others(world, lineup),
        Stage::Run { lineup, missing } => {
            let mut steps = shared_objects(world);
            if missing.is_none() {
                for crew in lineup.crews() {
                    steps.extend(run(world, crew)?);
                }
            }
            if others_are_over(stage) {
                steps.extend(retire_others(world, lineup));
            }
            steps.extend(forget_old_revisions(world));
            Ok(steps)
        }
    }
}

/// Scales every other revision to zero; its workers stop at an exact position.
fn stop_others(world: &World, lineup: &Lineup<'_>) -> Result<Vec<Step>, PlanError> {
    let mut steps = Vec::new();
    for set in others(world, lineup).filter(|set| !set.is_deleting) {
        match world.revisions.iter().find(|revision| revision.name == set.object.revision) {
            Some(revision) => steps.push(Step::Apply(manifests::stateful_set(world, revision, 0)?)),
            None => steps.push(delete(DoomedKind::StatefulSet, &set.object)),
        }
        if set.replicas_wanted > 0 {
            steps.push(Step::Emit(PlannedEvent::replacing(&set.object.revision, &lineup.stable.revision)));
        }
    }
    Ok(steps)
}

/// Brings the workers to the spec as it is now. Outdated ones go all at once, whatever state they are in;
/// when there should be none at all, the StatefulSet ends them.
fn run(world: &World, crew: &Crew<'_>) -> Result<Vec<Step>, PlanError> {
    let mut steps = vec![
        Step::Apply(manifests::config_map(world, &crew.revision)?),
        Step::Apply(manifests::stateful_set(world, &crew.revision, crew.replicas)?),
    ];
    let doomed = crew.outdated.iter().filter(|pod| crew.replicas > 0 && !pod.is_deleting);
    steps.extend(doomed.map(|pod| {
        Step::Delete(Doomed { kind: DoomedKind::Pod, name: pod.name.clone(), uid: pod.uid.clone() })
    }));
    Ok(steps)
}

/// What the workers of every revision share.
fn shared_objects(world: &World) -> Vec<Step> {
    let mut steps =
        vec![Step::Apply(manifests::service_account(world)), Step::Apply(manifests::service(world))];
    let is_due = match world.control {
        ControlSecret::Missing => true,
        ControlSecret::Issued { renew_at } => renew_at <= world.now,
    };
    if is_due {
        steps.push(Step::IssueControlSecret);
    }
    steps
}

/// Removes the workers, volumes and manifests of other revisions.
fn retire_others(world: &World, lineup: &Lineup<'_>) -> Vec<Step> {
    let target = &lineup.stable.revision;
    let is_other = |object: &&Owned| !lineup.has(&object.revision);
    let sets: Vec<&WorkerSet> = others(world, lineup).filter(|set| !set.is_deleting).collect();
    let mut steps: Vec<Step> =
        sets.iter().map(|set| Step::Emit(PlannedEvent::replaced(&set.object.revision, target))).collect();
    steps.extend(sets.iter().map(|set| delete(DoomedKind::StatefulSet, &set.object)));
    let claims = world.claims.iter().filter(is_other);
    steps.extend(claims.map(|claim| delete(DoomedKind::PersistentVolumeClaim, claim)));
    let config_maps = world.config_maps.iter().filter(is_other);
    steps.extend(config_maps.map(|config_map| delete(DoomedKind::ConfigMap, config_map)));
    steps
}

fn forget_old_revisions(world: &World) -> impl Iterator<Item = Step> {
    revision::too_old(world).into_iter().map(|revision| {
        Step::Delete(Doomed {
            kind: DoomedKind::ControllerRevision,
            name: crate::names::of_revision(world.name(), &revision.name),
            uid: revision.uid.clone(),
        })
    })
}

/// A deletion of something that belongs to a revision.
pub(super) fn delete(kind: DoomedKind, object: &Owned) -> Step {
    Step::Delete(Doomed { kind, name: object.name.clone(), uid: object.uid.clone() })
}
