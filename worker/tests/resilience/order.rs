//! Sink commit, volume fsync, acknowledgement: in this order, so that whatever dies in between repeats reading and
//! never skips anything.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use penstock_worker::failpoint::Point;
use rusqlite::{Connection, OptionalExtension as _};

use crate::cell::{PATIENCE, STREAMING, Servers};
use crate::common::Rig;

const SLOT_STANDS_AT: &str =
    "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE database = current_database() AND plugin = 'pgoutput'
    AND NOT temporary";

/// The second write of a worker to its volume is that of the first batch; the first is that of its start. One that copied
/// writes for its mark as well, so that is done by another worker, before.
#[tokio::test(flavor = "multi_thread")]
async fn the_source_hears_of_a_commit_only_after_the_volume_has_it() -> Result<()> {
    let rig = Servers::start().await?.rig("order", &["public.things"]).await?;
    rig.on_source("CREATE TABLE things (id int PRIMARY KEY)").await?;
    let mut copied = rig.start(0)?;
    copied.wait_for_output(STREAMING).await?;
    rig.wait_for("SELECT heartbeat_lsn IS NOT NULL FROM penstock.checkpoint", "t").await?;
    copied.kill()?;
    let go_on = rig.state_dir(0).with_extension("go-on");
    let mut worker = rig.start_with_failpoints(&format!(
        "{:?}=1*off->1*return(pause:{})",
        Point::BeforeVolumeFsync,
        go_on.display()
    ))?;
    worker.wait_for_output(STREAMING).await?;
    rig.on_source("INSERT INTO things VALUES (1)").await?;
    worker.wait_for_output("failpoint acts").await?;

    ensure!(rig.sink_value("SELECT count(*) FROM things").await? == "1", "the sink comes first");
    let committed = rig.sink_value("SELECT end_lsn FROM penstock.checkpoint").await?;
    wait_for_a_word_of_the_worker(&rig).await?;
    let is_behind = format!("SELECT ({SLOT_STANDS_AT}) < '{committed}'::pg_lsn");
    ensure!(rig.source_value(&is_behind).await? == "t", "acknowledged before the volume had it");

    worker.kill()?;
    ensure!(on_the_volume(&rig)?.is_some_and(|(_, sequence)| sequence == 0), "the volume had it");
    let again = rig.start(0)?;
    rig.on_source("INSERT INTO things VALUES (2)").await?;
    rig.wait_for("SELECT sequence FROM penstock.checkpoint", "2").await?;
    rig.assert_equal(&["things"]).await?;
    let began = Instant::now();
    while rig.source_value(&is_behind).await? == "t" {
        ensure!(began.elapsed() < PATIENCE, "never acknowledged");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(again);
    Ok(())
}

/// Each of its status messages says what may be thrown away; one that was sent from now on has arrived.
async fn wait_for_a_word_of_the_worker(rig: &Rig) -> Result<()> {
    let now = rig.source_value("SELECT clock_timestamp()").await?;
    let came = format!(
        "SELECT coalesce(bool_or(reply_time > '{now}'), false) FROM pg_stat_replication
         JOIN pg_replication_slots ON active_pid = pid WHERE database = current_database()"
    );
    let began = Instant::now();
    while rig.source_value(&came).await? != "t" {
        ensure!(began.elapsed() < PATIENCE, "the worker has stopped talking to the source");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// What died may have left the three apart, and only in this order.
pub(crate) async fn check(rig: &Rig) -> Result<()> {
    // Before the first load began there is none of them.
    let sink = rig.sink_value("SELECT end_lsn FROM penstock.checkpoint").await.ok();
    let slot = rig.source_value(SLOT_STANDS_AT).await.ok();
    let volume = on_the_volume(rig)?;
    let (sink, slot) = (sink.as_deref().map(lsn).transpose()?, slot.as_deref().map(lsn).transpose()?);
    match volume {
        Some((volume, _)) => ensure!(
            slot.is_some_and(|slot| slot <= volume) && sink.is_some_and(|sink| volume <= sink),
            "slot {slot:X?}, volume {volume:X}, sink {sink:X?}: not in this order"
        ),
        None => ensure!(sink.is_none() || sink == slot, "slot {slot:X?}, no volume, sink {sink:X?}"),
    }
    Ok(())
}

/// End of the log and sequence, as the next worker would find them. What it would find is left as it is.
fn on_the_volume(rig: &Rig) -> Result<Option<(u64, i64)>> {
    let copy = tempfile::TempDir::new()?;
    for file in ["checkpoint.sqlite", "checkpoint.sqlite-wal"] {
        let from = rig.state_dir(0).join(file);
        if from.exists() {
            std::fs::copy(from, copy.path().join(file))?;
        }
    }
    let volume = Connection::open(copy.path().join("checkpoint.sqlite"))?;
    let sql = "SELECT end_lsn, sequence FROM record";
    let record: Option<(String, i64)> =
        volume.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    record.map(|(end, sequence)| Ok((lsn(&end)?, sequence))).transpose()
}

/// `16/B374D848` as a number.
fn lsn(text: &str) -> Result<u64> {
    let (high, low) = text.split_once('/').context("no LSN")?;
    Ok(u64::from_str_radix(high, 16)? << 32 | u64::from_str_radix(low, 16)?)
}
