//! Whoever needs a table alone waits for the part of it that is being read, at either end, and for no more.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use penstock_e2e::postgres::{Client, Server, Version};

use crate::common::Rig;
use crate::kit::{Said, assert_equal, compare, streaming};

/// Two partitions are two parts, and neither can be read without the index of its large values.
const TABLES: &str = "
    CREATE TABLE parted (id int PRIMARY KEY, doc text) PARTITION BY RANGE (id);
    CREATE TABLE parted_0 PARTITION OF parted FOR VALUES FROM (0) TO (100);
    CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (100) TO (200);
    ALTER TABLE parted_0 ALTER COLUMN doc SET STORAGE EXTERNAL;
    ALTER TABLE parted_1 ALTER COLUMN doc SET STORAGE EXTERNAL;";

/// Of a test that has to be faster than a lock timeout.
const ATTEMPTS: u32 = 5;

/// Keeps others from reading the large values of a table until it is rolled back.
pub(crate) async fn hold(server: &Server, database: &str, table: &str) -> Result<Client> {
    let index = server
        .value(
            database,
            &format!(
                "SELECT indexrelid::regclass FROM pg_index JOIN pg_class ON reltoastrelid = indrelid WHERE relname = '{table}'"
            ),
        )
        .await?;
    let client = server.connect(database).await?;
    client.run(&format!("BEGIN; REINDEX INDEX {index}")).await?;
    Ok(client)
}

pub(crate) async fn until(server: &Server, database: &str, what: &str, condition: &str) -> Result<()> {
    for _ in 0..1000 {
        if server.value(database, &format!("SELECT {condition}")).await? == "t" {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bail!("in vain: {what}")
}

/// The session of the comparison that looks for waiters: it ends when it has found one.
const LOOKS: &str = "EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE '%NOT granted AND locktype%' AND pid <> pg_backend_pid())";

/// The comparison gives way to the statement at the end `waiting`.
async fn gives_way(rig: &Arc<Rig>, waiting: &Server, statement: &str) -> Result<()> {
    for _ in 0..ATTEMPTS {
        let said = waits_for_one_part(rig, waiting, statement).await?;
        // The comparison itself waits for no lock longer than 2 s: on a busy machine it may have left before it was asked to.
        if said.errors.contains("lock timeout") {
            continue;
        }
        ensure!(said.code == 0 && said.errors.contains("somebody waited to rewrite it"), "{said:#?}");
        return Ok(());
    }
    bail!("{statement}: the machine is too busy to tell")
}

/// The comparison is in the middle of a part of the sink, and has read the source, when somebody at the end `waiting` needs
/// the table alone. (A transaction that holds something at the source would keep the slot from being made.)
async fn waits_for_one_part(rig: &Arc<Rig>, waiting: &Server, statement: &str) -> Result<Said> {
    let (database, reading) = (&rig.database, &rig.sink);
    let first = hold(reading, database, "parted_0").await?;
    let second = hold(reading, database, "parted_1").await?;
    let comparing = Arc::clone(rig);
    let comparison = tokio::spawn(async move {
        compare(&comparing, &["--parallelism", "1", "--log", "info", "--timeout", "30"])
    });
    let reads = "EXISTS (SELECT FROM pg_locks WHERE NOT granted AND mode = 'AccessShareLock')";
    until(reading, database, "a part is read", reads).await?;
    until(waiting, database, "somebody looks for waiters", LOOKS).await?;
    let waiter = waiting.connect(database).await?;
    let pid = waiter.value("SELECT pg_backend_pid()").await?;
    let statement = format!("BEGIN; {statement}");
    let alone = tokio::spawn(async move {
        waiter.run(&statement).await?;
        waiter.run("ROLLBACK").await
    });
    let found = format!("NOT {LOOKS}");
    until(waiting, database, "the waiter is found", &found).await?;
    ensure!(!alone.is_finished(), "{pid} had the table while a part of it was read");
    first.run("ROLLBACK").await?;
    // The second part is not read: that would take until its index is let go.
    let has_it = format!("NOT EXISTS (SELECT FROM pg_locks WHERE pid = {pid} AND NOT granted)");
    until(waiting, database, "the waiter gets the table", &has_it).await?;
    alone.await??;
    second.run("ROLLBACK").await?;
    comparison.await?
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_needs_a_table_alone_waits_for_one_part_of_it() -> Result<()> {
    let rig = Rig::new(Version::V15, &["public.*"]).await?;
    rig.on_source(TABLES).await?;
    rig.on_sink(TABLES).await?;
    rig.on_source("INSERT INTO parted SELECT g, repeat('large ' || g, 1000) FROM generate_series(0, 199) g")
        .await?;
    let _worker = streaming(&rig).await?;
    let rig = Arc::new(rig);
    gives_way(&rig, &rig.sink, "LOCK TABLE parted IN ACCESS EXCLUSIVE MODE").await?;
    gives_way(&rig, &rig.source, "ALTER TABLE parted ADD CHECK (id >= 0)").await?;
    gives_way(&rig, &rig.source, "REINDEX INDEX parted_0_pkey").await?;
    assert_equal(&rig).map(drop)
}
