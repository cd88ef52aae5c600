//! Where a pipeline cannot go on by itself, one command brings it on: `begin-anew` loses nothing, `accept-loss` loses
//! what it says. Neither does anything where there is nothing to decide.

#[path = "../common/mod.rs"]
mod common;
mod images;

use std::process::Output;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use common::{DATABASE, Rig, Worker};
use penstock_e2e::postgres::{Server, Version};
use serde_json::json;

const SCHEMA: &str = "CREATE TABLE a (id int PRIMARY KEY, body text); CREATE TABLE b (id int PRIMARY KEY);
    INSERT INTO a SELECT g, 'row ' || g FROM generate_series(1, 500) g; INSERT INTO b VALUES (1)";
const TABLES: &[&str] = &["public.a", "public.b"];
const STREAMING: &str = "\"message\":\"streaming\"";

async fn rig() -> Result<Rig> {
    let rig = Rig::new(Version::V15, TABLES).await?;
    rig.on_source(SCHEMA).await?;
    Ok(rig)
}

async fn caught_up(rig: &Rig) -> Result<Worker> {
    let worker = rig.start(0)?;
    worker.wait_for_output(STREAMING).await?;
    rig.wait_until_caught_up().await?;
    Ok(worker)
}

fn decide(rig: &Rig, verb: &str) -> Result<Output> {
    rig.command(&[verb, "--reason", "the drill of today", "--by", "ann"])
}

fn accepted(output: &Output) -> Result<()> {
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn refused(output: &Output, words: &[&str]) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "was not refused: {said}");
    ensure!(words.iter().all(|word| said.contains(word)), "{said}");
    Ok(())
}

async fn stalled(worker: &Worker, reason: &str) -> Result<()> {
    worker.wait_for_output(&format!("\"reason\":\"{reason}\"")).await
}

async fn equal_from_here_on(rig: &Rig) -> Result<()> {
    rig.wait_for("SELECT bool_and(state = 'ready') FROM penstock.table_state", "t").await?;
    rig.on_source("INSERT INTO a VALUES (900, 'later'); DELETE FROM a WHERE id = 2").await?;
    rig.wait_until_caught_up().await?;
    rig.assert_equal(&["a", "b"]).await
}

async fn recorded(rig: &Rig, decision: &str, reason: &str) -> Result<()> {
    let found = rig
        .sink_value(
            "SELECT decision || ' ' || reason || ' ' || why || ' ' || decided_by FROM penstock.accepted_loss",
        )
        .await?;
    ensure!(found == format!("{decision} {reason} the drill of today ann (role postgres)"), "{found}");
    ensure!(
        rig.sink_value("SELECT count(*) FROM penstock.dead_end").await? == "0",
        "the dead end is still noted"
    );
    Ok(())
}

/// The slot is dropped, and changes are made that nobody will ever send.
async fn lose_the_slot(rig: &Rig, worker: &mut Worker) -> Result<()> {
    worker.terminate()?;
    rig.on_source("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots").await?;
    rig.on_source("INSERT INTO a VALUES (600, 'unseen'); DELETE FROM a WHERE id = 1; UPDATE a SET body = 'other' WHERE id = 3").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_slot_is_begun_anew_without_a_lost_row() -> Result<()> {
    let rig = rig().await?;
    let mut worker = caught_up(&rig).await?;
    lose_the_slot(&rig, &mut worker).await?;
    let worker = rig.start(0)?;
    stalled(&worker, "SlotMissing").await?;
    ensure!(worker.output()?.contains("penstock-worker begin-anew"), "the way out is not named");
    accepted(&decide(&rig, "begin-anew")?)?;
    worker.wait_for_output("BegunAnew").await?;
    equal_from_here_on(&rig).await?;
    recorded(&rig, "begin-anew", "SlotMissing").await?;
    let slots = rig.source_value("SELECT count(*) FROM pg_replication_slots").await?;
    ensure!(slots == "1", "{slots} slots");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_accepted_loss_is_what_was_said_and_no_more() -> Result<()> {
    let rig = rig().await?;
    let mut worker = caught_up(&rig).await?;
    let stood = rig.sink_value("SELECT end_lsn FROM penstock.checkpoint").await?;
    lose_the_slot(&rig, &mut worker).await?;
    let worker = rig.start(0)?;
    stalled(&worker, "SlotMissing").await?;
    accepted(&decide(&rig, "accept-loss")?)?;
    worker.wait_for_output("LossAccepted").await?;
    rig.on_source("INSERT INTO a VALUES (601, 'seen'); DELETE FROM a WHERE id = 4").await?;
    rig.wait_until_caught_up().await?;
    // What was committed in between is missing, what came before and after is there.
    let rows = rig.sink_value("SELECT count(*) FILTER (WHERE id IN (1, 601)) || ' ' || count(*) FILTER (WHERE id IN (4, 600)) || ' ' || count(*) FROM a").await?;
    ensure!(rows == "2 0 500", "{rows}");
    recorded(&rig, "accept-loss", "SlotMissing").await?;
    let from = rig
        .sink_value(
            "SELECT from_lsn <= '{}' AND to_lsn > from_lsn FROM penstock.accepted_loss"
                .replace("{}", &stood)
                .as_str(),
        )
        .await?;
    ensure!(from == "t", "the span is not what was lost");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_nothing_to_decide_about_a_pipeline_that_goes_on() -> Result<()> {
    let rig = rig().await?;
    refused(&decide(&rig, "begin-anew")?, &["nothing to decide"])?;
    let _worker = caught_up(&rig).await?;
    for verb in ["begin-anew", "accept-loss"] {
        refused(&decide(&rig, verb)?, &["nothing to decide", "resnapshot"])?;
        refused(&rig.command(&[verb])?, &["--reason"])?;
        refused(&rig.command(&[verb, "--reason", " "])?, &["--reason is empty"])?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_decided_about_one_dead_end_is_not_done_to_the_next() -> Result<()> {
    let rig = rig().await?;
    let mut worker = caught_up(&rig).await?;
    lose_the_slot(&rig, &mut worker).await?;
    let mut worker = rig.start(0)?;
    stalled(&worker, "SlotMissing").await?;
    worker.kill()?;
    accepted(&decide(&rig, "begin-anew")?)?;
    // The sink was restored meanwhile: it stands elsewhere.
    rig.on_sink("UPDATE penstock.checkpoint SET end_lsn = end_lsn - 8").await?;
    refused(&decide(&rig, "accept-loss")?, &["nothing to decide"])?;
    let from = worker.output()?.len();
    let worker = rig.start(0)?;
    let began = Instant::now();
    while !worker.output()?[from..].contains("\"reason\":\"SlotMissing\"") {
        ensure!(began.elapsed() < Duration::from_mins(3), "it does not say so again; {}", worker.tail()?);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    rig.wait_for("SELECT decision IS NULL FROM penstock.dead_end", "t").await?;
    ensure!(!worker.output()?.contains("BegunAnew"), "an old decision was carried out");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_lost_commits_is_begun_anew_or_goes_on_from_the_slot() -> Result<()> {
    for (verb, notice) in [("accept-loss", "LossAccepted"), ("begin-anew", "BegunAnew")] {
        let rig = rig().await?;
        let mut worker = caught_up(&rig).await?;
        rig.on_sink(
            "CREATE TABLE backup AS SELECT * FROM penstock.checkpoint; CREATE TABLE old_a AS SELECT * FROM a",
        )
        .await?;
        rig.on_source("INSERT INTO a VALUES (600, 'lost with the sink')").await?;
        rig.wait_until_caught_up().await?;
        worker.terminate()?;
        rig.on_sink(
            "UPDATE penstock.checkpoint c SET sequence = b.sequence, commit_lsn = b.commit_lsn, end_lsn = b.end_lsn, \
             xid = b.xid, ordinal = b.ordinal FROM backup b; TRUNCATE a; INSERT INTO a SELECT * FROM old_a",
        )
        .await?;
        let worker = rig.start(0)?;
        stalled(&worker, "SinkLostCommits").await?;
        accepted(&decide(&rig, verb)?)?;
        worker.wait_for_output(notice).await?;
        recorded(&rig, verb, "SinkLostCommits").await?;
        if verb == "begin-anew" {
            equal_from_here_on(&rig).await?;
        } else {
            rig.on_source("INSERT INTO a VALUES (601, 'seen')").await?;
            rig.wait_for("SELECT string_agg(id::text, ' ') FROM a WHERE id > 599", "601").await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_sink_is_begun_anew_and_no_loss_of_it_is_accepted() -> Result<()> {
    let rig = rig().await?;
    let mut worker = caught_up(&rig).await?;
    worker.terminate()?;
    rig.on_sink("DROP SCHEMA penstock CASCADE; DROP TABLE a, b").await?;
    let worker = rig.start(0)?;
    stalled(&worker, "SinkLostCommits").await?;
    refused(&decide(&rig, "accept-loss")?, &["nothing to go on from", "begin-anew"])?;
    accepted(&decide(&rig, "begin-anew")?)?;
    worker.wait_for_output("BegunAnew").await?;
    equal_from_here_on(&rig).await?;
    recorded(&rig, "begin-anew", "SinkLostCommits").await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_source_is_begun_anew_and_no_loss_of_it_is_accepted() -> Result<()> {
    let mut rig = rig().await?;
    let mut worker = caught_up(&rig).await?;
    worker.terminate()?;
    let other = Server::builder(Version::V16).setting("wal_sender_timeout", "10s").start().await?;
    other.create_database(DATABASE).await?;
    rig.manifest["spec"]["source"]["postgres"]["connection"]["port"] = json!(other.port);
    rig.source = Arc::new(other);
    rig.on_source("CREATE TABLE a (id int PRIMARY KEY, body text); CREATE TABLE b (id int PRIMARY KEY); INSERT INTO a VALUES (1, 'elsewhere')").await?;
    let worker = rig.start(0)?;
    stalled(&worker, "SourceChanged").await?;
    let epoch = rig.sink_value("SELECT epoch FROM penstock.checkpoint").await?;
    refused(&decide(&rig, "accept-loss")?, &["another server", "begin-anew"])?;
    ensure!(rig.sink_value("SELECT epoch FROM penstock.checkpoint").await? == epoch, "the fence was taken");
    accepted(&decide(&rig, "begin-anew")?)?;
    worker.wait_for_output("BegunAnew").await?;
    equal_from_here_on(&rig).await?;
    recorded(&rig, "begin-anew", "SourceChanged").await
}

/// Debezium and others go on from a slot that was made anew, and say nothing of what is missing in between.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_was_made_anew_is_not_taken_for_the_one_that_was_read() -> Result<()> {
    let rig = rig().await?;
    let mut worker = caught_up(&rig).await?;
    let slot = rig.source_value("SELECT slot_name FROM pg_replication_slots").await?;
    worker.terminate()?;
    rig.on_source(&format!("SELECT pg_drop_replication_slot('{slot}')")).await?;
    rig.on_source("INSERT INTO a VALUES (700, 'in no slot')").await?;
    rig.on_source(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")).await?;
    rig.on_source("INSERT INTO a VALUES (701, 'in the new one')").await?;
    let worker = rig.start(0)?;
    stalled(&worker, "SlotMissing").await?;
    worker.wait_for_output("somebody made it anew or moved it").await?;
    ensure!(rig.sink_value("SELECT count(*) FROM a WHERE id > 600").await? == "0", "it went on");
    accepted(&decide(&rig, "begin-anew")?)?;
    worker.wait_for_output("BegunAnew").await?;
    equal_from_here_on(&rig).await?;
    recorded(&rig, "begin-anew", "SlotMissing").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_was_dropped_under_the_stream_is_begun_anew() -> Result<()> {
    let rig = rig().await?;
    let worker = caught_up(&rig).await?;
    let name = rig.source_value("SELECT pubname FROM pg_publication").await?;
    rig.on_source(&format!("DROP PUBLICATION {name}")).await?;
    rig.on_source("INSERT INTO a VALUES (600, 'unseen')").await?;
    stalled(&worker, "PublicationUnsuitable").await?;
    rig.wait_for("SELECT count(*) FROM penstock.dead_end", "1").await?;
    refused(&decide(&rig, "accept-loss")?, &["publication was dropped", "begin-anew"])?;
    accepted(&decide(&rig, "begin-anew")?)?;
    worker.wait_for_output("BegunAnew").await?;
    equal_from_here_on(&rig).await?;
    recorded(&rig, "begin-anew", "PublicationUnsuitable").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_while_it_begins_anew_or_goes_on_finishes_it_at_its_next_start() -> Result<()> {
    for verb in ["begin-anew", "accept-loss"] {
        for point in ["BeforeSlot", "AfterSlot", "BeforeFirstCheckpoint", "AfterFirstCheckpoint"] {
            let rig = rig().await?;
            let mut worker = caught_up(&rig).await?;
            lose_the_slot(&rig, &mut worker).await?;
            let mut worker = rig.start_with_failpoints(&format!("{point}=return(abort)"))?;
            stalled(&worker, "SlotMissing").await?;
            accepted(&decide(&rig, verb)?)?;
            ensure!(worker.ended().await?.is_some(), "{verb}: {point} was not reached");
            let _again = rig.start(0)?;
            rig.wait_for("SELECT count(*) FROM penstock.accepted_loss", "1").await?;
            rig.on_source("INSERT INTO a VALUES (601, 'seen')").await?;
            rig.wait_for("SELECT count(*) FROM a WHERE id = 601", "1").await?;
            recorded(&rig, verb, "SlotMissing")
                .await
                .map_err(|error| error.context(format!("{verb}: {point}")))?;
            if verb == "begin-anew" {
                equal_from_here_on(&rig).await?;
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_that_fight_for_a_shard_begin_anew_once_and_whole() -> Result<()> {
    let rig = rig().await?;
    let mut worker = caught_up(&rig).await?;
    lose_the_slot(&rig, &mut worker).await?;
    let file = rig.manifest_file()?;
    let workers = [rig.start(0)?, Worker::start(&file, &rig.state_dir(7), 0)?];
    for worker in &workers {
        stalled(worker, "SlotMissing").await?;
    }
    accepted(&decide(&rig, "begin-anew")?)?;
    rig.wait_for("SELECT count(*) FROM penstock.accepted_loss", "1").await?;
    drop(workers);
    let _one = rig.start(0)?;
    equal_from_here_on(&rig).await?;
    recorded(&rig, "begin-anew", "SlotMissing").await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_shard_that_stands_still_is_decided_about_at_once() -> Result<()> {
    let mut rig = rig().await?;
    rig.manifest["spec"]["worker"] = json!({"shards": 2});
    let mut workers = [rig.start(0)?, rig.start(1)?];
    for worker in &workers {
        worker.wait_for_output(STREAMING).await?;
    }
    rig.wait_until_caught_up().await?;
    for worker in &mut workers {
        worker.terminate()?;
    }
    rig.on_source("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots").await?;
    rig.on_source("INSERT INTO a VALUES (600, 'unseen'); INSERT INTO b VALUES (600)").await?;
    let _workers = [rig.start(0)?, rig.start(1)?];
    rig.wait_for("SELECT count(*) FROM penstock.dead_end", "2").await?;
    accepted(&decide(&rig, "begin-anew")?)?;
    rig.wait_for("SELECT count(*) FROM penstock.accepted_loss WHERE decision = 'begin-anew'", "2").await?;
    equal_from_here_on(&rig).await
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_never_copied_are_not_begun_anew() -> Result<()> {
    let mut rig = rig().await?;
    rig.on_sink(SCHEMA).await?;
    rig.manifest["spec"]["source"]["postgres"]["snapshot"] = json!({"mode": "Never"});
    let mut worker = caught_up(&rig).await?;
    lose_the_slot(&rig, &mut worker).await?;
    let worker = rig.start(0)?;
    stalled(&worker, "SlotMissing").await?;
    refused(&decide(&rig, "begin-anew")?, &["Never", "accept-loss"])?;
    accepted(&decide(&rig, "accept-loss")?)?;
    worker.wait_for_output("LossAccepted").await
}
