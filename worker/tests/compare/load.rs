//! What is equal is never called different: under a load that aims at what could be mistaken, and while the worker is
//! killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use penstock_e2e::postgres::{Client, Version};
use tokio::task::JoinSet;

use crate::common::Rig;
use crate::kit::{assert_equal, compare, pauses, streaming};

const TABLES: &str = "
    CREATE TABLE hot (id int PRIMARY KEY, n bigint);
    INSERT INTO hot SELECT g, 0 FROM generate_series(1, 3) g;
    CREATE TABLE moving (id int PRIMARY KEY, body text, doc text);
    ALTER TABLE moving ALTER COLUMN doc SET STORAGE EXTERNAL;
    INSERT INTO moving SELECT g, 'b', repeat('large ' || g, 1000) FROM generate_series(1, 200) g;
    CREATE TABLE named (a text, b int, f float8, PRIMARY KEY (a, b));
    INSERT INTO named SELECT 'n, \"' || g, g, g FROM generate_series(1, 200) g;
    CREATE TABLE loose (a int, doc text);
    ALTER TABLE loose ALTER COLUMN doc SET STORAGE EXTERNAL, REPLICA IDENTITY FULL;
    INSERT INTO loose SELECT g % 10, CASE WHEN g % 20 = 0 THEN repeat('large', 1000) END FROM generate_series(1, 200) g;
    CREATE TABLE whole (id int PRIMARY KEY, doc text, n int);
    ALTER TABLE whole ALTER COLUMN doc SET STORAGE EXTERNAL, REPLICA IDENTITY FULL;
    INSERT INTO whole SELECT g, repeat('large ' || g, 1000), 0 FROM generate_series(1, 100) g;
    CREATE TABLE parted (id int PRIMARY KEY, n int) PARTITION BY HASH (id);
    CREATE TABLE parted_0 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE parted_1 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    INSERT INTO parted SELECT g, 0 FROM generate_series(1, 100) g;";

/// One after another, with {r} a number.
const CHANGES: &[&str] = &[
    "UPDATE hot SET n = n + 1",
    "UPDATE moving SET id = id + 1000 WHERE id = 1 + {r} % 200",
    "UPDATE moving SET id = id - 1000 WHERE id = 1001 + ({r} * 7) % 200",
    "UPDATE moving SET body = body || 'x' WHERE id % 50 = {r} % 50",
    "BEGIN; UPDATE moving SET id = 5000 WHERE id = 3; UPDATE moving SET id = 3 WHERE id = 4; UPDATE moving SET id = 4 WHERE id = 5000; COMMIT",
    "UPDATE moving SET doc = repeat('other {r}', 3000) WHERE id = 1 + ({r} * 3) % 200",
    "DELETE FROM named WHERE b = 1 + {r} % 200",
    "INSERT INTO named VALUES ('n, \"' || (1 + {r} % 200), 1 + {r} % 200, {r}) ON CONFLICT DO NOTHING",
    "UPDATE named SET a = a || '\\', f = -f WHERE b = 1 + ({r} * 11) % 200",
    "UPDATE loose SET a = a + 1 WHERE a = {r} % 10",
    "DELETE FROM loose WHERE ctid IN (SELECT ctid FROM loose LIMIT 2)",
    "INSERT INTO loose SELECT {r} % 10, NULL FROM generate_series(1, 2)",
    "UPDATE whole SET n = n + 1 WHERE id % 10 = {r} % 10",
    "UPDATE whole SET id = -id WHERE id % 25 = {r} % 25",
    "UPDATE parted SET id = id + 100000 * (1 - 2 * (id / 100000)), n = {r} WHERE id % 20 = {r} % 20",
    "BEGIN; DELETE FROM hot WHERE id = 3; INSERT INTO hot VALUES (3, {r}); COMMIT",
];

async fn rig() -> Result<Rig> {
    let rig = Rig::new(Version::V15, &["public.*"]).await?;
    rig.on_source(TABLES).await?;
    Ok(rig)
}

/// Writers that go on until they are stopped; how many changes they made.
struct Load {
    stopping: Arc<AtomicBool>,
    writers: JoinSet<Result<u32>>,
}

impl Load {
    async fn start(rig: &Rig, writers: u32, pause: Duration) -> Result<Self> {
        let stopping = Arc::new(AtomicBool::new(false));
        let mut set = JoinSet::new();
        for writer in 0..writers {
            let client = rig.source.connect(&rig.database).await?;
            let stopping = Arc::clone(&stopping);
            set.spawn(async move { write(&client, writer, pause, &stopping).await });
        }
        Ok(Self { stopping, writers: set })
    }

    async fn stop(mut self) -> Result<u32> {
        self.stopping.store(true, Ordering::Relaxed);
        let mut changes = 0;
        while let Some(done) = self.writers.join_next().await {
            changes += done??;
        }
        Ok(changes)
    }
}

async fn write(client: &Client, writer: u32, pause: Duration, stopping: &AtomicBool) -> Result<u32> {
    let mut round = writer * 1_000_003;
    let mut changes = 0;
    while !stopping.load(Ordering::Relaxed) {
        round = round.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let change = CHANGES[round as usize / 7 % CHANGES.len()].replace("{r}", &(round >> 8).to_string());
        match client.run(&change).await {
            Ok(()) => changes += 1,
            // Two writers met: a deadlock, or a key that is taken.
            Err(_) => client.run("ROLLBACK").await?,
        }
        tokio::time::sleep(pause).await;
    }
    Ok(changes)
}

fn comparisons() -> Result<u32> {
    std::env::var("PENSTOCK_COMPARISONS").map_or(Ok(30), |count| Ok(count.parse()?))
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_equal_is_called_different_under_a_load_that_aims_at_it() -> Result<()> {
    let rig = rig().await?;
    let worker = streaming(&rig).await?;
    let load = Load::start(&rig, 3, Duration::from_millis(2)).await?;
    let mut changed = 0;
    for number in 0..comparisons()? {
        let said = assert_equal(&rig).with_context(|| format!("comparison {number}"))?;
        let tables = said.json["tables"].as_array().context("no tables")?;
        ensure!(tables.len() == 6, "{tables:#?}");
        changed += tables.iter().filter_map(|table| table["changedRows"].as_u64()).sum::<u64>();
    }
    let made = load.stop().await?;
    ensure!(changed > 0, "no row changed between a snapshot and its barrier: nothing was tried");
    let mut pauses = pauses(&worker)?;
    pauses.sort_by(f64::total_cmp);
    let (median, longest) = (pauses[pauses.len() / 2], pauses[pauses.len() - 1]);
    eprintln!(
        "{} comparisons beside {made} changes, {changed} of them at the barriers; applying stood still for {median:.1} ms (median), {longest:.1} ms (longest)",
        comparisons()?
    );
    rig.wait_until_caught_up().await?;
    rig.assert_equal(&["hot", "moving", "named", "loose", "whole", "parted"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_again_and_again_makes_no_difference() -> Result<()> {
    let rig = Arc::new(rig().await?);
    let mut worker = streaming(&rig).await?;
    let load = Load::start(&rig, 1, Duration::from_millis(20)).await?;
    let stopping = Arc::new(AtomicBool::new(false));
    let (comparing, stop) = (Arc::clone(&rig), Arc::clone(&stopping));
    let equal = Arc::new(AtomicU32::new(0));
    let found = Arc::clone(&equal);
    let comparer = tokio::spawn(async move {
        let mut unknown = 0;
        while !stop.load(Ordering::Relaxed) {
            let said = compare(&comparing, &["--timeout", "15"])?;
            match said.code {
                0 => drop(found.fetch_add(1, Ordering::Relaxed)),
                2 => unknown += 1,
                _ => bail!("{said:#?}"),
            }
        }
        Ok(unknown)
    });
    for kill in 0..10 {
        tokio::time::sleep(Duration::from_millis(700 + 1300 * (kill % 4))).await;
        // Some come to their end in between, however busy the machine is.
        let (before, began) = (equal.load(Ordering::Relaxed), Instant::now());
        while kill % 4 == 3 && equal.load(Ordering::Relaxed) == before && !comparer.is_finished() {
            ensure!(began.elapsed() < Duration::from_mins(3), "no comparison comes to its end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        worker.kill()?;
        worker = rig.start(0)?;
    }
    stopping.store(true, Ordering::Relaxed);
    let (unknown, equal) = (comparer.await??, equal.load(Ordering::Relaxed));
    eprintln!("10 kills: {equal} times equal, {unknown} times unknown, never different");
    ensure!(equal > 0, "no comparison came to its end");
    load.stop().await?;
    rig.wait_until_caught_up().await.with_context(|| worker.tail().unwrap_or_default())?;
    let said = compare(&rig, &["--timeout", "180"])?;
    ensure!(said.code == 0, "{said:#?}; {}", worker.tail()?);
    let left =
        "SELECT (SELECT count(*) FROM penstock.barrier) + (SELECT count(*) FROM penstock.barrier_arrival)";
    rig.wait_for(left, "0").await?;
    ensure!(rig.source_value("SELECT count(*) FROM pg_replication_slots").await? == "1", "a slot was left");
    Ok(())
}
