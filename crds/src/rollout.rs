//! How a changed spec is carried out, and how the rollout of a revision stands.

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::comparison::ComparisonResult;

/// `comparison.interval`, if a manifest does not say it.
const INTERVAL: SignedDuration = SignedDuration::from_mins(5);
/// `keepPrevious`, if a manifest does not say it.
const KEEP_PREVIOUS: SignedDuration = SignedDuration::from_hours(24);

/// How a changed spec is carried out. May be changed at any time, and restarts nothing.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// Whether another `worker.image` or other `transforms` are tried beside the revision that runs before they take its place. A
    /// change of `tables` or `schemaMap` is carried out by `Recreate` in any case: there would be nothing to compare.
    #[serde(default)]
    pub strategy: Strategy,

    /// When a canary is compared with the stable revision.
    #[serde(default)]
    pub comparison: CanaryComparison,

    /// What happens when the last `comparison.requiredMatches` comparisons found every row the same.
    #[serde(default)]
    pub promotion: Promotion,

    /// How long the revision that was promoted over follows the source, so that its tables can be given back, in hours and minutes
    /// as `24h` or `1h30m`; `0m`: there is no way back. It ends early when the spec means a third revision.
    #[serde(default = "Rollout::default_keep_previous")]
    #[schemars(length(min = 2, max = 16))]
    #[x_kube(validation = Rule::new("self.matches('^([0-9]{1,4}h)?([0-9]{1,4}m)?$')")
        .message("rollout.keepPrevious must be hours and minutes, for example 24h or 1h30m"))]
    pub keep_previous: String,
}

impl Rollout {
    fn default_keep_previous() -> String {
        "24h".into()
    }

    /// Whether it says nothing but the defaults.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// How long the previous revision is kept.
    pub fn keep_previous(&self) -> SignedDuration {
        self.keep_previous.parse().unwrap_or(KEEP_PREVIOUS)
    }
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            strategy: Strategy::default(),
            comparison: CanaryComparison::default(),
            promotion: Promotion::default(),
            keep_previous: Self::default_keep_previous(),
        }
    }
}

/// How a new revision takes the place of the one that runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Strategy {
    /// The old workers stop at an exact position, and the new ones go on from it.
    #[default]
    Recreate,
    /// The new workers write tables of their own from the same stream. When those are the same as the ones that readers know, they
    /// take their place in one transaction.
    Canary,
}

/// What happens when enough comparisons matched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Promotion {
    /// The canary is promoted.
    #[default]
    Automatic,
    /// The canary waits for the annotation `penstock.dev/promote`.
    Manual,
}

/// When a canary is compared with the stable revision, all rows of both at one position of the stream.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CanaryComparison {
    /// How long after a comparison the next one begins, in hours, minutes and seconds as `5m` or `1m30s`, at least `10s`. The first begins
    /// when the canary has copied all rows and streams.
    #[serde(default = "CanaryComparison::default_interval")]
    #[schemars(length(min = 2, max = 16))]
    #[x_kube(validation = Rule::new("self.matches('^([0-9]{1,4}h)?([0-9]{1,4}m)?([0-9]{1,4}s)?$') && duration(self) >= duration('10s')")
        .message("rollout.comparison.interval must be hours, minutes and seconds of at least 10s, for example 5m or 1m30s"))]
    pub interval: String,

    /// How many comparisons in a row have to find every row the same. One that finds a row that differs rejects the canary; one that could not be
    /// made counts for nothing.
    #[serde(default = "CanaryComparison::default_required_matches")]
    #[schemars(range(min = 1, max = 1000))]
    pub required_matches: u32,

    /// Columns, as the sink calls them, in which the canary is meant to have other values. Columns that only one of the two has are left out
    /// in any case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63), regex(pattern = "^[^,]+$")), extend("x-kubernetes-list-type" = "set"))]
    pub leave_out: Vec<String>,
}

impl CanaryComparison {
    fn default_interval() -> String {
        "5m".into()
    }
    fn default_required_matches() -> u32 {
        12
    }

    /// How long after a comparison the next one begins.
    pub fn interval(&self) -> SignedDuration {
        self.interval.parse().unwrap_or(INTERVAL)
    }
}

impl Default for CanaryComparison {
    fn default() -> Self {
        Self {
            interval: Self::default_interval(),
            required_matches: Self::default_required_matches(),
            leave_out: Vec::new(),
        }
    }
}

/// What a Job of a rollout does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
pub enum RolloutTask {
    /// It compares the canary with the stable revision.
    Compare,
    /// It compares once more and gives the canary the tables that readers know.
    Promote,
    /// It gives the tables back to the previous revision.
    RollBack,
    /// It removes slots, state and tables of the canary or of the previous revision.
    CleanUp,
}

/// How the rollout of a canary stands. Kept while a revision is beside the stable one.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutStatus {
    /// The revision beside the stable one, a canary or the one that was promoted over.
    pub revision: String,

    /// Its number, which tells two rollouts of one revision apart.
    pub number: i64,

    /// Replication slots that its workers read, by shard.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 63)))]
    pub slots: Vec<String>,

    /// How many comparisons in a row found every row the same.
    #[serde(default)]
    pub matches: u32,

    /// The last Job of the rollout that ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<LastTask>,

    /// Until when the revision that was promoted over is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_kept_until: Option<Time>,
}

/// A Job of a rollout that ended.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastTask {
    /// Its name; until the next one, at most for an hour, `kubectl logs job/NAME` names the rows that differ.
    pub job: String,

    /// What it did.
    pub task: RolloutTask,

    /// When it ended.
    pub completion_time: Time,

    /// What it found or why it failed; `Equal`: it is done.
    pub result: ComparisonResult,
}
