//! Rollouts, step by step, in a cluster and a sink that are made up.

use penstock_crds::comparison::{ComparisonResult, ComparisonVerdict};
use penstock_crds::names::{ANNOTATION_ABORT, ANNOTATION_PROMOTE, ANNOTATION_ROLL_BACK};
use penstock_crds::report::LineageRole;
use penstock_crds::rollout::{Promotion, RolloutTask, Strategy as RolloutStrategy};
use proptest::prelude::*;

use super::cluster::{Cluster, different, order};
use super::golden::golden;
use super::scene::*;
use crate::plan::{Manifest, Step};
use crate::world::{Answer, OutcomeKind, SecretKeys};

#[test]
fn a_new_image_is_promoted_after_the_required_matches_and_the_old_one_goes_when_its_time_is_over() {
    let mut cluster = Cluster::with_a_new_image();
    let old = cluster.stable();
    golden("120_canary_is_minted", &cluster.world);
    cluster.step();
    golden("121_canary_starts", &cluster.world);
    cluster.step();
    golden("122_first_comparison", &cluster.world);
    while cluster.done != [RolloutTask::Compare, RolloutTask::Compare] {
        cluster.step();
    }
    golden("123_enough_matches", &cluster.world);
    while cluster.previous().is_none() {
        cluster.step();
    }
    golden("124_promoted", &cluster.world);
    cluster.settle();
    let new = cluster.meant();
    assert_eq!((cluster.stable(), cluster.previous()), (new.name.clone(), Some(old.clone())));
    assert_eq!(new.course.lineage.as_ref(), Some(&new.name.0));
    assert_eq!(cluster.done, [RolloutTask::Compare, RolloutTask::Compare, RolloutTask::Promote]);
    assert!(cluster.ready().0);
    golden("125_there_is_a_way_back", &cluster.world);
    cluster.world.now += jiff::SignedDuration::from_hours(24);
    cluster.answer();
    cluster.settle();
    assert_eq!(cluster.sets(), [new.name.0.as_str()]);
    assert_eq!(cluster.done.last(), Some(&RolloutTask::CleanUp));
    assert!(cluster.ready().0);
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
    let old = cluster.stable();
    cluster.finds = different();
    cluster.settle();
    let wrong = cluster.meant();
    assert_eq!(cluster.outcome(&wrong.name), Some(OutcomeKind::Rejected));
    assert_eq!((cluster.sets(), cluster.stable()), (vec![old.0.as_str()], old.clone()));
    assert_eq!(cluster.done, [RolloutTask::Compare, RolloutTask::CleanUp]);
    golden("126_rejected", &cluster.world);
    // The same once more, by way of another: it is tried again.
    cluster.finds = ComparisonResult::done();
    cluster.world.pipeline.spec.worker.image = None;
    cluster.settle();
    assert!(cluster.ready().0);
    cluster.image("worker:2");
    cluster.settle();
    assert_eq!(
        (cluster.stable(), cluster.outcome(&wrong.name)),
        (wrong.name.clone(), Some(OutcomeKind::Promoted))
    );
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
    for other in ["rffffffff-2", &canary.name.0] {
        cluster.annotate(ANNOTATION_PROMOTE, other);
        let told = planned(&cluster.world).steps;
        assert!(
            told.iter().any(|step| matches!(step, Step::Emit(event) if event.reason == "AnnotationInvalid"))
        );
        cluster.settle();
        assert!(!cluster.done.contains(&RolloutTask::Promote), "another revision is meant");
    }
    cluster.annotate(ANNOTATION_PROMOTE, &order(&canary));
    cluster.settle();
    assert_eq!(cluster.stable(), canary.name);
}

#[test]
fn an_annotation_ends_a_canary() {
    let mut cluster = Cluster::with_a_new_image();
    let old = cluster.stable();
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
    let old = cluster.stable();
    cluster.settle();
    let new = cluster.meant();
    cluster.annotate(ANNOTATION_ROLL_BACK, &order(&new));
    cluster.settle();
    assert_eq!((cluster.stable(), cluster.sets()), (old.clone(), vec![old.0.as_str()]));
    assert_eq!(cluster.outcome(&new.name), Some(OutcomeKind::RolledBack));
    golden("129_rolled_back", &cluster.world);
    // The annotation is still there when the revision is tried again.
    cluster.world.pipeline.spec.worker.image = None;
    cluster.settle();
    cluster.image("worker:2");
    cluster.settle();
    assert_eq!((cluster.stable(), cluster.previous()), (new.name.clone(), Some(old.clone())));
}

#[test]
fn a_spec_that_is_set_back_gives_the_tables_back() {
    let mut cluster = Cluster::with_a_new_image();
    let old = cluster.stable();
    cluster.settle();
    assert!(cluster.previous().is_some());
    cluster.world.pipeline.spec.worker.image = None;
    cluster.settle();
    assert_eq!((cluster.stable(), cluster.sets()), (old.clone(), vec![old.0.as_str()]));
    assert!(cluster.ready().0);
}

#[test]
fn a_spec_that_is_set_back_removes_the_canary() {
    let mut cluster = Cluster::with_a_new_image();
    let old = cluster.stable();
    cluster.step();
    cluster.step();
    let canary = cluster.meant();
    cluster.world.pipeline.spec.worker.image = None;
    cluster.settle();
    assert_eq!(
        (cluster.sets(), cluster.outcome(&canary.name)),
        (vec![old.0.as_str()], Some(OutcomeKind::Abandoned))
    );
    assert!(cluster.ready().0);
}

#[test]
fn a_third_revision_waits_until_the_one_beside_is_gone_and_goes_on_from_what_readers_know() {
    for (strategy, is_promoted) in
        [(RolloutStrategy::Canary, false), (RolloutStrategy::Canary, true), (RolloutStrategy::Recreate, true)]
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
        if strategy == RolloutStrategy::Recreate {
            assert_eq!(third.course.lineage, second.course.lineage);
            assert_eq!(cluster.sets(), [third.name.0.as_str()]);
        } else {
            assert_eq!(cluster.stable(), third.name);
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
        let names = [&cluster.stable(), &cluster.meant().name];
        for pod in world.pods.iter_mut().filter(|pod| pod.revision == *names[silent]) {
            let Answer::Report { report, .. } = &mut pod.answer else { unreachable!() };
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
    assert_eq!(cluster.stable(), cluster.meant().name);
}

#[test]
fn what_waits_for_workers_of_an_image_that_knows_no_canary_says_so() {
    let mut cluster = Cluster::with_a_new_image();
    let old = cluster.stable();
    cluster.step();
    cluster.step();
    for pod in cluster.world.pods.iter_mut().filter(|pod| pod.revision == old) {
        let Answer::Report { report, .. } = &mut pod.answer else { unreachable!() };
        report.role = None;
    }
    let status = planned(&cluster.world).status.unwrap();
    let said = status.conditions.iter().find(|condition| condition.type_ == "CanaryMatching").unwrap();
    assert!(said.message.contains("older than canaries") && said.status == "Unknown", "{said:?}");
}

#[test]
fn a_canary_that_lacks_a_secret_says_so_and_leaves_the_stable_revision_alone() {
    let mut cluster = Cluster::with_a_new_image();
    let mask = "{tables: [public.inventory], maskColumns: [{columns: [note], hash: {keySecret: pii}}]}";
    cluster.world.pipeline.spec.transforms = vec![serde_yaml::from_str(mask).unwrap()];
    cluster.world.secrets.insert("pii".into(), SecretKeys::Missing);
    cluster.settle();
    assert_eq!(cluster.ready(), (false, "CredentialsMissing"));
    assert_eq!((cluster.sets().len(), cluster.world.pods.len()), (1, 2));
    cluster.world.secrets.insert("pii".into(), SecretKeys::Present(["key".to_owned()].into()));
    cluster.settle();
    assert_eq!(cluster.stable(), cluster.meant().name);
}

/// What people and faults do.
#[derive(Clone, Debug)]
enum Act {
    Image(u8),
    Strategy(RolloutStrategy),
    Promotion(Promotion),
    Pause(bool),
    Order(&'static str),
    Find(ComparisonVerdict),
    Silence,
    LoseStatus,
    LoseJobs,
    Steps(u8),
}

fn act() -> impl Strategy<Value = Act> {
    use ComparisonVerdict::{Different, Equal, Unknown};
    prop_oneof![
        3 => (0_u8..3).prop_map(Act::Image),
        1 => prop::sample::select(vec![RolloutStrategy::Canary, RolloutStrategy::Canary, RolloutStrategy::Recreate]).prop_map(Act::Strategy),
        1 => prop::sample::select(vec![Promotion::Automatic, Promotion::Manual]).prop_map(Act::Promotion),
        1 => any::<bool>().prop_map(Act::Pause),
        3 => prop::sample::select(vec![ANNOTATION_ABORT, ANNOTATION_PROMOTE, ANNOTATION_ROLL_BACK]).prop_map(Act::Order),
        2 => prop::sample::select(vec![Equal, Equal, Unknown, Different]).prop_map(Act::Find),
        1 => Just(Act::Silence),
        1 => Just(Act::LoseStatus),
        1 => Just(Act::LoseJobs),
        8 => (1_u8..20).prop_map(Act::Steps),
    ]
}

fn carry_out(cluster: &mut Cluster, act: &Act) {
    let spec = &mut cluster.world.pipeline.spec;
    match act {
        Act::Image(0) => spec.worker.image = None,
        Act::Image(number) => cluster.image(&format!("worker:{number}")),
        Act::Strategy(strategy) => spec.rollout.strategy = *strategy,
        Act::Promotion(promotion) => spec.rollout.promotion = *promotion,
        Act::Pause(paused) => spec.paused = *paused,
        Act::Order(annotation) => {
            let newest = cluster.world.revisions.iter().max_by_key(|revision| revision.number);
            let value = order(newest.unwrap());
            cluster.annotate(annotation, &value);
        }
        Act::Find(ComparisonVerdict::Different) => cluster.finds = different(),
        Act::Find(verdict) => {
            cluster.finds = ComparisonResult { verdict: *verdict, ..ComparisonResult::unknown("so") };
        }
        Act::Silence => {
            cluster.is_silent = true;
            cluster.answer();
            cluster.step();
            cluster.step();
            cluster.is_silent = false;
            cluster.answer();
        }
        Act::LoseStatus => cluster.world.pipeline.status = None,
        Act::LoseJobs => cluster.world.rollout_jobs.clear(),
        Act::Steps(steps) => (0..*steps).for_each(|_| cluster.step()),
    }
    assert!(cluster.sets().len() <= 3, "{:?}", cluster.sets());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// What readers see is never removed or stopped (the cluster sees to that), and nothing hangs for ever.
    #[test]
    fn whatever_is_done_in_between_a_rollout_ends_with_nothing_left(acts in prop::collection::vec(act(), 1..25)) {
        let mut cluster = Cluster::with_a_new_image();
        for act in &acts {
            carry_out(&mut cluster, act);
        }
        cluster.finds = ComparisonResult::done();
        cluster.world.pipeline.spec.paused = false;
        cluster.world.pipeline.spec.rollout.keep_previous = "0m".into();
        for _ in 0..80 {
            cluster.step();
        }
        let (is_ready, reason) = cluster.ready();
        let reason = reason.to_owned();
        prop_assert!(is_ready || ["RevisionRejected", "WaitsForPromotion"].contains(&reason.as_str()), "{reason}");
        let waits = reason == "WaitsForPromotion";
        prop_assert_eq!(cluster.sets().len(), if waits { 2 } else { 1 });
        prop_assert_eq!(cluster.sink.len(), cluster.sets().len());
        prop_assert!(cluster.with_role(LineageRole::Stable).is_some());
        prop_assert!(!is_ready || cluster.stable() == cluster.meant().name);
        let status = cluster.world.pipeline.status.clone();
        cluster.step();
        prop_assert!(waits || cluster.world.pipeline.status == status, "at rest something is written");
    }
}
