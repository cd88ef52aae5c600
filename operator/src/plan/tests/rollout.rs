//! Rollouts, step by step, in a cluster and a sink that are made up: Jobs run, tables change places, workers say whose they are.

use penstock_crds::comparison::{ComparisonResult, ComparisonVerdict, DifferentTable};
use penstock_crds::names::{ANNOTATION_ABORT, ANNOTATION_PROMOTE, ANNOTATION_ROLL_BACK};
use penstock_crds::report::{LineageRole, WorkerPhase};
use penstock_crds::revision::RevisionName;
use penstock_crds::rollout::{Promotion, RolloutTask, Strategy};

use super::golden::golden;
use super::scene::*;
use crate::plan::{DoomedKind, Manifest, Step};
use crate::world::{ComparisonProgress, KnownRevision, OutcomeKind, RolloutJob, World};

/// A cluster and a sink that do what a plan says.
struct Cluster {
    world: World,
    /// The revision whose tables readers know, and the one beside it.
    stable: RevisionName,
    previous: Option<RevisionName>,
    /// What the next comparisons find.
    finds: ComparisonResult,
    /// What became of Jobs, in order.
    done: Vec<RolloutTask>,
}

impl Cluster {
    /// A pipeline that streams, whose spec has just got another image.
    fn with_a_new_image() -> Self {
        let mut world = at_rest();
        world.pipeline.spec.rollout.strategy = Strategy::Canary;
        world.pipeline.spec.rollout.comparison.interval = "1m".into();
        world.pipeline.spec.rollout.comparison.required_matches = 2;
        let stable = world.revisions[0].name.clone();
        let mut cluster =
            Self { world, stable, previous: None, finds: ComparisonResult::done(), done: Vec::new() };
        cluster.image("worker:2");
        cluster
    }

    fn image(&mut self, image: &str) {
        self.world.pipeline.spec.worker.image = Some(image.into());
    }

    fn annotate(&mut self, annotation: &str, value: &str) {
        self.world
            .pipeline
            .metadata
            .annotations
            .get_or_insert_default()
            .insert(annotation.into(), value.into());
    }

    /// Carries plans out until nothing is left to do for a minute and more, at most so many.
    fn settle(&mut self) {
        for _ in 0..60 {
            self.step();
        }
    }

    /// Carries one plan out; what Kubernetes and the workers do follows.
    fn step(&mut self) {
        let plan = planned(&self.world);
        for step in &plan.steps {
            match step {
                Step::Apply(Manifest::ControllerRevision(object)) => self.keep(object),
                Step::Apply(Manifest::StatefulSet(object)) => {
                    let labels = object.metadata.labels.as_ref().unwrap();
                    let name = RevisionName(labels["penstock.dev/revision"].clone());
                    let replicas = object.spec.as_ref().unwrap().replicas.unwrap();
                    self.world.sets.retain(|set| set.object.revision != name);
                    self.world.sets.push(set(&name, replicas, replicas == 0));
                }
                Step::Apply(Manifest::Job(object)) => {
                    let metadata = &object.metadata;
                    let task = metadata.annotations.as_ref().unwrap()["penstock.dev/task"].clone();
                    let task = serde_json::from_value(task.into()).unwrap();
                    self.run(task, metadata.name.clone().unwrap());
                }
                Step::Delete(doomed) if doomed.kind == DoomedKind::StatefulSet => {
                    self.world.sets.retain(|set| set.object.uid != doomed.uid);
                }
                Step::Delete(doomed) if doomed.kind == DoomedKind::Job => {
                    self.world.rollout_jobs.retain(|job| job.uid != doomed.uid);
                }
                Step::AddFinalizer
                | Step::RemoveFinalizer
                | Step::Apply(_)
                | Step::IssueControlSecret
                | Step::Delete(_)
                | Step::Direct { .. }
                | Step::Emit(_) => {}
            }
        }
        self.world.pipeline.status = plan.status;
        self.world.now += jiff::SignedDuration::from_secs(10);
        self.answer();
    }

    fn keep(&mut self, object: &k8s_openapi::api::apps::v1::ControllerRevision) {
        let labels = object.metadata.labels.as_ref().unwrap();
        let name = RevisionName(labels["penstock.dev/revision"].clone());
        let annotations = object.metadata.annotations.clone().unwrap_or_default();
        let course = annotations.get("penstock.dev/course").map(|text| serde_json::from_str(text).unwrap());
        let data = serde_json::to_value(object.data.as_ref().unwrap()).unwrap();
        let kept = KnownRevision {
            name: name.clone(),
            number: object.revision,
            minted: serde_json::from_value(data).unwrap(),
            uid: format!("uid-{name}"),
            course: course.unwrap_or_default(),
        };
        self.world.revisions.retain(|revision| revision.name != name);
        self.world.revisions.push(kept);
    }

    /// What a Job does is done at once; that it ended is seen at the next look.
    fn run(&mut self, task: RolloutTask, name: String) {
        let beside = self.beside();
        self.done.push(task);
        let is_equal = self.finds.verdict == ComparisonVerdict::Equal;
        match task {
            RolloutTask::Promote if is_equal => {
                self.previous = Some(std::mem::replace(&mut self.stable, beside.unwrap()));
            }
            RolloutTask::RollBack => {
                self.stable = self.previous.take().unwrap();
            }
            RolloutTask::CleanUp => {
                assert_ne!(beside.as_ref(), Some(&self.stable), "what readers know is removed");
                self.previous = None;
            }
            RolloutTask::Promote | RolloutTask::Compare => {}
        }
        let result = match task {
            RolloutTask::Compare | RolloutTask::Promote => self.finds.clone(),
            RolloutTask::RollBack | RolloutTask::CleanUp => ComparisonResult::done(),
        };
        self.world.rollout_jobs.push(RolloutJob {
            uid: format!("uid-{name}"),
            name,
            task,
            created: self.world.now,
            is_deleting: false,
            progress: ComparisonProgress::Ended { at: self.world.now, result },
        });
    }

    fn beside(&self) -> Option<RevisionName> {
        let others = self.world.sets.iter().map(|set| &set.object.revision);
        others.into_iter().find(|name| **name != self.stable).cloned()
    }

    /// Every worker that should run streams, and says what the sink says of it.
    fn answer(&mut self) {
        let mut pods = Vec::new();
        for set in &self.world.sets {
            let name = &set.object.revision;
            let role = if *name == self.stable {
                LineageRole::Stable
            } else if self.previous.as_ref() == Some(name) {
                LineageRole::Previous
            } else {
                LineageRole::Canary
            };
            for shard in 0..u16::try_from(set.replicas_wanted).unwrap() {
                let mut report = report(name, shard, WorkerPhase::Streaming);
                report.role = Some(role);
                let answer = crate::world::Answer::Report { report: Box::new(report), at: self.world.now };
                pods.push(pod(name, shard, answer));
            }
        }
        self.world.pods = pods;
        self.world = up_to_date(self.world.clone());
    }

    fn meant(&self) -> KnownRevision {
        let name = crate::plan::target_revision(&self.world.pipeline).unwrap();
        self.world.revisions.iter().find(|revision| revision.name == name).unwrap().clone()
    }

    fn outcome(&self, name: &RevisionName) -> Option<OutcomeKind> {
        let known = self.world.revisions.iter().find(|revision| revision.name == *name);
        known?.course.outcome.as_ref().map(|outcome| outcome.outcome)
    }

    fn is_ready(&self) -> bool {
        let conditions = &self.world.pipeline.status.as_ref().unwrap().conditions;
        conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    }

    fn sets(&self) -> Vec<&str> {
        let mut sets: Vec<&str> = self.world.sets.iter().map(|set| set.object.revision.0.as_str()).collect();
        sets.sort_unstable();
        sets
    }
}

fn order(revision: &KnownRevision) -> String {
    format!("{}-{}", revision.name, revision.number)
}

fn different() -> ComparisonResult {
    ComparisonResult {
        verdict: ComparisonVerdict::Different,
        tables: 3,
        tables_different: 1,
        different: vec![DifferentTable { table: "public.inventory".into(), rows: 2, is_at_least: false }],
        ..ComparisonResult::done()
    }
}

#[test]
fn a_new_image_is_promoted_after_the_required_matches_and_the_old_one_goes_when_its_time_is_over() {
    let mut cluster = Cluster::with_a_new_image();
    let old = cluster.stable.clone();
    golden("120_canary_is_minted", &cluster.world);
    cluster.step();
    golden("121_canary_starts", &cluster.world);
    cluster.step();
    golden("122_first_comparison", &cluster.world);
    while cluster.done != [RolloutTask::Compare, RolloutTask::Compare] {
        cluster.step();
    }
    golden("123_enough_matches", &cluster.world);
    while cluster.previous.is_none() {
        cluster.step();
    }
    golden("124_promoted", &cluster.world);
    cluster.settle();
    let new = cluster.meant();
    assert_eq!((&cluster.stable, cluster.previous.as_ref()), (&new.name, Some(&old)));
    assert_eq!(new.course.lineage.as_ref(), Some(&new.name.0));
    assert_eq!(cluster.done, [RolloutTask::Compare, RolloutTask::Compare, RolloutTask::Promote]);
    assert!(cluster.is_ready());
    golden("125_there_is_a_way_back", &cluster.world);
    cluster.world.now += jiff::SignedDuration::from_hours(24);
    cluster.answer();
    cluster.settle();
    assert_eq!(cluster.sets(), [new.name.0.as_str()]);
    assert_eq!(cluster.done.last(), Some(&RolloutTask::CleanUp));
    assert!(cluster.is_ready());
}

#[test]
fn a_comparison_ends_once_per_interval_and_counts_once() {
    let mut cluster = Cluster::with_a_new_image();
    cluster.world.pipeline.spec.rollout.comparison.required_matches = 1000;
    cluster.settle();
    // Ten seconds a step, a comparison a minute, and what one found is seen at the next look.
    assert!((6..=10).contains(&cluster.done.len()), "{:?}", cluster.done);
    let matches = cluster.world.pipeline.status.as_ref().unwrap().rollout.as_ref().unwrap().matches;
    assert!(usize::try_from(matches).unwrap().abs_diff(cluster.done.len()) <= 1);
}

#[test]
fn a_canary_that_differs_is_removed_and_not_tried_again_until_the_spec_changes() {
    let mut cluster = Cluster::with_a_new_image();
    let old = cluster.stable.clone();
    cluster.finds = different();
    cluster.settle();
    let wrong = cluster.meant();
    assert_eq!(cluster.outcome(&wrong.name), Some(OutcomeKind::Rejected));
    assert_eq!((cluster.sets(), &cluster.stable), (vec![old.0.as_str()], &old));
    assert_eq!(cluster.done, [RolloutTask::Compare, RolloutTask::CleanUp]);
    golden("126_rejected", &cluster.world);
    // The same once more, by way of another: it is tried again.
    cluster.finds = ComparisonResult::done();
    cluster.world.pipeline.spec.worker.image = None;
    cluster.settle();
    assert!(cluster.is_ready());
    cluster.image("worker:2");
    cluster.settle();
    assert_eq!((&cluster.stable, cluster.outcome(&wrong.name)), (&wrong.name, Some(OutcomeKind::Promoted)));
}

#[test]
fn a_comparison_that_could_not_be_made_counts_for_nothing() {
    let mut cluster = Cluster::with_a_new_image();
    cluster.finds = ComparisonResult::unknown("the source does not answer");
    cluster.settle();
    assert!(cluster.done.len() > 4 && cluster.done.iter().all(|task| *task == RolloutTask::Compare));
    golden("127_nobody_knows", &cluster.world);
}

#[test]
fn a_manual_promotion_waits_for_its_annotation() {
    let mut cluster = Cluster::with_a_new_image();
    cluster.world.pipeline.spec.rollout.promotion = Promotion::Manual;
    cluster.settle();
    assert!(!cluster.done.contains(&RolloutTask::Promote));
    golden("128_waits_for_promotion", &cluster.world);
    let canary = cluster.meant();
    cluster.annotate(ANNOTATION_PROMOTE, "rffffffff-2");
    cluster.settle();
    assert!(!cluster.done.contains(&RolloutTask::Promote), "another revision is meant");
    cluster.annotate(ANNOTATION_PROMOTE, &order(&canary));
    cluster.settle();
    assert_eq!(cluster.stable, canary.name);
}

#[test]
fn an_annotation_ends_a_canary() {
    let mut cluster = Cluster::with_a_new_image();
    let old = cluster.stable.clone();
    cluster.step();
    cluster.step();
    let canary = cluster.meant();
    cluster.annotate(ANNOTATION_ABORT, &order(&canary));
    cluster.settle();
    assert_eq!(
        (cluster.sets(), cluster.outcome(&canary.name)),
        (vec![old.0.as_str()], Some(OutcomeKind::Rejected))
    );
}

#[test]
fn an_annotation_gives_the_tables_back_once() {
    let mut cluster = Cluster::with_a_new_image();
    let old = cluster.stable.clone();
    cluster.settle();
    let new = cluster.meant();
    cluster.annotate(ANNOTATION_ROLL_BACK, &order(&new));
    cluster.settle();
    assert_eq!((&cluster.stable, cluster.sets()), (&old, vec![old.0.as_str()]));
    assert_eq!(cluster.outcome(&new.name), Some(OutcomeKind::RolledBack));
    golden("129_rolled_back", &cluster.world);
    // The annotation is still there when the revision is tried again.
    cluster.world.pipeline.spec.worker.image = None;
    cluster.settle();
    cluster.image("worker:2");
    cluster.settle();
    assert_eq!((&cluster.stable, cluster.previous.as_ref()), (&new.name, Some(&old)));
}

#[test]
fn a_spec_that_is_set_back_gives_the_tables_back() {
    let mut cluster = Cluster::with_a_new_image();
    let old = cluster.stable.clone();
    cluster.settle();
    assert!(cluster.previous.is_some());
    cluster.world.pipeline.spec.worker.image = None;
    cluster.settle();
    assert_eq!((&cluster.stable, cluster.sets()), (&old, vec![old.0.as_str()]));
    assert!(cluster.is_ready());
}

#[test]
fn a_spec_that_is_set_back_removes_the_canary() {
    let mut cluster = Cluster::with_a_new_image();
    let old = cluster.stable.clone();
    cluster.step();
    cluster.step();
    let canary = cluster.meant();
    cluster.world.pipeline.spec.worker.image = None;
    cluster.settle();
    assert_eq!(
        (cluster.sets(), cluster.outcome(&canary.name)),
        (vec![old.0.as_str()], Some(OutcomeKind::Abandoned))
    );
    assert!(cluster.is_ready());
}

#[test]
fn a_third_revision_waits_until_the_one_beside_is_gone_and_goes_on_from_what_readers_know() {
    for (strategy, is_promoted) in
        [(Strategy::Canary, false), (Strategy::Canary, true), (Strategy::Recreate, true)]
    {
        let mut cluster = Cluster::with_a_new_image();
        if is_promoted {
            cluster.settle();
        } else {
            cluster.step();
            cluster.step();
        }
        let second = cluster.meant();
        cluster.image("worker:3");
        cluster.world.pipeline.spec.rollout.strategy = strategy;
        for _ in 0..60 {
            cluster.step();
            assert!(cluster.sets().len() <= 2, "{:?}", cluster.sets());
        }
        let third = cluster.meant();
        if strategy == Strategy::Recreate {
            assert_eq!(third.course.lineage, second.course.lineage);
            assert_eq!(cluster.sets(), [third.name.0.as_str()]);
        } else {
            assert_eq!(cluster.stable, third.name);
        }
    }
}

#[test]
fn other_tables_are_taken_up_without_a_canary() {
    let mut cluster = Cluster::with_a_new_image();
    cluster.world.pipeline.spec.source.postgres.tables.push("public.orders".into());
    cluster.step();
    assert_eq!(cluster.meant().course.lineage, None);
}

#[test]
fn nothing_is_decided_while_nobody_is_sure_who_has_the_tables() {
    let mut cluster = Cluster::with_a_new_image();
    while cluster.done.len() < 2 {
        cluster.step();
    }
    for silent in [0, 1] {
        let mut world = cluster.world.clone();
        let names = [&cluster.stable, &cluster.meant().name];
        for pod in world.pods.iter_mut().filter(|pod| pod.revision == *names[silent]) {
            let crate::world::Answer::Report { report, .. } = &mut pod.answer else { unreachable!() };
            report.role = None;
        }
        let steps = planned(&world).steps;
        assert!(!steps.iter().any(|step| matches!(step, Step::Apply(Manifest::Job(_)))), "{steps:?}");
    }
}

#[test]
fn a_paused_pipeline_stops_both_and_goes_on_with_both() {
    let mut cluster = Cluster::with_a_new_image();
    cluster.step();
    cluster.step();
    cluster.world.pipeline.spec.paused = true;
    cluster.settle();
    assert!(cluster.world.sets.len() == 2 && cluster.world.pods.is_empty());
    cluster.world.pipeline.spec.paused = false;
    cluster.settle();
    assert_eq!(cluster.stable, cluster.meant().name);
}

#[test]
fn what_waits_for_workers_of_an_image_that_knows_no_canary_says_so() {
    let mut cluster = Cluster::with_a_new_image();
    cluster.step();
    cluster.step();
    for pod in cluster.world.pods.iter_mut().filter(|pod| pod.revision == cluster.stable) {
        let crate::world::Answer::Report { report, .. } = &mut pod.answer else { unreachable!() };
        report.role = None;
    }
    let status = planned(&cluster.world).status.unwrap();
    let said = status.conditions.iter().find(|condition| condition.type_ == "CanaryMatching").unwrap();
    assert!(said.message.contains("older than canaries") && said.status == "Unknown", "{said:?}");
}
