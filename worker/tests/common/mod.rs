//! Runs the real `penstock-worker` between two real servers, as a user on a laptop would.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use penstock_e2e::postgres::{Client, Server, Version};
use penstock_e2e::volume::Volume;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The password of both ends; looked for in all output.
pub const PASSWORD: &str = "hunter2-never-log-me";
/// Database at both ends, and name of the pipeline, of a rig with servers of its own.
pub const DATABASE: &str = "shop";
/// What is shown of the worker's output when something is not as expected.
const TAIL_LINES: usize = 30;
/// For what happens within seconds on a machine that has nothing else to do.
pub const PATIENCE: Duration = Duration::from_mins(3);
/// Between two looks at what is waited for.
const POLL: Duration = Duration::from_millis(50);

/// A source, a sink, a manifest, and folders.
pub struct Rig {
    pub source: Arc<Server>,
    pub sink: Arc<Server>,
    pub manifest: Value,
    pub database: String,
    folder: TempDir,
}

impl Rig {
    pub async fn new(source: Version, tables: &[&str]) -> Result<Self> {
        Self::between(source, Version::V15, tables).await
    }

    pub async fn between(source: Version, sink: Version, tables: &[&str]) -> Result<Self> {
        let source = Server::builder(source).setting("wal_sender_timeout", "10s").start().await?;
        let sink = Server::start(sink).await?;
        Self::on(Arc::new(source), Arc::new(sink), DATABASE, tables).await
    }

    /// The same on servers that others use too: both databases and the pipeline are called `name`.
    pub async fn on(source: Arc<Server>, sink: Arc<Server>, name: &str, tables: &[&str]) -> Result<Self> {
        for server in [&source, &sink] {
            server.create_database(name).await?;
        }
        let connection = |server: &Server| {
            json!({
                "host": "127.0.0.1", "port": server.port, "database": name,
                "credentialsSecret": "environment", "tls": {"mode": "disable"},
            })
        };
        let manifest = json!({
            "apiVersion": "penstock.dev/v1alpha1", "kind": "CdcPipeline",
            "metadata": {"name": name},
            "spec": {
                "source": {"postgres": {"connection": connection(&source), "tables": tables}},
                "sink": {"postgres": {"connection": connection(&sink)}},
            },
        });
        Ok(Self { source, sink, manifest, database: name.to_owned(), folder: TempDir::new()? })
    }

    pub async fn on_source(&self, sql: &str) -> Result<()> {
        self.source.run(&self.database, sql).await
    }

    pub async fn on_sink(&self, sql: &str) -> Result<()> {
        self.sink.run(&self.database, sql).await
    }

    pub async fn source_value(&self, sql: &str) -> Result<String> {
        self.source.value(&self.database, sql).await
    }

    pub async fn sink_value(&self, sql: &str) -> Result<String> {
        self.sink.value(&self.database, sql).await
    }

    /// Starts a worker for a shard, with the manifest as it is now.
    pub fn start(&self, shard: u16) -> Result<Worker> {
        Worker::start(&self.manifest_file()?, &self.state_dir(shard), shard)
    }

    /// Starts a worker for shard 0 to which things happen, in the words of `worker/src/failpoint.rs`.
    pub fn start_with_failpoints(&self, failpoints: &str) -> Result<Worker> {
        Worker::start_in(&self.manifest_file()?, &self.state_dir(0), 0, &[], &[("FAILPOINTS", failpoints)])
    }

    /// Starts a worker for shard 0 on a volume of the test kit.
    pub fn start_on(&self, volume: &Volume) -> Result<Worker> {
        Worker::start_on(&self.manifest_file()?, volume)
    }

    /// Starts a worker for shard 0 with more in its environment.
    pub fn start_as(&self, environment: &[(&str, &str)]) -> Result<Worker> {
        Worker::start_in(&self.manifest_file()?, &self.state_dir(0), 0, &[], environment)
    }

    /// Runs another subcommand of the worker to its end, on the manifest as it is now.
    pub fn command(&self, arguments: &[&str]) -> Result<std::process::Output> {
        self.prepare(arguments)?.output().context("running penstock-worker")
    }

    /// Starts another subcommand of the worker, on the manifest as it is now.
    pub fn spawn(&self, arguments: &[&str]) -> Result<Child> {
        self.prepare(arguments)?.spawn().context("starting penstock-worker")
    }

    /// The same with things that happen to it, in the words of `worker/src/failpoint.rs`.
    pub fn spawn_with_failpoints(&self, arguments: &[&str], failpoints: &str) -> Result<Child> {
        let mut command = self.prepare(arguments)?;
        command.env("FAILPOINTS", failpoints).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().context("starting penstock-worker")
    }

    fn prepare(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_penstock-worker"));
        command
            .args(arguments)
            .arg("--file")
            .arg(self.manifest_file()?)
            .envs(["SOURCE", "SINK"].map(|end| (format!("PENSTOCK_{end}_USERNAME"), "postgres")))
            .envs(["SOURCE", "SINK"].map(|end| (format!("PENSTOCK_{end}_PASSWORD"), PASSWORD)));
        Ok(command)
    }

    /// Writes the manifest as it is now.
    pub fn manifest_file(&self) -> Result<PathBuf> {
        let file = self.folder.path().join("pipeline.yaml");
        // A worker that starts reads it whole, the one before or this one.
        let new = tempfile::NamedTempFile::new_in(self.folder.path())?;
        std::fs::write(new.path(), serde_yaml::to_string(&self.manifest)?)?;
        new.persist(&file)?;
        Ok(file)
    }

    pub fn state_dir(&self, shard: u16) -> PathBuf {
        self.folder.path().join(format!("state-{shard}"))
    }

    /// Waits until a query on the sink gives a value.
    pub async fn wait_for(&self, query: &str, expected: &str) -> Result<()> {
        self.wait_for_at(&self.sink, query, expected).await
    }

    /// Waits until a query on the source gives a value.
    pub async fn wait_for_at_source(&self, query: &str, expected: &str) -> Result<()> {
        self.wait_for_at(&self.source, query, expected).await
    }

    async fn wait_for_at(&self, server: &Server, query: &str, expected: &str) -> Result<()> {
        let began = Instant::now();
        let mut seen = String::new();
        // A connection for every look would cost more than what is looked at.
        let mut connection = None;
        while began.elapsed() < PATIENCE {
            seen =
                self.look(server, &mut connection, query).await.unwrap_or_else(|error| format!("{error:#}"));
            if seen == expected {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
        let output = std::fs::read_to_string(self.state_dir(0).with_extension("log")).unwrap_or_default();
        bail!(
            "{query}: expected {expected}, last seen {seen}\n--- the worker's last output\n{}",
            tail_of(&output)
        )
    }

    /// A connection on which something failed is not used again.
    async fn look(&self, at: &Server, connection: &mut Option<Client>, query: &str) -> Result<String> {
        let client = match connection.take() {
            Some(client) => client,
            None => at.connect(&self.database).await?,
        };
        let seen = client.value(query).await?;
        *connection = Some(client);
        Ok(seen)
    }

    /// Waits until all rows are copied and the sink's checkpoint is at or past the source's present end of log.
    pub async fn wait_until_caught_up(&self) -> Result<()> {
        self.on_source("SELECT pg_logical_emit_message(true, 'test', 'a transaction to end with')").await?;
        let end = self.source_value("SELECT pg_current_wal_flush_lsn()").await?;
        let query = format!(
            "SELECT min(end_lsn) >= '{end}'::pg_lsn AND NOT EXISTS (SELECT FROM penstock.table_state WHERE state <> 'ready') \
             FROM penstock.checkpoint"
        );
        self.wait_for(&query, "t").await
    }

    /// Row count and content hash of tables, in plain SQL, equal on both sides.
    pub async fn assert_equal(&self, tables: &[&str]) -> Result<()> {
        for table in tables {
            let query = format!(
                "SELECT count(*) || ' rows, hash ' || coalesce(sum(hashtextextended(t::text, 7)), 0) FROM {table} t"
            );
            let (source, sink) = (self.source_value(&query).await?, self.sink_value(&query).await?);
            ensure!(source == sink, "{table}: source {source}, sink {sink}");
        }
        Ok(())
    }
}

/// A worker process; killed when dropped.
pub struct Worker {
    child: Child,
    output: PathBuf,
}

impl Worker {
    pub fn start(file: &Path, state_dir: &Path, shard: u16) -> Result<Self> {
        Self::start_with(file, state_dir, shard, &[])
    }

    pub fn start_with(file: &Path, state_dir: &Path, shard: u16, arguments: &[String]) -> Result<Self> {
        Self::start_in(file, state_dir, shard, arguments, &[])
    }

    pub fn start_in(
        file: &Path,
        state_dir: &Path,
        shard: u16,
        arguments: &[String],
        environment: &[(&str, &str)],
    ) -> Result<Self> {
        let command = Command::new(env!("CARGO_BIN_EXE_penstock-worker"));
        Self::spawn(command, file, state_dir, shard, arguments, environment)
    }

    /// Starts a worker whose volume is a file system in memory of that size, in a mount namespace of its own.
    pub fn start_on_tmpfs(file: &Path, state_dir: &Path, size: &str) -> Result<Self> {
        std::fs::create_dir_all(state_dir)?;
        let script = "mount -t tmpfs -o size=$0 tmpfs \"$1\" && shift && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", script, size]).arg(state_dir);
        command.arg(env!("CARGO_BIN_EXE_penstock-worker"));
        Self::spawn(command, file, state_dir, 0, &[], &[])
    }

    /// Starts a worker for shard 0 where its volume is to be seen. It ends with this process: it would keep the volume mounted.
    pub fn start_on(file: &Path, volume: &Volume) -> Result<Self> {
        let (file, state_dir) = (file.to_owned(), volume.at().to_owned());
        volume.run(move || {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", env!("CARGO_BIN_EXE_penstock-worker")]);
            Self::spawn(command, &file, &state_dir, 0, &[], &[])
        })?
    }

    fn spawn(
        mut command: Command,
        file: &Path,
        state_dir: &Path,
        shard: u16,
        arguments: &[String],
        environment: &[(&str, &str)],
    ) -> Result<Self> {
        let output = state_dir.with_extension("log");
        let log = File::options().create(true).append(true).open(&output)?;
        let child = command
            .arg("run")
            .args([
                "--recheck-seconds",
                "1",
                "--idle-advance-seconds",
                "1",
                "--shard",
                &shard.to_string(),
                "--log",
                "info,penstock_worker=debug",
            ])
            .arg("--file")
            .arg(file)
            .arg("--state-dir")
            .arg(state_dir)
            .args(arguments)
            .envs(["SOURCE", "SINK"].map(|end| (format!("PENSTOCK_{end}_USERNAME"), "postgres")))
            .envs(["SOURCE", "SINK"].map(|end| (format!("PENSTOCK_{end}_PASSWORD"), PASSWORD)))
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting penstock-worker")?;
        Ok(Self { child, output })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `-STOP` or `-CONT`.
    pub fn signal(&self, kind: &str) -> Result<()> {
        let status = Command::new("kill").args([kind, &self.pid().to_string()]).status()?;
        ensure!(status.success(), "kill {kind} {}", self.pid());
        Ok(())
    }

    /// SIGKILL, and wait until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits until it ends by itself; `None`: it has not, and [`PATIENCE`] is over.
    pub async fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(None)
    }

    /// SIGTERM; how long it took to end, and whether it ended well.
    pub fn terminate(&mut self) -> Result<(Duration, bool)> {
        let began = Instant::now();
        Command::new("kill").args(["-TERM", &self.pid().to_string()]).status()?;
        while began.elapsed() < Duration::from_secs(40) {
            if let Some(status) = self.child.try_wait()? {
                return Ok((began.elapsed(), status.success()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("the worker did not end within 40 s of SIGTERM")
    }

    /// Everything this and earlier workers of the state folder printed.
    pub fn output(&self) -> Result<String> {
        let mut text = String::new();
        File::open(&self.output)?.read_to_string(&mut text)?;
        Ok(text)
    }

    /// Waits until the output contains a text.
    pub async fn wait_for_output(&self, text: &str) -> Result<()> {
        self.wait_for_output_within(text, PATIENCE).await
    }

    pub async fn wait_for_output_within(&self, text: &str, patience: Duration) -> Result<()> {
        let began = Instant::now();
        let (mut file, mut output) = (File::open(&self.output)?, Vec::new());
        while began.elapsed() < patience {
            let from = output.len().saturating_sub(text.len());
            file.read_to_end(&mut output)?;
            if String::from_utf8_lossy(&output[from..]).contains(text) {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
        bail!("`{text}` was not printed; {}", self.tail()?)
    }

    /// The last of the output.
    pub fn tail(&self) -> Result<String> {
        Ok(format!("the last of its output:\n{}", tail_of(&self.output()?)))
    }

    /// The most memory it ever held, in MiB.
    pub fn peak_rss_mib(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find(|line| line.starts_with("VmHWM")).context("VmHWM")?;
        let kib: u64 = line.split_whitespace().nth(1).context("VmHWM")?.parse()?;
        Ok(kib / 1024)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let output = self.output().unwrap_or_default();
            eprintln!("--- the worker's last output\n{}", &output[output.len().saturating_sub(6000)..]);
        }
    }
}

/// The last lines; those of failpoints that the worker came by would be all of them.
fn tail_of(output: &str) -> String {
    let lines: Vec<&str> =
        output.lines().filter(|line| !line.contains("\"message\":\"failpoint\"")).collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}
