//! A connection that a test can use without looking after its background task.

use std::ops::Deref;

use anyhow::{Context, Result};
use tokio::task::JoinHandle;
use tokio_postgres::{Config, NoTls, SimpleQueryMessage};

/// A row as text, `None` for NULL: what `psql` would show.
pub type TextRow = Vec<Option<String>>;

/// A plain connection. It derefs to [`tokio_postgres::Client`] and closes when dropped.
#[derive(Debug)]
pub struct Client {
    client: tokio_postgres::Client,
    driver: JoinHandle<()>,
}

impl Client {
    /// Connects without TLS.
    pub async fn connect(config: &Config) -> Result<Self> {
        let (client, connection) = config.connect(NoTls).await.context("cannot connect to PostgreSQL")?;
        // How a connection ends shows in the next query on it.
        let driver = tokio::spawn(async move { drop(connection.await) });
        Ok(Self { client, driver })
    }

    /// Runs statements as one simple query, without parameters.
    pub async fn run(&self, sql: &str) -> Result<()> {
        self.client.batch_execute(sql).await.with_context(|| format!("cannot run `{sql}`"))
    }

    /// Runs one query and returns its rows as text.
    pub async fn rows(&self, sql: &str) -> Result<Vec<TextRow>> {
        let messages = self.client.simple_query(sql).await.with_context(|| format!("cannot run `{sql}`"))?;
        let mut rows = Vec::new();
        for message in messages {
            if let SimpleQueryMessage::Row(row) = message {
                rows.push((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect());
            }
        }
        Ok(rows)
    }

    /// First value of the first row as text.
    pub async fn value(&self, sql: &str) -> Result<String> {
        let first = self.rows(sql).await?.into_iter().next().and_then(|row| row.into_iter().next());
        first.flatten().with_context(|| format!("`{sql}` returned no value"))
    }
}

impl Deref for Client {
    type Target = tokio_postgres::Client;

    fn deref(&self) -> &Self::Target {
        &self.client
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
