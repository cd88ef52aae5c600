//! One scenario with one pipeline, in databases of its own on servers that all share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use penstock_e2e::checker::{self, TablePair};
use penstock_e2e::postgres::{Server, Version};
use penstock_worker::failpoint::Point;
use serde_json::Value;

use crate::common::Rig;
use crate::order;
use crate::scenario::{Load, Scenario};
use crate::witness::Witness;

/// Longer than anything takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_mins(2);
pub(crate) const STREAMING: &str = "\"message\":\"streaming\"";
const SLOT_CREATED: &str = "replication slot created";

/// One scenario with one pipeline.
pub(crate) struct Cell {
    scenario: Scenario,
    rig: Rig,
    witness: Witness,
    load: Load,
    /// Where the worker's output of this scenario begins.
    output_from: usize,
}

static CELLS: AtomicU32 = AtomicU32::new(0);

/// A source and a sink for the cells of one scenario. Every reader of a source decodes what all its databases write, so
/// more cells on one pair would be slower together than one after the other.
#[derive(Clone)]
pub(crate) struct Servers {
    source: Arc<Server>,
    sink: Arc<Server>,
}

impl Servers {
    pub(crate) async fn start() -> Result<Self> {
        let source = Server::builder(Version::V15)
            .setting("max_replication_slots", "60")
            .setting("max_wal_senders", "60")
            .setting("wal_sender_timeout", "10s");
        Ok(Self {
            source: Arc::new(source.start().await?),
            sink: Arc::new(Server::start(Version::V15).await?),
        })
    }

    /// A pipeline between databases of its own.
    pub(crate) async fn rig(&self, name: &str, tables: &[&str]) -> Result<Rig> {
        Rig::on(self.source.clone(), self.sink.clone(), name, tables).await
    }
}

impl Cell {
    /// Everything up to the moment before the worker that may die is started.
    pub(crate) async fn prepare(scenario: Scenario, servers: &Servers) -> Result<Self> {
        let name = format!("cell-{}", CELLS.fetch_add(1, Ordering::Relaxed));
        let mut rig = servers.rig(&name, &[]).await?;
        scenario.prepare(&mut rig).await?;
        let mut output_from = 0;
        if scenario.begins_with_a_copy() {
            let mut worker = rig.start(0)?;
            worker.wait_for_output(STREAMING).await?;
            worker.kill()?;
            output_from = worker.output()?.len();
        }
        let witness = Witness::start(&rig).await?;
        scenario.change_manifest(&mut rig);
        let load = Load::start(scenario, rig.source.connect(&rig.database).await?);
        Ok(Self { scenario, rig, witness, load, output_from })
    }

    /// Starts the worker, which must die when it comes by the point for the `hit`th time.
    pub(crate) async fn die_at(&self, point: Point, hit: u32) -> Result<()> {
        let mut worker =
            self.rig.start_with_failpoints(&format!("{point:?}={}*off->1*return(abort)", hit - 1))?;
        let Some(status) = worker.ended().await? else {
            bail!("the worker did not come by; {}", worker.tail()?)
        };
        ensure!(!status.success(), "the worker ended well: {status}");
        order::check(&self.rig).await
    }

    /// Starts the worker and lets it run until it has applied changes and the load has ended. If there is such a point,
    /// it fails at its first time by it, and tries again.
    pub(crate) async fn finish(self, fails_at: Option<Point>) -> Result<Reached> {
        let failpoints = fails_at.map(|point| format!("{point:?}=1*return(error)")).unwrap_or_default();
        let worker = self.rig.start_with_failpoints(&failpoints)?;
        let moving = format!(
            "SELECT count(*) FROM penstock.checkpoint WHERE sequence > {}",
            self.sequence().await.unwrap_or(0) + 50
        );
        self.rig.wait_for(&moving, "1").await?;
        self.load.stop().await?;
        let Self { scenario, rig, witness, output_from, .. } = self;
        let pairs: Vec<TablePair> = scenario.tables().iter().map(|table| TablePair::same(*table)).collect();
        let (source, sink) =
            (rig.source.connect(&rig.database).await?, rig.sink.connect(&rig.database).await?);
        let equal = async {
            rig.wait_until_caught_up().await?;
            checker::wait_until_equal(&source, &sink, &pairs, PATIENCE).await
        };
        equal.await.with_context(|| worker.tail().unwrap_or_default())?;
        let output = worker.output()?;
        let counted = witness.changes_after(&rig, &slot_begins(&output)?).await?;
        let sequence: i64 = rig.sink_value("SELECT sequence FROM penstock.checkpoint").await?.parse()?;
        ensure!(sequence == counted, "the checkpoint counts {sequence} changes, the source made {counted}");
        let slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
        ensure!(rig.source_value(slots).await? == "2", "a slot was left behind");
        drop((worker, source, sink));
        tidy_up(&rig).await?;
        Ok(Reached::read(&output[output_from..]))
    }

    async fn sequence(&self) -> Result<i64> {
        Ok(self.rig.sink_value("SELECT sequence FROM penstock.checkpoint").await?.parse()?)
    }
}

/// Where the slot begins that the pipeline has: the last one that was made to last.
fn slot_begins(output: &str) -> Result<String> {
    let lines = output.lines().rev().filter(|line| line.contains(SLOT_CREATED));
    let mut made = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let is_lasting = |line: &Value| line["slot"].as_str().is_some_and(|slot| !slot.ends_with("_copy"));
    let last = made.find(is_lasting).context("no slot was made")?;
    Ok(last["lsn"].as_str().context("lsn")?.to_owned())
}

/// The servers have room for the slots of a few cells.
async fn tidy_up(rig: &Rig) -> Result<()> {
    let slots = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = current_database()";
    let drop_slots = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()";
    let mut dropped = Err(anyhow::anyhow!("not tried"));
    for _ in 0..100 {
        rig.on_source(slots).await?;
        dropped = rig.on_source(drop_slots).await;
        if dropped.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    dropped?;
    for server in [&rig.source, &rig.sink] {
        server.run("postgres", &format!("DROP DATABASE \"{}\" WITH (FORCE)", rig.database)).await?;
    }
    Ok(())
}

/// How often each failpoint was come by, and how often one failed the worker.
#[derive(Debug)]
pub(crate) struct Reached {
    times: BTreeMap<String, u32>,
    /// The most that one commit held.
    pub(crate) statements_in_a_commit: u32,
    pub(crate) failures: usize,
}

impl Reached {
    fn read(output: &str) -> Self {
        let mut times = BTreeMap::new();
        let (mut statements, mut statements_in_a_commit) = (0, 0);
        let lines = output.lines().filter_map(|line| serde_json::from_str(line).ok());
        for line in lines.filter(|line: &Value| line["message"] == "failpoint") {
            let point = line["failpoint"].as_str().unwrap_or_default();
            match point {
                "AfterSinkStatement" => statements += 1,
                "AfterSinkCommit" => {
                    statements_in_a_commit = statements_in_a_commit.max(std::mem::take(&mut statements));
                }
                _ => {}
            }
            *times.entry(point.to_owned()).or_default() += 1;
        }
        Self { times, statements_in_a_commit, failures: output.matches("says: error").count() }
    }

    pub(crate) fn times(&self, point: Point) -> u32 {
        self.times.get(&format!("{point:?}")).copied().unwrap_or_default()
    }
}
