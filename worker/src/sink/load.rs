//! The first load: chunks of rows, each in a transaction of its own, straight from the source's COPY.

use std::fmt;

use bytes::Bytes;
use futures::{SinkExt as _, Stream, StreamExt as _};

use super::ddl::column_list;
use super::error::{failed, rows_refused};
use super::owner::TableMap;
use super::run::Run;
use super::state::{fenced_transaction, mark_ready};
use crate::change::Lsn;
use crate::change::table::TableName;
use crate::change::travel::Format;
use crate::failpoint::{Point, reach};
use crate::failure::Failure;
use crate::postgres::Session;

/// A session that copies chunks of the first load.
pub struct Loader {
    session: Session,
    run: Run,
    tables: TableMap,
}

impl Loader {
    pub(super) fn new(session: Session, run: Run, tables: TableMap) -> Self {
        Self { session, run, tables }
    }

    /// Copies one chunk into the sink table of `table` and notes it, and where it ends; all of it or nothing. `chunks` is
    /// the data of the source's COPY, with these columns in this order. Returns the rows.
    ///
    /// # Errors
    /// Whatever `chunks` yields; `Fenced`, also if the table is not being copied any more; errors of the sink.
    pub async fn load_chunk(
        &mut self,
        table: &TableName,
        columns: &[String],
        format: Format,
        end: Option<ChunkEnd<'_>>,
        chunks: impl Stream<Item = Result<Bytes, Failure>>,
    ) -> Result<u64, Failure> {
        let sink = self.tables.sink_name(table);
        let doing = format!("copying rows into {sink}");
        let transaction = fenced_transaction(&mut self.session, &self.run, &doing).await?;
        let sql = copy_sql(&sink, columns, format);
        let refused = |error| rows_refused(&error, &sink, "copying into");
        let copy = transaction.copy_in::<_, Bytes>(&sql).await.map_err(refused)?;
        let mut copy = std::pin::pin!(copy);
        let mut chunks = std::pin::pin!(chunks);
        while let Some(chunk) = chunks.next().await {
            copy.send(chunk?).await.map_err(refused)?;
        }
        let rows = copy.finish().await.map_err(refused)?;
        let note = "UPDATE penstock.table_state SET chunks_copied = chunks_copied + 1, rows_copied = rows_copied + $4, \
                        updated_at = pg_catalog.now() \
                    WHERE uid = $1 AND source_schema = $2 AND source_table = $3 AND state = 'copying'";
        let noted = transaction
            .execute(note, &[self.run.key(), &table.schema, &table.name, &rows.cast_signed()])
            .await
            .map_err(|error| failed(&error, &doing))?;
        if noted != 1 {
            return Err(self.run.lost());
        }
        if let Some(ChunkEnd { number, key }) = end {
            let note = "INSERT INTO penstock.copied_chunk (uid, source_schema, source_table, number, up_to) \
                        VALUES ($1, $2, $3, $4, $5)";
            transaction
                .execute(note, &[self.run.key(), &table.schema, &table.name, &i64::from(number), &key])
                .await
                .map_err(|error| failed(&error, &doing))?;
        }
        reach(Point::BeforeChunkCommit)?;
        transaction.commit().await.map_err(|error| failed(&error, &doing))?;
        reach(Point::AfterChunkCommit)?;
        Ok(rows)
    }

    /// The table's rows are all copied, as they were at `lsn`.
    ///
    /// # Errors
    /// `Fenced`; errors of the sink.
    pub async fn mark_ready(&mut self, table: &TableName, lsn: Lsn) -> Result<(), Failure> {
        mark_ready(&mut self.session, &self.run, table, lsn).await
    }
}

/// Where a chunk ends that is a range of a key.
#[derive(Clone, Copy, Debug)]
pub struct ChunkEnd<'a> {
    /// Its place among the chunks of the table.
    pub number: u32,
    /// The last key of it, as SQL literals.
    pub key: &'a [String],
}

fn copy_sql(sink: &TableName, columns: &[String], format: Format) -> String {
    format!("COPY {} ({}) FROM STDIN ({})", sink.quoted(), column_list(columns), format.copy_options())
}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader").field("run", &self.run).finish_non_exhaustive()
    }
}
