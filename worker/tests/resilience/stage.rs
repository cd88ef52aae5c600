//! A pipeline behind two proxies, and the faults that are inflicted on it.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use penstock_e2e::postgres::{Server, Version};
use penstock_e2e::proxy::{Mode, Proxy};
use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::json;

use crate::cell::STREAMING;
use crate::common::{DATABASE, Rig, Worker};
use crate::ledger::SCHEMA;
use crate::witness::Witness;

/// What is done to the pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// SIGKILL of the worker; another one is started on its volume.
    WorkerKilled,
    /// SIGKILL of the worker, and its volume is gone with it.
    VolumeLost,
    /// The worker is stopped, another one is started in its place on an empty volume, then the first one wakes up.
    WorkerStoppedAndReplaced,
    /// SIGKILL of every process of the sink.
    SinkKilled,
    /// SIGKILL of every process of the source.
    SourceKilled,
    /// Connections to the sink are reset.
    SinkCut,
    /// Connections to the source are reset.
    SourceCut,
    /// Nothing passes between worker and sink for a while.
    SinkStalled,
    /// Nothing passes between worker and source for a while.
    SourceStalled,
    /// What the worker says reaches the sink, and no answer comes back; then the connections are reset.
    SinkAnswersLost,
    /// The same for the source.
    SourceAnswersLost,
}

impl Fault {
    const ALL: [(u32, Self); 11] = [
        (25, Self::WorkerKilled),
        (5, Self::VolumeLost),
        (10, Self::WorkerStoppedAndReplaced),
        (8, Self::SinkKilled),
        (8, Self::SourceKilled),
        (10, Self::SinkCut),
        (7, Self::SourceCut),
        (7, Self::SinkStalled),
        (5, Self::SourceStalled),
        (10, Self::SinkAnswersLost),
        (5, Self::SourceAnswersLost),
    ];

    pub(crate) fn random(random: &mut StdRng) -> Self {
        let mut ticket = random.random_range(0..Self::ALL.iter().map(|(weight, _)| weight).sum());
        for (weight, fault) in Self::ALL {
            if ticket < weight {
                return fault;
            }
            ticket -= weight;
        }
        Self::WorkerKilled
    }

    pub(crate) fn is_a_kill(self) -> bool {
        matches!(
            self,
            Self::WorkerKilled
                | Self::VolumeLost
                | Self::WorkerStoppedAndReplaced
                | Self::SinkKilled
                | Self::SourceKilled
        )
    }
}

/// A pipeline behind two proxies.
pub(crate) struct Stage {
    pub(crate) rig: Arc<Rig>,
    pub(crate) witness: Witness,
    source: Proxy,
    sink: Proxy,
    worker: Worker,
    /// Each volume has a folder of its own.
    volume: u16,
}

impl Stage {
    /// A pipeline that streams.
    pub(crate) async fn new() -> Result<Self> {
        let source = Server::builder(Version::V15).setting("wal_sender_timeout", "10s").start().await?;
        let sink = Server::start(Version::V15).await?;
        let proxies = (Proxy::start(source.port).await?, Proxy::start(sink.port).await?);
        let tables = ["public.accounts", "public.journal"];
        let mut rig = Rig::on(Arc::new(source), Arc::new(sink), DATABASE, &tables).await?;
        rig.on_source(SCHEMA).await?;
        for (end, proxy) in [("source", &proxies.0), ("sink", &proxies.1)] {
            rig.manifest["spec"][end]["postgres"]["connection"]["port"] = json!(proxy.port());
        }
        rig.manifest["spec"]["sink"]["postgres"]["batch"] = json!({"maxBytes": 65_536});
        let worker = rig.start(0)?;
        worker.wait_for_output(STREAMING).await?;
        let witness = Witness::start(&rig).await?;
        Ok(Self { rig: Arc::new(rig), witness, source: proxies.0, sink: proxies.1, worker, volume: 0 })
    }

    /// The last of what the worker said.
    pub(crate) fn tail(&self) -> String {
        self.worker.tail().unwrap_or_else(|error| error.to_string())
    }

    /// Does it, and undoes what does not pass by itself.
    pub(crate) async fn inflict(&mut self, fault: Fault, random: &mut StdRng) -> Result<()> {
        let a_while = Duration::from_millis(random.random_range(100..2_500));
        match fault {
            Fault::WorkerKilled => {
                self.worker.kill()?;
                self.worker = self.start()?;
            }
            Fault::VolumeLost => {
                self.worker.kill()?;
                self.volume += 1;
                self.worker = self.start()?;
            }
            Fault::WorkerStoppedAndReplaced => self.replace_stopped_worker(a_while).await?,
            Fault::SinkKilled => kill_and_restart(&self.rig.sink).await?,
            Fault::SourceKilled => kill_and_restart(&self.rig.source).await?,
            Fault::SinkCut => self.sink.cut_once(),
            Fault::SourceCut => self.source.cut_once(),
            Fault::SinkStalled => stall(&self.sink, a_while).await,
            Fault::SourceStalled => stall(&self.source, a_while).await,
            Fault::SinkAnswersLost => lose_answers(&self.sink, a_while).await,
            Fault::SourceAnswersLost => lose_answers(&self.source, a_while).await,
        }
        Ok(())
    }

    /// The one that wakes up finds the fence taken, and must not commit what it has in hand. It would then fight for the
    /// shard, as two clusters with one pipeline do; so it is killed after a while.
    async fn replace_stopped_worker(&mut self, a_while: Duration) -> Result<()> {
        signal("-STOP", &self.worker)?;
        self.volume += 1;
        let next = self.start()?;
        let mut stopped = std::mem::replace(&mut self.worker, next);
        tokio::time::sleep(a_while).await;
        signal("-CONT", &stopped)?;
        tokio::time::sleep(a_while / 2).await;
        stopped.kill().context("killing the one that was stopped")
    }

    fn start(&self) -> Result<Worker> {
        Worker::start(&self.rig.manifest_file()?, &self.rig.state_dir(self.volume), 0)
    }
}

async fn kill_and_restart(server: &Server) -> Result<()> {
    server.kill9();
    tokio::time::sleep(Duration::from_millis(200)).await;
    server.restart().await
}

async fn stall(proxy: &Proxy, a_while: Duration) {
    proxy.set(Mode::Stall);
    tokio::time::sleep(a_while).await;
    proxy.set(Mode::Pass);
}

async fn lose_answers(proxy: &Proxy, a_while: Duration) {
    proxy.set(Mode::DropAnswers);
    tokio::time::sleep(a_while).await;
    proxy.cut_once();
}

fn signal(kind: &str, worker: &Worker) -> Result<()> {
    let status = Command::new("kill").args([kind, &worker.pid().to_string()]).status()?;
    ensure!(status.success(), "kill {kind} {}", worker.pid());
    Ok(())
}
