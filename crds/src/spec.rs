//! `CdcPipeline`, the one resource of Penstock.

// `maxRows`, `maxBytes`, `maxDelayMs` are the manifest's words.
#![allow(clippy::struct_field_names)]

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::comparison::SourceComparison;
use crate::connection::PostgresConnection;
use crate::rollout::Rollout;
use crate::source::PostgresSource;
use crate::status::CdcPipelineStatus;
use crate::transform::TableTransform;
use crate::worker::Worker;

/// A change-data-capture pipeline: it copies the tables of a source database into a sink database and
/// keeps them equal, change by change, exactly once.
#[derive(CustomResource, Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[kube(
    group = "penstock.dev",
    version = "v1alpha1",
    kind = "CdcPipeline",
    plural = "cdcpipelines",
    shortname = "cdc",
    category = "all",
    namespaced,
    derive = "PartialEq",
    status = "CdcPipelineStatus",
    doc = "A change-data-capture pipeline: it copies the tables of a source database into a sink database and keeps them equal, change by change, exactly once.",
    cel,
    scale(
        spec_replicas_path = ".spec.worker.shards",
        status_replicas_path = ".status.shards",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase", description = "What the pipeline is doing"),
    printcolumn(name = "Stable", type_ = "string", json_path = ".status.stableRevision", description = "The revision that writes the sink tables"),
    printcolumn(name = "Canary", type_ = "string", json_path = ".status.canaryRevision", description = "The revision that is tried beside it"),
    printcolumn(name = "Matches", type_ = "string", json_path = ".status.matches", description = "How many comparisons of the canary in a row found every row the same, of those that are required"),
    printcolumn(name = "Lag", type_ = "string", json_path = ".status.lag", description = "How far the sink is behind the source, in steps; exact values are metrics"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status", description = "True when every change is being applied"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason", description = "Why it is ready, or why it is not", priority = "1"),
    printcolumn(name = "SourceMatches", type_ = "string", json_path = ".status.conditions[?(@.type=='SourceMatches')].status", description = "Whether the sink was equal to the source when they were compared last", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", description = "Time since the pipeline was created"),
    validation = Rule::new("self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name must start with a letter, contain only lowercase letters, digits and '-', and be at most 40 characters long: the names of pods, volumes and replication slots are made from it"),
)]
#[serde(rename_all = "camelCase")]
pub struct CdcPipelineSpec {
    /// Where changes are read from.
    pub source: Source,

    /// What is done to rows on their way: columns left out, renamed or masked, tables renamed. A table whose entry changes
    /// is copied again.
    // Left out where it is empty: a worker of an older revision does not know it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub transforms: Vec<TableTransform>,

    /// Where changes are written to.
    pub sink: Sink,

    /// The processes that move the changes.
    #[serde(default)]
    pub worker: Worker,

    /// Stops the workers at an exact position and keeps everything that is needed to go on. The
    /// source keeps its write-ahead log for the pipeline meanwhile: its disk fills if the pause is long.
    #[serde(default)]
    pub paused: bool,

    /// When the sink is compared with the source. May be changed at any time.
    // Left out where it is the default: a worker of an older revision does not know it.
    #[serde(default, skip_serializing_if = "SourceComparison::is_default")]
    pub source_comparison: SourceComparison,

    /// How a changed spec is carried out. May be changed at any time.
    // Left out where it is the default: a worker of an older revision does not know it.
    #[serde(default, skip_serializing_if = "Rollout::is_default")]
    pub rollout: Rollout,

    /// What happens to replication slots, a managed publication, sink state and volumes when the
    /// object is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

/// Where changes are read from. Exactly one kind of source is given.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// A PostgreSQL database, version 14 to 18, with `wal_level = logical`.
    pub postgres: PostgresSource,
}

/// Where changes are written to. Exactly one kind of sink is given.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sink {
    /// A PostgreSQL database, version 14 to 18.
    pub postgres: PostgresSink,
}

/// A PostgreSQL database as a sink. Missing schemas and tables are created with the source's columns,
/// types, NOT NULL constraints, constant defaults and primary key.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.connection.database == oldSelf.connection.database")
    .message("sink.postgres.connection.database cannot be changed: the checkpoint and the copied tables are in the old one. Create a new CdcPipeline for another database"))]
pub struct PostgresSink {
    /// How to reach the database.
    pub connection: PostgresConnection,

    /// Writes the tables of a source schema (key) into another sink schema (value). Schemas that are
    /// not named keep their name.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 256, "additionalProperties" = {"type": "string", "minLength": 1, "maxLength": 63}))]
    #[x_kube(validation = Rule::new("self.all(k, k.size() > 0 && k.size() <= 63)")
        .message("sink.postgres.schemaMap: every schema name must have 1 to 63 characters"))]
    #[x_kube(validation = Rule::new("self.all(k, self[k] != 'penstock' && self[k] != 'information_schema' && !self[k].startsWith('pg_'))")
        .message("sink.postgres.schemaMap: tables cannot be written into the schemas penstock, information_schema or pg_*: choose another sink schema"))]
    pub schema_map: std::collections::BTreeMap<String, String>,

    /// When a batch of changes is committed to the sink.
    #[serde(default)]
    pub batch: Batch,

    /// What happens when the columns of a source table change while its changes are streamed. May be changed at any
    /// time. No column of the sink is ever dropped or renamed without a person.
    #[serde(default)]
    pub schema_changes: SchemaChanges,

    /// PostgreSQL's `session_replication_role` of the sessions that write rows: whether foreign keys are checked
    /// and ordinary triggers fire in the sink.
    // Left out where it is the default: a worker of an older revision does not know it.
    #[serde(default, skip_serializing_if = "SessionReplicationRole::is_origin")]
    pub session_replication_role: SessionReplicationRole,
}

/// What happens when the columns of a source table change while its changes are streamed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum SchemaChanges {
    /// The pipeline stops where the new shape begins, says which statements the sink needs, and goes on by itself when
    /// they were run.
    #[default]
    Stop,
    /// Added columns and wider types are carried out on the sink, in the order of the stream. A table whose rows the
    /// source rewrote is copied again.
    Apply,
    /// Added columns are left out of the sink, and dropped ones keep what they hold. What would make carried values
    /// wrong stops the pipeline.
    Ignore,
}

/// PostgreSQL's `session_replication_role`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum SessionReplicationRole {
    /// As for any other session: foreign keys are checked, triggers fire.
    #[default]
    Origin,
    /// As for PostgreSQL's own subscriptions: foreign keys are not checked, and of the triggers and rules only those
    /// fire that are ENABLE REPLICA or ENABLE ALWAYS. The role must be a superuser, or have been given
    /// GRANT SET ON PARAMETER `session_replication_role` (PostgreSQL 15 and later).
    Replica,
}

impl SessionReplicationRole {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    fn is_origin(&self) -> bool {
        *self == Self::Origin
    }
}

/// A batch is committed when the first of its bounds is reached. A source transaction is never split:
/// it becomes visible in the sink as a whole.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Batch {
    /// Rows.
    #[serde(default = "Batch::default_max_rows")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_rows: u32,

    /// Bytes of row values held in memory, in bytes. A larger source transaction is written to the sink
    /// as it arrives, in one sink transaction.
    #[serde(default = "Batch::default_max_bytes")]
    #[schemars(range(min = 65_536, max = 1_073_741_824))]
    pub max_bytes: u32,

    /// Milliseconds that a change waits for others before it is committed.
    #[serde(default = "Batch::default_max_delay_ms")]
    #[schemars(range(min = 0, max = 60_000))]
    pub max_delay_ms: u32,
}

impl Batch {
    fn default_max_rows() -> u32 {
        20_000
    }
    fn default_max_bytes() -> u32 {
        8 * 1024 * 1024
    }
    fn default_max_delay_ms() -> u32 {
        20
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            max_rows: Self::default_max_rows(),
            max_bytes: Self::default_max_bytes(),
            max_delay_ms: Self::default_max_delay_ms(),
        }
    }
}

/// What happens to replication slots, a managed publication, sink state and volumes on deletion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum DeletionPolicy {
    /// Everything is kept, and an Event says where. The source keeps its write-ahead log for the slots
    /// until somebody drops them.
    #[default]
    Retain,
    /// Slots, a managed publication, sink state (not the copied tables) and volumes are removed.
    Delete,
}
