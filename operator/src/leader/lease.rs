//! Whether a lease may be taken. Pure. A lease has run out when it was not written for its duration by
//! *our* clock since we first saw it so: clocks of different machines are never compared.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use super::{LEASE_DURATION, version_of};

/// Who holds the lease.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Holding {
    /// This candidate.
    Ours,
    /// Somebody else.
    Theirs(String),
}

/// What a lease says about its holder.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Claim {
    /// Who holds it; empty when it was released.
    pub(super) holder: String,
    /// How often the holder changed.
    pub(super) transitions: i32,
    /// Since when it is held.
    pub(super) acquired: Option<MicroTime>,
}

/// A lease as it was seen.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sighting {
    pub(super) claim: Claim,
    /// Version of the object.
    pub(super) version: String,
    /// How long the holder said it lasts.
    lasts: Duration,
    /// When we first saw this version, by our clock.
    since: Instant,
}

impl Sighting {
    /// A lease as it is seen now; the time of an earlier sighting counts if nobody has written it since.
    pub(super) fn of(lease: &Lease, before: Option<Self>, now: Instant) -> Self {
        let version = version_of(lease);
        let since = before.filter(|before| before.version == version).map_or(now, |before| before.since);
        let spec = lease.spec.as_ref();
        let seconds =
            spec.and_then(|spec| spec.lease_duration_seconds).and_then(|seconds| u64::try_from(seconds).ok());
        Self {
            claim: Claim {
                holder: spec.and_then(|spec| spec.holder_identity.clone()).unwrap_or_default(),
                transitions: spec.and_then(|spec| spec.lease_transitions).unwrap_or_default(),
                acquired: spec.and_then(|spec| spec.acquire_time.clone()),
            },
            version,
            lasts: seconds.map_or(LEASE_DURATION, Duration::from_secs),
            since,
        }
    }
}

/// What a candidate may do.
#[derive(Debug, PartialEq)]
pub(super) enum Move {
    /// There is no lease: make it.
    Create,
    /// It is ours, released, or has run out: write this.
    Write(Claim),
    /// Somebody else holds it.
    Wait,
}

/// What a candidate may do about a lease.
pub(super) fn next_move(seen: Option<&Sighting>, identity: &str, now: Instant) -> Move {
    let Some(seen) = seen else { return Move::Create };
    let claim = &seen.claim;
    if claim.holder == identity {
        return Move::Write(claim.clone());
    }
    let has_run_out = now.duration_since(seen.since) >= seen.lasts;
    if claim.holder.is_empty() || has_run_out {
        let transitions = claim.transitions.saturating_add(1);
        return Move::Write(Claim { holder: identity.to_owned(), transitions, acquired: None });
    }
    Move::Wait
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lease(holder: &str, version: &str) -> Lease {
        serde_json::from_value(json!({
            "metadata": {"name": "penstock-operator", "resourceVersion": version},
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15, "leaseTransitions": 3,
                     "acquireTime": "2026-03-01T12:00:00.000000Z"},
        }))
        .unwrap()
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_lease_that_is_not_there_is_made() {
        assert_eq!(next_move(None, "a", Instant::now()), Move::Create);
    }

    #[test]
    fn the_holder_renews_and_stays_the_holder_since_when_it_was() {
        let now = Instant::now();
        let seen = Sighting::of(&lease("a", "1"), None, now);
        assert_eq!(next_move(Some(&seen), "a", now + seconds(60)), Move::Write(seen.claim.clone()));
    }

    #[test]
    fn a_released_lease_is_taken_at_once() {
        let now = Instant::now();
        let seen = Sighting::of(&lease("", "1"), None, now);
        let Move::Write(claim) = next_move(Some(&seen), "b", now) else { panic!() };
        assert_eq!((claim.holder.as_str(), claim.transitions, claim.acquired), ("b", 4, None));
    }

    #[test]
    fn a_held_lease_is_taken_only_after_it_was_unchanged_for_its_duration() {
        let now = Instant::now();
        let seen = Sighting::of(&lease("a", "1"), None, now);
        assert_eq!(next_move(Some(&seen), "b", now + seconds(14)), Move::Wait);
        let again = Sighting::of(&lease("a", "1"), Some(seen), now + seconds(14));
        assert!(matches!(next_move(Some(&again), "b", now + seconds(15)), Move::Write(_)));
        let renewed = Sighting::of(&lease("a", "2"), Some(again), now + seconds(14));
        assert_eq!(next_move(Some(&renewed), "b", now + seconds(28)), Move::Wait);
    }

    #[test]
    fn a_holder_stops_before_anybody_may_take_over() {
        assert!(super::super::RENEW_DEADLINE < LEASE_DURATION);
    }
}
