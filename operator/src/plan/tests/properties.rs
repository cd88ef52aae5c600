use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use penstock_crds::comparison::{ComparisonResult, ComparisonVerdict, LastComparison};
use penstock_crds::names::ANNOTATION_COMPARE_SOURCE;
use penstock_crds::report::{Decisions, Problem, Reason, WorkerPhase};
use penstock_crds::revision::RevisionName;
use penstock_crds::spec::DeletionPolicy;
use penstock_crds::status::CdcPipelineStatus;
use proptest::prelude::*;

use super::scene::*;
use crate::plan::manifests::compared_spec;
use crate::plan::revision::{Target, target};
use crate::plan::{DoomedKind, Manifest, Step, plan, target_revision};
use crate::world::{
    Answer, CleanUpJob, ComparisonJob, ComparisonProgress, ControlSecret, PodTrouble, SecretKeys, WorkerPod,
    WorkerSet, World,
};

fn phase() -> impl Strategy<Value = WorkerPhase> {
    prop_oneof![
        Just(WorkerPhase::Starting),
        Just(WorkerPhase::Snapshotting),
        Just(WorkerPhase::Streaming),
        Just(WorkerPhase::Retrying),
        Just(WorkerPhase::Halted),
        Just(WorkerPhase::Stopping),
    ]
}

fn decisions() -> impl Strategy<Value = Option<Decisions>> {
    prop_oneof![
        1 => Just(None),
        4 => Just(Some(Decisions::default())),
        2 => Just(Some(Decisions { count: 1, last_micros: 5 })),
    ]
}

fn answer() -> impl Strategy<Value = Answer> {
    let problem = prop_oneof![
        3 => Just(None),
        1 => Just(Some(Reason::SourceUnreachable)),
        1 => Just(Some(Reason::TableMissing)),
    ];
    prop_oneof![
        1 => Just(Answer::NotRunning),
        1 => Just(Answer::Silent { error: "refused".into() }),
        6 => (phase(), problem, decisions(), prop::sample::select(vec![0_i64, 14, 16])).prop_map(|(phase, problem, decisions, age)| {
            let mut report = report(&RevisionName("r".into()), 0, phase);
            report.decisions = decisions;
            report.problem = problem.map(|reason| Problem { reason, message: "so".into() });
            Answer::Report { report: Box::new(report), at: now() - jiff::SignedDuration::from_secs(age) }
        }),
    ]
}

fn trouble() -> impl Strategy<Value = Option<PodTrouble>> {
    prop_oneof![
        8 => Just(None),
        1 => Just(Some(PodTrouble::Unschedulable("a".into()))),
        1 => Just(Some(PodTrouble::ImagePull("b".into()))),
        1 => Just(Some(PodTrouble::Crashing("c".into()))),
    ]
}

prop_compose! {
    fn worker()(
        which in 0_usize..3,
        shard in 0_u16..2,
        is_deleting: bool,
        is_outdated in prop::bool::weighted(0.2),
        trouble in trouble(),
        answer in answer(),
    ) -> (usize, u16, bool, bool, Option<PodTrouble>, Answer) {
        (which, shard, is_deleting, is_outdated, trouble, answer)
    }
}

prop_compose! {
    fn a_set()(which in 0_usize..3, replicas in 0_i32..3, is_observed_empty: bool, is_deleting: bool)
        -> (usize, i32, bool, bool) {
        (which, replicas, is_observed_empty, is_deleting)
    }
}

fn result() -> impl Strategy<Value = ComparisonResult> {
    prop::sample::select(vec![
        ComparisonVerdict::Equal,
        ComparisonVerdict::Different,
        ComparisonVerdict::Unknown,
    ])
    .prop_map(|verdict| ComparisonResult { verdict, ..ComparisonResult::unknown("so") })
}

fn progress() -> impl Strategy<Value = ComparisonProgress> {
    prop_oneof![
        Just(ComparisonProgress::Waiting { trouble: None }),
        Just(ComparisonProgress::Waiting { trouble: Some("no node".into()) }),
        Just(ComparisonProgress::Running),
        result().prop_map(|result| ComparisonProgress::Ended { at: now(), result }),
    ]
}

/// What is asked for, what the API server says, and what is recorded and Jobs of the spec as it is now or was before.
#[derive(Clone, Debug)]
struct Comparisons {
    is_asked: bool,
    is_scheduled: bool,
    is_refused: bool,
    due: Option<i64>,
    recorded: Option<(bool, ComparisonResult)>,
    decisions: Option<Decisions>,
    jobs: Vec<AnyJob>,
}

#[derive(Clone, Debug)]
struct AnyJob {
    progress: ComparisonProgress,
    is_deleting: bool,
    is_current: bool,
    age: i64,
}

prop_compose! {
    fn any_job()(progress in progress(), is_deleting: bool, is_current: bool, age in 0_i64..600) -> AnyJob {
        AnyJob { progress, is_deleting, is_current, age }
    }
}

prop_compose! {
    fn comparisons()(
        is_asked: bool,
        is_scheduled: bool,
        is_refused in prop::bool::weighted(0.2),
        // In seconds: just now, late in its turn, and while nobody looked.
        due in prop::option::of(prop::sample::select(vec![1_i64, 1900, 7200])),
        recorded in prop::option::of((any::<bool>(), result())),
        decisions in decisions(),
        jobs in prop::collection::vec(any_job(), 0..3),
    ) -> Comparisons {
        Comparisons { is_asked, is_scheduled, is_refused, due, recorded, decisions, jobs }
    }
}

/// Hash of what a comparison would compare now.
fn present_spec(world: &World) -> String {
    let (Target::Minted(revision) | Target::Mint(revision) | Target::Clash(revision)) =
        target(world).unwrap();
    compared_spec(world, &revision).unwrap()
}

fn with_comparisons(mut world: World, given: Comparisons) -> World {
    if given.is_asked {
        let annotations = [(ANNOTATION_COMPARE_SOURCE.to_owned(), "t-1".to_owned())];
        world.pipeline.metadata.annotations = Some(annotations.into());
    }
    world.pipeline.spec.source_comparison.interval = given.is_scheduled.then(|| "24h".into());
    world.comparison_refused = given.is_refused.then(|| "quota".into());
    let spec = present_spec(&world);
    let source_comparison = given.recorded.map(|(is_current, result)| LastComparison {
        completion_time: Time(world.now - jiff::SignedDuration::from_mins(10)),
        revision: "r".into(),
        spec: if is_current { spec.clone() } else { "another".into() },
        job: "inventory-compare-0".into(),
        token: None,
        decisions: given.decisions.into_iter().collect(),
        result,
        failure: None,
    });
    let source_comparison_due =
        given.due.map(|seconds| Time(world.now - jiff::SignedDuration::from_secs(seconds)));
    world.pipeline.status =
        Some(CdcPipelineStatus { source_comparison, source_comparison_due, ..CdcPipelineStatus::default() });
    let Some(revision) = world.revisions.first() else { return world };
    world.comparisons = given
        .jobs
        .into_iter()
        .enumerate()
        .map(|(index, job)| ComparisonJob {
            name: format!("inventory-compare-{index}"),
            uid: format!("comparison-{index}"),
            revision: revision.name.clone(),
            spec: if job.is_current { spec.clone() } else { "another".into() },
            token: given.is_asked.then(|| "t-1".into()),
            decisions: given.decisions.into_iter().collect(),
            // Not on the very millisecond at which it is given up.
            created: world.now - jiff::SignedDuration::from_millis(job.age * 1000 + 500),
            timeout: Some(jiff::SignedDuration::from_hours(6)),
            is_deleting: job.is_deleting,
            progress: job.progress,
        })
        .collect();
    world
}

prop_compose! {
    /// Worlds with three revisions, of which the spec means the first, and anything around them.
    fn any_world()(
        flags in prop::array::uniform8(any::<bool>()),
        numbers in prop::sample::subsequence(vec![1_i64, 2, 3], 0..=3).prop_shuffle(),
        sets in prop::collection::vec(a_set(), 0..3),
        pods in prop::collection::vec(worker(), 0..4),
        claims in prop::collection::vec(0_usize..3, 0..3),
        control in prop_oneof![Just(None), (-1_i64..2).prop_map(Some)],
        lack in prop_oneof![Just(None), (0_i64..60).prop_map(Some)],
        job in prop_oneof![Just(None), (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(Some)],
        comparisons in comparisons(),
    ) -> World {
        let [finalizer, deleting, terminating, delete_policy, paused, secret, taken, refused] = flags;
        let mut world = if finalizer { guarded() } else { created() };
        if deleting {
            world = deleted(world);
        }
        if delete_policy {
            world.pipeline.spec.deletion_policy = DeletionPolicy::Delete;
        }
        if !secret {
            world.secrets.insert("shop-db".into(), SecretKeys::Missing);
        }
        world.pipeline.spec.paused = paused;
        world.namespace_terminating = terminating;
        world.taken = if taken { vec!["Service a".into()] } else { Vec::new() };
        world.refused = refused.then(|| "quota".into());
        let names = [
            target_revision(&world.pipeline).unwrap(),
            RevisionName("rb0000000".into()),
            RevisionName("rc0000000".into()),
        ];
        for (name, number) in names.iter().zip(numbers) {
            let mut known = revision(&world, number);
            known.name = name.clone();
            world.revisions.push(known);
        }
        for (which, replicas_wanted, is_observed_empty, is_deleting) in sets {
            if world.set(&names[which]).is_none() {
                let object = owned(&names[which], "inventory");
                world.sets.push(WorkerSet {
                    object,
                    replicas_wanted,
                    is_observed: true,
                    is_observed_empty,
                    is_deleting,
                });
            }
        }
        let outdated: Vec<bool> = pods.iter().map(|(_, _, _, is_outdated, ..)| *is_outdated).collect();
        world.pods = pods
            .into_iter()
            .map(|(which, shard, is_deleting, _, trouble, answer)| {
                WorkerPod { is_deleting, trouble, ..pod(&names[which], shard, answer) }
            })
            .collect();
        world = up_to_date(world);
        for (pod, _) in world.pods.iter_mut().zip(outdated).filter(|(_, is_outdated)| *is_outdated) {
            pod.made_from = "older".into();
        }
        world.claims = claims.into_iter().map(|which| owned(&names[which], "claim")).collect();
        if let Some(hours) = control {
            world.control = ControlSecret::Issued { renew_at: now() + jiff::SignedDuration::from_hours(hours) };
        }
        // Not on the very millisecond at which it is too long.
        world.pods_lack_since =
            lack.map(|seconds| now() - jiff::SignedDuration::from_millis(seconds * 1000 + 500));
        world.clean_up = job.map(|(is_deleting, is_complete, fails)| CleanUpJob {
            uid: "job".into(),
            made_from: "another".into(),
            is_deleting,
            is_complete,
            failure: fails.then(|| "refused".into()),
        });
        with_comparisons(world, comparisons)
    }
}

fn doomed(steps: &[Step], kind: DoomedKind) -> Vec<String> {
    let deletions = steps.iter().filter_map(|step| match step {
        Step::Delete(doomed) if doomed.kind == kind => Some(doomed.uid.clone()),
        Step::Delete(_)
        | Step::AddFinalizer
        | Step::RemoveFinalizer
        | Step::Apply(_)
        | Step::IssueControlSecret
        | Step::Direct { .. }
        | Step::Emit(_) => None,
    });
    deletions.collect()
}

fn starts_workers(step: &Step) -> bool {
    matches!(step, Step::Apply(Manifest::StatefulSet(set))
        if set.spec.as_ref().and_then(|spec| spec.replicas).is_some_and(|replicas| replicas > 0))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn a_plan_is_total_and_deterministic(world in any_world()) {
        prop_assert_eq!(plan(&world).unwrap(), plan(&world).unwrap());
    }

    #[test]
    fn an_unchanged_world_writes_no_status_and_tells_nothing_again(world in any_world()) {
        let first = plan(&world).unwrap();
        let mut later = seen(world);
        later.now += jiff::SignedDuration::from_millis(1);
        let second = plan(&later).unwrap();
        prop_assert_eq!(&second.status, &first.status);
        let counted = |step: &Step| matches!(step, Step::Emit(event) if event.once.is_none());
        prop_assert!(!second.steps.iter().any(counted));
    }

    #[test]
    fn two_revisions_never_run_at_once(world in any_world()) {
        let plan = plan(&world).unwrap();
        let target = target_revision(&world.pipeline).unwrap();
        let others_run = world.pods.iter().any(|pod| pod.revision != target)
            || world.sets.iter().any(|set| set.object.revision != target && !set.is_observed_empty);
        prop_assert!(!others_run || !plan.steps.iter().any(starts_workers));
    }

    #[test]
    fn a_worker_that_runs_is_left_alone_while_its_successor_would_lack_a_secret(mut world in any_world()) {
        world.secrets.insert("shop-db".into(), SecretKeys::Missing);
        world.pipeline.spec.paused = false;
        world.pipeline.metadata.deletion_timestamp = None;
        let steps = plan(&world).unwrap().steps;
        prop_assert!(doomed(&steps, DoomedKind::Pod).is_empty());
        prop_assert!(!steps.iter().any(starts_workers));
    }

    #[test]
    fn the_object_goes_only_when_no_worker_is_left(world in any_world()) {
        let goes = plan(&world).unwrap().steps.contains(&Step::RemoveFinalizer);
        prop_assert!(!goes || (world.is_deleting() && world.pods.is_empty() && world.sets.is_empty()));
        prop_assert!(!goes || world.comparisons.is_empty());
    }

    #[test]
    fn at_most_one_comparison_runs_and_none_of_a_paused_or_deleted_pipeline(world in any_world()) {
        let steps = plan(&world).unwrap().steps;
        let begun = steps.iter().filter(|step| matches!(step, Step::Apply(Manifest::Comparison(_)))).count();
        let is_running = |job: &ComparisonJob| !matches!(job.progress, ComparisonProgress::Ended { .. });
        let others = world.comparisons.iter().filter(|job| is_running(job)).count();
        prop_assert!(begun == 0 || (begun == 1 && others == 0));
        prop_assert!(begun == 0 || !(world.pipeline.spec.paused || world.is_deleting()));
    }

    #[test]
    fn the_sink_matches_only_if_the_last_comparison_of_this_spec_said_so(world in any_world()) {
        let Some(status) = plan(&world).unwrap().status else { return Ok(()) };
        let says = |word: &str| status.conditions.iter().any(|found| found.type_ == "SourceMatches" && found.status == word);
        let present = present_spec(&world);
        let last = status.source_comparison.as_ref().filter(|last| last.spec == present);
        let verdict = last.map(|last| last.result.verdict);
        prop_assert!(!says("True") || verdict == Some(ComparisonVerdict::Equal));
        let noted = |shard: u16| {
            let noted = last.and_then(|last| last.decisions.get(usize::from(shard)));
            Some(noted.copied().unwrap_or_default())
        };
        let target = target_revision(&world.pipeline).unwrap();
        let pods: Vec<&WorkerPod> = world.pods.iter().filter(|pod| pod.revision == target && !pod.is_deleting).collect();
        for pod in pods.iter().filter(|pod| pods.iter().filter(|other| other.shard == pod.shard).count() == 1) {
            let decisions = pod.report(world.now).and_then(|report| report.decisions);
            prop_assert!(!says("True") || decisions == noted(pod.shard));
        }
        prop_assert!(!says("False") || verdict == Some(ComparisonVerdict::Different));
    }

    #[test]
    fn volumes_go_only_after_their_revision_is_over(world in any_world()) {
        let plan = plan(&world).unwrap();
        let target = target_revision(&world.pipeline).unwrap();
        let is_ready = plan.status.iter().flat_map(|status| &status.conditions)
            .any(|condition| condition.type_ == "Ready" && condition.status == "True");
        for claim in doomed(&plan.steps, DoomedKind::PersistentVolumeClaim) {
            let is_clean = world.is_deleting() && world.clean_up.as_ref().is_some_and(|job| job.is_complete);
            let is_current = claim == owned(&target, "claim").uid;
            prop_assert!(is_clean || !is_current);
            let all_stream = (0..2).all(|shard| world.pods.iter().any(|pod| {
                pod.revision == target && pod.shard == shard
                    && pod.report(world.now).is_some_and(|report| report.phase == WorkerPhase::Streaming)
            }));
            prop_assert!(is_clean || is_ready || all_stream);
        }
    }

    #[test]
    fn ready_means_that_every_shard_was_just_seen_streaming(world in any_world()) {
        let plan = plan(&world).unwrap();
        let target = target_revision(&world.pipeline).unwrap();
        let is_ready = plan.status.iter().flat_map(|status| &status.conditions)
            .any(|condition| condition.type_ == "Ready" && condition.status == "True");
        let streams = |shard: u16| world.pods.iter().any(|pod| {
            pod.revision == target && pod.shard == shard
                && pod.report(world.now).is_some_and(|report| report.phase == WorkerPhase::Streaming)
        });
        prop_assert!(!is_ready || (streams(0) && streams(1) && world.refused.is_none()));
    }

    #[test]
    fn every_status_has_every_condition_of_the_generation(world in any_world()) {
        let Some(status) = plan(&world).unwrap().status else { return Ok(()) };
        prop_assert_eq!(status.observed_generation, world.pipeline.metadata.generation);
        let kinds: Vec<&str> = status.conditions.iter().map(|condition| condition.type_.as_str()).collect();
        prop_assert_eq!(kinds, ["Ready", "Reconciling", "Stalled", "SourceReachable", "SinkReachable", "SnapshotComplete", "SourceMatches"]);
        for condition in &status.conditions {
            prop_assert_eq!(condition.observed_generation, world.pipeline.metadata.generation);
            prop_assert!(!condition.reason.is_empty() && !condition.message.is_empty());
        }
        let is_true = |kind: &str| status.conditions.iter().any(|condition| condition.type_ == kind && condition.status == "True");
        prop_assert!(!(is_true("Reconciling") && is_true("Stalled")));
        prop_assert!(!(is_true("Ready") && (is_true("Reconciling") || is_true("Stalled"))));
    }
}
