//! Rows per second of the first load and of the stream, and the worker's peak memory, on this machine:
//! `cargo run -p penstock-worker --example throughput ROWS [WORKER]` after `cargo build --release`; WORKER is the
//! program to measure, by default the release build's.
//!
//! Both servers run here with fsync on. The stream is measured from a standing start: the rows are committed while
//! the worker is stopped, and the time is taken until the sink's checkpoint has passed them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use penstock_e2e::postgres::{Server, Version};
use serde_json::json;

const DATABASE: &str = "bench";
const TABLE: &str = "CREATE TABLE events (id bigint PRIMARY KEY, kind int NOT NULL, customer bigint NOT NULL, amount numeric(12, 2) NOT NULL,
    at timestamptz NOT NULL, reference uuid NOT NULL, flag boolean NOT NULL, note text NOT NULL)";

fn rows(from: u64, to: u64) -> String {
    format!(
        "INSERT INTO events SELECT g, g % 17, g::bigint * 7919 % 100000, (g % 100000) / 100.0, timestamptz '2024-01-01' + g * interval '1 second',
            md5(g::text)::uuid, g % 2 = 0, 'note number ' || g || ' of the benchmark' FROM generate_series({from}, {to}) g"
    )
}

/// The program to measure: the second argument, or the release build beside this one.
fn program() -> Result<PathBuf> {
    if let Some(path) = std::env::args().nth(2) {
        return Ok(path.into());
    }
    let this = std::env::current_exe()?;
    let target = this.ancestors().nth(3).context("the folder of cargo's output")?;
    Ok(target.join("release/penstock-worker"))
}

struct Worker(Child);

impl Worker {
    fn start(file: &Path, state: &Path) -> Result<Self> {
        let program = program()?;
        let child = Command::new(&program)
            .args(["run", "--log", "warn", "--file"])
            .arg(file)
            .arg("--state-dir")
            .arg(state)
            .envs(["PENSTOCK_SOURCE_USERNAME", "PENSTOCK_SINK_USERNAME"].map(|name| (name, "postgres")))
            .envs(["PENSTOCK_SOURCE_PASSWORD", "PENSTOCK_SINK_PASSWORD"].map(|name| (name, "unused")))
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        Ok(Self(child))
    }

    fn peak_mib(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find(|line| line.starts_with("VmHWM")).context("VmHWM")?;
        Ok(line.split_whitespace().nth(1).context("VmHWM")?.parse::<u64>()? / 1024)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn wait_for(server: &Server, query: &str, expected: &str) -> Result<()> {
    let began = Instant::now();
    while began.elapsed() < Duration::from_mins(10) {
        if server.value(DATABASE, query).await.is_ok_and(|value| value == expected) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bail!("{query}: not {expected} within ten minutes")
}

#[tokio::main]
async fn main() -> Result<()> {
    let count: u64 = std::env::args().nth(1).map_or(Ok(1_000_000), |text| text.parse())?;
    let builder = || {
        Server::builder(Version::V15)
            .fsync(true)
            .setting("max_wal_size", "8GB")
            .setting("shared_buffers", "512MB")
    };
    let (source, sink) = (builder().start().await?, builder().start().await?);
    for server in [&source, &sink] {
        server.create_database(DATABASE).await?;
    }
    source.run(DATABASE, TABLE).await?;
    source.run(DATABASE, &rows(1, count)).await?;
    let folder = tempfile::tempdir()?;
    let (file, state) = (folder.path().join("pipeline.yaml"), folder.path().join("state"));
    let connection = |server: &Server| json!({"host": "127.0.0.1", "port": server.port, "database": DATABASE, "credentialsSecret": "unused", "tls": {"mode": "disable"}});
    let manifest = json!({
        "apiVersion": "penstock.dev/v1alpha1", "kind": "CdcPipeline", "metadata": {"name": "bench"},
        "spec": {
            "source": {"postgres": {"connection": connection(&source), "tables": ["public.events"]}},
            "sink": {"postgres": {"connection": connection(&sink)}},
        },
    });
    fs::write(&file, serde_yaml::to_string(&manifest)?)?;

    let began = Instant::now();
    let worker = Worker::start(&file, &state)?;
    wait_for(&sink, "SELECT count(*) FROM penstock.table_state WHERE state = 'ready'", "1").await?;
    report("first load", count, began.elapsed(), &worker)?;
    drop(worker);

    for first in (count + 1..=2 * count).step_by(1000) {
        source.run(DATABASE, &rows(first, (first + 999).min(2 * count))).await?;
    }
    let began = Instant::now();
    let worker = Worker::start(&file, &state)?;
    wait_for(&sink, "SELECT sequence FROM penstock.checkpoint", &count.to_string()).await?;
    report("stream, transactions of 1,000 inserts", count, began.elapsed(), &worker)?;
    drop(worker);

    source.run(DATABASE, &format!("UPDATE events SET amount = amount + 1 WHERE id <= {}", count / 5)).await?;
    let began = Instant::now();
    let worker = Worker::start(&file, &state)?;
    wait_for(&sink, "SELECT sequence FROM penstock.checkpoint", &(count + count / 5).to_string()).await?;
    report("stream, one transaction of updates", count / 5, began.elapsed(), &worker)
}

fn report(what: &str, rows: u64, took: Duration, worker: &Worker) -> Result<()> {
    let milliseconds = u64::try_from(took.as_millis())?.max(1);
    println!(
        "{what}: {rows} rows in {milliseconds} ms, {} rows/s, peak {} MiB",
        rows * 1000 / milliseconds,
        worker.peak_mib()?
    );
    Ok(())
}
