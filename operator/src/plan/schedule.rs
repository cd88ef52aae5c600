//! When the schedule asks for a comparison, and when that begins: pipelines that are due together, because they were made
//! together or nobody looked after them for a while, begin one after the other.

use jiff::{SignedDuration, Timestamp};
use penstock_crds::comparison::{ComparisonVerdict, LastComparison};
use penstock_crds::names::uid8;

use super::status::whole_seconds;
use crate::world::World;

/// How soon it tries again, at the latest, after a comparison that could not be made.
const AGAIN: SignedDuration = SignedDuration::from_hours(1);
/// The longest time over which pipelines that are due together are spread.
const WINDOW_MAX: SignedDuration = SignedDuration::from_mins(30);
/// How late a pass may be. A turn that is longer ago came while nobody looked.
const LATE: SignedDuration = SignedDuration::from_mins(5);

/// What the schedule asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Schedule {
    /// It asks for a comparison.
    pub(super) is_due: bool,
    /// Since when, as it is to be recorded: each pass sees the same, also that of another operator.
    pub(super) since: Option<Timestamp>,
    /// It is this pipeline's turn.
    pub(super) is_turn: bool,
}

/// What the schedule asks for after the last comparison that still counts, if there is one. `can_begin`: nothing keeps one
/// from beginning.
pub(super) fn schedule(world: &World, last: Option<&LastComparison>, can_begin: bool) -> Schedule {
    let nothing = Schedule { is_due: false, since: None, is_turn: false };
    let Some(interval) = world.pipeline.spec.source_comparison.interval() else { return nothing };
    let is_failure =
        |last: &LastComparison| last.failure.is_some() || last.result.verdict == ComparisonVerdict::Unknown;
    let pause = if last.is_some_and(is_failure) { interval.min(AGAIN) } else { interval };
    let age = last.map(|last| world.now.duration_since(last.completion_time.0));
    if age.is_some_and(|age| age < pause) {
        return nothing;
    }
    let window = (pause / 10).min(WINDOW_MAX);
    let noted = world.pipeline.status.as_ref().and_then(|status| status.source_comparison_due.as_ref());
    let noted = noted.map(|noted| noted.0);
    let waited = |since: Timestamp| world.now.duration_since(since);
    let is_over = |since: Timestamp| waited(since) > window + LATE || waited(since) < -LATE;
    // A turn that nobody saw is none: all that are due would take it at once.
    let since = noted
        .filter(|noted| !is_over(*noted))
        .or_else(|| if can_begin { Some(whole_seconds(world.now)) } else { noted });
    let is_turn = since.is_some_and(|since| !is_over(since) && waited(since) >= share(&world.uid, window));
    Schedule { is_due: true, since, is_turn }
}

/// The part of the window that a pipeline waits.
fn share(uid: &str, window: SignedDuration) -> SignedDuration {
    let number = i64::from_str_radix(&uid8(uid), 16).unwrap_or_default();
    SignedDuration::from_secs((window.as_secs() * number) >> 32)
}
