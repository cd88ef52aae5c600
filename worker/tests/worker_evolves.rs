//! Columns that change while their table is streamed: what is carried out on the sink, what is left, what stops, and what
//! is copied again. Every table ends equal, row for row.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use common::{Rig, Worker};
use penstock_e2e::postgres::{Server, Version};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

const STREAMING: &str = "\"message\":\"streaming\"";
const COPIED_AGAIN: &str = "SnapshotRestarted";
const STATE: &str = "SELECT state FROM penstock.table_state WHERE source_table = 'things'";
const TABLE: &str = "
    CREATE TABLE things (id int PRIMARY KEY, body varchar(10), price numeric(6,2) NOT NULL DEFAULT 1, size int);
    INSERT INTO things SELECT g, 'row ' || g, g, g FROM generate_series(1, 100) g";

static SERVERS: OnceCell<(Arc<Server>, Arc<Server>)> = OnceCell::const_new();
static RIGS: AtomicU32 = AtomicU32::new(0);

async fn start_servers(source: Version, sink: Version) -> Result<(Arc<Server>, Arc<Server>)> {
    let source = Server::builder(source)
        .setting("max_replication_slots", "40")
        .setting("max_wal_senders", "40")
        .setting("wal_sender_timeout", "10s");
    Ok((Arc::new(source.start().await?), Arc::new(Server::start(sink).await?)))
}

/// Databases of their own on servers that all tests share.
async fn empty_rig(policy: &str) -> Result<Rig> {
    let servers = SERVERS.get_or_try_init(|| start_servers(Version::V15, Version::V15)).await?.clone();
    rig_on(servers, policy).await
}

async fn rig_on((source, sink): (Arc<Server>, Arc<Server>), policy: &str) -> Result<Rig> {
    let name = format!("evolves-{}", RIGS.fetch_add(1, Ordering::Relaxed));
    let mut rig = Rig::on(source, sink, &name, &["public.*"]).await?;
    rig.manifest["spec"]["sink"]["postgres"]["schemaChanges"] = json!(policy);
    Ok(rig)
}

/// A pipeline that streams `things`.
async fn rig(policy: &str) -> Result<(Rig, Worker)> {
    let rig = empty_rig(policy).await?;
    rig.on_source(TABLE).await?;
    let worker = rig.start(0)?;
    worker.wait_for_output(STREAMING).await?;
    Ok((rig, worker))
}

/// The worker's output since `from`.
fn since(worker: &Worker, from: usize) -> Result<String> {
    Ok(worker.output()?[from..].to_owned())
}

/// Waits until both sides are equal, and the worker has come to the end of the log.
async fn wait_until_equal(rig: &Rig, tables: &[&str]) -> Result<()> {
    rig.wait_for("SELECT count(*) FROM penstock.table_state WHERE state <> 'ready'", "0").await?;
    rig.wait_until_caught_up().await?;
    rig.assert_equal(tables).await
}

/// The statements that the last failure of this reason told to run on the sink.
fn told(worker: &Worker, reason: &str) -> Result<String> {
    let output = worker.output()?;
    let lines = output.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let line = lines.into_iter().find(|line| line["reason"] == reason).context("no such reason")?;
    let message = line["message"].as_str().context("message")?;
    let (_, statements) = message.split_once("Run on the sink: ").context(message.to_owned())?;
    let end = statements.rfind(';').context("statements")?;
    Ok(statements[..end].to_owned())
}

async fn wait_until_halted(worker: &Worker, reason: &str) -> Result<()> {
    worker.wait_for_output(&format!("\"reason\":\"{reason}\"")).await
}

/// Rows before a change, the change, rows after it: all waits in the source's log when the worker comes.
const ADDITIONS: &str = "
    INSERT INTO things VALUES (201, 'before');
    UPDATE things SET size = -size WHERE id <= 50;
    ALTER TABLE things ADD COLUMN colour text DEFAULT E'it''s \\\\ \"red\", {really}';
    INSERT INTO things VALUES (202, 'between', 1, 1, 'blue');
    UPDATE things SET colour = 'green' WHERE id = 1;
    ALTER TABLE things ALTER colour DROP DEFAULT;
    ALTER TABLE things ADD COLUMN made timestamptz DEFAULT now(), ADD COLUMN weight float8;
    INSERT INTO things (id, weight) VALUES (203, 0.1);
    DELETE FROM things WHERE id BETWEEN 20 AND 30;
    BEGIN;
    INSERT INTO things VALUES (204, 'before');
    UPDATE things SET body = 'both' WHERE id = 2;
    ALTER TABLE things ADD COLUMN tags text[] DEFAULT '{a,\"b c\"}';
    UPDATE things SET tags = NULL WHERE id IN (2, 204);
    INSERT INTO things (id) VALUES (205);
    COMMIT;
    CREATE TYPE mood AS ENUM ('sad', 'ok');
    ALTER TABLE things ADD COLUMN mood mood DEFAULT 'ok';
    INSERT INTO things (id, mood) VALUES (206, 'sad');";

async fn columns_are_added_exactly_where_the_stream_has_them(source: Version, sink: Version) -> Result<()> {
    let rig = rig_on(start_servers(source, sink).await?, "Apply").await?;
    rig.on_source(TABLE).await?;
    let mut worker = rig.start(0)?;
    worker.wait_for_output(STREAMING).await?;
    worker.kill()?;
    let from = worker.output()?.len();
    rig.on_source(ADDITIONS).await?;
    let worker = rig.start(0)?;
    rig.wait_for("SELECT mood FROM things WHERE id = 206", "sad").await?;
    wait_until_equal(&rig, &["things"]).await?;
    ensure!(
        !since(&worker, from)?.contains(COPIED_AGAIN),
        "rows were copied although their values are known"
    );
    let default = "SELECT coalesce(string_agg(column_name || column_default, ',' ORDER BY 1), '') FROM information_schema.columns \
                   WHERE table_name = 'things' AND column_name IN ('colour', 'mood', 'tags')";
    ensure!(!rig.sink_value(default).await?.contains("colour"), "a default stayed that the source dropped");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_are_added_exactly_where_the_stream_has_them_from_14_to_18() -> Result<()> {
    columns_are_added_exactly_where_the_stream_has_them(Version::V14, Version::V18).await
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_are_added_exactly_where_the_stream_has_them_from_18_to_15() -> Result<()> {
    columns_are_added_exactly_where_the_stream_has_them(Version::V18, Version::V15).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_is_added_while_the_worker_runs_is_added_to_the_sink() -> Result<()> {
    let (rig, worker) = rig("Apply").await?;
    for statement in ADDITIONS.split("BEGIN;").next().unwrap_or_default().split(";\n") {
        rig.on_source(statement).await?;
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    wait_until_equal(&rig, &["things"]).await?;
    ensure!(worker.output()?.contains("SchemaChangeApplied"), "nobody hears of it");
    ensure!(!worker.output()?.contains(COPIED_AGAIN), "rows were copied although their values are known");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_of_a_table_that_nobody_writes_to_is_added_too() -> Result<()> {
    let (rig, _worker) = rig("Apply").await?;
    rig.on_source("ALTER TABLE things ADD COLUMN colour text DEFAULT 'red'").await?;
    rig.wait_for("SELECT count(*) FROM things WHERE colour = 'red'", "100").await?;
    wait_until_equal(&rig, &["things"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn types_become_wider_without_a_copy() -> Result<()> {
    let (rig, mut worker) = rig("Apply").await?;
    worker.kill()?;
    let from = worker.output()?.len();
    rig.on_source(
        "INSERT INTO things VALUES (201, 'before');
         ALTER TABLE things ALTER body TYPE varchar(20);
         INSERT INTO things VALUES (202, 'longer than ten');
         ALTER TABLE things ALTER body TYPE text, ALTER price TYPE numeric(9,2);
         INSERT INTO things VALUES (203, repeat('x', 100), 1234567.89)",
    )
    .await?;
    let worker = rig.start(0)?;
    rig.wait_for("SELECT price FROM things WHERE id = 203", "1234567.89").await?;
    wait_until_equal(&rig, &["things"]).await?;
    ensure!(!since(&worker, from)?.contains(COPIED_AGAIN), "rows were copied although none was rewritten");
    let types = "SELECT string_agg(format_type(atttypid, atttypmod), ',') FROM pg_attribute \
                 WHERE attrelid = 'things'::regclass AND attname IN ('body', 'price')";
    ensure!(rig.sink_value(types).await? == "text,numeric(9,2)");
    Ok(())
}

/// Statements that give existing rows other values, and say nothing of it in the stream.
const REWRITES: [&str; 5] = [
    "ALTER TABLE things ALTER size TYPE int USING size + 1",
    "ALTER TABLE things ALTER size TYPE bigint USING size * 2",
    "ALTER TABLE things ADD COLUMN luck float8 DEFAULT random()",
    "ALTER TABLE things ALTER body TYPE text USING upper(body)",
    "ALTER TABLE things ADD COLUMN a int DEFAULT 5; ALTER TABLE things ALTER a TYPE int USING a + id",
];

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_were_rewritten_are_copied_again() -> Result<()> {
    let (rig, worker) = rig("Apply").await?;
    for (round, statement) in (1..).zip(REWRITES) {
        rig.on_source(statement).await?;
        // With and without a row that tells the stream.
        if round % 2 == 0 {
            rig.on_source(&format!("INSERT INTO things (id, size) VALUES (200 + {round}, 7)")).await?;
        }
        let copies = || Ok::<_, anyhow::Error>(worker.output()?.matches(COPIED_AGAIN).count());
        for _ in 0..400 {
            if copies()? >= round {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        ensure!(copies()? >= round, "{statement}: not noticed; {}", worker.tail()?);
        wait_until_equal(&rig, &["things"]).await.context(statement)?;
    }
    tokio::time::sleep(Duration::from_secs(12)).await;
    let copies = worker.output()?.matches(COPIED_AGAIN).count();
    ensure!(copies == REWRITES.len(), "{copies} copies of {} rewrites", REWRITES.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewrite_while_no_worker_runs_is_noticed() -> Result<()> {
    let (rig, mut worker) = rig("Apply").await?;
    worker.kill()?;
    rig.on_source("ALTER TABLE things ALTER size TYPE int USING size + 1").await?;
    let worker = rig.start(0)?;
    worker.wait_for_output(COPIED_AGAIN).await?;
    wait_until_equal(&rig, &["things"]).await
}

/// Statements that give a table a new file, or write its columns' description, and leave the values alone.
const HARMLESS: [&str; 9] = [
    "ALTER TABLE things ADD COLUMN colour text DEFAULT 'red'",
    "VACUUM FULL things",
    "CLUSTER things USING things_pkey",
    "ALTER TABLE things ALTER size SET NOT NULL",
    "ALTER TABLE things ALTER size DROP NOT NULL",
    "ALTER TABLE things ALTER size SET DEFAULT 8",
    "ALTER TABLE things SET UNLOGGED",
    "ALTER TABLE things SET LOGGED",
    "TRUNCATE things",
];

async fn what_leaves_values_alone_causes_no_copy(version: Version) -> Result<()> {
    let rig = rig_on(start_servers(version, Version::V15).await?, "Apply").await?;
    rig.on_source(TABLE).await?;
    let worker = rig.start(0)?;
    worker.wait_for_output(STREAMING).await?;
    let shape = "SELECT md5(shape) FROM penstock.table_state";
    for statement in HARMLESS {
        if statement.contains("UNLOGGED") || statement.contains("SET LOGGED") {
            continue;
        }
        let before = rig.sink_value(shape).await?;
        rig.on_source(statement).await?;
        rig.wait_for(&format!("SELECT ({shape}) <> '{before}'"), "t").await.context(statement)?;
    }
    rig.on_source("INSERT INTO things VALUES (1, 'again')").await?;
    wait_until_equal(&rig, &["things"]).await?;
    ensure!(!worker.output()?.contains(COPIED_AGAIN), "a copy for nothing");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_leaves_values_alone_causes_no_copy_on_14() -> Result<()> {
    what_leaves_values_alone_causes_no_copy(Version::V14).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_leaves_values_alone_causes_no_copy_on_18() -> Result<()> {
    what_leaves_values_alone_causes_no_copy(Version::V18).await
}

/// What always needs a person, with the statement that is told.
const DESTRUCTIVE: [(&str, &str, &str); 3] = [
    (
        "ALTER TABLE things RENAME body TO \"Bo\"\"dy\"",
        "ALTER TABLE \"public\".\"things\" RENAME COLUMN \"body\" TO \"Bo\"\"dy\"",
        "INSERT INTO things (id, \"Bo\"\"dy\") VALUES (302, 'after')",
    ),
    (
        "ALTER TABLE things DROP COLUMN body",
        "ALTER TABLE \"public\".\"things\" DROP COLUMN \"body\"",
        "INSERT INTO things (id, size) VALUES (302, 5)",
    ),
    (
        "ALTER TABLE things ALTER size TYPE text USING 'size ' || size",
        "",
        "INSERT INTO things (id, size) VALUES (302, 'large')",
    ),
];

async fn a_person_decides(policy: &str, (change, statement, after): (&str, &str, &str)) -> Result<()> {
    let (rig, worker) = rig(policy).await?;
    rig.on_source(&format!(
        "BEGIN; INSERT INTO things VALUES (301, 'before'); UPDATE things SET body = 'both' WHERE id = 3;
         {change}; {after}; UPDATE things SET price = 2 WHERE id = 301; COMMIT"
    ))
    .await?;
    wait_until_halted(&worker, "SinkTableMismatch").await?;
    let told = told(&worker, "SinkTableMismatch")?;
    ensure!(told.starts_with(statement), "told: {told}");
    ensure!(rig.sink_value("SELECT count(*) FROM things WHERE id > 300").await? == "0", "half a transaction");
    rig.on_sink(&told).await?;
    rig.wait_for("SELECT count(*) FROM things WHERE id > 300", "2").await?;
    wait_until_equal(&rig, &["things"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_column_stops_and_goes_on_when_it_is_renamed_in_the_sink() -> Result<()> {
    for policy in ["Apply", "Stop", "Ignore"] {
        a_person_decides(policy, DESTRUCTIVE[0]).await.context(policy)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_column_stops_and_goes_on_when_it_is_dropped_in_the_sink() -> Result<()> {
    for policy in ["Apply", "Stop"] {
        a_person_decides(policy, DESTRUCTIVE[1]).await.context(policy)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_that_is_no_wider_one_stops_and_goes_on_when_it_is_changed_in_the_sink() -> Result<()> {
    a_person_decides("Apply", DESTRUCTIVE[2]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_tells_the_statements_and_goes_on_when_they_were_run() -> Result<()> {
    let (rig, worker) = rig("Stop").await?;
    rig.on_source(
        "BEGIN; INSERT INTO things VALUES (301, 'before');
         ALTER TABLE things ADD COLUMN colour text DEFAULT 'it''s red'; ALTER TABLE things ALTER colour DROP DEFAULT;
         INSERT INTO things (id, colour) VALUES (302, 'blue'); COMMIT",
    )
    .await?;
    wait_until_halted(&worker, "SinkTableMismatch").await?;
    let statements = told(&worker, "SinkTableMismatch")?;
    ensure!(
        statements
            == "ALTER TABLE \"public\".\"things\" ADD COLUMN \"colour\" text DEFAULT 'it''s red'; \
                ALTER TABLE \"public\".\"things\" ALTER COLUMN \"colour\" DROP DEFAULT",
        "told: {statements}"
    );
    tokio::time::sleep(Duration::from_secs(5)).await;
    let after_halt = worker.output()?.split_once("SinkTableMismatch").map(|(_, after)| after.to_owned());
    ensure!(
        !after_halt.unwrap_or_default().contains(STREAMING),
        "it says that it streams while it waits for a person"
    );
    rig.on_sink(&statements).await?;
    rig.wait_for("SELECT colour FROM things WHERE id = 302", "blue").await?;
    wait_until_equal(&rig, &["things"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_a_person_added_beforehand_gets_the_values_of_the_source() -> Result<()> {
    let (rig, worker) = rig("Stop").await?;
    rig.on_sink("ALTER TABLE things ADD COLUMN colour text DEFAULT 'wrong'").await?;
    rig.on_source(
        "INSERT INTO things VALUES (301, 'before'); ALTER TABLE things ADD COLUMN colour text DEFAULT 'red';
         INSERT INTO things (id, colour) VALUES (302, 'blue')",
    )
    .await?;
    rig.wait_for("SELECT colour FROM things WHERE id = 302", "blue").await?;
    wait_until_equal(&rig, &["things"]).await?;
    ensure!(!worker.output()?.contains("SinkTableMismatch"), "it stopped");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_asks_for_a_copy_of_rewritten_rows_and_goes_on_when_it_is_wanted() -> Result<()> {
    for policy in ["Stop", "Ignore"] {
        let (rig, worker) = rig(policy).await?;
        rig.on_source("ALTER TABLE things ALTER size TYPE int USING size + 1").await?;
        wait_until_halted(&worker, "SinkDiverged").await?;
        ensure!(worker.output()?.contains("penstock-worker resnapshot public.things"), "{}", worker.tail()?);
        let asked = rig.command(&["resnapshot", "public.things"])?;
        ensure!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
        rig.wait_for("SELECT size FROM things WHERE id = 7", "8").await?;
        wait_until_equal(&rig, &["things"]).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn ignore_leaves_added_columns_out_and_keeps_dropped_ones() -> Result<()> {
    let (rig, mut worker) = rig("Ignore").await?;
    rig.on_source(
        "BEGIN; INSERT INTO things VALUES (301, 'before'); ALTER TABLE things ADD COLUMN colour text DEFAULT 'red';
         INSERT INTO things (id, colour) VALUES (302, 'blue'); COMMIT;
         ALTER TABLE things DROP COLUMN body; INSERT INTO things (id, size) VALUES (303, 3)",
    )
    .await?;
    rig.wait_for("SELECT size FROM things WHERE id = 303", "3").await?;
    worker.wait_for_output("SchemaChangeIgnored").await?;
    ensure!(
        rig.sink_value("SELECT body FROM things WHERE id = 5").await? == "row 5",
        "what was there is gone"
    );
    let columns = "SELECT string_agg(column_name, ',' ORDER BY ordinal_position) FROM information_schema.columns WHERE table_name = 'things'";
    ensure!(rig.sink_value(columns).await? == "id,body,price,size");
    worker.kill()?;
    rig.on_source("UPDATE things SET colour = 'green', size = 9 WHERE id = 302").await?;
    let mut worker = rig.start(0)?;
    rig.wait_for("SELECT size FROM things WHERE id = 302", "9").await?;
    let asked = rig.command(&["resnapshot", "public.things"])?;
    ensure!(asked.status.success());
    rig.on_source("UPDATE things SET size = 10 WHERE id = 302").await?;
    rig.wait_for("SELECT size FROM things WHERE id = 302", "10").await?;
    rig.wait_for(STATE, "ready").await?;
    // What was left out comes with a copy, once it is wanted.
    worker.terminate()?;
    let mut rig = rig;
    rig.manifest["spec"]["sink"]["postgres"]["schemaChanges"] = json!("Apply");
    rig.on_source("UPDATE things SET size = 11 WHERE id = 302").await?;
    let _worker = rig.start(0)?;
    rig.wait_for("SELECT colour || size FROM things WHERE id = 302", "green11").await?;
    rig.wait_for("SELECT count(*) FROM things WHERE colour = 'red'", "101").await
}

#[tokio::test(flavor = "multi_thread")]
async fn null_and_new_labels_are_allowed_when_the_source_allows_them() -> Result<()> {
    let rig = empty_rig("Apply").await?;
    rig.on_source("CREATE TYPE mood AS ENUM ('sad', 'happy')").await?;
    rig.on_source(TABLE).await?;
    rig.on_source("ALTER TABLE things ADD COLUMN mood mood DEFAULT 'sad'").await?;
    let worker = rig.start(0)?;
    worker.wait_for_output(STREAMING).await?;
    rig.on_source("ALTER TABLE things ALTER price DROP NOT NULL").await?;
    rig.on_source("INSERT INTO things (id, price) VALUES (301, NULL)").await?;
    rig.wait_for("SELECT count(*) FROM things WHERE price IS NULL", "1").await?;
    rig.on_source("ALTER TYPE mood ADD VALUE 'it''s ok' BEFORE 'happy'").await?;
    rig.on_source(
        "UPDATE things SET mood = 'it''s ok' WHERE id < 5; UPDATE things SET mood = 'happy' WHERE id = 5",
    )
    .await?;
    rig.wait_for(
        "SELECT string_agg(id::text, ',' ORDER BY id) FROM things WHERE mood < 'happy' AND mood > 'sad'",
        "1,2,3,4",
    )
    .await?;
    wait_until_equal(&rig, &["things"]).await?;
    ensure!(!worker.output()?.contains("look_again_in_seconds"), "a person was asked");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_tells_the_statement_for_null_and_for_a_new_label() -> Result<()> {
    let rig = empty_rig("Stop").await?;
    rig.on_source("CREATE TYPE mood AS ENUM ('sad', 'happy')").await?;
    rig.on_source(TABLE).await?;
    rig.on_source("ALTER TABLE things ADD COLUMN mood mood DEFAULT 'sad'").await?;
    let worker = rig.start(0)?;
    worker.wait_for_output(STREAMING).await?;
    rig.on_source("ALTER TYPE mood ADD VALUE 'ok' AFTER 'sad'").await?;
    rig.on_source("UPDATE things SET mood = 'ok' WHERE id < 5").await?;
    wait_until_halted(&worker, "SinkTableMismatch").await?;
    ensure!(
        told(&worker, "SinkTableMismatch")? == "ALTER TYPE public.mood ADD VALUE 'ok' AFTER 'sad'",
        "{}",
        worker.tail()?
    );
    rig.on_sink("ALTER TYPE public.mood ADD VALUE 'ok' AFTER 'sad'").await?;
    rig.wait_for("SELECT count(*) FROM things WHERE mood = 'ok'", "4").await?;
    let from = worker.output()?.len();
    rig.on_source("ALTER TABLE things ALTER price DROP NOT NULL").await?;
    rig.on_source("INSERT INTO things (id, price) VALUES (301, NULL)").await?;
    for _ in 0..300 {
        if since(&worker, from)?.contains("SinkTableMismatch") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let statement = "ALTER TABLE \"public\".\"things\" ALTER COLUMN \"price\" DROP NOT NULL";
    ensure!(told(&worker, "SinkTableMismatch")? == statement, "{}", worker.tail()?);
    rig.on_sink(statement).await?;
    wait_until_equal(&rig, &["things"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_comes_and_goes_before_the_stream_is_there_ends_in_equal_tables() -> Result<()> {
    let (rig, mut worker) = rig("Apply").await?;
    worker.kill()?;
    rig.on_source(
        "ALTER TABLE things ADD COLUMN a int DEFAULT 1; INSERT INTO things (id, a) VALUES (301, 5);
         ALTER TABLE things DROP COLUMN a; INSERT INTO things (id) VALUES (302);
         ALTER TABLE things ADD COLUMN a int DEFAULT 2; INSERT INTO things (id, a) VALUES (303, 6);
         ALTER TABLE things RENAME a TO b; ALTER TABLE things ADD COLUMN a int DEFAULT 3;
         INSERT INTO things (id, a) VALUES (304, 7)",
    )
    .await?;
    let _worker = rig.start(0)?;
    rig.wait_for("SELECT b || ',' || a FROM things WHERE id = 304", "2,7").await?;
    wait_until_equal(&rig, &["things"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_last_column_that_was_dropped_and_made_anew_is_not_taken_for_the_old_one() -> Result<()> {
    let (rig, worker) = rig("Apply").await?;
    rig.on_source("ALTER TABLE things DROP COLUMN size; ALTER TABLE things ADD COLUMN size int DEFAULT 5")
        .await?;
    worker.wait_for_output(COPIED_AGAIN).await?;
    wait_until_equal(&rig, &["things"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_shard_changes_its_own_tables() -> Result<()> {
    let mut rig = empty_rig("Apply").await?;
    rig.manifest["spec"]["worker"] = json!({"shards": 2});
    let tables = ["t0", "t1", "t2", "t3"];
    for table in tables {
        rig.on_source(&format!("CREATE TABLE {table} (id int PRIMARY KEY); INSERT INTO {table} VALUES (1)"))
            .await?;
    }
    let workers = [rig.start(0)?, rig.start(1)?];
    for worker in &workers {
        worker.wait_for_output(STREAMING).await?;
    }
    for table in tables {
        rig.on_source(&format!(
            "ALTER TABLE {table} ADD COLUMN a int DEFAULT 3; INSERT INTO {table} VALUES (2, 4);
             ALTER TABLE {table} ALTER a TYPE int USING a * 10"
        ))
        .await?;
    }
    for table in tables {
        rig.wait_for(&format!("SELECT string_agg(a::text, ',' ORDER BY id) FROM {table}"), "30,40").await?;
    }
    wait_until_equal(&rig, &tables).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_changes_while_it_is_copied_beside_the_stream_ends_equal() -> Result<()> {
    let mut rig = empty_rig("Apply").await?;
    rig.manifest["spec"]["source"]["postgres"]["tables"] = json!(["public.small"]);
    rig.on_source(
        "CREATE TABLE small (id int PRIMARY KEY);
         CREATE TABLE things (id int PRIMARY KEY, body text, size int);
         INSERT INTO things SELECT g, repeat('x', 200), g FROM generate_series(1, 120000) g",
    )
    .await?;
    let mut worker = rig.start(0)?;
    worker.wait_for_output(STREAMING).await?;
    worker.terminate()?;
    rig.manifest["spec"]["source"]["postgres"]["tables"] = json!(["public.*"]);
    let _worker = rig.start(0)?;
    rig.wait_for("SELECT count(*) > 0 FROM things", "t").await?;
    rig.on_source("ALTER TABLE things ADD COLUMN a int DEFAULT 5").await?;
    rig.on_source(
        "UPDATE things SET a = 6 WHERE id % 1000 = 0; INSERT INTO things VALUES (200000, 'new', 1, 7)",
    )
    .await?;
    rig.on_source("ALTER TABLE things ALTER size TYPE int USING -size").await?;
    rig.on_source("INSERT INTO things VALUES (200001, 'new', 1, 8)").await?;
    rig.wait_for("SELECT size FROM things WHERE id = 1", "-1").await?;
    wait_until_equal(&rig, &["things"]).await
}
