//! When comparisons of the schedule begin.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use penstock_crds::comparison::ComparisonVerdict;
use penstock_crds::report::WorkerPhase;

use super::comparison::{after, asked, begun, ended, scheduled, watched};
use super::scene::*;
use crate::world::World;

/// Since when one is due, as the status has it.
fn due(world: &World) -> Option<Timestamp> {
    Some(world.pipeline.status.as_ref()?.source_comparison_due.as_ref()?.0)
}

/// In which minute the comparison begins of each of fifty pipelines that are all like this one.
fn beginnings(world: &World) -> BTreeMap<i64, usize> {
    let mut beginnings = BTreeMap::new();
    for number in 0..50 {
        let mut world = world.clone();
        world.uid = format!("uid-{number}");
        world.pipeline.metadata.uid = Some(world.uid.clone());
        let world = up_to_date(world);
        let begins = watched(world.clone());
        assert!(begun(&begins).is_some_and(|job| job.token.is_none()), "{number} does not begin");
        *beginnings.entry(begins.now.duration_since(world.now).as_mins()).or_default() += 1;
    }
    beginnings
}

#[test]
fn pipelines_that_are_due_together_begin_one_after_the_other() {
    let first = scheduled(at_rest(), "24h");
    let compared = seen(ended(watched(first.clone()), ComparisonVerdict::Equal));
    // Long overdue, because no operator ran: nothing is noted, or that it was due before that.
    let overdue = after(compared, SignedDuration::from_hours(100));
    let mut noted = overdue.clone();
    noted.pipeline.status.as_mut().unwrap().source_comparison_due =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now() + SignedDuration::from_hours(24)));
    for (name, world) in [("first", first), ("overdue", overdue), ("noted", noted)] {
        let beginnings = beginnings(&world);
        assert!(beginnings.keys().all(|minute| (0..=30).contains(minute)), "{name}: {beginnings:?}");
        assert!(beginnings.values().all(|at_once| *at_once <= 7), "{name}: {beginnings:?}");
    }
    let often = beginnings(&scheduled(at_rest(), "10m"));
    assert!(often.keys().all(|minute| (0..=1).contains(minute)), "a tenth of the interval: {often:?}");
}

#[test]
fn a_turn_stays_while_workers_restart_and_with_another_operator() {
    let noted = seen(scheduled(at_rest(), "24h"));
    assert_eq!(due(&noted), Some(now()));
    let mut later = after(noted.clone(), SignedDuration::from_mins(10));
    assert_eq!(due(&seen(later.clone())), Some(now()));
    later.pods.clone_from(&in_phase(WorkerPhase::Starting).pods);
    assert_eq!(due(&seen(later)), Some(now()));
    let passed = after(noted, SignedDuration::from_mins(60));
    assert!(begun(&passed).is_none(), "nobody looked when its turn was: so it was for all the others");
    assert_eq!(due(&seen(passed.clone())), Some(passed.now));
}

#[test]
fn nothing_is_noted_before_a_comparison_could_begin_nor_after_it_has_ended() {
    assert_eq!(due(&seen(scheduled(in_phase(WorkerPhase::Snapshotting), "24h"))), None);
    let begins = watched(scheduled(at_rest(), "24h"));
    assert!(due(&begins).is_some());
    assert_eq!(due(&seen(ended(begins.clone(), ComparisonVerdict::Equal))), None);
    let refused = World { comparison_refused: Some("exceeded quota".into()), ..begins };
    assert_eq!(due(&seen(refused)), None);
}

#[test]
fn a_token_waits_for_no_turn() {
    let world = asked(scheduled(at_rest(), "24h"), "t-1");
    assert!(begun(&world).is_some_and(|job| job.token.is_some()));
}

#[test]
fn each_further_one_is_due_after_its_interval() {
    let world = watched(scheduled(at_rest(), "24h"));
    let world = seen(ended(world, ComparisonVerdict::Equal));
    assert_eq!(due(&seen(after(world.clone(), SignedDuration::from_hours(23)))), None);
    assert!(begun(&watched(after(world.clone(), SignedDuration::from_hours(24)))).is_some());
    // A token is carried out besides, and the schedule counts from it.
    let world = asked(after(world, SignedDuration::from_hours(20)), "t-1");
    let world = seen(ended(world, ComparisonVerdict::Equal));
    assert!(begun(&watched(after(world.clone(), SignedDuration::from_hours(10)))).is_none());
    let further = watched(after(world, SignedDuration::from_hours(24)));
    assert!(begun(&further).is_some_and(|job| job.token.is_none()));
}

#[test]
fn what_could_not_be_compared_is_tried_again_within_about_an_hour() {
    let world = seen(ended(watched(scheduled(at_rest(), "24h")), ComparisonVerdict::Unknown));
    assert_eq!(due(&seen(after(world.clone(), SignedDuration::from_mins(59)))), None);
    let again = watched(after(world.clone(), SignedDuration::from_mins(60)));
    assert!(begun(&again).is_some());
    assert!(again.now <= world.now + SignedDuration::from_mins(66), "{}", again.now);
    let world = seen(ended(asked(at_rest(), "t-1"), ComparisonVerdict::Unknown));
    let later = watched(after(world, SignedDuration::from_hours(48)));
    assert!(begun(&later).is_none(), "a token is carried out once");
}
