//! A stable revision and a canary of one pipeline, both running, a load on the source, and a reader of the sink.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use penstock_e2e::postgres::{Client, Version};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::common::{Rig, Worker};

const ACCOUNTS: i64 = 100;
pub(crate) const STREAMING: &str = "\"message\":\"streaming\"";
pub(crate) const SCHEMA: &str = "
    CREATE TABLE accounts (id int PRIMARY KEY, units bigint NOT NULL, version bigint NOT NULL DEFAULT 0, note text);
    CREATE TABLE journal (step bigint NOT NULL, from_id int NOT NULL, to_id int NOT NULL);
    ALTER TABLE journal REPLICA IDENTITY FULL;
    INSERT INTO accounts SELECT g, 1000 FROM generate_series(1, 100) g;
    CREATE SEQUENCE steps;";
/// Moves one unit between two accounts, and writes a line about it.
const STEP: &str = "
    WITH step AS (SELECT nextval('steps') AS n, 1 + floor(random() * 100)::int AS a, 1 + floor(random() * 100)::int AS b),
    taken AS (UPDATE accounts SET units = units - 1, version = version + 1 FROM step WHERE id = a AND a <> b),
    given AS (UPDATE accounts SET units = units + 1, version = version + 1 FROM step WHERE id = b AND a <> b)
    INSERT INTO journal SELECT n, a, b FROM step WHERE a <> b";
pub(crate) const TABLES: [&str; 2] = ["accounts", "journal"];

pub(crate) struct Stage {
    pub(crate) rig: Arc<Rig>,
    pub(crate) stable: Worker,
    pub(crate) canary: Worker,
    /// The manifest is that of the canary by then.
    first_revision: String,
    /// The schema of the canary's tables when it began.
    pub(crate) shadow: String,
}

impl Stage {
    /// Both stream.
    pub(crate) async fn new() -> Result<Self> {
        let mut rig = Rig::new(Version::V15, &["public.accounts", "public.journal"]).await?;
        rig.on_source(SCHEMA).await?;
        let stable = rig.start(0)?;
        stable.wait_for_output(STREAMING).await?;
        let first_revision = rig.sink_value("SELECT revision FROM penstock.checkpoint").await?;
        // Another revision of the same tables.
        rig.manifest["spec"]["worker"] = json!({"image": "worker:next"});
        let canary = start_canary(&rig)?;
        canary.wait_for_output(STREAMING).await?;
        let shadow = rig
            .sink_value(
                "SELECT schema FROM penstock.layout WHERE live_schema = 'public' AND schema <> 'public'",
            )
            .await?;
        Ok(Self { rig: Arc::new(rig), stable, canary, first_revision, shadow })
    }

    /// Runs a subcommand of the worker on the canary's manifest.
    pub(crate) fn command(&self, arguments: &[&str]) -> Result<(i32, String)> {
        let output = tokio::task::block_in_place(|| self.rig.command(arguments))?;
        let text = [output.stdout, output.stderr].concat();
        Ok((output.status.code().context("no exit code")?, String::from_utf8_lossy(&text).into_owned()))
    }

    /// A busy machine may take longer than a user would want to wait.
    pub(crate) fn must(&self, arguments: &[&str]) -> Result<String> {
        let patience: &[&str] =
            if matches!(arguments, ["promote" | "roll-back"]) { &["--hold", "120"] } else { &[] };
        let (code, said) = self.command(&[arguments, patience].concat())?;
        let tails =
            || [&self.stable, &self.canary].map(|worker| worker.tail().unwrap_or_default()).join("\n");
        ensure!(code == 0, "{arguments:?}: {said}\n{}", tails());
        Ok(said)
    }

    /// Of which lineage the tables are that readers know.
    pub(crate) async fn stable_key(&self) -> Result<String> {
        self.rig.sink_value("SELECT key FROM penstock.lineage WHERE role = 'stable'").await
    }

    /// Both sides hold what the source holds, and count every change of it once.
    pub(crate) async fn assert_both_equal(&self) -> Result<()> {
        self.rig.on_source("SELECT pg_logical_emit_message(true, 'test', 'to end with')").await?;
        let end = self.rig.source_value("SELECT pg_current_wal_flush_lsn()").await?;
        let query =
            format!("SELECT bool_and(end_lsn >= '{end}'::pg_lsn) AND count(*) = 2 FROM penstock.checkpoint");
        self.rig.wait_for(&query, "t").await?;
        let beside = self
            .rig
            .sink_value(
                "SELECT schema FROM penstock.layout WHERE live_schema = 'public' AND schema <> 'public'",
            )
            .await?;
        for table in TABLES {
            let content = |schema: &str| {
                format!(
                    "SELECT count(*) || ' rows, hash ' || coalesce(sum(hashtextextended(t::text, 7)), 0) FROM {schema}.{table} t"
                )
            };
            let source = self.rig.source_value(&content("public")).await?;
            for schema in ["public", beside.as_str()] {
                let sink = self.rig.sink_value(&content(schema)).await?;
                ensure!(source == sink, "{table}: the source has {source}, {schema} of the sink {sink}");
            }
        }
        Ok(())
    }
}

impl Stage {
    /// Starts the worker of the first revision again.
    pub(crate) fn start_first(&mut self) -> Result<()> {
        let revision = ["--revision".to_owned(), self.first_revision.clone()];
        self.stable = Worker::start_with(&self.rig.manifest_file()?, &self.rig.state_dir(0), 0, &revision)?;
        Ok(())
    }

    pub(crate) fn start_canary(&mut self) -> Result<()> {
        self.canary = start_canary(&self.rig)?;
        Ok(())
    }
}

pub(crate) fn start_canary(rig: &Rig) -> Result<Worker> {
    Worker::start_with(&rig.manifest_file()?, &rig.state_dir(1), 0, &["--canary".to_owned()])
}

/// Writes on the source until it is stopped.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<()>>,
}

impl Load {
    pub(crate) async fn start(rig: &Rig) -> Result<Self> {
        let (stop, client) = (Arc::new(AtomicBool::new(false)), rig.source.connect(&rig.database).await?);
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                client.run(STEP).await?;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok(())
        });
        Ok(Self { stop, task })
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?
    }
}

/// Reads the tables that readers know until it is stopped; fails at the first error, or at what cannot be.
pub(crate) struct Reader {
    stop: Arc<AtomicBool>,
    looks: Arc<AtomicU64>,
    task: JoinHandle<Result<()>>,
}

impl Reader {
    pub(crate) async fn start(rig: &Rig, sql: &'static str) -> Result<Self> {
        let (stop, looks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let client = rig.sink.connect(&rig.database).await?;
        let task = tokio::spawn(read(client, sql, stop.clone(), looks.clone()));
        Ok(Self { stop, looks, task })
    }

    /// How often it has looked.
    pub(crate) async fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await??;
        Ok(self.looks.load(Ordering::Relaxed))
    }
}

/// Accounts, their units and versions, and lines of the journal, at one moment.
pub(crate) const ALL_SUMS: &str =
    "SELECT count(*), sum(units)::bigint, sum(version)::bigint, (SELECT count(*) FROM journal) FROM accounts";

/// The same through views of the tables.
pub(crate) const ALL_SUMS_THROUGH_VIEWS: &str =
    "SELECT count(*), sum(units)::bigint, sum(version)::bigint, (SELECT count(*) FROM lines) FROM through";

async fn read(client: Client, sql: &str, stop: Arc<AtomicBool>, looks: Arc<AtomicU64>) -> Result<()> {
    let mut seen = 0;
    while !stop.load(Ordering::Relaxed) {
        let rows = client.rows(sql).await?;
        let numbers: Vec<i64> = rows
            .iter()
            .flatten()
            .map(|cell| Ok(cell.as_deref().unwrap_or_default().parse()?))
            .collect::<Result<_>>()?;
        ensure!(
            matches!(numbers[..], [ACCOUNTS, units, versions, lines]
            if units == 1000 * ACCOUNTS && versions == 2 * lines && lines >= seen),
            "seen {numbers:?} after {seen} lines"
        );
        seen = numbers.last().copied().unwrap_or_default();
        looks.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}
