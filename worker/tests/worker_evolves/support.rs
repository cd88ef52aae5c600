//! Pipelines on servers that all tests share, and what is asked of all of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};
use penstock_e2e::postgres::{Server, Version};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::common::{Rig, Worker};

pub(crate) const STREAMING: &str = "\"message\":\"streaming\"";
pub(crate) const COPIED_AGAIN: &str = "SnapshotRestarted";
pub(crate) const STATE: &str = "SELECT state FROM penstock.table_state WHERE source_table = 'things'";
pub(crate) const TABLE: &str = "
    CREATE TABLE things (id int PRIMARY KEY, body varchar(10), price numeric(6,2) NOT NULL DEFAULT 1, size int);
    INSERT INTO things SELECT g, 'row ' || g, g, g FROM generate_series(1, 100) g";

static SERVERS: OnceCell<(Arc<Server>, Arc<Server>)> = OnceCell::const_new();
static RIGS: AtomicU32 = AtomicU32::new(0);

pub(crate) async fn start_servers(source: Version, sink: Version) -> Result<(Arc<Server>, Arc<Server>)> {
    let source = Server::builder(source)
        .setting("max_replication_slots", "100")
        .setting("max_wal_senders", "100")
        .setting("wal_sender_timeout", "10s");
    Ok((Arc::new(source.start().await?), Arc::new(Server::start(sink).await?)))
}

/// Databases of their own on servers that all tests share.
pub(crate) async fn empty_rig(policy: &str) -> Result<Rig> {
    let servers = SERVERS.get_or_try_init(|| start_servers(Version::V15, Version::V15)).await?.clone();
    rig_on(servers, policy).await
}

pub(crate) async fn rig_on((source, sink): (Arc<Server>, Arc<Server>), policy: &str) -> Result<Rig> {
    let name = format!("evolves-{}", RIGS.fetch_add(1, Ordering::Relaxed));
    let mut rig = Rig::on(source, sink, &name, &["public.*"]).await?;
    rig.manifest["spec"]["sink"]["postgres"]["schemaChanges"] = json!(policy);
    Ok(rig)
}

/// A pipeline that streams `things`.
pub(crate) async fn rig(policy: &str) -> Result<(Rig, Worker)> {
    let rig = empty_rig(policy).await?;
    rig.on_source(TABLE).await?;
    let worker = rig.start(0)?;
    worker.wait_for_output(STREAMING).await?;
    Ok((rig, worker))
}

/// The worker's output since `from`.
pub(crate) fn since(worker: &Worker, from: usize) -> Result<String> {
    Ok(worker.output()?[from..].to_owned())
}

/// Waits until both sides are equal, and the worker has come to the end of the log.
pub(crate) async fn wait_until_equal(rig: &Rig, tables: &[&str]) -> Result<()> {
    rig.wait_for("SELECT count(*) FROM penstock.table_state WHERE state <> 'ready'", "0").await?;
    rig.wait_until_caught_up().await?;
    rig.assert_equal(tables).await
}

/// The statements that the last failure of this reason told to run on the sink.
pub(crate) fn told(worker: &Worker, reason: &str) -> Result<String> {
    let output = worker.output()?;
    let lines = output.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let line = lines.into_iter().find(|line| line["reason"] == reason).context("no such reason")?;
    let message = line["message"].as_str().context("message")?;
    let (_, statements) = message.split_once("Run on the sink: ").context(message.to_owned())?;
    let end = statements.rfind(';').context("statements")?;
    Ok(statements[..end].to_owned())
}

pub(crate) async fn wait_until_halted(worker: &Worker, reason: &str) -> Result<()> {
    worker.wait_for_output(&format!("\"reason\":\"{reason}\"")).await
}
