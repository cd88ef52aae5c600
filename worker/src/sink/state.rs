//! How far each table is: `penstock.table_state`.

use postgres_types::{PgLsn, ToSql};
use tokio_postgres::{Error, GenericClient, Transaction};

use super::assignment::take_fence_from;
use super::catalogue::read_table;
use super::error::{failed, rows_refused};
use super::run::Run;
use super::{Sink, schema};
use crate::change::table::{SourceTable, TableName};
use crate::change::{Checkpoint, Lsn};
use crate::failpoint::{Point, reach};
use crate::failure::Failure;
use crate::incremental::KeyColumn;
use crate::postgres::Session;

/// How far a table is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableState {
    /// Its rows are being copied. Set by `ensure_tables` for a new table, and by `restart_copy`. Next: `Ready`, `CutShort`
    /// or `Stale`.
    Copying,
    /// A first load was cut short that went by ranges of a key: rows up to a key are there, as they were where the stream
    /// begins, and some of later keys. Found by `ensure_tables`. Next: `Incremental`, by `keep_copied`.
    CutShort(Progress),
    /// Its rows are being copied in ranges of its key while it is followed. Set by `begin_incremental`. Next: `Ready`, by
    /// [`Writer::note_range`](super::Writer::note_range), or `Stale`. Set by `keep_copied`, too.
    Incremental(Progress),
    /// It was ready, or nearly, and then the stream left changes of it out: its rows are copied again. Set by
    /// `copy_again`, and by `ensure_tables` when one of the two tables was made anew or a first load was cut short. Next:
    /// `Copying`, or `Incremental`.
    Stale,
    /// Its rows are copied as they were at this position: changes committed before it are in the copy, changes
    /// from it on are applied. Set by `mark_ready`. Next: none, or `Stale`.
    Ready(Lsn),
}

/// How far an incremental copy is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Columns of the key, in order.
    pub key: Vec<String>,
    /// The last key that is copied, as SQL literals; `None` before the first.
    pub last: Option<Vec<String>>,
}

impl Sink {
    /// Empties the sink table and begins its copy anew; in ranges of `key`, if there is one.
    pub async fn restart_copy(&mut self, table: &TableName, key: Option<&[String]>) -> Result<(), Failure> {
        self.empty(table, "copying", key).await
    }

    /// Empties the sink table and begins its copy in ranges of a key.
    pub async fn begin_incremental(&mut self, table: &TableName, key: &[String]) -> Result<(), Failure> {
        self.empty(table, "incremental", Some(key)).await
    }

    async fn empty(&mut self, table: &TableName, state: &str, key: Option<&[String]>) -> Result<(), Failure> {
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
        let sql = "UPDATE penstock.table_state SET state = $4, ready_lsn = NULL, copied_by = $5, copied_to = NULL, \
                       chunks_copied = 0, rows_copied = 0, updated_at = pg_catalog.now() \
                   WHERE uid = $1 AND source_schema = $2 AND source_table = $3";
        let updated = transaction
            .execute(sql, &[self.owner.key(), &table.schema, &table.name, &state, &key])
            .await
            .map_err(|error| failed(&error, &doing))?;
        if updated != 1 {
            return Err(self.run.lost());
        }
        forget_chunks(&transaction, self.owner.key(), table).await.map_err(|error| failed(&error, &doing))?;
        reach(Point::BeforeTableEmptied)?;
        transaction.commit().await.map_err(|error| failed(&error, &doing))?;
        reach(Point::AfterTableEmptied)
    }

    /// Keeps the rows of a [`CutShort`](TableState::CutShort) table up to the key `last`, as SQL literals; the rest is
    /// copied in ranges of the key.
    pub async fn keep_copied(
        &mut self,
        table: &TableName,
        key: &[KeyColumn],
        last: &[String],
    ) -> Result<(), Failure> {
        let sink = self.tables.sink_name(table);
        let doing = format!("removing rows of {sink} that are copied again");
        let transaction = fenced_transaction(&mut self.session, &self.run, &doing).await?;
        let Some(found) = read_table(&transaction, &sink).await.map_err(|error| failed(&error, &doing))?
        else {
            return Err(self.run.lost());
        };
        let (names, values) = (KeyColumn::names(key), KeyColumn::literals(key, last));
        let sql = format!("DELETE FROM {} WHERE ({names}) > ({values})", found.only());
        let removed = transaction
            .execute(&sql, &[])
            .await
            .map_err(|error| rows_refused(&error, &sink, "removing rows of"))?;
        let sql = "UPDATE penstock.table_state SET state = 'incremental', copied_to = $4, rows_copied = rows_copied - $5, \
                       updated_at = pg_catalog.now() \
                   WHERE uid = $1 AND source_schema = $2 AND source_table = $3 AND state = 'copying'";
        let updated = transaction
            .execute(sql, &[self.owner.key(), &table.schema, &table.name, &last, &removed.cast_signed()])
            .await
            .map_err(|error| failed(&error, &doing))?;
        if updated != 1 {
            return Err(self.run.lost());
        }
        forget_chunks(&transaction, self.owner.key(), table).await.map_err(|error| failed(&error, &doing))?;
        reach(Point::BeforeTableEmptied)?;
        transaction.commit().await.map_err(|error| failed(&error, &doing))?;
        reach(Point::AfterTableEmptied)
    }

    /// The table's rows are all copied, as they were at `lsn`.
    pub async fn mark_ready(&mut self, table: &TableName, lsn: Lsn) -> Result<(), Failure> {
        mark_ready(&mut self.session, &self.run, table, lsn).await
    }

    /// The stream left changes of these tables out: what was copied of them is worth nothing. Shards that write them
    /// lose the fence, and see it when they begin anew; shard 0 alone calls this.
    pub async fn copy_again(&mut self, tables: &[TableName]) -> Result<(), Failure> {
        if tables.is_empty() {
            return Ok(());
        }
        let doing = "noting which tables are to be copied again";
        let transaction = fenced_transaction(&mut self.session, &self.run, doing).await?;
        let schemas: Vec<&str> = tables.iter().map(|table| table.schema.as_str()).collect();
        let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
        let lost = "ROWS FROM (pg_catalog.unnest($2::pg_catalog.text[]), pg_catalog.unnest($3::pg_catalog.text[])) AS lost (schema, name)";
        let writers = format!(
            "SELECT DISTINCT shard FROM penstock.assignment JOIN {lost} ON (source_schema, source_table) = (lost.schema, lost.name) \
             WHERE uid = $1 AND shard <> $4"
        );
        let mark = format!(
            "UPDATE penstock.table_state SET state = 'stale', ready_lsn = NULL, copied_by = NULL, copied_to = NULL, updated_at = pg_catalog.now() FROM {lost} \
             WHERE uid = $1 AND (source_schema, source_table) = (lost.schema, lost.name)"
        );
        let (uid, own_shard) = (self.owner.key(), &self.run.shard);
        let write = async {
            let rows = transaction.query(&writers, &[uid, &schemas, &names, own_shard]).await?;
            let shards = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<i32>, _>>()?;
            // First, as their own transactions do.
            take_fence_from(&transaction, uid, &shards).await?;
            transaction.execute(&mark, &[uid, &schemas, &names]).await?;
            transaction.commit().await
        };
        write.await.map_err(|error| failed(&error, doing))
    }

    /// The shard's first position. Nothing was followed before it, so nothing that was copied before is worth anything.
    pub async fn begin_at(&mut self, checkpoint: &Checkpoint) -> Result<(), Failure> {
        let doing = "writing the first checkpoint";
        let transaction = fenced_transaction(&mut self.session, &self.run, doing).await?;
        let Checkpoint { position, end_lsn, sequence } = checkpoint;
        let forget = "UPDATE penstock.table_state AS state SET state = 'copying', ready_lsn = NULL, copied_by = NULL, copied_to = NULL, updated_at = pg_catalog.now() \
                      FROM penstock.assignment AS assignment \
                      WHERE state.uid = $1 AND assignment.uid = $1 AND assignment.shard = $2 \
                        AND (state.source_schema, state.source_table) = (assignment.source_schema, assignment.source_table)";
        let write = "UPDATE penstock.checkpoint SET sequence = $3, commit_lsn = $4, xid = $5, ordinal = $6, end_lsn = $7, \
                     updated_at = pg_catalog.clock_timestamp() WHERE uid = $1 AND shard = $2";
        let (uid, shard) = (self.run.key(), &self.run.shard);
        let (commit_lsn, end) = (PgLsn::from(position.commit_lsn.0), PgLsn::from(end_lsn.0));
        let (xid, ordinal) = (i64::from(position.xid), position.ordinal.cast_signed());
        let begin = async {
            transaction.execute(forget, &[uid, shard]).await?;
            transaction.execute(write, &[uid, shard, sequence, &commit_lsn, &xid, &ordinal, &end]).await
        };
        begin.await.map_err(|error| failed(&error, doing))?;
        reach(Point::BeforeFirstCheckpoint)?;
        transaction.commit().await.map_err(|error| failed(&error, doing))?;
        reach(Point::AfterFirstCheckpoint)
    }
}

/// The table's rows are all copied, as they were at `lsn`.
pub(super) async fn mark_ready(
    session: &mut Session,
    run: &Run,
    table: &TableName,
    lsn: Lsn,
) -> Result<(), Failure> {
    let doing = format!("noting that {table} is copied");
    let transaction = fenced_transaction(session, run, &doing).await?;
    let sql = "UPDATE penstock.table_state SET state = 'ready', ready_lsn = $4, copied_by = NULL, copied_to = NULL, \
                   updated_at = pg_catalog.now() \
               WHERE uid = $1 AND source_schema = $2 AND source_table = $3";
    let updated = transaction
        .execute(sql, &[run.key(), &table.schema, &table.name, &PgLsn::from(lsn.0)])
        .await
        .map_err(|error| failed(&error, &doing))?;
    if updated != 1 {
        return Err(run.lost());
    }
    forget_chunks(&transaction, run.key(), table).await.map_err(|error| failed(&error, &doing))?;
    reach(Point::BeforeTableReady)?;
    transaction.commit().await.map_err(|error| failed(&error, &doing))?;
    reach(Point::AfterTableReady)
}

pub(super) async fn forget_chunks(
    client: &Transaction<'_>,
    uid: &String,
    table: &TableName,
) -> Result<(), Error> {
    let sql = "DELETE FROM penstock.copied_chunk WHERE uid = $1 AND source_schema = $2 AND source_table = $3";
    client.execute(sql, &[uid, &table.schema, &table.name]).await.map(drop)
}

/// A transaction that holds the fence.
pub(super) async fn fenced_transaction<'a>(
    session: &'a mut Session,
    run: &Run,
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
    session: &'a mut Session,
    run: &Run,
    doing: &str,
) -> Result<Transaction<'a>, Failure> {
    let transaction = session.transaction().await.map_err(|error| failed(&error, doing))?;
    transaction.batch_execute(schema::DDL_LOCK).await.map_err(|error| failed(&error, doing))?;
    if !run.hold_shared(&transaction).await.map_err(|error| failed(&error, doing))? {
        return Err(run.lost());
    }
    Ok(transaction)
}

/// What is kept about one table: where it is written, and how far it is. `Stale` if either table is not the one that
/// it is kept about, or a first load of it was cut short of which nothing can be kept.
pub(super) async fn read_state(
    client: &impl GenericClient,
    uid: &String,
    table: &SourceTable,
) -> Result<Option<(TableName, TableState)>, Error> {
    let sql = "SELECT state.sink_schema, state.sink_table, state.ready_lsn, state.copied_by, \
                   coalesce(state.copied_to, chunk.up_to), state.state = 'stale' \
                   OR (state.state = 'copying' AND state.chunks_copied > 0 AND chunk.up_to IS NULL) OR state.source_oid <> $4 \
                   OR NOT EXISTS (SELECT FROM pg_catalog.pg_class AS class \
                       JOIN pg_catalog.pg_namespace AS schema ON schema.oid = class.relnamespace \
                       WHERE schema.nspname = state.sink_schema AND class.relname = state.sink_table \
                         AND class.oid::pg_catalog.int8 = state.sink_oid), \
                   state.state = 'incremental' \
               FROM penstock.table_state AS state \
               LEFT JOIN LATERAL ( \
                   SELECT chunk.up_to FROM ( \
                       SELECT number, up_to, row_number() OVER (ORDER BY number) - 1 AS place \
                       FROM penstock.copied_chunk \
                       WHERE (uid, source_schema, source_table) = (state.uid, state.source_schema, state.source_table)) AS chunk \
                   WHERE chunk.number = chunk.place ORDER BY chunk.number DESC LIMIT 1) AS chunk \
                   ON state.state = 'copying' AND state.copied_by IS NOT NULL \
               WHERE state.uid = $1 AND state.source_schema = $2 AND state.source_table = $3";
    let TableName { schema, name } = &table.name;
    let Some(row) = client.query_opt(sql, &[uid, schema, name, &i64::from(table.id.0)]).await? else {
        return Ok(None);
    };
    let sink = TableName::new(row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?);
    let (ready, is_stale): (Option<PgLsn>, bool) = (row.try_get(2)?, row.try_get(5)?);
    let key: Option<Vec<String>> = row.try_get(3)?;
    let state = match (ready, key) {
        _ if is_stale => TableState::Stale,
        (Some(lsn), _) => TableState::Ready(Lsn(lsn.into())),
        (None, Some(key)) => {
            let progress = Progress { key, last: row.try_get(4)? };
            match (row.try_get(6)?, &progress.last) {
                (true, _) => TableState::Incremental(progress),
                (false, Some(_)) => TableState::CutShort(progress),
                (false, None) => TableState::Copying,
            }
        }
        (None, None) => TableState::Copying,
    };
    Ok(Some((sink, state)))
}

/// Writes what is kept about a table whose rows are not there: `copying` or `stale`.
pub(super) async fn write_state(
    transaction: &Transaction<'_>,
    uid: &String,
    source: &SourceTable,
    sink: &TableName,
    state: &str,
) -> Result<(), Error> {
    let sql = "INSERT INTO penstock.table_state (uid, source_schema, source_table, sink_schema, sink_table, source_oid, \
                   sink_oid, state, steps) \
               SELECT $1, $2, $3, schema.nspname, class.relname, $6, class.oid::pg_catalog.int8, $7, $8 \
               FROM pg_catalog.pg_class AS class JOIN pg_catalog.pg_namespace AS schema ON schema.oid = class.relnamespace \
               WHERE schema.nspname = $4::pg_catalog.text::pg_catalog.name AND class.relname = $5::pg_catalog.text::pg_catalog.name \
               ON CONFLICT (uid, source_schema, source_table) DO UPDATE SET sink_schema = excluded.sink_schema, \
                   sink_table = excluded.sink_table, source_oid = excluded.source_oid, \
                   sink_oid = excluded.sink_oid, state = excluded.state, ready_lsn = NULL, copied_by = NULL, copied_to = NULL, chunks_copied = 0, \
                   rows_copied = 0, steps = excluded.steps, updated_at = excluded.updated_at";
    let TableName { schema, name } = &source.name;
    let (id, steps) = (i64::from(source.id.0), source.steps.to_note());
    let parameters: [&(dyn ToSql + Sync); 8] =
        [uid, schema, name, &sink.schema, &sink.name, &id, &state, &steps];
    transaction.execute(sql, &parameters).await.map(drop)
}

/// Notes that the same is done to the rows, written in another way.
pub(super) async fn note_steps(
    transaction: &Transaction<'_>,
    uid: &String,
    source: &SourceTable,
) -> Result<(), Error> {
    let sql = "UPDATE penstock.table_state SET steps = $4 WHERE uid = $1 AND source_schema = $2 AND source_table = $3";
    let TableName { schema, name } = &source.name;
    transaction.execute(sql, &[uid, schema, name, &source.steps.to_note()]).await.map(drop)
}
