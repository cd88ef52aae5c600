//! Tables that a person wants copied again, while the pipeline runs.

use penstock_crds::table_pattern::TablePattern;
use tokio_postgres::{Error, Transaction};

use super::assignment::take_fence_from;
use super::error::failed;
use super::schema::has_table;
use super::session::{self, Purpose};
use crate::change::table::TableName;
use crate::failure::Failure;
use crate::postgres::Endpoint;

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resnapshotted {
    /// Tables that are copied again.
    pub meant: Vec<TableName>,
    /// Tables that the pipeline has.
    pub known: Vec<TableName>,
    /// The token was carried out before, and nothing was done.
    pub was_done: bool,
}

/// Notes that the tables are to be copied from their beginning; the runs that write them lose the fence and begin anew.
/// With a token once only.
pub async fn resnapshot(
    endpoint: &Endpoint,
    uid: &str,
    patterns: &[TablePattern],
    token: Option<&str>,
) -> Result<Resnapshotted, Failure> {
    let mut session = session::open(endpoint, "penstock resnapshot", Purpose::Control).await?;
    let mark = async {
        if !has_table(&session.client, "version").await? {
            return Ok(Resnapshotted::default());
        }
        let transaction = session.transaction().await?;
        // As every transaction of a worker does, the fence first.
        let lock = "SELECT shard FROM penstock.checkpoint WHERE uid = $1 ORDER BY shard FOR NO KEY UPDATE";
        let rows = transaction.query(lock, &[&uid]).await?;
        let shards = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<i32>, _>>()?;
        if let Some(token) = token
            && !is_new(&transaction, uid, token).await?
        {
            return Ok(Resnapshotted { was_done: true, ..Resnapshotted::default() });
        }
        let known = known_tables(&transaction, uid).await?;
        let is_meant = |table: &&TableName| patterns.iter().any(|p| p.matches(&table.schema, &table.name));
        let meant: Vec<TableName> = known.iter().filter(is_meant).cloned().collect();
        for table in &meant {
            let sql = "UPDATE penstock.table_state SET state = 'stale', ready_lsn = NULL, copied_by = NULL, copied_to = NULL, \
                           updated_at = pg_catalog.now() \
                       WHERE uid = $1 AND source_schema = $2 AND source_table = $3";
            transaction.execute(sql, &[&uid, &table.schema, &table.name]).await?;
        }
        if !meant.is_empty() {
            take_fence_from(&transaction, &uid.to_owned(), &shards).await?;
        }
        transaction.commit().await?;
        Ok(Resnapshotted { meant, known, was_done: false })
    };
    mark.await.map_err(|error: Error| failed(&error, "noting which tables are to be copied again"))
}

/// Notes the token; `false` when it was there.
async fn is_new(transaction: &Transaction<'_>, uid: &str, token: &str) -> Result<bool, Error> {
    let sql = "INSERT INTO penstock.resnapshot (uid, token) VALUES ($1, $2) ON CONFLICT DO NOTHING";
    Ok(transaction.execute(sql, &[&uid, &token]).await? == 1)
}

async fn known_tables(transaction: &Transaction<'_>, uid: &str) -> Result<Vec<TableName>, Error> {
    let sql = "SELECT source_schema, source_table FROM penstock.table_state WHERE uid = $1 ORDER BY 1, 2";
    let rows = transaction.query(sql, &[&uid]).await?;
    rows.iter()
        .map(|row| Ok(TableName::new(row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?)))
        .collect()
}
