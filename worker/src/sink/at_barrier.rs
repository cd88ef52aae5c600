//! The sink as it is at a barrier: what a shard's snapshot holds.

use postgres_types::PgLsn;
use tokio_postgres::{Error, Row};

use super::error::failed;
use super::session::{self, Purpose};
use crate::change::table::{TableName, quote_literal};
use crate::change::{Lsn, Steps};
use crate::failure::Failure;
use crate::postgres::{Endpoint, Session};

const DOING: &str = "reading the sink as it is at a barrier";

/// A table of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableAtBarrier {
    /// Name in the source.
    pub source: TableName,
    /// Name in the sink.
    pub sink: TableName,
    /// OID in the source.
    pub source_oid: u32,
    /// Its rows are copied as they were before the barrier, and followed, and the sink table is the one that they were
    /// copied into.
    pub is_followed: bool,
    /// The sink table has partitions.
    pub is_partitioned: bool,
    /// Columns of the sink table that are not computed there.
    pub columns: Vec<String>,
    /// What was done to its rows on their way; `None` where that cannot be read.
    pub steps: Option<Steps>,
}

/// Sessions at the snapshot, in transactions that read only.
///
/// # Errors
/// The shard let the snapshot go. The sink does not answer or refuses.
pub async fn open_at_barrier(
    endpoint: &Endpoint,
    snapshot: &str,
    count: usize,
) -> Result<Vec<Session>, Failure> {
    let begin = format!(
        "SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0; \
         BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET TRANSACTION SNAPSHOT {}",
        quote_literal(snapshot)
    );
    let open = (0..count.max(1)).map(async |_| {
        let session = session::open(endpoint, "penstock compare", Purpose::Control).await?;
        session.batch_execute(&begin).await.map_err(|error| failed(&error, DOING))?;
        Ok(session)
    });
    futures::future::try_join_all(open).await
}

/// Sessions that see the sink as it is now, in transactions that read only.
///
/// # Errors
/// The sink does not answer or refuses.
pub async fn open_now(endpoint: &Endpoint, count: usize) -> Result<Vec<Session>, Failure> {
    let open = (0..count.max(1)).map(async |_| {
        let session = session::open(endpoint, "penstock compare", Purpose::Control).await?;
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY";
        session.batch_execute(begin).await.map_err(|error| failed(&error, DOING))?;
        Ok(session)
    });
    futures::future::try_join_all(open).await
}

/// Whether the shard's checkpoint in the snapshot is this one.
///
/// # Errors
/// The sink does not answer.
pub async fn is_at_barrier(
    session: &Session,
    uid: &str,
    shard: u16,
    commit: Lsn,
    sequence: i64,
) -> Result<bool, Failure> {
    let sql =
        "SELECT FROM penstock.checkpoint WHERE uid = $1 AND shard = $2 AND commit_lsn = $3 AND sequence = $4";
    let found = session.query_opt(sql, &[&uid, &i32::from(shard), &PgLsn::from(commit.0), &sequence]).await;
    Ok(found.map_err(|error| failed(&error, DOING))?.is_some())
}

/// The tables of a shard, as the snapshot knows them.
///
/// # Errors
/// The sink does not answer.
pub async fn tables_at_barrier(
    session: &Session,
    uid: &str,
    shard: u16,
) -> Result<Vec<TableAtBarrier>, Failure> {
    let sql = "SELECT state.source_schema, state.source_table, state.sink_schema, state.sink_table, \
                   state.source_oid::pg_catalog.oid, \
                   state.state = 'ready' AND state.ready_lsn <= checkpoint.commit_lsn AND class.oid IS NOT NULL, \
                   class.relkind IS NOT DISTINCT FROM 'p', \
                   ARRAY(SELECT a.attname::pg_catalog.text FROM pg_catalog.pg_attribute AS a \
                         WHERE a.attrelid = class.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''), state.steps \
               FROM penstock.table_state AS state JOIN penstock.assignment AS assignment \
                 ON (assignment.uid, assignment.source_schema, assignment.source_table) = (state.uid, state.source_schema, state.source_table) \
               JOIN penstock.checkpoint AS checkpoint ON (checkpoint.uid, checkpoint.shard) = (assignment.uid, assignment.shard) \
               LEFT JOIN (pg_catalog.pg_class AS class JOIN pg_catalog.pg_namespace AS schema ON schema.oid = class.relnamespace) \
                 ON schema.nspname = state.sink_schema AND class.relname = state.sink_table \
                    AND class.oid::pg_catalog.int8 = state.sink_oid \
               WHERE state.uid = $1 AND assignment.shard = $2";
    let read = async {
        let rows = session.query(sql, &[&uid, &i32::from(shard)]).await?;
        rows.iter().map(table).collect::<Result<_, Error>>()
    };
    read.await.map_err(|error| failed(&error, DOING))
}

/// What names the rows of a table in the sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyAtBarrier {
    /// Columns of the primary key; empty without one.
    pub columns: Vec<String>,
    /// Their types come with every server.
    pub is_built_in: bool,
    /// Rows of the table, as the sink's statistics estimate them.
    pub estimated_rows: u64,
}

/// What names the rows of a table.
///
/// # Errors
/// The sink does not answer.
pub async fn key_at_barrier(session: &Session, table: &TableName) -> Result<KeyAtBarrier, Failure> {
    let sql = "SELECT ARRAY(SELECT a.attname::pg_catalog.text FROM pg_catalog.pg_index AS i \
                   CROSS JOIN LATERAL pg_catalog.unnest(i.indkey::pg_catalog.int2[]) WITH ORDINALITY AS k (attnum, place) \
                   JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = k.attnum \
                   WHERE i.indrelid = c.oid AND i.indisprimary AND k.place <= i.indnkeyatts ORDER BY k.place), \
                   NOT EXISTS (SELECT FROM pg_catalog.pg_index AS i JOIN pg_catalog.pg_attribute AS a \
                       ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey) \
                       WHERE i.indrelid = c.oid AND i.indisprimary AND a.atttypid >= 16384), \
                   c.reltuples::pg_catalog.int8 \
               FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
               WHERE n.nspname = $1 AND c.relname = $2";
    let read = async {
        let row = session.query_one(sql, &[&table.schema, &table.name]).await?;
        let rows: i64 = row.try_get(2)?;
        Ok(KeyAtBarrier {
            columns: row.try_get(0)?,
            is_built_in: row.try_get(1)?,
            estimated_rows: u64::try_from(rows).unwrap_or_default(),
        })
    };
    read.await.map_err(|error: Error| failed(&error, DOING))
}

fn table(row: &Row) -> Result<TableAtBarrier, Error> {
    Ok(TableAtBarrier {
        source: TableName::new(row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?),
        sink: TableName::new(row.try_get::<_, String>(2)?, row.try_get::<_, String>(3)?),
        source_oid: row.try_get(4)?,
        is_followed: row.try_get(5)?,
        is_partitioned: row.try_get(6)?,
        columns: row.try_get(7)?,
        steps: Steps::noted(row.try_get(8)?),
    })
}
