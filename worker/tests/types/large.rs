//! Values of many megabytes, and what of them the worker keeps in memory.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use penstock_e2e::postgres::Version;

use crate::common::{Rig, Worker};

/// Of a value; the guide's figures were measured with 256, as `PENSTOCK_SCALE_VALUE_MIB` says.
fn value_mib() -> u64 {
    std::env::var("PENSTOCK_SCALE_VALUE_MIB").ok().and_then(|text| text.parse().ok()).unwrap_or(32)
}
/// What the worker takes beside values.
const OTHER_MIB: u64 = 64;
const PATIENCE: Duration = Duration::from_mins(5);

/// Random, so that nothing is compressed, without a function that makes more than the server can hold.
fn value(number: usize) -> String {
    format!(
        "(SELECT string_agg(sha512((g || ' {number}')::bytea), '') FROM generate_series(1, {}) AS g)",
        value_mib() * 1024 * 1024 / 64
    )
}

async fn wait_until_equal(rig: &Rig, worker: &Worker, when: &str) -> Result<()> {
    rig.on_source("SELECT pg_logical_emit_message(true, 'test', 'the end')").await?;
    let end = rig.source_value("SELECT pg_current_wal_flush_lsn()").await?;
    let reached = format!("SELECT min(end_lsn) >= '{end}'::pg_lsn FROM penstock.checkpoint");
    let began = Instant::now();
    while rig.sink_value(&reached).await.unwrap_or_default() != "t" {
        ensure!(began.elapsed() < PATIENCE, "{when}: {}", worker.output()?);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    for table in ["keyed", "keyless"] {
        let rows = format!(
            "SELECT count(*) || coalesce(string_agg(id || ' ' || coalesce(md5(body), '-'), ', ' ORDER BY id), '') FROM {table}"
        );
        ensure!(rig.source_value(&rows).await? == rig.sink_value(&rows).await?, "{table} {when}");
    }
    println!("{when}: {} MiB after {:?}", worker.peak_rss_mib()?, began.elapsed());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_many_megabytes_arrive_and_memory_is_bounded_by_a_few_of_them() -> Result<()> {
    let mut rig = Rig::new(Version::V15, &["public.*"]).await?;
    rig.manifest["spec"]["source"]["postgres"]["snapshot"] = serde_json::json!({"parallelism": 1});
    rig.on_source(&format!(
        "CREATE TABLE keyed (id integer PRIMARY KEY, body bytea); CREATE TABLE keyless (id integer, body bytea);
         ALTER TABLE keyed ALTER body SET STORAGE EXTERNAL; ALTER TABLE keyless ALTER body SET STORAGE EXTERNAL;
         ALTER TABLE keyless REPLICA IDENTITY FULL;
         INSERT INTO keyed VALUES (1, {}), (2, {}); INSERT INTO keyless SELECT * FROM keyed",
        value(1),
        value(2)
    ))
    .await?;
    let worker = rig.start(0)?;
    let began = Instant::now();
    while !worker.output()?.contains("\"message\":\"streaming\"") {
        ensure!(began.elapsed() < PATIENCE, "{}", worker.output()?);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    wait_until_equal(&rig, &worker, "by the first load").await?;
    let loaded = worker.peak_rss_mib()?;
    rig.on_source(&format!("INSERT INTO keyed VALUES (3, {}), (4, '')", value(3))).await?;
    wait_until_equal(&rig, &worker, "by an insert").await?;
    rig.on_source("UPDATE keyed SET body = o.body FROM keyed AS o WHERE keyed.id = 4 AND o.id = 1; UPDATE keyed SET id = 5 WHERE id = 3")
        .await?;
    wait_until_equal(&rig, &worker, "by an update").await?;
    rig.on_source("UPDATE keyless SET body = NULL WHERE id = 1; DELETE FROM keyless WHERE id = 2; DELETE FROM keyed WHERE id = 1").await?;
    wait_until_equal(&rig, &worker, "by the whole row").await?;
    let streamed = worker.peak_rss_mib()?;
    let value = value_mib();
    ensure!(loaded < 4 * value + OTHER_MIB, "{loaded} MiB for the first load of values of {value} MiB");
    ensure!(streamed < 8 * value + OTHER_MIB, "{streamed} MiB for the stream of values of {value} MiB");
    Ok(())
}
