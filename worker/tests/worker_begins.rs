//! Where a run begins, and what it leaves alone until it is sure: the slot, the sink's tables, old shapes.

mod common;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use common::Rig;
use penstock_e2e::postgres::Version;
use serde_json::json;

const THINGS: &str =
    "CREATE TABLE things (id int PRIMARY KEY, body text); INSERT INTO things VALUES (1, 'one')";
const STREAMING: &str = "\"message\":\"streaming\"";
const SILENT: &str = "nothing came for 20 s";

async fn rig() -> Result<Rig> {
    let rig = Rig::new(Version::V15, &["public.things"]).await?;
    rig.on_source(THINGS).await?;
    Ok(rig)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_whose_log_ends_before_the_checkpoint_is_refused() -> Result<()> {
    let rig = rig().await?;
    let mut worker = rig.start(0)?;
    worker.wait_for_output(STREAMING).await?;
    rig.wait_until_caught_up().await?;
    worker.terminate()?;
    rig.on_sink("UPDATE penstock.checkpoint SET end_lsn = end_lsn + 1000000000").await?;
    let again = rig.start(0)?;
    again.wait_for_output("\"reason\":\"SourceChanged\"").await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_slot_keeps_the_log_while_a_first_start_waits_for_a_person() -> Result<()> {
    let rig = rig().await?;
    rig.on_sink("CREATE TABLE things (id int PRIMARY KEY)").await?;
    let worker = rig.start(0)?;
    worker.wait_for_output("\"reason\":\"SinkTableMismatch\"").await?;
    ensure!(rig.source_value("SELECT count(*) FROM pg_replication_slots").await? == "0", "a slot was made");
    rig.on_sink("ALTER TABLE things ADD COLUMN body text").await?;
    rig.wait_for("SELECT count(*) FROM things", "1").await
}

#[tokio::test(flavor = "multi_thread")]
async fn shapes_from_before_a_later_copy_need_not_fit_the_sink() -> Result<()> {
    let mut rig = Rig::new(Version::V15, &["public.other"]).await?;
    rig.on_source("CREATE TABLE other (id int PRIMARY KEY)").await?;
    rig.on_source(THINGS).await?;
    let mut worker = rig.start(0)?;
    worker.wait_for_output(STREAMING).await?;
    worker.kill()?;
    // The slot sends this, in the shape of then, after the table was copied in the shape of now.
    let publication = rig.source_value("SELECT pubname FROM pg_publication").await?;
    rig.on_source(&format!("ALTER PUBLICATION {publication} ADD TABLE things")).await?;
    rig.on_source("INSERT INTO things VALUES (2, 'two'); ALTER TABLE things DROP COLUMN body").await?;
    rig.on_source("INSERT INTO things VALUES (3)").await?;
    rig.manifest["spec"]["source"]["postgres"]["tables"] = json!(["public.other", "public.things"]);
    let _again = rig.start(0)?;
    rig.wait_for("SELECT count(*) FROM things", "3").await?;
    rig.on_source("INSERT INTO things VALUES (4)").await?;
    rig.wait_for("SELECT count(*) FROM things", "4").await?;
    rig.assert_equal(&["things", "other"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_applied_from_the_commit_at_the_end_of_the_copy_on() -> Result<()> {
    let rig = rig().await?;
    let mut worker = rig.start(0)?;
    worker.wait_for_output(STREAMING).await?;
    worker.terminate()?;
    rig.on_source("INSERT INTO things VALUES (2, 'in the copy')").await?;
    rig.on_source("INSERT INTO things VALUES (3, 'after it')").await?;
    // A BEGIN message holds the position of its COMMIT record.
    let commit = rig
        .source_value(
            "SELECT encode(substring(data FROM 2 FOR 8), 'hex') FROM pg_replication_slots, pg_publication,
               pg_logical_slot_peek_binary_changes(slot_name, NULL, NULL, 'proto_version', '1', 'publication_names', pubname)
             WHERE get_byte(data, 0) = 66 ORDER BY 1 DESC LIMIT 1",
        )
        .await?;
    let (high, low) = commit.split_at(8);
    rig.on_sink(&format!("UPDATE penstock.table_state SET ready_lsn = '{high}/{low}'")).await?;
    let _again = rig.start(0)?;
    rig.wait_for("SELECT string_agg(id::text, ' ' ORDER BY id) FROM things", "1 3").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_source_streams_at_once_and_a_frozen_one_is_told_of() -> Result<()> {
    let rig = rig().await?;
    // The first server says nothing by itself until long after the test.
    let mut worker = rig.start(0)?;
    for timeout in ["1h", "10s"] {
        worker.terminate()?;
        rig.on_source(&format!("ALTER SYSTEM SET wal_sender_timeout = '{timeout}'")).await?;
        rig.on_source("SELECT pg_reload_conf()").await?;
        let from = worker.output()?.len();
        worker = rig.start(0)?;
        let began = Instant::now();
        while !worker.output()?[from..].contains(STREAMING) {
            ensure!(
                began.elapsed() < Duration::from_mins(3),
                "a quiet source is waited for; {}",
                worker.tail()?
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let walsender = rig.source_value("SELECT active_pid FROM pg_replication_slots").await?;
    signal("-STOP", &walsender)?;
    let told = worker.wait_for_output(SILENT).await;
    signal("-CONT", &walsender)?;
    told?;
    rig.on_source("INSERT INTO things VALUES (2, 'two')").await?;
    rig.wait_for("SELECT count(*) FROM things", "2").await
}

fn signal(kind: &str, pid: &str) -> Result<()> {
    ensure!(std::process::Command::new("kill").args([kind, pid]).status()?.success(), "kill {kind} {pid}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_removed_and_taken_back_is_copied_again() -> Result<()> {
    let mut rig = Rig::new(Version::V15, &["public.a", "public.b"]).await?;
    rig.on_source("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)").await?;
    let both = rig.manifest.clone();
    for manifest in [both.clone(), with_tables(&both, &["public.a"]), both] {
        rig.manifest = manifest;
        let worker = rig.start(0)?;
        rig.on_source("INSERT INTO a SELECT count(*) FROM a; INSERT INTO b SELECT count(*) FROM b").await?;
        rig.wait_for("SELECT bool_and(state = 'ready') FROM penstock.table_state", "t").await?;
        rig.wait_until_caught_up().await?;
        drop(worker);
    }
    rig.assert_equal(&["a", "b"]).await
}

fn with_tables(manifest: &serde_json::Value, tables: &[&str]) -> serde_json::Value {
    let mut manifest = manifest.clone();
    manifest["spec"]["source"]["postgres"]["tables"] = serde_json::json!(tables);
    manifest
}
