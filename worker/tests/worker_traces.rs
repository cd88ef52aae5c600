//! Traces reach a collector where `OTEL_EXPORTER_OTLP_ENDPOINT` names one.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::sync::mpsc;

#[tokio::test(flavor = "multi_thread")]
async fn the_run_of_a_worker_is_a_trace_that_a_collector_gets() -> Result<()> {
    let (sender, mut traces) = mpsc::unbounded_channel();
    let take = async move |body: Bytes| drop(sender.send(body));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let collector = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/v1/traces", post(take))).await });

    // No database is there: it tries until it is asked to stop.
    let state = tempfile::tempdir()?;
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples/minimal.yaml");
    let mut worker = Command::new(env!("CARGO_BIN_EXE_penstock-worker"))
        .args(["run", "--file", example, "--state-dir"])
        .arg(state.path().join("state"))
        .envs(["SOURCE", "SINK"].map(|end| (format!("PENSTOCK_{end}_USERNAME"), "postgres")))
        .envs(["SOURCE", "SINK"].map(|end| (format!("PENSTOCK_{end}_PASSWORD"), "secret")))
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(worker.stdout.take().context("stdout")?).lines();
    while !lines.next_line().await?.context("the worker ended")?.contains("SourceUnreachable") {}
    let pid = worker.id().context("the worker ended")?;
    Command::new("kill").args(["-TERM", &pid.to_string()]).status().await?;
    let got = tokio::time::timeout(Duration::from_mins(1), traces.recv()).await;
    ensure!(worker.wait().await?.success(), "the worker ended badly");
    let got = got.context("no trace came")?.context("no trace came")?;
    let shown = String::from_utf8_lossy(&got);
    for word in ["penstock-worker", "revision", "shard"] {
        ensure!(shown.contains(word), "{word} is not in {shown}");
    }
    Ok(())
}
