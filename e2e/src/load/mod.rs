//! A bounded write load on a small shop database, with everything that a stream has to carry: multi-row
//! transactions, key changes, TOAST values that stay while others change, rollbacks, savepoints, hot rows.

mod shop;
mod transaction;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_postgres::Config;
use tokio_postgres::error::SqlState;

use crate::checker::TablePair;
use crate::postgres::Client;
pub use shop::{Size, TABLES, create, fill};
use transaction::Transaction;

const RECONNECT_PAUSE: Duration = Duration::from_millis(100);

/// How much load, and how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// Chooses the transactions; the interleaving of writers is the server's.
    pub seed: u64,
    /// Connections that write at once.
    pub writers: u32,
    /// Transactions of all writers together; the load ends after them.
    pub transactions_max: u64,
    /// Transactions per second of all writers together; `None`: as fast as the server takes them.
    pub rate: Option<f64>,
    /// How long a lost server may stay away before the load fails.
    pub outage_max: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { seed: 1, writers: 2, transactions_max: 1_000, rate: None, outage_max: Duration::from_mins(1) }
    }
}

/// What the load did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Transactions that were committed.
    pub committed: u64,
    /// Transactions that were rolled back on purpose.
    pub rolled_back: u64,
    /// Transactions that the server refused because of another writer (deadlock, key taken).
    pub refused: u64,
    /// Connections that broke; the outcome of the transaction then under way is unknown.
    pub broken: u64,
}

impl Report {
    fn add(self, other: Self) -> Self {
        Self {
            committed: self.committed + other.committed,
            rolled_back: self.rolled_back + other.rolled_back,
            refused: self.refused + other.refused,
            broken: self.broken + other.broken,
        }
    }
}

/// The shop's tables under the same names on both sides, for the checker.
pub fn pairs() -> Vec<TablePair> {
    TABLES.into_iter().map(TablePair::same).collect()
}

/// Runs the load to its end. The schema must exist ([`create`], [`fill`]).
pub async fn run(config: &Config, options: &Options) -> Result<Report> {
    write(config, options, &Arc::default()).await
}

/// Runs the load in the background until it ends or is stopped.
pub fn start(config: Config, options: Options) -> Running {
    let stopping: Arc<AtomicBool> = Arc::default();
    let flag = Arc::clone(&stopping);
    let task = tokio::spawn(async move { write(&config, &options, &flag).await });
    Running { stopping, task }
}

/// A load in the background.
#[derive(Debug)]
pub struct Running {
    stopping: Arc<AtomicBool>,
    task: JoinHandle<Result<Report>>,
}

impl Running {
    /// Lets the transactions under way end and says what was done.
    pub async fn stop(self) -> Result<Report> {
        self.stopping.store(true, Ordering::Relaxed);
        self.task.await?
    }

    /// Waits for the end of the load.
    pub async fn finish(self) -> Result<Report> {
        self.task.await?
    }
}

async fn write(config: &Config, options: &Options, stopping: &Arc<AtomicBool>) -> Result<Report> {
    let mut writers = JoinSet::new();
    for number in 0..options.writers {
        let share = options.transactions_max / u64::from(options.writers)
            + u64::from(u64::from(number) < options.transactions_max % u64::from(options.writers));
        let writer = Writer {
            config: config.clone(),
            random: StdRng::seed_from_u64(
                options.seed.wrapping_mul(1_000_003).wrapping_add(u64::from(number)),
            ),
            period: options.rate.map(|rate| Duration::from_secs_f64(f64::from(options.writers) / rate)),
            outage_max: options.outage_max,
            stopping: Arc::clone(stopping),
        };
        writers.spawn(writer.write(share));
    }
    let mut report = Report::default();
    while let Some(part) = writers.join_next().await {
        report = report.add(part??);
    }
    Ok(report)
}

struct Writer {
    config: Config,
    random: StdRng,
    period: Option<Duration>,
    outage_max: Duration,
    stopping: Arc<AtomicBool>,
}

impl Writer {
    async fn write(mut self, transactions: u64) -> Result<Report> {
        let mut report = Report::default();
        let mut client = self.connect().await?;
        let mut ticks = self.period.map(interval);
        if let Some(ticks) = &mut ticks {
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        for _ in 0..transactions {
            if let Some(ticks) = &mut ticks {
                ticks.tick().await;
            }
            if self.stopping.load(Ordering::Relaxed) {
                break;
            }
            let transaction = Transaction::random(&mut self.random);
            match client.batch_execute(&transaction.sql).await {
                Ok(()) if transaction.commits => report.committed += 1,
                Ok(()) => report.rolled_back += 1,
                Err(error) if is_refusal(&error) => {
                    report.refused += 1;
                    client.run("ROLLBACK").await?;
                }
                Err(error) if is_outage(&client, &error) => {
                    report.broken += 1;
                    client = self.connect().await?;
                }
                Err(error) => return Err(error).with_context(|| format!("cannot run `{}`", transaction.sql)),
            }
        }
        Ok(report)
    }

    async fn connect(&self) -> Result<Client> {
        let deadline = Instant::now() + self.outage_max;
        loop {
            match Client::connect(&self.config).await {
                Ok(client) => return Ok(client),
                Err(error) if Instant::now() > deadline => {
                    bail!("the server was away for {:?}: {error:#}", self.outage_max)
                }
                Err(_) => sleep(RECONNECT_PAUSE).await,
            }
        }
    }
}

/// Two writers met; the server undid one of them.
fn is_refusal(error: &tokio_postgres::Error) -> bool {
    let refusals = [
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::T_R_SERIALIZATION_FAILURE,
        SqlState::UNIQUE_VIOLATION,
        SqlState::FOREIGN_KEY_VIOLATION,
    ];
    error.code().is_some_and(|code| refusals.contains(code))
}

/// The server went away: the connection is closed, or about to be.
fn is_outage(client: &Client, error: &tokio_postgres::Error) -> bool {
    let shutdowns = [SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN, SqlState::CANNOT_CONNECT_NOW];
    client.is_closed() || error.is_closed() || error.code().is_none_or(|code| shutdowns.contains(code))
}

#[cfg(test)]
mod tests;
