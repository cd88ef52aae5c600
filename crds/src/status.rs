//! What the operator says about a pipeline. At rest nothing in it changes: live figures are metrics.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::comparison::LastComparison;
use crate::rollout::RolloutStatus;

/// What the operator observed last.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CdcPipelineStatus {
    /// The `metadata.generation` that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// What the pipeline is doing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,

    /// The revision that writes the sink tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable_revision: Option<String>,

    /// The revision that writes tables of its own beside them and may take its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary_revision: Option<String>,

    /// The revision that was promoted over and follows the source until there need be no way back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_revision: Option<String>,

    /// How many comparisons of the canary in a row found every row the same, of those that are required, as `3/12`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matches: Option<String>,

    /// How the rollout stands, while a revision is beside the stable one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutStatus>,

    /// Worker pods that exist, for the scale subresource.
    #[serde(default)]
    pub shards: i32,

    /// Label selector of the worker pods, for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,

    /// How far the sink is behind the source, in steps: `<10s`, `<1m`, `<10m`, `<1h`, `>=1h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<String>,

    /// Tables of the stable revision whose rows are copied, of all its tables, as `3/12`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tables_copied: Option<String>,

    /// Replication slots that the workers read, by shard. A pipeline that adopted another's state keeps its names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 63)))]
    pub slots: Vec<String>,

    /// Publication that the workers read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publication: Option<String>,

    /// The last comparison with the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_comparison: Option<LastComparison>,

    /// Since when the schedule asks for a comparison and it could begin. It begins within a tenth of the interval, at most half
    /// an hour, so that pipelines that are due together do not begin together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_comparison_due: Option<Time>,

    /// `Ready`, `Reconciling`, `Stalled`, `SourceReachable`, `SinkReachable`, `SnapshotComplete`, `SourceMatches`; while there is a canary,
    /// `CanaryMatching`; while there is a way back, `RollbackAvailable`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// What a pipeline is doing. The operator alone sets it, from what it observes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
pub enum Phase {
    /// Its workers are being made or are starting. Next: `Snapshotting` or `Streaming`.
    Starting,
    /// Existing rows are copied. Next: `Streaming`.
    Snapshotting,
    /// Changes are applied as they arrive.
    Streaming,
    /// The stable revision applies changes as they arrive, and a canary beside it is tried. Next: `Streaming`.
    RollingOut,
    /// A changed spec is carried out: the old revision stops, the new one goes on from its position.
    /// Next: `Starting`.
    Replacing,
    /// Stopped by `spec.paused`. Next: `Starting`.
    Paused,
    /// A worker meets an error that passes by itself and tries again. Next: what it did before.
    Retrying,
    /// A person is needed: the `Stalled` condition says what to do. Next: `Starting`.
    Stalled,
    /// The object is being deleted.
    Deleting,
}
