//! What most tests begin with: a source and a sink with some tables, in a namespace of their own.

use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use penstock_e2e::kubernetes::{Cluster, Database, ensure_equal_when_caught_up, eventually, manifest};
use serde_json::Value;
use tokio::sync::Mutex;

pub(crate) const MINUTE: Duration = Duration::from_mins(1);

/// Held while an operator is taken away: the next test shall find one that leads.
pub(crate) static ALONE: Mutex<()> = Mutex::const_new(());

/// Label of everything that belongs to the pipeline `notes`.
const OF_PIPELINE: &str = "penstock.dev/pipeline=notes";

/// A cluster, a namespace, and a source and a sink in it.
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    pub(crate) namespace: String,
    pub(crate) source: Database,
    pub(crate) sink: Database,
}

impl Stage {
    pub(crate) async fn new(name: &str) -> Result<Self> {
        let cluster = Cluster::connect().await?;
        let namespace = cluster.namespace(name).await?;
        let (source, sink) = tokio::try_join!(
            Database::start(&cluster, &namespace, "source", &["-c", "wal_level=logical"]),
            Database::start(&cluster, &namespace, "sink", &[]),
        )?;
        Self { cluster, namespace, source, sink }.filled().await
    }

    /// With tables in the source.
    pub(crate) async fn filled(self) -> Result<Self> {
        let tables = "CREATE TABLE notes (id int PRIMARY KEY, body text NOT NULL);
            INSERT INTO notes SELECT g, 'note ' || g FROM generate_series(1, 500) g;
            CREATE TABLE extras (id int PRIMARY KEY);
            INSERT INTO extras SELECT generate_series(1, 50);
            CREATE TABLE keyless (body text);";
        self.source.execute(tables).await?;
        Ok(self)
    }

    /// The pipeline `notes`.
    pub(crate) fn manifest(&self, tables: &[&str]) -> Value {
        manifest(&self.namespace, "notes", &self.source, &self.sink, tables)
    }

    pub(crate) async fn wait_for_rows(&self, table: &str, rows: u32) -> Result<()> {
        let query = format!("SELECT count(*) FROM {table}");
        eventually(&format!("{rows} rows in {table}"), MINUTE, || async {
            Ok((self.sink.text(&query).await? == rows.to_string()).then_some(()))
        })
        .await
    }

    pub(crate) async fn ensure_equal(&self, tables: &[&str]) -> Result<()> {
        ensure_equal_when_caught_up(&self.source, &self.sink, tables).await
    }

    pub(crate) async fn slots(&self) -> Result<String> {
        self.source.text("SELECT count(*) FROM pg_replication_slots").await
    }

    /// The pipeline's only worker.
    pub(crate) async fn worker(&self) -> Result<Pod> {
        let pods: Vec<Pod> = self.cluster.list(&self.namespace, OF_PIPELINE).await?;
        pods.into_iter().next().context("the pipeline has a worker")
    }

    pub(crate) async fn pods(&self) -> Result<Vec<Pod>> {
        self.cluster.list(&self.namespace, OF_PIPELINE).await
    }

    pub(crate) async fn sets(&self) -> Result<Vec<StatefulSet>> {
        self.cluster.list(&self.namespace, OF_PIPELINE).await
    }

    pub(crate) async fn claims(&self) -> Result<Vec<PersistentVolumeClaim>> {
        self.cluster.list(&self.namespace, OF_PIPELINE).await
    }

    /// `deletionPolicy: Delete` was carried out: nothing is left but the copied tables.
    pub(crate) async fn ensure_cleaned_up(&self) -> Result<()> {
        assert_eq!(self.slots().await?, "0");
        assert_eq!(self.source.text("SELECT count(*) FROM pg_publication").await?, "0");
        assert_eq!(
            self.sink.text("SELECT count(*) FROM pg_namespace WHERE nspname = 'penstock'").await?,
            "0"
        );
        assert_eq!(self.sink.text("SELECT count(*) FROM public.notes").await?, self.rows_of_notes().await?);
        eventually("the volumes and the workers are gone", MINUTE, || async {
            Ok((self.claims().await?.is_empty() && self.sets().await?.is_empty()).then_some(()))
        })
        .await
    }

    async fn rows_of_notes(&self) -> Result<String> {
        self.source.text("SELECT count(*) FROM public.notes").await
    }

    pub(crate) async fn end(self) -> Result<()> {
        self.cluster.remove_namespace(&self.namespace).await
    }
}
