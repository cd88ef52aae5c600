//! What was decided about a dead end since a comparison began.

use penstock_crds::comparison::ComparisonVerdict;
use penstock_crds::report::{Decisions, Problem, Reason, WorkerPhase};

use super::comparison::{after, asked, begun, ended, is, matches, scheduled, told, watched, with_job};
use super::golden::{golden, step};
use super::scene::*;
use crate::world::{Answer, ComparisonProgress, World};

/// The worker of a shard says something else.
fn says(mut world: World, shard: usize, change: impl FnOnce(&mut penstock_crds::report::Report)) -> World {
    let Answer::Report { report, .. } = &mut world.pods[shard].answer else { panic!("it says nothing") };
    change(report);
    world
}

const DECIDED: Decisions = Decisions { count: 1, last_micros: 1_772_366_400_000_000 };

/// What a person decided about the dead end of shard 1 is carried out.
fn decided(world: World) -> World {
    says(world, 1, |report| report.decisions = Some(DECIDED))
}

fn compared(verdict: ComparisonVerdict) -> World {
    seen(ended(asked(at_rest(), "t-1"), verdict))
}

fn condition(world: &World) -> String {
    planned(world).status.unwrap().conditions.pop().unwrap().message
}

#[test]
fn what_was_found_before_a_decision_says_nothing_of_the_sink_that_it_left() {
    for verdict in [ComparisonVerdict::Equal, ComparisonVerdict::Different, ComparisonVerdict::Unknown] {
        let world = decided(compared(verdict));
        assert_eq!(matches(&world), is("Unknown", "ComparisonOutdated"), "{verdict:?}");
        assert!(condition(&world).contains("decided about a dead end"), "{}", condition(&world));
        assert!(begun(&world).is_none(), "nobody asked for one");
        let due = watched(scheduled(world, "24h"));
        assert!(begun(&due).is_some_and(|job| job.decisions == [Decisions::default(), DECIDED]));
    }
    golden("114_decided_since", &decided(compared(ComparisonVerdict::Equal)));
}

#[test]
fn a_comparison_after_the_decision_counts_until_the_next_decision() {
    let world = decided(compared(ComparisonVerdict::Equal));
    let world = seen(ended(asked(world, "t-2"), ComparisonVerdict::Equal));
    assert_eq!(matches(&world), is("True", "Equal"));
    // As many as before, but of a sink that was restored in between.
    let again = Decisions { last_micros: DECIDED.last_micros + 1, ..DECIDED };
    let world = says(world, 1, |report| report.decisions = Some(again));
    assert_eq!(matches(&world), is("Unknown", "ComparisonOutdated"));
}

#[test]
fn a_decision_while_a_comparison_runs_makes_it_begin_again() {
    let ends = |world: &World| {
        let at = world.now;
        ComparisonProgress::Ended { at, result: super::comparison::found(ComparisonVerdict::Equal) }
    };
    let world = with_job(asked(at_rest(), "t-1"), ComparisonProgress::Running);
    for progress in [ComparisonProgress::Running, ends(&world)] {
        let mut world = decided(world.clone());
        world.comparisons[0].progress = progress;
        assert_eq!(matches(&world), is("Unknown", "Comparing"));
        let doomed = format!("delete Job {}", world.comparisons[0].name);
        let steps: Vec<String> = planned(&world).steps.iter().map(step).collect();
        assert!(steps.contains(&doomed), "{steps:?}");
        assert!(planned(&world).status.unwrap().source_comparison.is_none(), "it is not recorded");
        let first = world.comparisons.remove(0);
        let second = begun(&world).unwrap();
        assert_ne!(second.name, first.name, "the second would take the first for its own");
    }
}

#[test]
fn a_decision_that_was_not_seen_in_time_makes_outdated_what_was_recorded() {
    let mut world = with_job(asked(scheduled(at_rest(), "24h"), "t-1"), ComparisonProgress::Running);
    world.pods[1].answer = Answer::NotRunning;
    let at = world.now;
    let result = super::comparison::found(ComparisonVerdict::Equal);
    world.comparisons[0].progress = ComparisonProgress::Ended { at, result };
    let world = seen(world);
    assert_eq!(matches(&world), is("Unknown", "ComparisonOutdated"), "nobody knows about shard 1");
    let mut back = world.clone();
    back.pods.clone_from(&at_rest().pods);
    assert_eq!(matches(&back), is("True", "Equal"));
    let decided = decided(back);
    assert_eq!(matches(&decided), is("Unknown", "ComparisonOutdated"));
    assert!(begun(&watched(decided)).is_some());
}

#[test]
fn what_is_not_reported_neither_makes_a_match_nor_ends_one() {
    let silent = |mut world: World| {
        world.pods[1].answer = Answer::NotRunning;
        world
    };
    let old = |world: World| says(world, 0, |report| report.decisions = None);
    let starts = |world: World| says(world, 1, |report| report.phase = WorkerPhase::Starting);
    let equal = ended(asked(at_rest(), "t-1"), ComparisonVerdict::Equal);
    for unknown in [silent(equal.clone()), old(equal.clone()), starts(equal.clone())] {
        assert_eq!(matches(&unknown), is("Unknown", "ComparisonOutdated"));
        assert!(condition(&unknown).contains("when every worker streams"), "{}", condition(&unknown));
    }
    let known = seen(equal);
    for same in [silent(known.clone()), old(known.clone()), starts(known.clone())] {
        assert_eq!(matches(&same), is("True", "Equal"));
    }
    // One worker knows of a decision, and another says nothing: that is enough.
    assert_eq!(matches(&decided(old(known))), is("Unknown", "ComparisonOutdated"));
}

#[test]
fn a_match_does_not_come_back_while_the_worker_at_the_dead_end_is_gone_or_starts() {
    let halted = says(compared(ComparisonVerdict::Equal), 1, |report| {
        report.phase = WorkerPhase::Halted;
        report.problem = Some(Problem { reason: Reason::SlotMissing, message: "so".into() });
    });
    assert_eq!(matches(&halted), is("Unknown", "ComparisonOutdated"));
    let halted = seen(halted);
    let mut gone = halted.clone();
    gone.pods[1].answer = Answer::NotRunning;
    assert_eq!(matches(&gone), is("Unknown", "ComparisonOutdated"));
    let mut starts = halted.clone();
    starts.pods.clone_from(&in_phase(WorkerPhase::Starting).pods);
    assert_eq!(matches(&starts), is("Unknown", "ComparisonOutdated"));
    // It came to nothing: the right source is back, say.
    let mut back = halted;
    back.pods.clone_from(&at_rest().pods);
    assert_eq!(matches(&back), is("True", "Equal"));
}

#[test]
fn a_comparison_that_fails_after_a_decision_does_not_bring_back_what_differed_before() {
    let world = asked(decided(compared(ComparisonVerdict::Different)), "t-2");
    let fails = ended(world, ComparisonVerdict::Unknown);
    assert_eq!(matches(&fails), is("Unknown", "ComparisonFailed"));
    assert_eq!(told(&fails).len(), 1);
    assert_eq!(
        matches(&after(seen(fails), jiff::SignedDuration::from_mins(5))),
        is("Unknown", "ComparisonFailed")
    );
}
