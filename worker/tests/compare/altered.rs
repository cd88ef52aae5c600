//! Tables whose replica identity or columns change under a comparison: not compared at that barrier, and nobody else's
//! trouble.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use penstock_e2e::postgres::Version;

use crate::common::Rig;
use crate::gives_way::{hold, until};
use crate::kit::{assert_equal, compare, streaming};

const ROUNDS_AHEAD: i32 = 20;

/// Rows that are named by themselves, and by an index a moment later.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_identity_that_changes_all_the_time_leaves_the_other_tables_compared() -> Result<()> {
    let rig = Rig::new(Version::V15, &["public.*"]).await?;
    let make = "CREATE TABLE named (id int NOT NULL, n int); CREATE UNIQUE INDEX named_id ON named (id);
        ALTER TABLE named REPLICA IDENTITY FULL; CREATE TABLE calm (id int PRIMARY KEY)";
    rig.on_sink(make).await?;
    rig.on_source(make).await?;
    rig.on_source("INSERT INTO named SELECT g, 0 FROM generate_series(1, 3) g; INSERT INTO calm VALUES (1)")
        .await?;
    let _worker = streaming(&rig).await?;
    let (client, sink) = (rig.source.connect(&rig.database).await?, rig.sink.connect(&rig.database).await?);
    let stopping = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&stopping);
    let load = tokio::spawn(async move {
        for round in 1.. {
            for identity in ["USING INDEX named_id", "FULL"] {
                client.run(&format!("ALTER TABLE named REPLICA IDENTITY {identity}")).await?;
                client.run("UPDATE named SET id = -id; UPDATE named SET n = n + 1").await?;
            }
            // No faster than the worker, or it would be behind for longer than a comparison waits.
            let follows = format!("SELECT max(n) > {} FROM named", 2 * (round - ROUNDS_AHEAD));
            while !stop.load(Ordering::Relaxed) && sink.value(&follows).await? != "t" {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            if stop.load(Ordering::Relaxed) {
                break;
            }
        }
        anyhow::Ok(())
    });
    // So many sessions take a while to open, and that is between the snapshot and the barrier.
    for _ in 0..2 {
        let said = compare(&rig, &["--parallelism", "16"])?;
        let tables = said.json["tables"].as_array().cloned().unwrap_or_default();
        ensure!(tables.len() == 2 && said.code != 1, "{said:#?}");
        ensure!(tables[0]["table"] == "public.calm" && tables[0]["verdict"] == "equal", "{said:#?}");
        let why = tables[1]["reason"].as_str().unwrap_or_default();
        ensure!(tables[1]["verdict"] == "equal" || why.contains("altered"), "{said:#?}");
    }
    stopping.store(true, Ordering::Relaxed);
    load.await??;
    assert_equal(&rig).map(drop)
}

/// Statements find columns by the names of now: of columns that changed places behind the snapshot every row would differ.
#[tokio::test(flavor = "multi_thread")]
async fn columns_that_change_behind_the_snapshot_make_no_difference_of_equal_rows() -> Result<()> {
    let rig = Rig::new(Version::V15, &["public.*"]).await?;
    // The first is read for a while; the comparison comes to the other one when its columns have changed.
    let make = "CREATE TABLE held (id int PRIMARY KEY, doc text); ALTER TABLE held ALTER COLUMN doc SET STORAGE EXTERNAL;
        CREATE TABLE swapped (id int PRIMARY KEY, a int, b int)";
    rig.on_sink(make).await?;
    rig.on_source(make).await?;
    rig.on_source(
        "INSERT INTO held VALUES (1, repeat('large', 10000)); INSERT INTO swapped SELECT g, g, -g FROM generate_series(1, 9) g",
    )
    .await?;
    let _worker = streaming(&rig).await?;
    let rig = Arc::new(rig);
    let client = hold(&rig.sink, &rig.database, "held").await?;
    let comparing = Arc::clone(&rig);
    let comparison = tokio::spawn(async move { compare(&comparing, &["--log", "info", "--timeout", "30"]) });
    let reads = "EXISTS (SELECT FROM pg_locks WHERE NOT granted AND mode = 'AccessShareLock')";
    until(&rig.sink, &rig.database, "the first table is read", reads).await?;
    let swap = "ALTER TABLE swapped RENAME a TO c; ALTER TABLE swapped RENAME b TO a; ALTER TABLE swapped RENAME c TO b";
    rig.on_sink(&format!("BEGIN; {swap}; COMMIT")).await?;
    client.run("ROLLBACK").await?;
    let said = comparison.await??;
    // At the next barrier they are what they are.
    ensure!(said.errors.contains("its columns or keys were changed meanwhile"), "{said:#?}");
    ensure!(said.code == 1, "{said:#?}");
    rig.on_sink(&format!("BEGIN; {swap}; COMMIT")).await?;
    assert_equal(&rig).map(drop)
}
