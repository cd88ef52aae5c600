//! The barrier: only a registered one is met, every shard meets it at the same place, and nothing of it stays behind.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use penstock_e2e::postgres::Version;
use serde_json::json;

use crate::common::Rig;
use crate::kit::{SLOTS, STREAMING, assert_equal, compare, pauses, streaming, waiting_for_its_slot};

const FORGED: &str = "00000000-0000-4000-8000-000000000000";

async fn rig() -> Result<Rig> {
    let rig = Rig::new(Version::V15, &["public.*"]).await?;
    rig.on_source(
        "CREATE TABLE a (id int PRIMARY KEY, n int); INSERT INTO a SELECT g, 0 FROM generate_series(1, 1000) g;
         CREATE TABLE b (id int PRIMARY KEY, n int); INSERT INTO b SELECT g, 0 FROM generate_series(1, 1000) g;
         CREATE TABLE c (id int PRIMARY KEY, n int); CREATE TABLE d (id int PRIMARY KEY, n int)",
    )
    .await?;
    Ok(rig)
}

async fn uid(rig: &Rig) -> Result<String> {
    rig.sink_value("SELECT uid FROM penstock.checkpoint LIMIT 1").await
}

async fn emit(rig: &Rig, content: &str) -> Result<()> {
    let sql = format!("SELECT pg_logical_emit_message(true, 'penstock-barrier', '{content}')");
    rig.on_source(&sql).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_barrier_is_ignored() -> Result<()> {
    let rig = rig().await?;
    let worker = streaming(&rig).await?;
    let uid = uid(&rig).await?;
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND application_name LIKE 'penstock/%'";
    let before = rig.sink_value(sessions).await?;
    for content in [format!("{FORGED} {uid}"), format!("{FORGED} another"), "nonsense".into(), String::new()]
    {
        emit(&rig, &content).await?;
    }
    rig.on_source("UPDATE a SET n = 1").await?;
    rig.wait_until_caught_up().await?;
    ensure!(pauses(&worker)?.is_empty(), "a barrier that nobody registered was met");
    ensure!(worker.output()?.contains("a barrier that nobody registered for this lineage is ignored"));
    ensure!(rig.sink_value(sessions).await? == before, "a snapshot was opened");
    assert_equal(&rig).map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_barrier_that_is_repeated_by_somebody_is_met_once() -> Result<()> {
    let rig = rig().await?;
    let worker = streaming(&rig).await?;
    let uid = uid(&rig).await?;
    rig.on_sink(&format!(
        "INSERT INTO penstock.barrier (uid, nonce, kind, expires_at) VALUES ('{uid}', '{FORGED}', 'comparison', now() + '1 hour')"
    ))
    .await?;
    emit(&rig, &format!("{FORGED} {uid}")).await?;
    let arrived = "SELECT state || ' ' || commit_lsn FROM penstock.barrier_arrival";
    worker.wait_for_output("met a barrier").await?;
    rig.wait_for("SELECT count(*) FROM penstock.barrier_arrival WHERE state = 'held'", "1").await?;
    let first = rig.sink_value(arrived).await?;
    emit(&rig, &format!("{FORGED} {uid}")).await?;
    rig.on_source("UPDATE a SET n = 1").await?;
    rig.wait_until_caught_up().await?;
    ensure!(rig.sink_value(arrived).await? == first && pauses(&worker)?.len() == 1, "{first}");
    // Nobody renews it: the worker lets its snapshot go, and removes it.
    rig.on_sink("UPDATE penstock.barrier SET expires_at = now()").await?;
    rig.wait_for("SELECT count(*) FROM penstock.barrier", "0").await?;
    rig.wait_for("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'penstock/%' AND state LIKE 'idle in transaction%'", "0").await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_a_comparison() -> Result<()> {
    let rig = rig().await?;
    let _worker = streaming(&rig).await?;
    for _ in 0..3 {
        assert_equal(&rig)?;
    }
    rig.wait_for(
        "SELECT (SELECT count(*) FROM penstock.barrier) + (SELECT count(*) FROM penstock.barrier_arrival)",
        "0",
    )
    .await?;
    let slots = rig.source_value("SELECT string_agg(slot_name, ' ') FROM pg_replication_slots").await?;
    ensure!(!slots.contains("compare") && !slots.contains(' '), "{slots}");
    let idle = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'";
    rig.wait_for(idle, "0").await?;
    ensure!(rig.source_value(idle).await? == "0", "a snapshot of the source is still held");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_shard_is_compared_at_the_same_position() -> Result<()> {
    let mut rig = rig().await?;
    rig.manifest["spec"]["worker"] = json!({"shards": 2});
    let workers = [rig.start(0)?, rig.start(1)?];
    for worker in &workers {
        worker.wait_for_output(STREAMING).await?;
    }
    let shards = rig.sink_value("SELECT count(DISTINCT shard) FROM penstock.assignment").await?;
    ensure!(shards == "2", "all tables went to one shard");
    let client = rig.source.connect(&rig.database).await?;
    let load = tokio::spawn(async move {
        for _ in 0..4000 {
            client.run("BEGIN; UPDATE a SET n = n + 1 WHERE id < 20; UPDATE b SET n = n + 1 WHERE id < 20; COMMIT").await?;
        }
        anyhow::Ok(())
    });
    for _ in 0..5 {
        let said = assert_equal(&rig)?;
        let tables = said.json["tables"].as_array().cloned().unwrap_or_default();
        ensure!(
            tables.len() == 4 && tables.iter().all(|table| table["position"] == tables[0]["position"]),
            "{said:#?}"
        );
    }
    load.abort();
    drop(workers);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_without_a_worker_leaves_the_question_open() -> Result<()> {
    let rig = rig().await?;
    let mut worker = streaming(&rig).await?;
    worker.terminate()?;
    let said = compare(&rig, &["--timeout", "15"])?;
    ensure!(
        said.code == 2
            && said.errors.contains("The workers of shards 0 have not met the barrier within 15 s"),
        "{said:#?}"
    );
    rig.wait_for_at_source(SLOTS, "0").await?;
    let _worker = streaming(&rig).await?;
    let said = compare(&rig, &["public.nothing"])?;
    ensure!(
        said.code == 2 && said.errors.contains("No table of the pipeline is meant; it has public.a"),
        "{said:#?}"
    );
    rig.wait_for("SELECT count(*) FROM penstock.barrier WHERE expires_at < now()", "0").await
}

/// Its successor goes on behind the barrier and never comes to it.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_at_a_barrier_does_not_keep_the_comparison_waiting() -> Result<()> {
    let rig = Arc::new(rig().await?);
    let mut worker = streaming(&rig).await?;
    rig.wait_for("SELECT heartbeat_lsn IS NOT NULL FROM penstock.checkpoint", "t").await?;
    worker.terminate()?;
    // The source is quiet, so the first commit is that of the barrier.
    let mut worker = rig.start_with_failpoints("AfterSinkCommit=return(abort)")?;
    let comparing = Arc::clone(&rig);
    let comparison = tokio::spawn(async move { compare(&comparing, &["--timeout", "600", "--log", "info"]) });
    ensure!(worker.ended().await?.is_some(), "the worker outlived the barrier");
    ensure!(!comparison.is_finished(), "the worker may still come back");
    let began = Instant::now();
    let _worker = rig.start(0)?;
    let said = comparison.await??;
    ensure!(said.code == 0, "{said:#?}");
    ensure!(said.errors.contains("its worker ended at the barrier"), "{said:#?}");
    ensure!(began.elapsed() < Duration::from_mins(5), "the first barrier was waited for to its end");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_not_followed_is_unknown_and_never_equal() -> Result<()> {
    let rig = rig().await?;
    let _worker = streaming(&rig).await?;
    for state in ["stale", "incremental"] {
        rig.on_sink(&format!(
            "UPDATE penstock.table_state SET state = '{state}', ready_lsn = NULL WHERE source_table = 'a'"
        ))
        .await?;
        let said = compare(&rig, &[])?;
        let unknown: Vec<_> = said.json["tables"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|table| table["verdict"] == "unknown")
            .collect();
        ensure!(said.code == 2 && said.json["verdict"] == "unknown", "{said:#?}");
        ensure!(unknown.len() == 1 && unknown[0]["table"] == "public.a", "{said:#?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_that_is_killed_leaves_nothing() -> Result<()> {
    let rig = rig().await?;
    let _worker = streaming(&rig).await?;
    let (mut comparison, client) = waiting_for_its_slot(&rig).await?;
    rig.wait_for("SELECT count(*) FROM penstock.barrier", "1").await?;
    comparison.kill()?;
    comparison.wait()?;
    client.run("COMMIT").await?;
    assert_equal(&rig)?;
    rig.wait_for("SELECT count(*) FROM penstock.barrier WHERE expires_at > now()", "0").await?;
    assert_equal(&rig)?;
    ensure!(rig.sink_value("SELECT count(*) FROM penstock.barrier").await? == "0", "a barrier was left");
    ensure!(rig.source_value(SLOTS).await? == "0", "a slot was left");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_gives_no_snapshot_is_not_waited_for_longer_than_asked() -> Result<()> {
    let rig = rig().await?;
    let _worker = streaming(&rig).await?;
    let client = rig.source.connect(&rig.database).await?;
    client.run("BEGIN; SELECT pg_current_xact_id()").await?;
    let said = compare(&rig, &["--timeout", "10"])?;
    ensure!(
        said.code == 2 && said.errors.contains("a transaction that began before is still open"),
        "{said:#?}"
    );
    // Although the transaction is still open.
    rig.wait_for_at_source(SLOTS, "0").await?;
    ensure!(rig.sink_value("SELECT count(*) FROM penstock.barrier").await? == "0", "a barrier was left");
    client.run("COMMIT").await
}

/// What the publication left out is in neither stream, so both ends would agree on what is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_the_publication_does_not_carry_is_unknown() -> Result<()> {
    let mut rig = rig().await?;
    rig.on_source("CREATE PUBLICATION given FOR TABLE a, b, c, d WITH (publish_via_partition_root = true)")
        .await?;
    rig.manifest["spec"]["source"]["postgres"]["publication"] = json!("given");
    let _worker = streaming(&rig).await?;
    assert_equal(&rig)?;
    rig.on_source("ALTER PUBLICATION given DROP TABLE a").await?;
    let said = compare(&rig, &["--timeout", "10"])?;
    ensure!(said.code == 2, "{said:#?}");
    let mut tables = said.json["tables"].as_array().into_iter().flatten();
    let a = tables.find(|table| table["table"] == "public.a");
    ensure!(a.is_none_or(|table| table["verdict"] == "unknown"), "{said:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_the_sink_lacks_is_never_passed_over_in_silence() -> Result<()> {
    let mut rig = rig().await?;
    let _worker = streaming(&rig).await?;
    rig.on_sink("ALTER TABLE a DROP COLUMN n").await?;
    let said = compare(&rig, &["public.a"])?;
    let reason = said.json["tables"][0]["reason"].as_str().unwrap_or_default();
    ensure!(said.code == 2 && reason.contains("has no column n"), "{said:#?}");
    rig.manifest["spec"]["sink"]["postgres"]["schemaChanges"] = json!("Ignore");
    let said = compare(&rig, &["public.a"])?;
    ensure!(said.code == 0 && said.json["tables"][0]["leftOutColumns"] == json!(["n"]), "{said:#?}");
    Ok(())
}
