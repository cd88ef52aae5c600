//! Columns that are added, and types that become wider.

use std::time::Duration;

use anyhow::{Result, ensure};
use penstock_e2e::postgres::Version;

use crate::support::{COPIED_AGAIN, STREAMING, TABLE, rig, rig_on, since, start_servers, wait_until_equal};

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

/// The values that rows do not hold are kept as an array, and those of a box are parted by semicolons.
#[tokio::test(flavor = "multi_thread")]
async fn boxes_that_the_rows_before_hold_by_default_are_known() -> Result<()> {
    let (rig, worker) = rig("Apply").await?;
    rig.on_source(
        "ALTER TABLE things ADD COLUMN place box DEFAULT '(1,2),(3,4)',
             ADD COLUMN places box[] DEFAULT '{(1,2),(3,4);(5,6),(7,8)}';
         INSERT INTO things (id, place) VALUES (201, '(9,9),(8,8)')",
    )
    .await?;
    let known = "SELECT count(*) FROM things WHERE place::text = '(3,4),(1,2)' AND places::text = '{(3,4),(1,2);(7,8),(5,6)}'";
    rig.wait_for(known, "100").await?;
    wait_until_equal(&rig, &["things"]).await?;
    ensure!(!worker.output()?.contains(COPIED_AGAIN), "rows were copied although their values are known");
    Ok(())
}

/// Nothing is streamed, so the watch is the only one that could see it: its connection is ended again and again while the
/// columns change, and then its looks wait for a lock.
#[tokio::test(flavor = "multi_thread")]
async fn columns_that_change_while_the_watch_is_blind_are_not_missed() -> Result<()> {
    let (rig, worker) = rig("Apply").await?;
    let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                 WHERE application_name = 'penstock watch' AND datname = current_database()";
    rig.wait_for_at_source(ended, "1").await?;
    rig.on_source("ALTER TABLE things ADD COLUMN colour text DEFAULT 'red'").await?;
    rig.wait_for_at_source(ended, "1").await?;
    rig.wait_for("SELECT count(*) FROM things WHERE colour = 'red'", "100").await?;
    let client = rig.source.connect(&rig.database).await?;
    client.run("BEGIN; LOCK TABLE pg_publication IN ACCESS EXCLUSIVE MODE").await?;
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'penstock watch' \
                 AND datname = current_database() AND wait_event_type = 'Lock'";
    rig.wait_for_at_source(waits, "1").await?;
    client.run("ALTER TABLE things ADD COLUMN shade text DEFAULT 'dark'; COMMIT").await?;
    rig.wait_for("SELECT count(*) FROM things WHERE shade = 'dark'", "100").await?;
    wait_until_equal(&rig, &["things"]).await?;
    ensure!(!worker.output()?.contains(COPIED_AGAIN), "rows were copied although their values are known");
    Ok(())
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
