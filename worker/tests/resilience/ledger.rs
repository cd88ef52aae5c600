//! A load that carries its own proof, and a reader of the sink that checks it all the time.
//!
//! Each transaction moves units between accounts, raises the version of each account it touches, and writes one line
//! into the journal per two versions, where older ones are a number. So in every state that the source was ever in the units add up to the same, and
//! the versions to twice the lines; half a transaction, a lost or a doubled one breaks a sum, and one that is out of
//! order makes a version fall. Accounts get other keys, and go and come again within a transaction: there are always as many.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::{JoinHandle, JoinSet};

use crate::common::Rig;

const ACCOUNTS: u32 = 200;
/// The other key of an account is its first one and this.
const OTHER_KEY: u32 = 1000;
const WRITERS: u64 = 3;
const LOOK_EVERY: Duration = Duration::from_millis(20);

pub(crate) const SCHEMA: &str = "
    CREATE TABLE accounts (id int PRIMARY KEY, units bigint NOT NULL, version bigint NOT NULL DEFAULT 0, note text);
    CREATE TABLE journal (step bigint NOT NULL, from_id int NOT NULL, to_id int NOT NULL);
    ALTER TABLE journal REPLICA IDENTITY FULL;
    INSERT INTO accounts SELECT g, 1000 FROM generate_series(1, 200) g;
    CREATE TABLE closed (lines bigint PRIMARY KEY);
    INSERT INTO closed VALUES (0);
    CREATE SEQUENCE steps;";

/// Closes the books of a round, in one transaction like any other: lines that were counted are a number from now on, so that a
/// look costs the same after many rounds. Nobody else may be writing.
pub(crate) async fn close(rig: &Rig) -> Result<()> {
    rig.on_source(
        "BEGIN; UPDATE closed SET lines = lines + (SELECT count(*) FROM journal); DELETE FROM journal; COMMIT",
    )
    .await
}

/// Writers on the source.
pub(crate) struct Ledger {
    stop: Arc<AtomicBool>,
    writers: JoinSet<u64>,
}

impl Ledger {
    pub(crate) fn start(rig: &Arc<Rig>, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = JoinSet::new();
        for number in 0..WRITERS {
            let random = StdRng::seed_from_u64(seed.wrapping_add(number));
            writers.spawn(write(rig.clone(), random, stop.clone()));
        }
        Self { stop, writers }
    }

    /// How many transactions were committed for sure.
    pub(crate) async fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        Ok(self.writers.join_all().await.into_iter().sum())
    }
}

/// Writes until stopped; goes on by itself when the source was away, or two writers met.
async fn write(rig: Arc<Rig>, mut random: StdRng, stop: Arc<AtomicBool>) -> u64 {
    let mut written = 0;
    while !stop.load(Ordering::Relaxed) {
        let Ok(client) = rig.source.connect(&rig.database).await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        while !stop.load(Ordering::Relaxed) && !client.is_closed() {
            match client.run(&transaction(&mut random)).await {
                Ok(()) => written += 1,
                Err(_) => drop(client.run("ROLLBACK").await),
            }
            tokio::time::sleep(Duration::from_millis(random.random_range(1..8))).await;
        }
    }
    written
}

fn transaction(random: &mut StdRng) -> String {
    if random.random_range(0..100) == 0 { large_transaction() } else { small_transaction(random) }
}

/// The accounts are locked in one order, so that few meet, and not by their rows: those go and come again.
fn small_transaction(random: &mut StdRng) -> String {
    let from = random.random_range(1..=ACCOUNTS);
    let to = (from + random.random_range(0..ACCOUNTS - 1)) % ACCOUNTS + 1;
    let (first, second, sign) = if from < to { (from, to, '-') } else { (to, from, '+') };
    let (one, other) = (step(random, first, sign), step(random, second, if sign == '-' { '+' } else { '-' }));
    format!(
        "BEGIN; LOCK TABLE accounts IN ROW EXCLUSIVE MODE;
         SELECT pg_advisory_xact_lock({first}); SELECT pg_advisory_xact_lock({second});
         {one}; {other}; INSERT INTO journal VALUES (nextval('steps'), {from}, {to}); COMMIT;"
    )
}

/// One unit more or less, and the next version, in each way in which a row can get them. An account has one of two keys.
fn step(random: &mut StdRng, account: u32, sign: char) -> String {
    let set = format!("units = units {sign} 1, version = version + 1");
    let row = format!("WHERE id IN ({account}, {account} + {OTHER_KEY})");
    match random.random_range(0..20) {
        0 => format!("UPDATE accounts SET {set}, note = repeat(md5(random()::text), 100) {row}"),
        1 | 2 => format!("UPDATE accounts SET {set}, id = {account} * 2 + {OTHER_KEY} - id {row}"),
        // It goes, and comes again: twice, so that nobody takes the two for one change.
        3 => format!(
            "CREATE TEMP TABLE gone ON COMMIT DROP AS SELECT * FROM accounts {row}; DELETE FROM accounts {row}; \
             INSERT INTO accounts SELECT id, units {sign} 1, version, note FROM gone; DELETE FROM accounts {row}; \
             INSERT INTO accounts SELECT id, units {sign} 1, version + 1, note FROM gone; DROP TABLE gone"
        ),
        _ => format!("UPDATE accounts SET {set} {row}"),
    }
}

/// About 400 KB, several times the byte bound: it is in the sink before its commit.
fn large_transaction() -> String {
    format!(
        "BEGIN;
         LOCK TABLE accounts IN EXCLUSIVE MODE;
         UPDATE accounts SET units = units + CASE WHEN id % 2 = 0 THEN 1 ELSE -1 END, version = version + 1,
             note = repeat(md5(random()::text), 60);
         INSERT INTO journal SELECT nextval('steps'), g, g + 1 FROM generate_series(1, {ACCOUNTS}, 2) g;
         COMMIT;"
    )
}

/// A reader of the sink that is there whatever happens.
pub(crate) struct Reader {
    stop: Arc<AtomicBool>,
    looks: Arc<AtomicU64>,
    task: JoinHandle<Result<()>>,
}

impl Reader {
    pub(crate) fn start(rig: Arc<Rig>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let looks = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(read(rig, stop.clone(), looks.clone()));
        Self { stop, looks, task }
    }

    /// How often it has looked.
    pub(crate) fn looks(&self) -> u64 {
        self.looks.load(Ordering::Relaxed)
    }

    /// Fails if it has seen what cannot be.
    pub(crate) async fn check(&mut self) -> Result<()> {
        if self.task.is_finished() { (&mut self.task).await? } else { Ok(()) }
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?
    }
}

async fn read(rig: Arc<Rig>, stop: Arc<AtomicBool>, looks: Arc<AtomicU64>) -> Result<()> {
    let sql = "SELECT id, version, units, (SELECT count(*) FROM journal) + (SELECT lines FROM closed) FROM accounts";
    let mut versions = BTreeMap::new();
    while !stop.load(Ordering::Relaxed) {
        // The sink may be away.
        if let Ok(client) = rig.sink.connect(&rig.database).await {
            while !stop.load(Ordering::Relaxed) {
                let Ok(rows) = client.rows(sql).await else { break };
                check(&rows, &mut versions).context("a reader of the sink")?;
                looks.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// One statement sees one state.
fn check(rows: &[Vec<Option<String>>], versions: &mut BTreeMap<i64, i64>) -> Result<()> {
    let (mut units_sum, mut versions_sum, mut lines) = (0, 0, 0);
    ensure!(rows.len() == ACCOUNTS as usize, "{} accounts: one is lost or doubled", rows.len());
    for row in rows {
        let numbers = row
            .iter()
            .map(|cell| Ok(cell.as_deref().unwrap_or_default().parse()?))
            .collect::<Result<Vec<i64>>>()?;
        let [id, version, units, journal] = numbers[..] else { continue };
        let id = id % i64::from(OTHER_KEY);
        let seen = versions.insert(id, version).unwrap_or(version);
        ensure!(version >= seen, "account {id} fell from version {seen} to {version}: out of order");
        (units_sum, versions_sum, lines) = (units_sum + units, versions_sum + version, journal);
    }
    ensure!(units_sum == 1000 * i64::try_from(rows.len())?, "{units_sum} units: half a transaction");
    ensure!(versions_sum == 2 * lines, "{versions_sum} versions, {lines} lines: half a transaction");
    Ok(())
}
