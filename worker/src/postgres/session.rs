//! An SQL session.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::config::{SslMode, SslNegotiation};
use tokio_postgres::{Client, Config};
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use super::credentials::Credentials;
use super::endpoint::{Endpoint, PIN_SETTINGS};
use super::error::ConnectError;
use super::transport::{CONNECT_TIMEOUT, Finished, Transport};

/// A good-bye that takes longer is cut off.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// An SQL session. Dropping it cuts the connection, whatever is in flight; [`Session::close`] ends it politely.
/// `is_closed` of the client says whether it is still there.
pub struct Session {
    /// What runs statements.
    pub client: Client,
    driver: AbortOnDropHandle<()>,
}

impl Session {
    pub(super) async fn open(endpoint: &Endpoint, application_name: &str) -> Result<Self, ConnectError> {
        timeout(CONNECT_TIMEOUT, Self::open_unbounded(endpoint, application_name))
            .await
            .unwrap_or(Err(ConnectError::TimedOut))
    }

    async fn open_unbounded(endpoint: &Endpoint, application_name: &str) -> Result<Self, ConnectError> {
        let credentials = Credentials::read(endpoint).await?;
        let transport = Transport::open(endpoint).await?;
        let mut config = Config::new();
        config
            .user(&credentials.username)
            .password(&credentials.password)
            .dbname(&endpoint.connection.database)
            .application_name(application_name);
        // The handshake is done: "direct" TLS makes tokio-postgres take the stream as it is, with its channel
        // binding.
        if transport.is_encrypted() {
            config.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
        } else {
            config.ssl_mode(SslMode::Disable);
        }
        let (client, connection) =
            config.connect_raw(transport, Finished).await.map_err(ConnectError::from_postgres)?;
        let end = endpoint.end;
        let driver = AbortOnDropHandle::new(tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%end, %error, "SQL session ended");
            }
        }));
        client.simple_query(PIN_SETTINGS).await.map_err(ConnectError::from_postgres)?;
        Ok(Self { client, driver })
    }

    /// Says good-bye and waits until the connection is closed.
    pub async fn close(self) {
        drop(self.client);
        let _cut_off_if_late = timeout(CLOSE_TIMEOUT, self.driver).await;
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("closed", &self.client.is_closed()).finish_non_exhaustive()
    }
}

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}
