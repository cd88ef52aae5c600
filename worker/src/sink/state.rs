//! How far each table is: `penstock.table_state`, and which shard has it: `penstock.assignment`.

use std::collections::BTreeMap;

use postgres_types::PgLsn;
use tokio_postgres::{Error, Transaction};

use super::catalogue::read_table;
use super::error::{failed, rows_refused};
use super::{Sink, ownership, schema};
use crate::change::Lsn;
use crate::change::table::{SourceTable, TableName};
use crate::failure::Failure;

/// How far a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableState {
    /// Its rows are being copied. Set by `ensure_tables` for a new table, and by `restart_copy`. Next: `Ready`.
    Copying,
    /// Its rows are copied as they were at this position: changes committed before it are in the copy, changes
    /// from it on are applied. Set by `mark_ready`; the last state.
    Ready(Lsn),
}

impl Sink {
    /// Empties the sink table and begins its copy anew.
    pub async fn restart_copy(&mut self, table: &TableName) -> Result<(), Failure> {
        let sink = self.tables.sink_name(table);
        let doing = format!("emptying the sink table {sink}");
        let transaction = fenced_transaction(&mut self.session, &self.run, &doing).await?;
        let emptied = async {
            let Some(found) = read_table(&transaction, &sink).await? else { return Ok(()) };
            let only = found.only();
            // A table that others refer to by foreign key cannot be truncated, but is empty the first time.
            let look = format!("SELECT EXISTS (SELECT FROM {only})");
            if transaction.query_one(&look, &[]).await?.try_get(0)? {
                transaction.batch_execute(&format!("TRUNCATE TABLE {only}")).await?;
            }
            Ok(())
        };
        emptied.await.map_err(|error| rows_refused(&error, &sink, "emptying"))?;
        let sql = "UPDATE penstock.table_state SET state = 'copying', ready_lsn = NULL, chunks_copied = 0, rows_copied = 0, \
                       updated_at = pg_catalog.now() \
                   WHERE uid = $1 AND source_schema = $2 AND source_table = $3";
        let updated = transaction
            .execute(sql, &[&self.owner.uid, &table.schema, &table.name])
            .await
            .map_err(|error| failed(&error, &doing))?;
        if updated != 1 {
            return Err(self.run.lost());
        }
        transaction.commit().await.map_err(|error| failed(&error, &doing))
    }

    /// The table's rows are all copied, as they were at `lsn`.
    pub async fn mark_ready(&mut self, table: &TableName, lsn: Lsn) -> Result<(), Failure> {
        let doing = format!("noting that {table} is copied");
        let transaction = fenced_transaction(&mut self.session, &self.run, &doing).await?;
        let sql = "UPDATE penstock.table_state SET state = 'ready', ready_lsn = $4, updated_at = pg_catalog.now() \
                   WHERE uid = $1 AND source_schema = $2 AND source_table = $3";
        let updated = transaction
            .execute(sql, &[&self.owner.uid, &table.schema, &table.name, &PgLsn::from(lsn.0)])
            .await
            .map_err(|error| failed(&error, &doing))?;
        if updated != 1 {
            return Err(self.run.lost());
        }
        transaction.commit().await.map_err(|error| failed(&error, &doing))
    }

    /// Which shard has which table, as written by shard 0; empty before.
    pub async fn assignment(&self) -> Result<BTreeMap<TableName, u16>, Failure> {
        let sql = "SELECT source_schema, source_table, shard FROM penstock.assignment WHERE uid = $1";
        let read = async {
            let rows = self.session.query(sql, &[&self.owner.uid]).await?;
            rows.iter()
                .map(|row| {
                    let shard: i32 = row.try_get(2)?;
                    let name = TableName::new(row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?);
                    Ok((name, u16::try_from(shard).unwrap_or(u16::MAX)))
                })
                .collect::<Result<_, Error>>()
        };
        read.await.map_err(|error: Error| failed(&error, "reading the assignment of tables to shards"))
    }

    /// Writes the assignment; shard 0 alone does. A table keeps the shard it has. Tables that are not named any
    /// more lose shard and state, and their sink tables are free for another pipeline.
    pub async fn assign(&mut self, wanted: &BTreeMap<TableName, u16>) -> Result<(), Failure> {
        let doing = "assigning tables to shards";
        let Self { session, run, owner, .. } = self;
        let transaction = fenced_transaction(session, run, doing).await?;
        let write = async {
            for (table, shard) in wanted {
                let sql = "INSERT INTO penstock.assignment (uid, source_schema, source_table, shard) \
                           VALUES ($1, $2, $3, $4) ON CONFLICT (uid, source_schema, source_table) DO NOTHING";
                transaction
                    .execute(sql, &[&owner.uid, &table.schema, &table.name, &i32::from(*shard)])
                    .await?;
            }
            for table in known_tables(&transaction, &owner.uid).await? {
                if !wanted.contains_key(&table) {
                    forget(&transaction, &owner.uid, &table).await?;
                    ownership::release(&transaction, owner, &table, None).await?;
                }
            }
            transaction.commit().await
        };
        write.await.map_err(|error| failed(&error, doing))
    }
}

async fn known_tables(transaction: &Transaction<'_>, uid: &String) -> Result<Vec<TableName>, Error> {
    let sql = "SELECT source_schema, source_table FROM penstock.assignment WHERE uid = $1 \
               UNION SELECT source_schema, source_table FROM penstock.table_state WHERE uid = $1";
    let rows = transaction.query(sql, &[uid]).await?;
    rows.iter()
        .map(|row| Ok(TableName::new(row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?)))
        .collect()
}

async fn forget(transaction: &Transaction<'_>, uid: &String, table: &TableName) -> Result<(), Error> {
    for list in ["assignment", "table_state"] {
        let sql = format!(
            "DELETE FROM penstock.{list} WHERE uid = $1 AND source_schema = $2 AND source_table = $3"
        );
        transaction.execute(&sql, &[uid, &table.schema, &table.name]).await?;
    }
    Ok(())
}

/// A transaction that holds the fence.
pub(super) async fn fenced_transaction<'a>(
    session: &'a mut crate::postgres::Session,
    run: &super::run::Run,
    doing: &str,
) -> Result<Transaction<'a>, Failure> {
    let transaction = session.transaction().await.map_err(|error| failed(&error, doing))?;
    if !run.hold_shared(&transaction).await.map_err(|error| failed(&error, doing))? {
        return Err(run.lost());
    }
    Ok(transaction)
}

/// The same, alone among all that make or remove objects in the sink. That lock comes first, so that nobody waits
/// for it with a fence in hand.
pub(super) async fn fenced_ddl_transaction<'a>(
    session: &'a mut crate::postgres::Session,
    run: &super::run::Run,
    doing: &str,
) -> Result<Transaction<'a>, Failure> {
    let transaction = session.transaction().await.map_err(|error| failed(&error, doing))?;
    transaction.batch_execute(schema::DDL_LOCK).await.map_err(|error| failed(&error, doing))?;
    if !run.hold_shared(&transaction).await.map_err(|error| failed(&error, doing))? {
        return Err(run.lost());
    }
    Ok(transaction)
}

/// What is kept about one table: where it is written, and how far it is.
pub(super) async fn read_state(
    transaction: &Transaction<'_>,
    uid: &String,
    table: &SourceTable,
) -> Result<Option<(TableName, TableState)>, Error> {
    let sql = "SELECT state.sink_schema, state.sink_table, state.ready_lsn FROM penstock.table_state AS state \
               JOIN pg_catalog.pg_namespace AS schema ON schema.nspname = state.sink_schema \
               JOIN pg_catalog.pg_class AS class ON class.relnamespace = schema.oid \
                   AND class.relname = state.sink_table AND class.oid::pg_catalog.int8 = state.sink_oid \
               WHERE state.uid = $1 AND state.source_schema = $2 AND state.source_table = $3 AND state.source_oid = $4";
    let TableName { schema, name } = &table.name;
    let Some(row) = transaction.query_opt(sql, &[uid, schema, name, &i64::from(table.id.0)]).await? else {
        return Ok(None);
    };
    let sink = TableName::new(row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?);
    let ready: Option<PgLsn> = row.try_get(2)?;
    let state = ready.map_or(TableState::Copying, |lsn| TableState::Ready(Lsn(lsn.into())));
    Ok(Some((sink, state)))
}

/// A new table, or one that goes to another sink table now.
pub(super) async fn write_copying(
    transaction: &Transaction<'_>,
    uid: &String,
    source: &SourceTable,
    sink: &TableName,
) -> Result<(), Error> {
    let sql = "INSERT INTO penstock.table_state (uid, source_schema, source_table, sink_schema, sink_table, source_oid, \
                   sink_oid, state) \
               SELECT $1, $2, $3, schema.nspname, class.relname, $6, class.oid::pg_catalog.int8, 'copying' \
               FROM pg_catalog.pg_class AS class JOIN pg_catalog.pg_namespace AS schema ON schema.oid = class.relnamespace \
               WHERE schema.nspname = $4::pg_catalog.text::pg_catalog.name AND class.relname = $5::pg_catalog.text::pg_catalog.name \
               ON CONFLICT (uid, source_schema, source_table) DO UPDATE SET sink_schema = excluded.sink_schema, \
                   sink_table = excluded.sink_table, source_oid = excluded.source_oid, \
                   sink_oid = excluded.sink_oid, state = 'copying', ready_lsn = NULL, chunks_copied = 0, \
                   rows_copied = 0, updated_at = excluded.updated_at";
    let TableName { schema, name } = &source.name;
    let id = i64::from(source.id.0);
    transaction.execute(sql, &[uid, schema, name, &sink.schema, &sink.name, &id]).await.map(drop)
}
