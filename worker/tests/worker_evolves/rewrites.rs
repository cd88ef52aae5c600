//! Rows that the source rewrote without a word in the stream, and what only looks like it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use penstock_e2e::postgres::Version;

use crate::support::{COPIED_AGAIN, STREAMING, TABLE, rig, rig_on, start_servers, wait_until_equal};

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

/// The stream comes to the TRUNCATE long before it comes to the shape that the table is copied in.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_emptied_before_its_columns_changed_can_be_copied_again() -> Result<()> {
    let (rig, mut worker) = rig("Apply").await?;
    worker.kill()?;
    rig.on_source("TRUNCATE things; INSERT INTO things (id, size) VALUES (1, 7)").await?;
    rig.on_source("ALTER TABLE things ADD COLUMN luck int DEFAULT 7; UPDATE things SET luck = id").await?;
    ensure!(rig.command(&["resnapshot", "public.things"])?.status.success());
    let _worker = rig.start(0)?;
    wait_until_equal(&rig, &["things"]).await
}

/// Statements that give a table a new file, or write its columns' description, and leave the values alone.
const HARMLESS: [&str; 7] = [
    "ALTER TABLE things ADD COLUMN colour text DEFAULT 'red'",
    "VACUUM FULL things",
    "CLUSTER things USING things_pkey",
    "ALTER TABLE things ALTER size SET NOT NULL",
    "ALTER TABLE things ALTER size DROP NOT NULL",
    "ALTER TABLE things ALTER size SET DEFAULT 8",
    "TRUNCATE things",
];

async fn what_leaves_values_alone_causes_no_copy(version: Version) -> Result<()> {
    let rig = rig_on(start_servers(version, Version::V15).await?, "Apply").await?;
    rig.on_source(TABLE).await?;
    let worker = rig.start(0)?;
    worker.wait_for_output(STREAMING).await?;
    let shape = "SELECT md5(shape) FROM penstock.table_state";
    for statement in HARMLESS {
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
