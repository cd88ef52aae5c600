//! What to do about a pipeline that somebody deleted: workers first, then what they left, then the object.

use penstock_crds::conditions::OperatorReason;
use penstock_crds::names::{ANNOTATION_ADOPT, LABEL_UID, publication, slot};
use penstock_crds::report::Reason;
use penstock_crds::spec::DeletionPolicy;
use penstock_crds::status::Phase;

use super::events::{PlannedEvent, turn};
use super::live::delete;
use super::manifests::{self, adopted_uid};
use super::verdict::Verdict;
use super::{
    Doomed, DoomedKind, LOOK_AGAIN, Plan, PlanError, Step, comparison, revision, rollout, secrets, status,
};
use crate::names::clean_up_job;
use crate::world::{CleanUpJob, KnownRevision, World};

/// How to let go of a pipeline whose databases cannot be cleaned.
const LET_GO: &str = "To give up and keep what is left, set spec.deletionPolicy to Retain";

/// What to do about a pipeline that somebody deleted.
pub(super) fn plan(world: &World) -> Result<Plan, PlanError> {
    if !world.has_finalizer() {
        return Ok(Plan::nothing());
    }
    if let Some(plan) = stop_workers(world) {
        return Ok(plan);
    }
    let Some(last) = revision::last(world)? else {
        return Ok(let_go(Vec::new()));
    };
    if world.namespace_terminating {
        return Ok(let_go(vec![Step::Emit(last_words(world))]));
    }
    match world.pipeline.spec.deletion_policy {
        DeletionPolicy::Retain => Ok(retain(world)),
        DeletionPolicy::Delete => clean_up(world, &last),
    }
}

fn let_go(mut steps: Vec<Step>) -> Plan {
    steps.push(Step::RemoveFinalizer);
    Plan { steps, ..Plan::nothing() }
}

/// Nothing is touched while a worker may still write, or a comparison holds a slot.
fn stop_workers(world: &World) -> Option<Plan> {
    let sets = world.sets.iter().filter(|set| !set.is_deleting);
    let mut steps: Vec<Step> = sets.map(|set| delete(DoomedKind::StatefulSet, &set.object)).collect();
    steps.extend(world.comparisons.iter().filter(|job| !job.is_deleting).map(comparison::delete));
    steps.extend(world.rollout_jobs.iter().filter(|job| !job.is_deleting).map(rollout::delete_job));
    let pods = world.pods.iter().map(|pod| pod.name.as_str());
    let pods_of_jobs = world.comparison_pods.iter().chain(&world.rollout_pods);
    let mut left: Vec<&str> = pods.chain(pods_of_jobs.map(String::as_str)).collect();
    let are_jobs_gone = world.comparisons.is_empty() && world.rollout_jobs.is_empty();
    if world.sets.is_empty() && are_jobs_gone && left.is_empty() {
        return None;
    }
    left.sort_unstable();
    let message = format!("Workers and comparisons stop: {}", left.join(", "));
    Some(wait(world, steps, &Verdict::moving(Phase::Deleting, OperatorReason::Deleting, message)))
}

fn wait(world: &World, mut steps: Vec<Step>, verdict: &Verdict) -> Plan {
    steps.extend(turn(world, verdict).map(Step::Emit));
    Plan {
        steps,
        waits_for: verdict.waits_for(),
        status: Some(status::of_deletion(world, verdict)),
        look_again: Some(LOOK_AGAIN),
    }
}

fn retain(world: &World) -> Plan {
    if let Some(job) = &world.clean_up {
        return remove_job(world, job, "The clean-up stops, because deletionPolicy is Retain");
    }
    if !world.clean_up_pods.is_empty() {
        let message = format!("The clean-up stops: {}", world.clean_up_pods.join(", "));
        return wait(world, Vec::new(), &Verdict::moving(Phase::Deleting, OperatorReason::Deleting, message));
    }
    let status = world.refused.as_ref().map(|refusal| {
        let message = format!("Kubernetes refuses the Event that says what is kept: {refusal}");
        status::of_deletion(world, &deleting(Verdict::stuck(OperatorReason::ApiRefused, message)))
    });
    Plan { status, ..let_go(vec![Step::Emit(PlannedEvent::retained(kept(world)))]) }
}

/// How to go on, then what there is to go on from: a note that is too long is cut at its end.
fn kept(world: &World) -> String {
    format!(
        "A CdcPipeline with the annotation {ANNOTATION_ADOPT}: {} goes on from what is kept: {}",
        uid_to_adopt(world),
        leftovers(world)
    )
}

/// The UID that the sink's state bears: the adopted one, until a worker of this pipeline has moved it.
fn uid_to_adopt(world: &World) -> String {
    let own = &world.uid;
    let has_moved = world
        .pipeline
        .status
        .as_ref()
        .is_some_and(|status| status.stable_revision.is_some() || !status.slots.is_empty());
    match adopted_uid(&world.pipeline) {
        Some(adopted) if !has_moved => {
            format!("{adopted} (or {own}, if a worker of this pipeline has adopted that one)")
        }
        Some(_) | None => own.clone(),
    }
}

/// What there is to say in a namespace that is being deleted: no Job can be made in it.
fn last_words(world: &World) -> PlannedEvent {
    match world.pipeline.spec.deletion_policy {
        DeletionPolicy::Retain => PlannedEvent::retained_unheard(kept(world)),
        DeletionPolicy::Delete => PlannedEvent::left_behind(format!(
            "The namespace is being deleted, so nothing can clean up although deletionPolicy is Delete. Left behind: {}",
            leftovers(world)
        )),
    }
}

/// What is left in databases and volumes, and where.
fn leftovers(world: &World) -> String {
    let spec = &world.pipeline.spec;
    let (source, sink) = (&spec.source.postgres, &spec.sink.postgres);
    let (slots, publication) = names_in_source(world);
    let slots = match slots.as_slice() {
        [one] => format!("replication slot {one}"),
        [first, .., last] => format!("replication slots {first} to {last}"),
        [] => "no replication slot".to_owned(),
    };
    let publication = match &source.publication {
        Some(_) => String::new(),
        None => format!(" and publication {publication}"),
    };
    let volumes = match world.claims.len() {
        0 => String::new(),
        count => format!("; volume claims with the label {LABEL_UID}={} ({count})", world.uid),
    };
    format!(
        "{slots}{publication} in {} on {} (the source keeps its log until the slots are dropped); schema penstock in {} on {}{volumes}{}",
        source.connection.database,
        source.connection.host,
        sink.connection.database,
        sink.connection.host,
        of_rollout(world),
    )
}

/// What is left of a revision beside the stable one. Such state cannot be adopted.
fn of_rollout(world: &World) -> String {
    let rollout = world.pipeline.status.as_ref().and_then(|status| status.rollout.as_ref());
    rollout.map_or_else(String::new, |rollout| {
        format!(
            "; of revision {} beside it, with which nothing can be adopted: replication slots {} and schemas penstock_*_{} in the sink",
            rollout.revision,
            rollout.slots.join(", "),
            rollout.revision
        )
    })
}

/// Slots and publication as the workers named them. A heir keeps the names of the first owner, which its own
/// object does not know; where no worker ever said, they are those that it would have begun with.
fn names_in_source(world: &World) -> (Vec<String>, String) {
    let uid = adopted_uid(&world.pipeline).unwrap_or(&world.uid);
    let (slots, publication_said) = match &world.pipeline.status {
        Some(status) => (status.slots.clone(), status.publication.clone()),
        None => (Vec::new(), None),
    };
    let slots = match slots.as_slice() {
        [] => (0..world.pipeline.spec.worker.shards).map(|shard| slot(uid, shard)).collect(),
        [..] => slots,
    };
    (slots, publication_said.unwrap_or_else(|| publication(uid)))
}

fn clean_up(world: &World, last: &KnownRevision) -> Result<Plan, PlanError> {
    let (job, made_from) = manifests::clean_up_job(world, last)?;
    match &world.clean_up {
        Some(job) if job.is_complete => Ok(remove_volumes(world)),
        Some(job) if job.made_from != made_from || job.is_deleting => {
            Ok(remove_job(world, job, "The clean-up starts again with the changed spec"))
        }
        Some(job) => Ok(wait(world, Vec::new(), &of_job(world, job))),
        None if !world.taken.is_empty() => {
            let message = format!(
                "The clean-up needs these names and somebody else has them: {}. Remove those objects. {LET_GO}",
                world.taken.join(", ")
            );
            Ok(wait(world, Vec::new(), &deleting(Verdict::stuck(OperatorReason::NameTaken, message))))
        }
        None => {
            if let Some(missing) = secrets::missing_for_clean_up(world) {
                let verdict = Verdict::stuck(Reason::CredentialsMissing, format!("{missing}. {LET_GO}"));
                return Ok(wait(world, Vec::new(), &deleting(verdict)));
            }
            let steps = vec![
                Step::Apply(manifests::service_account(world)),
                Step::Apply(manifests::config_map(world, last)?),
                Step::Apply(job),
            ];
            Ok(wait(
                world,
                steps,
                &world.refused.as_ref().map_or_else(cleaning_up, |refusal| of_refusal(refusal)),
            ))
        }
    }
}

fn of_refusal(refusal: &str) -> Verdict {
    let message = format!("Kubernetes refuses an object of the clean-up: {refusal}. {LET_GO}");
    deleting(Verdict::stuck(OperatorReason::ApiRefused, message))
}

/// While it is being deleted, the phase says only that.
fn deleting(verdict: Verdict) -> Verdict {
    Verdict { phase: Phase::Deleting, ..verdict }
}

fn cleaning_up() -> Verdict {
    let message = "Replication slots, a managed publication and sink state are removed";
    Verdict::moving(Phase::Deleting, OperatorReason::CleaningUp, message.into())
}

fn of_job(world: &World, job: &CleanUpJob) -> Verdict {
    match &job.failure {
        None if world.are_pods_refused() => deleting(Verdict::stuck(
            OperatorReason::PodsRefused,
            format!(
                "Kubernetes makes no pod for the clean-up, mostly because of a quota, Pod Security or a webhook: kubectl describe job {} shows what refuses it. {LET_GO}",
                clean_up_job(world.name()),
            ),
        )),
        None => cleaning_up(),
        Some(failure) => deleting(Verdict::stuck(
            OperatorReason::CleanUpFailed,
            format!("The clean-up failed and tries again by itself: {failure}. {LET_GO}"),
        )),
    }
}

fn remove_job(world: &World, job: &CleanUpJob, message: &str) -> Plan {
    let steps = if job.is_deleting {
        Vec::new()
    } else {
        vec![Step::Delete(Doomed {
            kind: DoomedKind::Job,
            name: clean_up_job(world.name()),
            uid: job.uid.clone(),
        })]
    };
    wait(world, steps, &Verdict::moving(Phase::Deleting, OperatorReason::Deleting, message.into()))
}

/// The databases are clean; the volumes go, then the object.
fn remove_volumes(world: &World) -> Plan {
    if world.claims.is_empty() {
        return let_go(vec![Step::Emit(PlannedEvent::cleaned_up(adopted_uid(&world.pipeline)))]);
    }
    let steps = world.claims.iter().map(|claim| delete(DoomedKind::PersistentVolumeClaim, claim)).collect();
    wait(
        world,
        steps,
        &Verdict::moving(Phase::Deleting, OperatorReason::CleaningUp, "The volumes are removed".into()),
    )
}
