//! PostgreSQL as a source.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::connection::PostgresConnection;

/// A PostgreSQL database as a source.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.connection.database == oldSelf.connection.database")
    .message("source.postgres.connection.database cannot be changed: positions belong to one database. Create a new CdcPipeline for another database"))]
#[x_kube(validation = Rule::new("has(self.publication) == has(oldSelf.publication) && (!has(self.publication) || self.publication == oldSelf.publication)")
    .message("source.postgres.publication cannot be changed on an existing pipeline: changes between two publications would be lost. Create a new CdcPipeline"))]
pub struct PostgresSource {
    /// How to reach the database. The role needs REPLICATION (or `rds_replication` and the like) and
    /// SELECT on the tables; to manage the publication it must own the tables.
    pub connection: PostgresConnection,

    /// The tables to copy: `schema.table`, `schema.*`, or `schema.prefix*`. A pattern is resolved when
    /// the pipeline's revision starts. At least one table must exist for each entry. An entry is
    /// written once.
    #[schemars(length(min = 1, max = 1000), inner(length(min = 3, max = 128)), extend("x-kubernetes-list-type" = "set"))]
    #[x_kube(validation = Rule::new("self.all(t, t.matches('^[^.*[:space:]]+[.]([^.*[:space:]]+[*]?|[*])$'))")
        .message("source.postgres.tables: write schema.table, schema.* or schema.prefix*, for example public.orders or sales.*"))]
    #[x_kube(validation = Rule::new("self.all(t, !t.startsWith('pg_catalog.') && !t.startsWith('pg_toast.') && !t.startsWith('information_schema.') && !t.startsWith('penstock.'))")
        .message("source.postgres.tables: tables of pg_catalog, pg_toast, information_schema and penstock cannot be copied"))]
    pub tables: Vec<String>,

    /// The first load of the tables.
    #[serde(default)]
    pub snapshot: Snapshot,

    /// A publication that somebody else keeps. It must contain every table of the pipeline and publish
    /// insert, update, delete and truncate. Without it the pipeline makes and keeps one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub publication: Option<String>,
}

/// The first load of the tables.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.mode == oldSelf.mode")
    .message("source.postgres.snapshot.mode cannot be changed on an existing pipeline: its first load is done or under way. Create a new CdcPipeline"))]
pub struct Snapshot {
    /// `Initial` copies the rows that are there, then follows the changes. `Never` follows the changes
    /// only: the sink tables must already hold what is in the source when the pipeline starts.
    #[serde(default)]
    pub mode: SnapshotMode,

    /// Connections that read the source at the same time.
    #[serde(default = "Snapshot::default_parallelism")]
    #[schemars(range(min = 1, max = 32))]
    pub parallelism: u8,
}

impl Snapshot {
    fn default_parallelism() -> u8 {
        4
    }
}

impl Default for Snapshot {
    fn default() -> Self {
        Self { mode: SnapshotMode::default(), parallelism: Self::default_parallelism() }
    }
}

/// Whether existing rows are copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum SnapshotMode {
    /// Copies the rows that are there, then follows the changes.
    #[default]
    Initial,
    /// Follows the changes only.
    Never,
}
