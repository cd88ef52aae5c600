//! A standby of a server: a cold copy (not every version that we have comes with `pg_basebackup`), a physical slot, hot
//! standby feedback; from 17 on with the slots of the primary synced.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use super::account::Account;
use super::processes::Watchdog;
use super::server::Home;
use super::{Server, Version};

/// Physical slot of the standby on its primary.
pub const STANDBY_SLOT: &str = "standby";

impl Server {
    /// Makes a standby that streams from this server and answers at a port of its own. The server is restarted.
    pub async fn standby(&self) -> Result<Self> {
        self.stop().await?;
        let (data, port, version) = (self.data(), self.port, self.version);
        let home = tokio::task::spawn_blocking(move || make_home(&data, port, version)).await??;
        self.restart().await?;
        let sql = format!("SELECT pg_create_physical_replication_slot('{STANDBY_SLOT}', true)");
        self.run("postgres", &sql).await?;
        Self::start_in(home, version).await
    }

    /// Makes a standby a primary; it has begun a timeline of its own when this returns.
    pub async fn promote(&self) -> Result<()> {
        let promoted = self.value("postgres", "SELECT pg_promote(true, 60)").await?;
        ensure!(promoted == "t", "the standby was not promoted; it said: {}", self.log());
        self.run("postgres", "CHECKPOINT").await
    }
}

fn make_home(original: &Path, primary: u16, version: Version) -> Result<Home> {
    let account = Account::find()?;
    let folder = tempfile::Builder::new().prefix("penstock-postgres-").tempdir()?;
    account.own(folder.path())?;
    let data = folder.path().join("data");
    let watchdog = Watchdog::start(&data, folder.path())?;
    let output = Command::new("cp").arg("-a").args([original, &data]).output()?;
    ensure!(output.status.success(), "cp: {}", String::from_utf8_lossy(&output.stderr));
    // As in a base backup: slots are not carried over.
    for slot in fs::read_dir(data.join("pg_replslot"))? {
        fs::remove_dir_all(slot?.path())?;
    }
    let mut settings = String::new();
    writeln!(settings, "unix_socket_directories = '{}'", folder.path().display())?;
    writeln!(
        settings,
        "primary_conninfo = 'host=127.0.0.1 port={primary} user=postgres dbname=postgres'\n\
         primary_slot_name = '{STANDBY_SLOT}'\nhot_standby_feedback = on\nwal_receiver_status_interval = 1\n\
         wal_retrieve_retry_interval = '100ms'"
    )?;
    if version >= Version::V17 {
        writeln!(settings, "sync_replication_slots = on")?;
    }
    let file = data.join("postgresql.auto.conf");
    fs::write(&file, fs::read_to_string(&file)? + &settings)?;
    let signal = data.join("standby.signal");
    fs::write(&signal, "")?;
    account.own(&signal)?;
    Ok(Home { account, watchdog, folder })
}
