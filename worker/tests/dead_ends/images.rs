//! Sources that are put back as they were on disk before, and what tells them from those that were read.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use penstock_e2e::postgres::Version;
use serde_json::json;

use crate::common::{Rig, Worker};
use crate::{SCHEMA, STREAMING, accepted, caught_up, decide, equal_from_here_on, recorded, rig, stalled};

/// The last mark stands behind all that the sink holds.
const IS_MARKED: &str = "SELECT heartbeat_lsn >= GREATEST(commit_lsn, (SELECT max(ready_lsn) FROM penstock.table_state)) \
    FROM penstock.checkpoint WHERE shard = 0";

/// The source is an image of itself from before the last rows, which the sink has.
async fn restore_the_source(rig: &Rig) -> Result<()> {
    caught_up(rig).await?.terminate()?;
    let image = image(rig).await?;
    let mut worker = rig.start(0)?;
    rig.on_source(
        "INSERT INTO a SELECT g, 'lost with the source' FROM generate_series(1000, 3000) g; CHECKPOINT",
    )
    .await?;
    rig.wait_until_caught_up().await?;
    rig.wait_for(IS_MARKED, "t").await?;
    worker.terminate()?;
    put_back(rig, &image).await
}

/// The source as it is on disk now.
async fn image(rig: &Rig) -> Result<PathBuf> {
    rig.source.stop().await?;
    let image = rig.source.data().with_file_name("image");
    copy(&rig.source.data(), &image)?;
    rig.source.restart().await?;
    Ok(image)
}

async fn put_back(rig: &Rig, image: &Path) -> Result<()> {
    rig.source.stop().await?;
    std::fs::remove_dir_all(rig.source.data())?;
    copy(image, &rig.source.data())?;
    rig.source.restart().await
}

/// Rows of its own, until its log is past what was read of the other one.
async fn outgrow(rig: &Rig) -> Result<()> {
    rig.on_source("INSERT INTO a SELECT g, repeat('of the image', 20) FROM generate_series(5000, 15000) g")
        .await?;
    let end = rig.source_value("SELECT pg_current_wal_flush_lsn()").await?;
    let is_past =
        rig.sink_value(&format!("SELECT bool_and(end_lsn < '{end}') FROM penstock.checkpoint")).await?;
    ensure!(is_past == "t", "the image has not written enough");
    Ok(())
}

const OF_THE_IMAGE: &str = "SELECT count(*) FROM a WHERE body LIKE 'of the image%'";

#[tokio::test(flavor = "multi_thread")]
async fn a_source_restored_to_an_older_state_is_begun_anew() -> Result<()> {
    let rig = rig().await?;
    restore_the_source(&rig).await?;
    let worker = rig.start(0)?;
    stalled(&worker, "SourceChanged").await?;
    // Its log grows past what was read of the other one. The worker looks every second, and is not taken in.
    outgrow(&rig).await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    ensure!(rig.sink_value(OF_THE_IMAGE).await? == "0", "it went on");
    accepted(&decide(&rig, "begin-anew")?)?;
    worker.wait_for_output("BegunAnew").await?;
    equal_from_here_on(&rig).await?;
    recorded(&rig, "begin-anew", "SourceChanged").await
}

/// The new slot is short of what was read of the other log.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_restored_to_an_older_state_is_begun_anew_before_its_log_has_grown() -> Result<()> {
    let rig = rig().await?;
    restore_the_source(&rig).await?;
    let worker = rig.start(0)?;
    stalled(&worker, "SourceChanged").await?;
    accepted(&decide(&rig, "begin-anew")?)?;
    worker.wait_for_output("BegunAnew").await?;
    equal_from_here_on(&rig).await?;
    recorded(&rig, "begin-anew", "SourceChanged").await
}

/// Its log is past what was read of the other one before anybody looks: only what stands in it tells them apart.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_image_of_the_source_that_was_written_since_is_recognised() -> Result<()> {
    let rig = rig().await?;
    restore_the_source(&rig).await?;
    outgrow(&rig).await?;
    let worker = rig.start(0)?;
    stalled(&worker, "SourceChanged").await?;
    rig.on_source("INSERT INTO a VALUES (20000, 'of the image')").await?;
    // It looks again, and what it acknowledged meanwhile does not take it in.
    let times = || anyhow::Ok(worker.output()?.matches("does not have the mark").count());
    let (before, began) = (times()?, Instant::now());
    while times()? == before {
        ensure!(began.elapsed() < Duration::from_mins(1), "it does not look again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ensure!(rig.sink_value(OF_THE_IMAGE).await? == "0", "it went on");
    accepted(&decide(&rig, "accept-loss")?)?;
    worker.wait_for_output("LossAccepted").await?;
    recorded(&rig, "accept-loss", "SourceChanged").await?;
    rig.on_source("INSERT INTO a VALUES (30000, 'seen')").await?;
    rig.wait_for("SELECT count(*) FROM a WHERE body = 'seen'", "1").await
}

/// What moves a pipeline on that has no changes: the barrier of a comparison, rows that are copied in ranges, and a table without
/// such an order, copied as a whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_image_from_before_the_last_that_an_idle_shard_did_is_recognised() -> Result<()> {
    let (compare, again) = (["compare", "--source"], "resnapshot");
    for (last, table) in [(compare, "b"), ([again, "public.b"], "b"), ([again, "public.named"], "named")] {
        let rig = Rig::new(Version::V15, &["public.a", "public.b", "public.named"]).await?;
        rig.on_source(&format!(
            "{SCHEMA}; CREATE TABLE named (id text PRIMARY KEY); CREATE TABLE busy (body text)"
        ))
        .await?;
        let mut worker = caught_up(&rig).await?;
        rig.on_source("INSERT INTO a VALUES (600, 'marked')").await?;
        rig.wait_until_caught_up().await?;
        rig.wait_for(IS_MARKED, "t").await?;
        worker.terminate()?;
        let image = image(&rig).await?;
        let mut worker = rig.start(0)?;
        rig.on_source("INSERT INTO busy SELECT repeat('x', 100) FROM generate_series(1, 10000)").await?;
        let output = rig.command(&last)?;
        ensure!(output.status.success(), "{last:?}: {}", String::from_utf8_lossy(&output.stderr));
        rig.wait_for("SELECT bool_and(state = 'ready') FROM penstock.table_state", "t").await?;
        let held = "SELECT GREATEST(commit_lsn, (SELECT max(ready_lsn) FROM penstock.table_state)) FROM penstock.checkpoint";
        let held = rig.sink_value(held).await?;
        rig.wait_for(IS_MARKED, "t").await.with_context(|| format!("{last:?}"))?;
        worker.terminate()?;
        put_back(&rig, &image).await?;
        rig.on_source(&format!("INSERT INTO {table} SELECT generate_series(2, 500)")).await?;
        let is_before = rig.source_value(&format!("SELECT pg_current_wal_flush_lsn() < '{held}'")).await?;
        ensure!(is_before == "t", "the image's rows come after what the sink holds: this proves nothing");
        outgrow(&rig).await?;
        let worker = rig.start(0)?;
        stalled(&worker, "SourceChanged").await.with_context(|| format!("{last:?}"))?;
        ensure!(worker.output()?.contains("does not have the mark"), "{}", worker.tail()?);
    }
    Ok(())
}

/// What was read meanwhile held nothing for the table, so an image in which it was written instead lacks nothing of the sink's
/// rows: these follow it. `busy` is written until the log is long, where the workers named are running.
async fn rows_of_an_image_reach_a_shard_that_had_none(rig: &Rig, shards: &[u16], busy: &str) -> Result<()> {
    let start = || shards.iter().map(|shard| rig.start(*shard)).collect::<Result<Vec<_>>>();
    let settled = async || {
        // The idle one says so once a second.
        rig.wait_until_caught_up().await?;
        let end = rig.source_value("SELECT pg_current_wal_flush_lsn()").await?;
        rig.wait_for(&format!("SELECT bool_and(end_lsn >= '{end}') FROM penstock.checkpoint"), "t").await
    };
    let stop =
        |workers: Vec<Worker>| workers.into_iter().try_for_each(|mut worker| worker.terminate().map(drop));
    let workers = start()?;
    for worker in &workers {
        worker.wait_for_output(STREAMING).await?;
    }
    settled().await?;
    stop(workers)?;
    let image = image(rig).await?;
    let workers = start()?;
    for _ in 0..20 {
        rig.on_source(busy).await?;
    }
    settled().await?;
    stop(workers)?;
    put_back(rig, &image).await?;
    rig.on_source("INSERT INTO b SELECT generate_series(2, 500)").await?;
    let read = format!("'{}'", rig.source_value("SELECT pg_current_wal_flush_lsn()").await?);
    let is_short =
        rig.sink_value(&format!("SELECT bool_and(end_lsn > {read}) FROM penstock.checkpoint")).await?;
    ensure!(is_short == "t", "what was read before ends before the image's rows: this proves nothing");
    for _ in 0..21 {
        rig.on_source(busy).await?;
    }
    let workers = start()?;
    let arrived = rig.wait_for("SELECT count(*) FROM b", "500").await;
    arrived
        .with_context(|| workers.iter().map(|worker| worker.tail().unwrap_or_default()).collect::<String>())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_without_changes_of_its_own_misses_no_row_of_a_disk_image() -> Result<()> {
    let mut rig = rig().await?;
    rig.manifest["spec"]["worker"]["shards"] = json!(2);
    // Whichever has `b`; the other one says that the source is another.
    rows_of_an_image_reach_a_shard_that_had_none(&rig, &[0, 1], "UPDATE a SET body = repeat('x', 300)").await
}

/// Before version 15 the source sends transactions of tables that nobody follows, without their changes.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_image_of_a_source_that_sends_empty_transactions_loses_no_row() -> Result<()> {
    let rig = Rig::new(Version::V14, &["public.b"]).await?;
    rig.on_source(SCHEMA).await?;
    rows_of_an_image_reach_a_shard_that_had_none(&rig, &[0], "UPDATE a SET body = repeat('x', 300)").await
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let done = std::process::Command::new("cp").arg("-a").args([from, to]).status()?;
    ensure!(done.success(), "cp {} {}", from.display(), to.display());
    Ok(())
}
