//! What keeps the worker from going on is said with a stable reason and what to do, and when the cause is gone it
//! goes on by itself, without a restart.

mod common;

use anyhow::{Result, ensure};
use common::{Rig, Worker};
use penstock_e2e::postgres::Version;
use serde_json::json;

const TABLE: &str =
    "CREATE TABLE things (id int PRIMARY KEY, body text); INSERT INTO things VALUES (1, 'one')";

/// The worker says `reason` and `advice`; after `mend` it copies the table.
async fn says_and_recovers(
    rig: &Rig,
    reason: &str,
    advice: &str,
    mend: impl AsyncFnOnce() -> Result<()>,
) -> Result<Worker> {
    let worker = rig.start(0)?;
    worker.wait_for_output(&format!("\"reason\":\"{reason}\"")).await?;
    let output = worker.output()?;
    let said = output.lines().find(|line| line.contains(reason)).unwrap_or_default();
    ensure!(said.contains(advice), "`{advice}` is not in: {said}");
    mend().await?;
    rig.wait_for("SELECT count(*) FROM things", "1").await?;
    Ok(worker)
}

async fn rig() -> Result<Rig> {
    Rig::new(Version::V15, &["public.things"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_table() -> Result<()> {
    let rig = rig().await?;
    says_and_recovers(&rig, "TableMissing", "public.things", async || rig.on_source(TABLE).await)
        .await
        .map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_identity() -> Result<()> {
    let rig = rig().await?;
    rig.on_source("CREATE TABLE things (body text); INSERT INTO things VALUES ('one')").await?;
    let mend = async || rig.on_source("ALTER TABLE things REPLICA IDENTITY FULL").await;
    says_and_recovers(&rig, "ReplicaIdentityMissing", "REPLICA IDENTITY", mend).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_type_that_cannot_be_carried() -> Result<()> {
    let rig = rig().await?;
    rig.on_source(
        "CREATE TABLE things (id int PRIMARY KEY, relation regclass); INSERT INTO things VALUES (1)",
    )
    .await?;
    let mend = async || rig.on_source("ALTER TABLE things DROP COLUMN relation").await;
    says_and_recovers(&rig, "UnsupportedColumnType", "column relation", mend).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_table_of_another_shape() -> Result<()> {
    let rig = rig().await?;
    rig.on_source(TABLE).await?;
    rig.on_sink("CREATE TABLE things (id int PRIMARY KEY)").await?;
    let mend = async || rig.on_sink("ALTER TABLE things ADD COLUMN body text").await;
    says_and_recovers(&rig, "SinkTableMismatch", "ADD COLUMN", mend).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_table_with_rows_of_somebody_else() -> Result<()> {
    let rig = rig().await?;
    rig.on_source(TABLE).await?;
    rig.on_sink("CREATE TABLE things (id int PRIMARY KEY, body text); INSERT INTO things VALUES (5), (6)")
        .await?;
    let mend = async || rig.on_sink("TRUNCATE things").await;
    says_and_recovers(&rig, "SinkTableNotEmpty", "things", mend).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_free_replication_slot() -> Result<()> {
    let rig = rig().await?;
    rig.on_source(TABLE).await?;
    let fill = "SELECT pg_create_physical_replication_slot('filler_' || g) FROM generate_series(1, 20) g";
    rig.on_source(fill).await?;
    let free = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name LIKE 'filler_%'";
    let mend = async || rig.on_source(free).await;
    says_and_recovers(&rig, "NoFreeReplicationSlot", "max_replication_slots", mend).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away() -> Result<()> {
    let rig = rig().await?;
    rig.on_source(TABLE).await?;
    rig.sink.stop().await?;
    let mend = async || rig.sink.restart().await;
    says_and_recovers(&rig, "SinkUnreachable", "127.0.0.1", mend).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_given_publication_that_lacks_a_table() -> Result<()> {
    let mut rig = rig().await?;
    rig.on_source(TABLE).await?;
    rig.on_source("CREATE PUBLICATION theirs").await?;
    rig.manifest["spec"]["source"]["postgres"]["publication"] = json!("theirs");
    let mend = async || rig.on_source("ALTER PUBLICATION theirs ADD TABLE things").await;
    says_and_recovers(&rig, "PublicationUnsuitable", "ALTER PUBLICATION", mend).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_does_not_write_its_log_for_logical_decoding() -> Result<()> {
    let rig = rig().await?;
    rig.on_source(TABLE).await?;
    rig.on_source("ALTER SYSTEM SET wal_level = replica").await?;
    rig.source.restart().await?;
    let mend = async || {
        rig.on_source("ALTER SYSTEM SET wal_level = logical").await?;
        rig.source.restart().await
    };
    says_and_recovers(&rig, "SourceNotLogical", "wal_level", mend).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_table_that_another_pipeline_owns() -> Result<()> {
    let mut rig = rig().await?;
    rig.on_source(TABLE).await?;
    let _first = rig.start(0)?;
    rig.wait_for("SELECT count(*) FROM things", "1").await?;
    rig.manifest["metadata"]["name"] = json!("second");
    let other = Worker::start(&rig.manifest_file()?, &rig.state_dir(9), 0)?;
    other.wait_for_output("\"reason\":\"SinkTableOwned\"").await?;
    ensure!(other.output()?.contains("default/shop"), "it does not say who owns the table");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_the_sink_lacks_after_the_source_changed() -> Result<()> {
    let rig = rig().await?;
    rig.on_source(TABLE).await?;
    let worker = rig.start(0)?;
    worker.wait_for_output("\"message\":\"streaming\"").await?;
    rig.on_source("ALTER TABLE things ADD COLUMN size int; INSERT INTO things VALUES (2, 'two', 3)").await?;
    worker.wait_for_output("\"reason\":\"SinkTableMismatch\"").await?;
    rig.on_sink("ALTER TABLE things ADD COLUMN size int").await?;
    rig.wait_for("SELECT size FROM things WHERE id = 2", "3").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_the_sink_lost() -> Result<()> {
    let rig = rig().await?;
    rig.on_source(TABLE).await?;
    let worker = rig.start(0)?;
    worker.wait_for_output("\"message\":\"streaming\"").await?;
    rig.on_sink("DELETE FROM things").await?;
    rig.on_source("UPDATE things SET body = 'uno'").await?;
    worker.wait_for_output("\"reason\":\"SinkDiverged\"").await?;
    rig.on_sink("INSERT INTO things VALUES (1, 'one')").await?;
    rig.wait_for("SELECT body FROM things", "uno").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_made_anew_under_its_old_name() -> Result<()> {
    let rig = rig().await?;
    rig.on_source(TABLE).await?;
    let worker = rig.start(0)?;
    worker.wait_for_output("\"message\":\"streaming\"").await?;
    rig.on_source("DROP TABLE things; CREATE TABLE things (id int PRIMARY KEY, body text); INSERT INTO things VALUES (7, 'seven')").await?;
    drop(worker);
    let again = rig.start(0)?;
    again.wait_for_output("SnapshotRestarted").await?;
    rig.wait_for("SELECT string_agg(id || body, ',') FROM things", "7seven").await
}
