//! The publication: which tables the source puts into the stream.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::{Client, Transaction};
use tracing::info;

use super::error::SourceError;
use super::horizon::{Horizon, Look};
use super::published::Published;
use super::slot::short_uid;
use crate::change::PublishedAs;
use crate::change::table::{SourceTable, TableName, quote_identifier};
use crate::failpoint::{Point, reach};

/// What a publication of ours is made with.
const OPTIONS: &str = "publish = 'insert, update, delete, truncate', publish_via_partition_root = true";
/// How long transactions that began before a table was added may go on.
const OLD_TRANSACTIONS_TIMEOUT: Duration = Duration::from_mins(10);
const OLD_TRANSACTIONS_POLL: Duration = Duration::from_millis(250);
const OLD_TRANSACTIONS_LOG: Duration = Duration::from_secs(10);

/// Name of a publication.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PublicationName(String);

impl PublicationName {
    /// The publication that a pipeline makes and keeps: `penstock_<first 8 hex digits of SHA-256(UID)>`.
    pub fn of_pipeline(uid: &str) -> Self {
        Self(format!("penstock_{}", short_uid(uid)))
    }

    /// A publication that somebody else keeps.
    pub fn given(name: &str) -> Self {
        Self(name.to_owned())
    }

    /// As PostgreSQL stores it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn quoted(&self) -> String {
        quote_identifier(&self.0)
    }
}

impl fmt::Display for PublicationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Makes the publication publish exactly these tables (managed), or checks that it does (given). Idempotent.
///
/// After tables were added it waits until every transaction that was running has ended: what such a transaction
/// wrote before is not published. A caller that is interrupted in the wait loses nothing by not coming back to
/// it, because the slot that gives a later copy its snapshot waits for the same transactions.
pub async fn ensure_publication(
    client: &mut Client,
    name: &PublicationName,
    tables: &[SourceTable],
    is_managed: bool,
) -> Result<(), SourceError> {
    if !is_managed {
        return match Published::read(client, name).await? {
            Some(published) => published.check(name, tables),
            None => Err(unsuitable(name, "does not exist", &create_statement(name, tables))),
        };
    }
    if alter(client, name, tables).await? {
        wait_for_old_transactions(client, name).await?;
    }
    Ok(())
}

/// The tables of which the publication, as it is now, carries every change, and by which entry.
pub async fn carried_tables(
    client: &Client,
    name: &PublicationName,
    tables: &[SourceTable],
) -> Result<BTreeMap<TableName, PublishedAs>, SourceError> {
    let Some(published) = Published::read(client, name).await? else { return Ok(BTreeMap::new()) };
    let carried = tables.iter().filter(|table| published.carries(table));
    Ok(carried.filter_map(|table| Some((table.name.clone(), published.entry(&table.name)?))).collect())
}

/// Removes the publication if it is there.
pub async fn drop_publication(client: &Client, name: &PublicationName) -> Result<(), SourceError> {
    client
        .batch_execute(&format!("DROP PUBLICATION IF EXISTS {}", name.quoted()))
        .await
        .map_err(|error| SourceError::sql(&error, "dropping its publication"))
}

/// Creates or alters the publication, one worker at a time; says whether tables were added to an existing one.
async fn alter(
    client: &mut Client,
    name: &PublicationName,
    tables: &[SourceTable],
) -> Result<bool, SourceError> {
    let failed = |error: tokio_postgres::Error| SourceError::sql(&error, "keeping the publication");
    let transaction = client.transaction().await.map_err(failed)?;
    lock(&transaction, name).await.map_err(failed)?;
    let has_added = match Published::read(transaction.client(), name).await? {
        None => {
            transaction.batch_execute(&create_statement(name, tables)).await.map_err(failed)?;
            true
        }
        Some(published) => {
            let wanted: BTreeSet<&TableName> = tables.iter().map(|table| &table.name).collect();
            let is_same = published.tables.iter().eq(wanted.iter().copied());
            if !is_same || published.has_other_selection {
                transaction.batch_execute(&set_tables_statement(name, tables)).await.map_err(failed)?;
            }
            if !published.has_all_options {
                let sql = format!("ALTER PUBLICATION {} SET ({OPTIONS})", name.quoted());
                transaction.batch_execute(&sql).await.map_err(failed)?;
            }
            wanted.iter().any(|table| !published.tables.contains(table))
                || published.has_other_selection
                || !published.has_all_options
        }
    };
    reach(Point::BeforePublication)?;
    transaction.commit().await.map_err(failed)?;
    reach(Point::AfterPublication)?;
    Ok(has_added)
}

/// Workers of several shards come here at the same time.
async fn lock(transaction: &Transaction<'_>, name: &PublicationName) -> Result<(), tokio_postgres::Error> {
    let sql = "SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended($1, 0))";
    transaction.execute(sql, &[&format!("penstock publication {name}")]).await.map(|_| ())
}

fn create_statement(name: &PublicationName, tables: &[SourceTable]) -> String {
    format!("CREATE PUBLICATION {} FOR TABLE {} WITH ({OPTIONS})", name.quoted(), table_list(tables))
}

fn set_tables_statement(name: &PublicationName, tables: &[SourceTable]) -> String {
    format!("ALTER PUBLICATION {} SET TABLE {}", name.quoted(), table_list(tables))
}

/// ONLY: children by inheritance are tables of their own.
pub(super) fn table_list(tables: &[SourceTable]) -> String {
    tables.iter().map(|table| format!("ONLY {}", table.name.quoted())).collect::<Vec<_>>().join(", ")
}

pub(super) fn unsuitable(name: &PublicationName, problem: &str, statement: &str) -> SourceError {
    let (publication, problem, statement) = (name.clone(), problem.to_owned(), statement.to_owned());
    SourceError::PublicationUnsuitable { publication, problem, statement }
}

/// Waits until every transaction that has an id by now has ended.
async fn wait_for_old_transactions(client: &Client, name: &PublicationName) -> Result<(), SourceError> {
    let failed = |error: tokio_postgres::Error| SourceError::sql(&error, "waiting for old transactions");
    let horizon = Horizon::now(client).await.map_err(failed)?;
    let started = Instant::now();
    let mut next_log = started + OLD_TRANSACTIONS_LOG;
    loop {
        let Look { is_over, oldest, .. } = horizon.look(client).await.map_err(failed)?;
        if is_over {
            return Ok(());
        }
        if started.elapsed() > OLD_TRANSACTIONS_TIMEOUT {
            return Err(SourceError::OldTransactions { publication: name.clone(), oldest });
        }
        if Instant::now() >= next_log {
            info!(publication = %name, %oldest, "tables were added: waiting for transactions that began before");
            next_log += OLD_TRANSACTIONS_LOG;
        }
        sleep(OLD_TRANSACTIONS_POLL).await;
    }
}
