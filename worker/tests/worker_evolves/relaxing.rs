//! Values that the source allows by now: NULL, and new labels.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::support::{STREAMING, TABLE, empty_rig, since, told, wait_until_equal, wait_until_halted};

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
