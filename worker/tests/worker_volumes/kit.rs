//! A pipeline whose changes show when one is lost, doubled or applied twice; and one on a volume that fails.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use penstock_e2e::postgres::Version;
use penstock_e2e::volume::Volume;

use crate::common::{Rig, Worker};

pub(crate) const STREAMING: &str = "\"message\":\"streaming\"";
/// How far the source was told that it may forget.
const ACKNOWLEDGED: &str =
    "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE plugin = 'pgoutput' AND NOT temporary";

pub(crate) async fn rig() -> Result<Rig> {
    let rig = Rig::new(Version::V15, &["public.t"]).await?;
    rig.on_source("CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL DEFAULT 0); INSERT INTO t SELECT generate_series(1, 100)").await?;
    Ok(rig)
}

/// 100 changes each time.
pub(crate) async fn change(rig: &Rig) -> Result<()> {
    rig.on_source("UPDATE t SET n = n + 1").await
}

pub(crate) async fn every_change_counted_once(rig: &Rig, rounds: i64) -> Result<()> {
    rig.wait_until_caught_up().await?;
    rig.assert_equal(&["t"]).await?;
    let (counted, expected) =
        (rig.sink_value("SELECT sequence FROM penstock.checkpoint").await?, rounds * 100);
    ensure!(counted == expected.to_string(), "{counted} changes were counted, {expected} were made");
    Ok(())
}

/// A worker that streams, on a volume that fails when told to. What is first ends first.
pub(crate) struct Stage {
    pub(crate) worker: Worker,
    pub(crate) volume: Volume,
    pub(crate) rig: Rig,
    /// Of 100 changes each.
    pub(crate) rounds: i64,
}

impl Stage {
    pub(crate) async fn new() -> Result<Self> {
        let rig = rig().await?;
        let volume = Volume::mount(&rig.state_dir(0))?;
        let worker = rig.start_on(&volume)?;
        worker.wait_for_output(STREAMING).await?;
        let mut stage = Self { worker, volume, rig, rounds: 0 };
        stage.change().await?;
        stage.rig.wait_until_caught_up().await?;
        Ok(stage)
    }

    pub(crate) fn kill(&mut self) -> Result<()> {
        self.worker.kill()
    }

    pub(crate) fn start(&mut self) -> Result<()> {
        self.worker = self.rig.start_on(&self.volume)?;
        Ok(())
    }

    pub(crate) async fn change(&mut self) -> Result<()> {
        self.rounds += 1;
        change(&self.rig).await
    }

    /// It goes on by itself, and nothing is lost or doubled; it has asked a person for nothing but a volume that works.
    pub(crate) async fn is_well(&mut self) -> Result<()> {
        self.change().await?;
        every_change_counted_once(&self.rig, self.rounds).await?;
        for line in self.worker.output()?.lines().filter(|line| line.contains("look_again_in_seconds")) {
            let is_of_the_volume = ["VolumeFailed", "VolumeFull"].iter().any(|reason| line.contains(reason));
            ensure!(is_of_the_volume, "a person was asked for something else: {line}");
        }
        Ok(())
    }

    /// How often the worker has said a reason by now.
    pub(crate) fn said(&self, reason: &str) -> Result<usize> {
        Ok(self.worker.output()?.matches(&format!("\"reason\":\"{reason}\"")).count())
    }

    /// Waits until the worker has said a reason so many times more than it had.
    pub(crate) async fn wait_until_said(&self, reason: &str, before: usize, more: usize) -> Result<()> {
        let began = Instant::now();
        while self.said(reason)? < before + more {
            ensure!(
                began.elapsed() < Duration::from_mins(1),
                "{reason} is not said; {}",
                self.worker.tail()?
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Where the source's log ends.
    pub(crate) async fn end_of_log(&self) -> Result<String> {
        self.rig.source_value("SELECT pg_current_wal_insert_lsn()").await
    }

    /// Whether the source was told that something after a place in its log is safe.
    pub(crate) async fn is_acknowledged_after(&self, place: &str) -> Result<bool> {
        Ok(self.rig.source_value(&format!("SELECT ({ACKNOWLEDGED}) > '{place}'::pg_lsn")).await? == "t")
    }

    pub(crate) async fn wait_until_acknowledged_after(&self, place: &str) -> Result<()> {
        let query = format!("SELECT ({ACKNOWLEDGED}) > '{place}'::pg_lsn");
        self.rig.wait_for_at_source(&query, "t").await.context("nothing is acknowledged any more")
    }
}
