//! A pipeline behind two proxies, on a volume that fails when told to, and how the faults are inflicted on it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use penstock_e2e::postgres::{Server, Version};
use penstock_e2e::proxy::{Mode, Proxy};
use penstock_e2e::volume::{FileFault, Loss, Volume};
use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::json;

use crate::cell::STREAMING;
use crate::common::{DATABASE, Rig, Worker};
use crate::fault::Fault;
use crate::ledger::SCHEMA;
use crate::stock;
use crate::witness::Witness;

/// What a worker may ask a person for while this is done to it: a volume that works, and that it be the only one.
const MAY_BE_SAID: [&str; 3] = ["VolumeFull", "VolumeFailed", "Superseded"];

/// A pipeline behind two proxies. The worker ends before its volume.
pub(crate) struct Stage {
    worker: Worker,
    volume: Volume,
    /// Each volume has a folder of its own, and the log beside it.
    volumes: u16,
    /// The logs of the volumes before this one have been looked through.
    looked_through: u16,
    pub(crate) rig: Arc<Rig>,
    pub(crate) witness: Witness,
    source: Proxy,
    sink: Proxy,
    columns_added: u32,
}

impl Stage {
    /// A pipeline that streams, between servers of these versions.
    pub(crate) async fn new(source: Version, sink: Version) -> Result<Self> {
        let source = Server::builder(source).setting("wal_sender_timeout", "10s").start().await?;
        let sink = Server::start(sink).await?;
        let proxies = (Proxy::start(source.port).await?, Proxy::start(sink.port).await?);
        let tables = ["public.accounts", "public.journal", "public.closed", "public.stock"];
        let mut rig = Rig::on(Arc::new(source), Arc::new(sink), DATABASE, &tables).await?;
        rig.on_source(SCHEMA).await?;
        rig.on_source(&stock::schema()).await?;
        for (end, proxy) in [("source", &proxies.0), ("sink", &proxies.1)] {
            rig.manifest["spec"][end]["postgres"]["connection"]["port"] = json!(proxy.port());
        }
        rig.manifest["spec"]["sink"]["postgres"]["batch"] = json!({"maxBytes": 65_536});
        rig.manifest["spec"]["sink"]["postgres"]["schemaChanges"] = json!("Apply");
        let volume = Volume::mount(&rig.state_dir(0))?;
        let worker = rig.start_on(&volume)?;
        worker.wait_for_output(STREAMING).await?;
        let witness = Witness::start(&rig).await?;
        let (rig, (source, sink)) = (Arc::new(rig), proxies);
        Ok(Self {
            worker,
            volume,
            volumes: 1,
            looked_through: 0,
            rig,
            witness,
            source,
            sink,
            columns_added: 0,
        })
    }

    /// The last of what the worker said.
    pub(crate) fn tail(&self) -> String {
        self.worker.tail().unwrap_or_else(|error| error.to_string())
    }

    /// Fails if a worker has asked a person for what nobody did to it.
    pub(crate) fn check_what_was_said(&mut self) -> Result<()> {
        for volume in self.looked_through..self.volumes {
            let log = std::fs::read_to_string(self.rig.state_dir(volume).with_extension("log"))?;
            for line in log.lines().filter(|line| line.contains("look_again_in_seconds")) {
                let may_be_said = |reason| line.contains(&format!("\"reason\":\"{reason}\""));
                ensure!(MAY_BE_SAID.into_iter().any(may_be_said), "a worker said: {line}");
            }
        }
        self.looked_through = self.volumes - 1;
        Ok(())
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
                self.volume = self.empty_volume()?;
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
            Fault::VolumeFull => self.fail_volume(FileFault::Full, a_while).await?,
            Fault::VolumeUnreadable => {
                self.sink.cut_once();
                self.fail_volume(FileFault::Read, a_while).await?;
            }
            Fault::VolumeUnwritable => self.fail_volume(FileFault::Write, a_while).await?,
            Fault::VolumeUnsynced => self.fail_volume(FileFault::Sync, a_while).await?,
            Fault::StockCopiedAgain => stock::copy_again(&self.rig).await?,
            Fault::ColumnAdded => {
                self.columns_added += 1;
                stock::add_column(&self.rig, self.columns_added).await?;
            }
            Fault::VolumeTorn => self.tear(a_while / 4, random).await?,
            Fault::PowerLost => self.lose_power(a_while / 4, random).await?,
        }
        Ok(())
    }

    async fn fail_volume(&mut self, fault: FileFault, a_while: Duration) -> Result<()> {
        self.volume.set(fault)?;
        tokio::time::sleep(a_while).await;
        self.volume.set(FileFault::None)
    }

    async fn tear(&mut self, a_while: Duration, random: &mut StdRng) -> Result<()> {
        let percent = random.random_range(0..100);
        let is_said = random.random();
        let fault =
            if is_said { FileFault::TornWrite { percent } } else { FileFault::PowerFailing { percent } };
        self.volume.set(fault)?;
        tokio::time::sleep(a_while).await;
        self.worker.kill()?;
        self.volume.set(FileFault::None)?;
        self.worker = self.start()?;
        Ok(())
    }

    /// A disk that lies has some sectors of what was written since the worker was stopped for a moment.
    async fn lose_power(&mut self, a_while: Duration, random: &mut StdRng) -> Result<()> {
        let loss = if random.random() { Loss::Ordered } else { Loss::Torn };
        if loss == Loss::Torn {
            self.worker.signal("-STOP")?;
            self.volume.mark()?;
            self.worker.signal("-CONT")?;
        }
        tokio::time::sleep(a_while).await;
        self.worker.kill()?;
        self.volume.lose_power(loss, random)?;
        self.worker = self.start()?;
        Ok(())
    }

    /// The one that wakes up finds the fence taken, and must not commit what it has in hand. It would then fight for the
    /// shard, as two clusters with one pipeline do; so it is killed after a while.
    async fn replace_stopped_worker(&mut self, a_while: Duration) -> Result<()> {
        self.worker.signal("-STOP")?;
        let empty = self.empty_volume()?;
        let _volume_of_the_stopped = std::mem::replace(&mut self.volume, empty);
        let next = self.start()?;
        let mut stopped = std::mem::replace(&mut self.worker, next);
        tokio::time::sleep(a_while).await;
        stopped.signal("-CONT")?;
        tokio::time::sleep(a_while / 2).await;
        stopped.kill().context("killing the one that was stopped")
    }

    fn empty_volume(&mut self) -> Result<Volume> {
        self.volumes += 1;
        Volume::mount(&self.rig.state_dir(self.volumes - 1))
    }

    fn start(&self) -> Result<Worker> {
        self.rig.start_on(&self.volume)
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
