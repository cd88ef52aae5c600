//! Large sources: in a short form here; `make scale` runs them as large as it is told, one by one, and prints the figures.

mod common;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use common::{DATABASE, Rig, Worker};
use penstock_e2e::postgres::{Server, Version};

const STREAMING: &str = "\"message\":\"streaming\"";

/// What the allocator may still take after the first hundred thousand changes.
const WARM_UP_KIB: u64 = 10 * 1024;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

async fn rig(tables: &[&str]) -> Result<Rig> {
    let server =
        || Server::builder(Version::V15).setting("max_wal_size", "4GB").setting("shared_buffers", "256MB");
    let (source, sink) = (server().start().await?, server().start().await?);
    Rig::on(source.into(), sink.into(), DATABASE, tables).await
}

async fn wait_for_sequence(rig: &Rig, sequence: u64, worker: &Worker) -> Result<()> {
    let began = Instant::now();
    let sql = format!("SELECT sequence >= {sequence} FROM penstock.checkpoint");
    while began.elapsed() < Duration::from_mins(30) {
        if rig.sink_value(&sql).await? == "t" {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("{sequence} changes were not applied within half an hour; {}", worker.tail()?)
}

fn resident_kib(worker: &Worker) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid()))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS")).context("VmRSS")?;
    Ok(line.split_whitespace().nth(1).context("VmRSS")?.parse()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_flat_over_many_changes() -> Result<()> {
    let changes = number("PENSTOCK_SCALE_CHANGES", 200_000);
    let rig = rig(&["public.t"]).await?;
    rig.on_source("CREATE TABLE t (id int PRIMARY KEY, n bigint NOT NULL, body text); INSERT INTO t SELECT g, 0, repeat('x', 100) FROM generate_series(1, 5000) g").await?;
    let worker = rig.start(0)?;
    worker.wait_for_output(STREAMING).await?;
    let (began, step, mut samples) = (Instant::now(), 50_000, Vec::new());
    for done in (step..=changes).step_by(usize::try_from(step)?) {
        for _ in 0..10 {
            rig.on_source("UPDATE t SET n = n + 1, body = md5(n::text) || repeat('y', 100)").await?;
        }
        wait_for_sequence(&rig, done, &worker).await?;
        samples.push(resident_kib(&worker)?);
    }
    // The first tenth warms up.
    let warm = samples.len() / 10 + 1;
    let (then, now) = (samples[warm], *samples.last().context("samples")?);
    println!(
        "{changes} changes in {:?}: {then} KiB resident after {} of them, {now} KiB at the end, peak {} MiB",
        began.elapsed(),
        (warm as u64 + 1) * step,
        worker.peak_rss_mib()?
    );
    // In the short form it still warms up; a row that is kept for each change would take twice as much.
    let allowed = (then / 10).max(WARM_UP_KIB);
    ensure!(now <= then + allowed, "memory grew by more than {allowed} KiB: {samples:?}");
    rig.assert_equal(&["t"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_very_large_transaction_is_applied_within_the_memory_bound() -> Result<()> {
    let megabytes = number("PENSTOCK_SCALE_MEGABYTES", 256);
    let rig = rig(&["public.t"]).await?;
    rig.on_source(
        "CREATE TABLE t (id int PRIMARY KEY, body text); ALTER TABLE t ALTER body SET STORAGE EXTERNAL",
    )
    .await?;
    let worker = rig.start(0)?;
    worker.wait_for_output(STREAMING).await?;
    let began = Instant::now();
    // 1,000 rows to the megabyte, as random as text is.
    rig.on_source(&format!("INSERT INTO t SELECT g, (SELECT string_agg(md5(g::text || i::text), '') FROM generate_series(1, 32) i) FROM generate_series(1, {megabytes} * 1000) g")).await?;
    let written = began.elapsed();
    let began = Instant::now();
    wait_for_sequence(&rig, megabytes * 1000, &worker).await?;
    let peak = worker.peak_rss_mib()?;
    println!(
        "one transaction of {megabytes} MiB: written in {written:?}, applied in {:?} after its commit, peak {peak} MiB",
        began.elapsed()
    );
    ensure!(peak < 160, "the worker took {peak} MiB");
    rig.assert_equal(&["t"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_few_tables_are_followed_among_very_many() -> Result<()> {
    let relations = number("PENSTOCK_SCALE_RELATIONS", 2_000);
    let rig = rig(&["shop.wanted*"]).await?;
    rig.on_source("CREATE SCHEMA crowd; CREATE SCHEMA shop").await?;
    for first in (1..=relations).step_by(500) {
        // A table with a primary key is two relations.
        rig.on_source(&format!("DO $$ BEGIN FOR i IN {first}..{} LOOP EXECUTE format('CREATE TABLE crowd.t%s (id int PRIMARY KEY)', i); END LOOP; END $$", first + 499)).await?;
    }
    rig.on_source("CREATE TABLE shop.wanted_1 (id int PRIMARY KEY); INSERT INTO shop.wanted_1 SELECT generate_series(1, 1000)").await?;
    let began = Instant::now();
    let worker = rig.start(0)?;
    worker.wait_for_output_within(STREAMING, Duration::from_mins(5)).await?;
    let started = began.elapsed();
    rig.on_source("INSERT INTO crowd.t1 VALUES (1); INSERT INTO shop.wanted_1 VALUES (1001)").await?;
    rig.wait_until_caught_up().await?;
    let began = Instant::now();
    rig.on_source("CREATE TABLE shop.wanted_2 (id int PRIMARY KEY); INSERT INTO shop.wanted_2 VALUES (1)")
        .await?;
    rig.wait_for("SELECT count(*) FROM penstock.table_state WHERE state = 'ready'", "2").await?;
    println!(
        "one table among {relations}: streaming after {started:?}, a second one copied {:?} after it was made, peak {} MiB",
        began.elapsed(),
        worker.peak_rss_mib()?
    );
    rig.assert_equal(&["shop.wanted_1", "shop.wanted_2"]).await
}
