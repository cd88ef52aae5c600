//! A running server.

use std::fs::{self, OpenOptions};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rand::RngExt;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use tokio_postgres::Config;

use super::account::Account;
use super::processes::{self, Watchdog};
use super::{Builder, Client, Version};

const START_MAX: Duration = Duration::from_mins(1);
const STOP_MAX: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(10);
/// Below the ports that the kernel gives to outgoing connections, so that a restarted server finds its own free.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
const PORT_ATTEMPTS: usize = 20;

/// A throw-away server on 127.0.0.1 with the superuser `postgres`. Dropping it ends its processes and removes
/// its folder.
#[derive(Debug)]
pub struct Server {
    /// TCP port on 127.0.0.1.
    pub port: u16,
    /// What runs.
    pub version: Version,
    postmaster: Mutex<Option<Child>>,
    home: Home,
}

/// Where a server lives. Fields are dropped in this order: the watchdog is sent away before the folder goes.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) account: Account,
    #[expect(dead_code, reason = "it is there to be dropped")]
    pub(super) watchdog: Watchdog,
    pub(super) folder: TempDir,
}

impl Server {
    /// Starts a server with the default settings.
    pub async fn start(version: Version) -> Result<Self> {
        Self::builder(version).start().await
    }

    /// A server with settings of one's own.
    pub fn builder(version: Version) -> Builder {
        Builder::new(version)
    }

    /// Another server may take a port between the look and the start, so a failed start tries the next.
    pub(super) async fn start_in(home: Home, version: Version) -> Result<Self> {
        let mut server = Self { port: 0, version, postmaster: Mutex::new(None), home };
        for _ in 0..PORT_ATTEMPTS {
            server.port = free_port()?;
            match server.launch().await {
                Err(_) if server.log().contains("Address already in use") => {
                    fs::remove_file(server.log_path())?;
                }
                launched => return launched.map(|()| server),
            }
        }
        bail!("no free port in {PORTS:?} after {PORT_ATTEMPTS} attempts")
    }

    /// A connection as superuser. It comes by the server's own socket, past every rule of `hba`.
    pub async fn connect(&self, database: &str) -> Result<Client> {
        Client::connect(&self.socket_config(database)).await
    }

    /// How a client reaches the server by TCP as superuser, without TLS.
    pub fn config(&self, database: &str) -> Config {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.port).user("postgres").dbname(database);
        config
    }

    /// Makes a database.
    pub async fn create_database(&self, name: &str) -> Result<()> {
        self.run("postgres", &format!("CREATE DATABASE \"{}\"", name.replace('"', "\"\""))).await
    }

    /// Runs statements on a connection of their own, as `psql -c` would.
    pub async fn run(&self, database: &str, sql: &str) -> Result<()> {
        self.connect(database).await?.run(sql).await
    }

    /// First value of the first row, as text.
    pub async fn value(&self, database: &str, sql: &str) -> Result<String> {
        self.connect(database).await?.value(sql).await
    }

    /// Ends every process of the server with SIGKILL at once, as a dying machine would.
    pub fn kill9(&self) {
        let postmaster = self.postmaster().take();
        if let Some(mut postmaster) = postmaster {
            let _ = postmaster.kill();
            processes::kill_all(&self.data());
            let _ = postmaster.wait();
        }
    }

    /// Stops every process of the server where it is (SIGSTOP), as a paused machine does: connections stay, new ones
    /// are taken by the kernel, and nothing is answered.
    pub fn freeze(&self) {
        // The postmaster first, so that no child is made while they are listed.
        if let Some(postmaster) = self.pid().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
            let _ = kill_process(postmaster, Signal::STOP);
        }
        processes::signal_all(&self.data(), Signal::STOP);
    }

    /// Lets a frozen server go on.
    pub fn thaw(&self) {
        processes::signal_all(&self.data(), Signal::CONT);
    }

    /// Stops the server in order (a fast shutdown: sessions are ended, everything is written).
    pub async fn stop(&self) -> Result<()> {
        let Some(mut postmaster) = self.postmaster().take() else { return Ok(()) };
        if let Some(pid) = Pid::from_raw(postmaster.id().cast_signed()) {
            kill_process(pid, Signal::INT)?;
        }
        let deadline = Instant::now() + STOP_MAX;
        while postmaster.try_wait()?.is_none() {
            if Instant::now() > deadline {
                *self.postmaster() = Some(postmaster);
                bail!("PostgreSQL did not stop in {STOP_MAX:?}; it said: {}", self.log());
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    /// Starts the stopped or killed server again on the same port; stops it first when it runs.
    pub async fn restart(&self) -> Result<()> {
        self.stop().await?;
        self.launch().await
    }

    /// What the server wrote to its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The server's data directory.
    pub fn data(&self) -> PathBuf {
        self.home.folder.path().join("data")
    }

    /// The server's process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.postmaster().as_ref().map(Child::id)
    }

    async fn launch(&self) -> Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(self.log_path())?;
        let mut command = Command::new(self.version.installed()?.join("postgres"));
        command.arg("-D").arg(self.data()).arg("-p").arg(self.port.to_string());
        command.current_dir(self.data()).process_group(0);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = self.home.account.run(&mut command).spawn().context("cannot run postgres")?;
        *self.postmaster() = Some(child);
        self.wait_until_it_answers().await
    }

    async fn wait_until_it_answers(&self) -> Result<()> {
        let deadline = Instant::now() + START_MAX;
        loop {
            if let Ok(client) = self.connect("postgres").await
                && client.run("SELECT 1").await.is_ok()
            {
                return Ok(());
            }
            let ended = self.postmaster().as_mut().map(Child::try_wait).transpose()?.flatten();
            if let Some(status) = ended {
                *self.postmaster() = None;
                bail!("PostgreSQL {} ended with {status}; it said: {}", self.version, self.log());
            }
            if Instant::now() > deadline {
                bail!("PostgreSQL {} did not answer in {START_MAX:?}; it said: {}", self.version, self.log());
            }
            sleep(POLL).await;
        }
    }

    fn socket_config(&self, database: &str) -> Config {
        let mut config = Config::new();
        config.host_path(self.home.folder.path()).port(self.port).user("postgres").dbname(database);
        config
    }

    fn log_path(&self) -> PathBuf {
        self.home.folder.path().join("postgres.log")
    }

    fn postmaster(&self) -> MutexGuard<'_, Option<Child>> {
        self.postmaster.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let data = self.data();
        if let Some(mut postmaster) = self.postmaster().take() {
            processes::end(&mut postmaster);
        }
        processes::kill_all(&data);
        processes::remove_shared_memory(&data);
    }
}

/// A port that nobody listens on now.
fn free_port() -> Result<u16> {
    let mut random = rand::rng();
    (0..PORT_ATTEMPTS)
        .map(|_| random.random_range(PORTS))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .with_context(|| format!("no free port found in {PORTS:?}"))
}
