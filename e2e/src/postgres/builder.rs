//! What a test may choose of its server.

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

use super::account::Account;
use super::processes::Watchdog;
use super::server::Home;
use super::{Server, Version, template};

/// The server's certificate, and whose clients it trusts.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// Certificate chain, PEM.
    pub certificate: String,
    /// Its private key, PEM.
    pub key: String,
    /// CA of the client certificates (for `clientcert=verify-ca` in `hba`), PEM.
    pub client_ca: Option<String>,
}

/// What a test may choose of its server. Later settings win.
#[derive(Clone, Debug)]
pub struct Builder {
    version: Version,
    fsync: bool,
    settings: Vec<(String, String)>,
    hba: Vec<String>,
    tls: Option<ServerTls>,
}

impl Builder {
    pub(super) fn new(version: Version) -> Self {
        Self { version, fsync: false, settings: Vec::new(), hba: Vec::new(), tls: None }
    }

    /// Whether writes are forced to disk (off: killed servers lose nothing, killed machines do).
    #[must_use]
    pub fn fsync(mut self, on: bool) -> Self {
        self.fsync = on;
        self
    }

    /// A setting of `postgresql.conf`; the value is quoted here.
    #[must_use]
    pub fn setting(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((key.into(), value.into()));
        self
    }

    /// A line of `pg_hba.conf` for TCP, for example `hostssl all all all scram-sha-256`. The first one replaces
    /// the default, which trusts everyone on 127.0.0.1; [`Server::connect`] does not come by TCP and is never
    /// locked out.
    #[must_use]
    pub fn hba(mut self, line: impl Into<String>) -> Self {
        self.hba.push(line.into());
        self
    }

    /// Offers TLS.
    #[must_use]
    pub fn tls(mut self, tls: ServerTls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Starts the server and waits until it answers.
    pub async fn start(self) -> Result<Server> {
        let builder = self.clone();
        let home = tokio::task::spawn_blocking(move || builder.make_home()).await??;
        Server::start_in(home, self.version).await
    }

    /// A folder with the data directory (`data`), configured except for the port.
    fn make_home(&self) -> Result<Home> {
        let account = Account::find()?;
        let folder = tempfile::Builder::new().prefix("penstock-postgres-").tempdir()?;
        account.own(folder.path())?;
        let data = folder.path().join("data");
        // From here on the folder goes with its owner.
        let watchdog = Watchdog::start(&data, folder.path())?;
        template::copy_to(&data, self.version, account)?;
        self.configure(folder.path(), &data, account)
            .with_context(|| format!("cannot configure {}", data.display()))?;
        Ok(Home { account, watchdog, folder })
    }

    fn configure(&self, folder: &Path, data: &Path, account: Account) -> Result<()> {
        let mut text = fs::read_to_string(data.join("postgresql.conf"))?;
        for (key, value) in self.defaults(folder).iter().chain(&self.settings) {
            writeln!(text, "{key} = '{}'", value.replace('\'', "''"))?;
        }
        fs::write(data.join("postgresql.conf"), text)?;

        let trust_loopback = || vec!["host all,replication all 127.0.0.1/32 trust".to_owned()];
        let lines = if self.hba.is_empty() { trust_loopback() } else { self.hba.clone() };
        fs::write(
            data.join("pg_hba.conf"),
            format!("local all,replication all trust\n{}\n", lines.join("\n")),
        )?;

        let tls_files = self.tls.iter().flat_map(|tls| {
            [
                ("server.crt", Some(&tls.certificate)),
                ("server.key", Some(&tls.key)),
                ("ca.crt", tls.client_ca.as_ref()),
            ]
        });
        for (name, content) in tls_files {
            if let Some(content) = content {
                let path = data.join(name);
                fs::write(&path, content)?;
                fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
                account.own(&path)?;
            }
        }
        Ok(())
    }

    fn defaults(&self, folder: &Path) -> Vec<(String, String)> {
        let on_off = |on| if on { "on" } else { "off" };
        let mut settings = vec![
            ("listen_addresses", "127.0.0.1".to_owned()),
            ("unix_socket_directories", folder.display().to_string()),
            ("wal_level", "logical".to_owned()),
            ("max_replication_slots", "20".to_owned()),
            ("max_wal_senders", "20".to_owned()),
            ("max_connections", "100".to_owned()),
            ("shared_buffers", "64MB".to_owned()),
            // In the data directory, so that a killed server leaves nothing in /dev/shm.
            ("dynamic_shared_memory_type", "mmap".to_owned()),
            ("fsync", on_off(self.fsync).to_owned()),
            ("logging_collector", "off".to_owned()),
            ("timezone", "UTC".to_owned()),
        ];
        if let Some(tls) = &self.tls {
            settings.extend([
                ("ssl", "on".to_owned()),
                ("ssl_cert_file", "server.crt".to_owned()),
                ("ssl_key_file", "server.key".to_owned()),
            ]);
            settings.extend(tls.client_ca.as_ref().map(|_| ("ssl_ca_file", "ca.crt".to_owned())));
        }
        settings.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }
}
