//! Runs `penstock-worker compare --source` and reads what it says.

use std::process::Child;

use anyhow::{Context as _, Result, ensure};
use penstock_e2e::postgres::Client;
use serde_json::Value;

use crate::common::{Rig, Worker};

pub(crate) const STREAMING: &str = "\"message\":\"streaming\"";

/// What a comparison said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) json: Value,
    pub(crate) errors: String,
}

/// Compares, with JSON as the answer.
pub(crate) fn compare(rig: &Rig, arguments: &[&str]) -> Result<Said> {
    let all: Vec<&str> =
        ["compare", "--source", "--format", "json"].iter().chain(arguments).copied().collect();
    let output = tokio::task::block_in_place(|| rig.command(&all))?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok(Said {
        code: output.status.code().context("no exit code")?,
        json: serde_json::from_slice(&output.stdout).unwrap_or_default(),
        errors,
    })
}

/// Compares, and both ends must be equal.
pub(crate) fn assert_equal(rig: &Rig) -> Result<Said> {
    let said = compare(rig, &[])?;
    ensure!(said.code == 0 && said.json["verdict"] == "equal", "{said:#?}");
    Ok(said)
}

/// A pipeline of these tables that streams.
pub(crate) async fn streaming(rig: &Rig) -> Result<Worker> {
    let worker = rig.start(0)?;
    worker.wait_for_output(STREAMING).await?;
    Ok(worker)
}

/// How many slots of comparisons the source has.
pub(crate) const SLOTS: &str = "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE '%compare%'";

/// A comparison whose slot is made when the transaction of the client has ended.
pub(crate) async fn waiting_for_its_slot(rig: &Rig) -> Result<(Child, Client)> {
    let client = rig.source.connect(&rig.database).await?;
    client.run("BEGIN; SELECT pg_current_xact_id()").await?;
    let comparison = rig.spawn(&["compare", "--source"])?;
    rig.wait_for_at_source(SLOTS, "1").await?;
    Ok((comparison, client))
}

/// Milliseconds that applying stood still at each barrier that was met.
pub(crate) fn pauses(worker: &Worker) -> Result<Vec<f64>> {
    let output = worker.output()?;
    let lines = output.lines().filter(|line| line.contains("met a barrier"));
    lines
        .map(|line| {
            let line: Value = serde_json::from_str(line)?;
            let ms = line["fields"]["ms"].as_f64().or_else(|| line["ms"].as_f64());
            ms.with_context(|| format!("{line}"))
        })
        .collect()
}
