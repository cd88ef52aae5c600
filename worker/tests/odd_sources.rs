//! Sources that bite: prepared transactions, a database that is idle while its neighbour writes, slots that the server
//! gives up.

mod common;

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use common::{DATABASE, PASSWORD, Rig, Worker};
use penstock_e2e::postgres::{Server, Version};

const STREAMING: &str = "\"message\":\"streaming\"";
const IDS: &str = "SELECT string_agg(id::text, ' ' ORDER BY id) FROM t";

async fn rig(version: Version, settings: &[(&str, &str)]) -> Result<Rig> {
    let mut builder = Server::builder(version)
        .setting("wal_sender_timeout", "10s")
        .setting("max_prepared_transactions", "10");
    for (key, value) in settings {
        builder = builder.setting(*key, *value);
    }
    let (source, sink) = (builder.start().await?, Server::start(Version::V15).await?);
    let rig = Rig::on(source.into(), sink.into(), DATABASE, &["public.t"]).await?;
    rig.on_source("CREATE TABLE t (id int PRIMARY KEY, body text); INSERT INTO t VALUES (1)").await?;
    Ok(rig)
}

async fn streaming(rig: &Rig) -> Result<Worker> {
    let worker = rig.start(0)?;
    worker.wait_for_output(STREAMING).await?;
    Ok(worker)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_transaction_arrives_at_commit_prepared_and_never_after_rollback_prepared() -> Result<()> {
    for version in [Version::V14, Version::V18] {
        let rig = rig(version, &[]).await?;
        let mut worker = streaming(&rig).await?;
        rig.on_source("BEGIN; INSERT INTO t VALUES (2); UPDATE t SET body = 'two' WHERE id = 1; PREPARE TRANSACTION 'kept'").await?;
        rig.on_source("BEGIN; INSERT INTO t VALUES (3); PREPARE TRANSACTION 'dropped'").await?;
        rig.on_source("INSERT INTO t VALUES (4)").await?;
        rig.wait_until_caught_up().await?;
        ensure!(rig.sink_value(IDS).await? == "1 4", "{version}: what is only prepared is in the sink");
        // Nothing of it is acknowledged either: it outlives worker and server.
        worker.kill()?;
        rig.source.restart().await?;
        let _again = rig.start(0)?;
        rig.on_source("ROLLBACK PREPARED 'dropped'").await?;
        rig.on_source("INSERT INTO t VALUES (5)").await?;
        rig.on_source("COMMIT PREPARED 'kept'").await?;
        rig.wait_for(IDS, "1 2 4 5").await?;
        rig.wait_until_caught_up().await?;
        rig.assert_equal(&["t"]).await?;
        let sequence = rig.sink_value("SELECT sequence FROM penstock.checkpoint").await?;
        ensure!(sequence == "4", "{version}: {sequence} changes were counted");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_is_prepared_when_the_pipeline_begins_is_named_waited_for_and_copied() -> Result<()>
{
    let rig = rig(Version::V17, &[]).await?;
    rig.on_source("BEGIN; INSERT INTO t VALUES (2); PREPARE TRANSACTION 'early'").await?;
    // It is named, and not one that is younger.
    let younger = rig.source.connect(DATABASE).await?;
    younger.run("BEGIN; SELECT pg_current_xact_id()").await?;
    let worker = rig.start(0)?;
    worker.wait_for_output("the prepared transaction 'early'").await?;
    ensure!(rig.source_value("SELECT count(*) FROM pg_replication_slots").await? == "0", "a slot was made");
    younger.run("COMMIT").await?;
    rig.on_source("COMMIT PREPARED 'early'").await?;
    rig.wait_for(IDS, "1 2").await?;
    rig.on_source("INSERT INTO t VALUES (3)").await?;
    rig.wait_until_caught_up().await?;
    rig.assert_equal(&["t"]).await?;
    ensure!(rig.sink_value("SELECT sequence FROM penstock.checkpoint").await? == "1", "it was counted twice");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_is_prepared_when_a_table_is_copied_beside_the_stream_is_waited_for_and_told()
-> Result<()> {
    let rig = rig(Version::V16, &[]).await?;
    rig.on_source("INSERT INTO t SELECT g FROM generate_series(10, 3000) g").await?;
    let worker = streaming(&rig).await?;
    for (id, end) in [(5000, "COMMIT"), (6000, "ROLLBACK")] {
        rig.on_source(&format!(
            "BEGIN; INSERT INTO t VALUES ({id}); UPDATE t SET body = '{end}' WHERE id BETWEEN {id} / 100 AND {id} / 100 + 5; \
             DELETE FROM t WHERE id = {id} / 10; PREPARE TRANSACTION '{end}'"
        ))
        .await?;
    }
    rig.on_sink("DELETE FROM t WHERE id < 100").await?;
    let output = rig.command(&["resnapshot", "public.t"])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // And a person hears of it, while the others are streamed.
    let patience = Duration::from_mins(4);
    worker.wait_for_output_within("\"reason\":\"SnapshotWaits\"", patience).await?;
    ensure!(worker.output()?.contains("the oldest: the prepared transaction 'COMMIT'"), "{}", worker.tail()?);
    ensure!(
        rig.sink_value("SELECT state FROM penstock.table_state").await? == "incremental",
        "not waited for"
    );
    rig.on_source("COMMIT PREPARED 'COMMIT'").await?;
    rig.on_source("ROLLBACK PREPARED 'ROLLBACK'").await?;
    rig.wait_for("SELECT state FROM penstock.table_state", "ready").await?;
    rig.wait_for("SELECT count(*) FROM t WHERE id = 5000", "1").await?;
    rig.wait_until_caught_up().await?;
    rig.assert_equal(&["t"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_database_lets_its_busy_neighbours_log_go() -> Result<()> {
    let rig = rig(Version::V15, &[]).await?;
    rig.source.create_database("neighbour").await?;
    rig.source.run("neighbour", "CREATE TABLE n (body text)").await?;
    let _worker = streaming(&rig).await?;
    rig.wait_until_caught_up().await?;
    let slot = "SELECT confirmed_flush_lsn FROM pg_replication_slots";
    let before = rig.source_value(slot).await?;
    let kept = format!(
        "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn) < 1e7 AND confirmed_flush_lsn > '{before}'::pg_lsn + 5e7 FROM pg_replication_slots"
    );
    let began = Instant::now();
    while began.elapsed() < Duration::from_mins(1) {
        rig.source
            .run("neighbour", "INSERT INTO n SELECT repeat('x', 1000) FROM generate_series(1, 10000)")
            .await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        if rig.source_value(&kept).await? == "t" {
            return Ok(());
        }
    }
    bail!("the slot stood at {before} and stands at {}", rig.source_value(slot).await?)
}

/// Invalidated while no worker ran: said, and mended by one command.
async fn invalidated_and_begun_anew(rig: &Rig, lost: &str) -> Result<()> {
    let mut worker = streaming(rig).await?;
    rig.wait_until_caught_up().await?;
    worker.terminate()?;
    rig.on_source("INSERT INTO t VALUES (2); DELETE FROM t WHERE id = 1; CREATE TABLE bloat (body text)")
        .await?;
    let began = Instant::now();
    while rig.source_value(lost).await? != "t" {
        ensure!(began.elapsed() < Duration::from_mins(1), "the slot was not invalidated");
        rig.on_source("INSERT INTO bloat SELECT repeat('x', 1000) FROM generate_series(1, 20000)").await?;
        rig.on_source("SELECT pg_switch_wal()").await?;
        rig.on_source("CHECKPOINT").await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let worker = rig.start(0)?;
    worker.wait_for_output("\"reason\":\"SlotInvalidated\"").await?;
    ensure!(!worker.output()?.contains(PASSWORD), "a secret was printed");
    let output = rig.command(&["begin-anew", "--reason", "the limit was too small"])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    rig.wait_for(IDS, "2").await?;
    rig.on_source("INSERT INTO t VALUES (3)").await?;
    rig.wait_for(IDS, "2 3").await?;
    rig.assert_equal(&["t"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_whose_log_was_removed_is_told_of_and_begun_anew() -> Result<()> {
    let rig = rig(Version::V14, &[("max_slot_wal_keep_size", "1MB"), ("max_wal_size", "32MB")]).await?;
    invalidated_and_begun_anew(&rig, "SELECT wal_status = 'lost' FROM pg_replication_slots").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_was_idle_for_too_long_is_told_of_and_begun_anew() -> Result<()> {
    let rig = rig(Version::V18, &[]).await?;
    rig.on_source("ALTER SYSTEM SET idle_replication_slot_timeout = '2s'").await?;
    rig.on_source("SELECT pg_reload_conf()").await?;
    let lost = "SELECT coalesce(invalidation_reason = 'idle_timeout', false) FROM pg_replication_slots";
    invalidated_and_begun_anew(&rig, lost).await
}
