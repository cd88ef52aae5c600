//! Source comparison: when one begins, what becomes of it, and what the condition says.

use std::collections::BTreeMap;

use jiff::SignedDuration;
use penstock_crds::comparison::{ComparisonResult, ComparisonVerdict, DifferentTable};
use penstock_crds::names::ANNOTATION_COMPARE_SOURCE;
use penstock_crds::report::{Reason, WorkerPhase};
use penstock_crds::spec::DeletionPolicy;

use super::golden::{golden, step};
use super::scene::*;
use crate::plan::{Manifest, Step};
use crate::world::{ComparisonJob, ComparisonProgress, World};

/// The annotation asks for a comparison.
pub(super) fn asked(mut world: World, token: &str) -> World {
    let annotations = BTreeMap::from([(ANNOTATION_COMPARE_SOURCE.to_owned(), token.to_owned())]);
    world.pipeline.metadata.annotations = Some(annotations);
    world
}

pub(super) fn scheduled(mut world: World, interval: &str) -> World {
    world.pipeline.spec.source_comparison.interval = Some(interval.into());
    world
}

/// The Job that the plan makes, if it makes one.
pub(super) fn begun(world: &World) -> Option<ComparisonJob> {
    planned(world).steps.iter().find_map(|step| {
        let Step::Apply(Manifest::Comparison(job)) = step else { return None };
        let metadata = job.metadata.clone();
        let annotations = metadata.annotations.unwrap();
        let name = metadata.name.unwrap();
        Some(ComparisonJob {
            uid: format!("uid-{name}"),
            name,
            revision: world.revisions.last().unwrap().name.clone(),
            spec: annotations["penstock.dev/compared-spec"].clone(),
            token: annotations.get(ANNOTATION_COMPARE_SOURCE).cloned(),
            decisions: annotations
                .get("penstock.dev/decisions")
                .map_or_else(Vec::new, |text| serde_json::from_str(text).unwrap()),
            created: world.now,
            timeout: job.spec.as_ref()?.active_deadline_seconds.map(SignedDuration::from_secs),
            is_deleting: false,
            progress: ComparisonProgress::Waiting { trouble: None },
        })
    })
}

/// The Job that the plan makes is there and is so far.
pub(super) fn with_job(mut world: World, progress: ComparisonProgress) -> World {
    let job = begun(&world).unwrap();
    world.comparisons = vec![ComparisonJob { progress, ..job }];
    world.comparison_pods = vec!["inventory-compare-x".into()];
    world
}

pub(super) fn found(verdict: ComparisonVerdict) -> ComparisonResult {
    let is_different = verdict == ComparisonVerdict::Different;
    let table = DifferentTable { table: "public.inventory".into(), rows: 2, is_at_least: false };
    ComparisonResult {
        verdict,
        position: Some("0/1F0A3B8".into()),
        tables: 3,
        tables_different: u32::from(is_different),
        tables_unknown: u32::from(verdict == ComparisonVerdict::Unknown),
        different: if is_different { vec![table] } else { Vec::new() },
        reason: (verdict == ComparisonVerdict::Unknown).then(|| "sales.a: it is being copied".into()),
    }
}

/// A comparison that was asked for has come to this.
pub(super) fn ended(world: World, verdict: ComparisonVerdict) -> World {
    let at = world.now;
    with_job(world, ComparisonProgress::Ended { at, result: found(verdict) })
}

/// A pass every minute, as long as the turn of whoever is due may take to come: the one in which a comparison begins, or the
/// last.
pub(super) fn watched(mut world: World) -> World {
    for _ in 0..31 {
        if begun(&world).is_some() {
            break;
        }
        world = after(seen(world), SignedDuration::from_mins(1));
    }
    world
}

/// As long after.
pub(super) fn after(mut world: World, pause: SignedDuration) -> World {
    world.now += pause;
    for pod in &mut world.pods {
        if let crate::world::Answer::Report { at, .. } = &mut pod.answer {
            *at = world.now;
        }
    }
    world
}

pub(super) fn told(world: &World) -> Vec<String> {
    planned(world).steps.iter().filter(|step| matches!(step, Step::Emit(_))).map(step).collect()
}

pub(super) fn matches(world: &World) -> (String, String) {
    let conditions = planned(world).status.unwrap().conditions;
    let condition = conditions.into_iter().find(|condition| condition.type_ == "SourceMatches").unwrap();
    (condition.status, condition.reason)
}

pub(super) fn is(status: &str, reason: &str) -> (String, String) {
    (status.into(), reason.into())
}

#[test]
fn from_the_annotation_to_the_verdict() {
    let world = asked(at_rest(), "t-1");
    golden("100_comparison_begins", &world);
    golden("101_comparison_runs", &with_job(world.clone(), ComparisonProgress::Running));
    golden("102_equal", &ended(world.clone(), ComparisonVerdict::Equal));
    golden("103_equal_and_at_rest", &seen(ended(world.clone(), ComparisonVerdict::Equal)));
    golden("104_different", &ended(world.clone(), ComparisonVerdict::Different));
    golden("105_could_not_be_compared", &ended(world, ComparisonVerdict::Unknown));
}

#[test]
fn a_token_is_carried_out_once_and_another_asks_again() {
    let mut world = seen(ended(asked(at_rest(), "t-1"), ComparisonVerdict::Equal));
    assert_eq!(planned(&world).steps, planned(&at_rest()).steps, "it is at rest");
    world.comparisons.clear(); // Kubernetes removes it after an hour at the latest.
    assert_eq!(planned(&world).steps, planned(&at_rest()).steps, "it is at rest still");
    let job = begun(&asked(world, "t-2")).unwrap();
    assert_eq!(job.token.as_deref(), Some("t-2"));
}

#[test]
fn a_job_that_is_kept_for_its_log_goes_when_another_begins() {
    let world = asked(seen(ended(asked(at_rest(), "t-1"), ComparisonVerdict::Equal)), "t-2");
    let old = world.comparisons[0].name.clone();
    let steps: Vec<String> = planned(&world).steps.iter().map(step).collect();
    assert!(steps.contains(&format!("delete Job {old}")), "{steps:?}");
    assert!(begun(&world).is_some_and(|job| job.name != old));
}

#[test]
fn the_same_verdict_again_changes_neither_condition_nor_its_time_and_is_told_only_if_it_is_bad() {
    for (verdict, is_told) in [(ComparisonVerdict::Equal, false), (ComparisonVerdict::Different, true)] {
        let first = seen(ended(asked(at_rest(), "t-1"), verdict));
        let condition = |world: &World| planned(world).status.unwrap().conditions.pop().unwrap();
        let later = after(asked(first.clone(), "t-2"), SignedDuration::from_mins(1));
        let later = ended(later, verdict);
        assert_eq!(condition(&later).last_transition_time, condition(&first).last_transition_time);
        assert_eq!(condition(&later).status, condition(&first).status);
        assert_eq!(!told(&later).is_empty(), is_told, "{:?}", told(&later));
        let (old, new) = (planned(&first).status.unwrap(), planned(&later).status.unwrap());
        assert_ne!(old.source_comparison, new.source_comparison, "when it was is told");
        if verdict == ComparisonVerdict::Equal {
            assert_eq!(condition(&later), condition(&first));
        }
    }
}

#[test]
fn a_token_that_is_not_carried_out_yet_is_not_answered_by_what_was_found_before() {
    for verdict in [ComparisonVerdict::Equal, ComparisonVerdict::Different, ComparisonVerdict::Unknown] {
        let known = seen(ended(asked(at_rest(), "t-1"), verdict));
        let asks = asked(known.clone(), "t-2");
        assert_eq!(matches(&asks), is("Unknown", "Comparing"), "the pass that makes the Job");
        let runs = seen(with_job(asks.clone(), ComparisonProgress::Running));
        assert_eq!(matches(&runs), is("Unknown", "Comparing"));
        assert_eq!(matches(&ended(asks.clone(), ComparisonVerdict::Equal)), is("True", "Equal"));
        let mut waits = asks;
        waits.pipeline.spec.paused = true;
        assert_eq!(matches(&waits), is("Unknown", "Comparing"), "it cannot begin");
        // Nobody asked for a run of the schedule: the old word stays.
        let due = watched(after(scheduled(known.clone(), "10m"), SignedDuration::from_hours(1)));
        assert_eq!(matches(&with_job(due, ComparisonProgress::Running)), matches(&known));
    }
}

#[test]
fn the_sink_is_not_said_to_match_while_a_worker_stands_at_a_dead_end() {
    let met = |reason, verdict| {
        let mut world = with_problem(WorkerPhase::Halted, reason, "so");
        world.pipeline.status = seen(ended(asked(at_rest(), "t-1"), verdict)).pipeline.status;
        matches(&asked(world, "t-1"))
    };
    let (equal, different) = (ComparisonVerdict::Equal, ComparisonVerdict::Different);
    assert_eq!(met(Reason::SourceChanged, equal), is("Unknown", "ComparisonOutdated"));
    assert_eq!(met(Reason::SlotInvalidated, equal), is("Unknown", "ComparisonOutdated"));
    assert_eq!(met(Reason::TableMissing, equal), is("True", "Equal"), "that can be mended");
    assert_eq!(met(Reason::SourceChanged, different), is("False", "Different"), "it is no better now");
}

#[test]
fn a_comparison_that_fails_does_not_bury_what_differed() {
    let differs = seen(ended(asked(scheduled(at_rest(), "24h"), "t-1"), ComparisonVerdict::Different));
    let fails = ended(asked(differs.clone(), "t-2"), ComparisonVerdict::Unknown);
    assert_eq!(matches(&fails), is("False", "Different"));
    let told = told(&fails);
    assert!(told.len() == 1 && told[0].starts_with("tell Warning ComparisonFailed"), "{told:?}");
    let failed = seen(fails);
    let condition = planned(&failed).status.unwrap().conditions.pop().unwrap();
    assert!(condition.message.contains("public.inventory (2 rows)"), "{}", condition.message);
    assert!(condition.message.contains("sales.a: it is being copied"), "{}", condition.message);
    assert!(!condition.message.contains("kubectl logs"), "that Job is gone: {}", condition.message);
    // It is tried again soon, fails again, and says the same; then it finds out.
    let again = watched(after(failed, SignedDuration::from_mins(61)));
    assert_eq!(matches(&ended(again.clone(), ComparisonVerdict::Unknown)), is("False", "Different"));
    assert_eq!(matches(&ended(again, ComparisonVerdict::Equal)), is("True", "Equal"));
    // Of another spec nothing is known.
    let mut moved = differs;
    moved.pipeline.spec.sink.postgres.connection.host = "another".into();
    let fails = ended(asked(up_to_date(moved), "t-2"), ComparisonVerdict::Unknown);
    assert_eq!(matches(&fails), is("Unknown", "ComparisonFailed"));
}

#[test]
fn recovery_is_told() {
    let world = asked(seen(ended(asked(at_rest(), "t-1"), ComparisonVerdict::Different)), "t-2");
    let told = told(&ended(world, ComparisonVerdict::Equal));
    assert!(told.len() == 1 && told[0].starts_with("tell Normal SinkMatches"), "{told:?}");
}

#[test]
fn nothing_is_compared_without_being_asked_for_nor_before_all_rows_are_there() {
    assert!(begun(&at_rest()).is_none());
    for world in [in_phase(WorkerPhase::Starting), in_phase(WorkerPhase::Snapshotting), replacing(), minted()]
    {
        assert!(begun(&asked(world.clone(), "t-1")).is_none());
        assert!(begun(&watched(scheduled(world, "1h"))).is_none());
    }
    golden("106_comparison_waits_for_the_rows", &seen(asked(in_phase(WorkerPhase::Snapshotting), "t-1")));
}

#[test]
fn a_paused_pipeline_does_not_compare_and_keeps_what_was_found() {
    let mut world = asked(at_rest(), "t-1");
    world.pipeline.spec.paused = true;
    assert!(begun(&world).is_none());
    let mut world = with_job(asked(at_rest(), "t-1"), ComparisonProgress::Running);
    world.pipeline.spec.paused = true;
    golden("107_paused_while_comparing", &world);
    world.comparisons.clear();
    world.pipeline.spec.paused = false;
    assert!(begun(&world).is_some(), "what was interrupted begins again");
    let mut world = seen(ended(asked(at_rest(), "t-1"), ComparisonVerdict::Equal));
    world.pipeline.spec.paused = true;
    world.pipeline.metadata.generation = Some(4);
    assert_eq!(matches(&world), is("True", "Equal"));
}

#[test]
fn a_changed_spec_ends_a_comparison_and_nothing_is_known_of_it() {
    let edit = |mut world: World| {
        world.pipeline.spec.source.postgres.tables = vec!["public.orders".into()];
        world.pipeline.metadata.generation = Some(4);
        world
    };
    golden(
        "108_replaced_while_comparing",
        &edit(with_job(asked(at_rest(), "t-1"), ComparisonProgress::Running)),
    );
    let known = seen(ended(asked(at_rest(), "t-1"), ComparisonVerdict::Equal));
    golden("109_known_of_an_older_spec", &edit(known.clone()));
    let mut moved = known.clone();
    moved.pipeline.spec.sink.postgres.connection.host = "another".into();
    assert_eq!(matches(&moved), is("Unknown", "ComparisonOutdated"), "another sink");
    let mut back = known.clone();
    back.revisions[0].number = 3;
    assert_eq!(matches(&back), is("Unknown", "ComparisonOutdated"), "another revision ran in between");
    // How the workers run, and what only the operator acts on, decide nothing.
    let mut same = known;
    same.pipeline.spec.worker.log = "debug".into();
    same.pipeline.spec.deletion_policy = DeletionPolicy::Delete;
    same.pipeline.spec.source_comparison.interval = Some("24h".into());
    assert_eq!(matches(&same), is("True", "Equal"));
}

#[test]
fn what_keeps_a_comparison_from_starting_is_said_and_given_up_after_five_minutes() {
    for (name, trouble) in [
        ("110_comparison_lacks_a_node", Some("No node takes the pod x: Insufficient cpu")),
        ("111_comparison_has_no_pod", None),
    ] {
        let trouble = trouble.map(str::to_owned);
        let world = with_job(asked(at_rest(), "t-1"), ComparisonProgress::Waiting { trouble });
        assert_eq!(matches(&world), is("Unknown", "Comparing"));
        let late = after(world, SignedDuration::from_secs(301));
        golden(name, &late);
        let given_up = seen(late);
        let steps: Vec<String> = planned(&given_up).steps.iter().map(step).collect();
        assert!(steps.iter().any(|step| step.starts_with("delete Job inventory-compare-")), "{steps:?}");
        assert!(begun(&given_up).is_none());
    }
}

#[test]
fn a_job_that_outlives_the_deadline_it_was_made_with_is_given_up() {
    let timed = |mut world: World, timeout: &str| {
        world.pipeline.spec.source_comparison.timeout = timeout.into();
        world
    };
    let world = with_job(timed(asked(at_rest(), "t-1"), "1h"), ComparisonProgress::Running);
    for now_in_spec in ["10m", "1h", "12h"] {
        let world = timed(world.clone(), now_in_spec);
        let in_time = planned(&after(world.clone(), SignedDuration::from_mins(60))).status.unwrap();
        assert!(in_time.source_comparison.is_none(), "{now_in_spec}");
        let late = after(world, SignedDuration::from_mins(66));
        assert_eq!(matches(&late), is("Unknown", "ComparisonFailed"), "{now_in_spec}");
    }
}

#[test]
fn a_comparison_never_ends_in_the_future() {
    let at = now() + SignedDuration::from_hours(2); // The clock of the node is ahead.
    let world = with_job(
        asked(at_rest(), "t-1"),
        ComparisonProgress::Ended { at, result: found(ComparisonVerdict::Equal) },
    );
    assert_eq!(planned(&world).status.unwrap().source_comparison.unwrap().completion_time.0, now());
}

#[test]
fn a_job_that_kubernetes_refuses_is_said_and_not_asked_for_again_and_again() {
    let mut world = asked(at_rest(), "t-1");
    world.comparison_refused = Some("exceeded quota".into());
    golden("112_comparison_refused", &world);
    world = seen(world);
    world.comparison_refused = None;
    assert!(begun(&world).is_none());
    assert_eq!(matches(&world), is("Unknown", "ComparisonFailed"));
}

#[test]
fn a_job_that_was_just_made_is_not_made_twice() {
    let world = asked(at_rest(), "t-1");
    // The watch has not brought it yet: time goes on, and the status is written with nothing recorded.
    let later = seen(after(world.clone(), SignedDuration::from_mins(1)));
    assert_ne!(later.pipeline.status, world.pipeline.status);
    assert_eq!(begun(&later).unwrap().name, begun(&world).unwrap().name);
    let mut ending = with_job(world, ComparisonProgress::Running);
    ending.comparisons[0].is_deleting = true;
    assert!(begun(&ending).is_none(), "its namesake is still there");
}

#[test]
fn a_deleted_pipeline_waits_until_its_comparison_is_gone() {
    let mut world = deleted(with_job(asked(at_rest(), "t-1"), ComparisonProgress::Running));
    golden("113_deleted_while_comparing", &world);
    world.sets.clear();
    world.pods.clear();
    world.comparisons.clear();
    assert!(planned(&world).waits_for.unwrap().contains("inventory-compare-x"), "its pod is there");
    assert!(!planned(&world).steps.contains(&Step::RemoveFinalizer));
}

#[test]
fn a_token_that_is_none_is_told_and_left_alone() {
    let world = asked(at_rest(), "now please");
    let told = told(&world);
    assert!(told.len() == 1 && told[0].contains("tell Warning AnnotationInvalid"), "{told:?}");
    assert!(
        told[0].contains("penstock.dev/compare-source") && told[0].contains("`now please` is no token"),
        "{told:?}"
    );
    assert!(begun(&world).is_none());
}

#[test]
fn five_tables_are_named_and_the_others_counted() {
    let mut result = found(ComparisonVerdict::Different);
    result.different = (0..10)
        .map(|_| DifferentTable {
            table: format!("{}.{}", "s".repeat(63), "t".repeat(63)),
            rows: u64::MAX,
            is_at_least: true,
        })
        .collect();
    result.tables_different = 4000;
    let at = now();
    let world = with_job(asked(at_rest(), "t-1"), ComparisonProgress::Ended { at, result });
    let told = told(&world);
    assert!(told[0].contains(" and 3995 more. "), "{told:?}");
}

#[test]
fn the_object_is_this() {
    let world = asked(at_rest(), "t-1");
    let steps = planned(&world).steps;
    let job = steps.iter().find_map(|step| {
        let Step::Apply(manifest @ Manifest::Comparison(_)) = step else { return None };
        Some(manifest)
    });
    insta::with_settings!({snapshot_path => "golden", prepend_module_to_snapshot => false, omit_expression => true}, {
        insta::assert_yaml_snapshot!("object_comparison", job.unwrap());
    });
}
