//! Since when pods lack. Kubernetes does not say, so it is remembered between passes; a restart of the
//! operator begins anew.

use std::collections::HashMap;
use std::sync::Mutex;

use jiff::Timestamp;

use crate::world::{CleanUpJob, WorkerPod, WorkerSet};

/// Since when pods of each pipeline lack, by its UID.
#[derive(Debug, Default)]
pub(super) struct Absences(Mutex<HashMap<String, Timestamp>>);

impl Absences {
    /// Since when pods lack, if they do now.
    pub(super) fn note(&self, uid: &str, now: Timestamp, is_lacking: bool) -> Option<Timestamp> {
        if is_lacking {
            return Some(*self.lock().entry(uid.to_owned()).or_insert(now));
        }
        self.forget(uid);
        None
    }

    /// Forgets a pipeline that is gone.
    pub(super) fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Timestamp>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Whether a pod that should be there is not: its controller has seen what is wanted and has not made it.
pub(super) fn is_lacking(
    sets: &[WorkerSet],
    pods: &[WorkerPod],
    clean_up: Option<&CleanUpJob>,
    clean_up_pods: &[String],
) -> bool {
    let lacks_worker = |set: &WorkerSet| {
        let there = pods.iter().filter(|pod| pod.revision == set.object.revision).count();
        let wanted = usize::try_from(set.replicas_wanted).unwrap_or_default();
        set.is_observed && !set.is_deleting && there < wanted
    };
    let lacks_clean_up = clean_up.is_some_and(|job| {
        !job.is_complete && !job.is_deleting && job.failure.is_none() && clean_up_pods.is_empty()
    });
    lacks_clean_up || sets.iter().any(lacks_worker)
}

#[cfg(test)]
mod tests {
    use penstock_crds::report::WorkerPhase;

    use super::*;
    use crate::plan::scene_for_tests::{in_phase, now};
    use crate::world::World;

    fn lacks(world: &World) -> bool {
        is_lacking(&world.sets, &world.pods, world.clean_up.as_ref(), &world.clean_up_pods)
    }

    #[test]
    fn a_pod_lacks_only_when_its_controller_had_its_chance() {
        let mut world = in_phase(WorkerPhase::Streaming);
        assert!(!lacks(&world), "all are there");
        world.pods.pop();
        assert!(lacks(&world));
        world.sets[0].is_observed = false;
        assert!(!lacks(&world), "the controller has not seen what is wanted");

        let mut world = in_phase(WorkerPhase::Streaming);
        world.sets.clear();
        let job = |is_complete, failure: Option<&str>| CleanUpJob {
            uid: "job".into(),
            made_from: "a".into(),
            is_deleting: false,
            is_complete,
            failure: failure.map(str::to_owned),
        };
        world.clean_up = Some(job(false, None));
        assert!(lacks(&world));
        for settled in [job(true, None), job(false, Some("refused"))] {
            world.clean_up = Some(settled);
            assert!(!lacks(&world), "{:?}", world.clean_up);
        }
        world.clean_up = Some(job(false, None));
        world.clean_up_pods = vec!["inventory-clean-up-x".into()];
        assert!(!lacks(&world), "its pod is there");
    }

    #[test]
    fn the_time_is_that_of_the_first_pass_until_the_pods_are_there() {
        let absences = Absences::default();
        let later = now() + jiff::SignedDuration::from_secs(31);
        assert_eq!(absences.note("uid", now(), true), Some(now()));
        assert_eq!(absences.note("uid", later, true), Some(now()));
        assert_eq!(absences.note("uid", later, false), None);
        assert_eq!(absences.note("uid", later, true), Some(later));
    }
}
