//! What is noted of an incremental copy, in the transactions that write its rows.

use postgres_types::PgLsn;

use super::Writer;
use super::error::failed;
use crate::change::Lsn;
use crate::change::table::TableName;
use crate::failpoint::{Point, reach};
use crate::failure::Failure;

/// A range of a table whose rows are in the open transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopiedRange {
    /// The table.
    pub table: TableName,
    /// Rows in it.
    pub rows: u64,
    /// The last key as SQL literals; `None`: it was the last range.
    pub last: Option<Vec<String>>,
    /// Changes committed from here on are applied to what was the range.
    pub from: Lsn,
}

impl Writer {
    /// Notes a range in the open transaction, which holds the fence.
    ///
    /// # Errors
    /// `Fenced`: the table is not copied by this run any more. The transaction is rolled back.
    pub async fn note_range(&mut self, range: &CopiedRange) -> Result<(), Failure> {
        let sql = "UPDATE penstock.table_state SET state = CASE WHEN $4::pg_catalog.text[] IS NULL THEN 'ready' ELSE state END, \
                       ready_lsn = CASE WHEN $4 IS NULL THEN $5::pg_catalog.pg_lsn END, \
                       copied_by = CASE WHEN $4 IS NOT NULL THEN copied_by END, copied_to = $4, \
                       chunks_copied = chunks_copied + 1, rows_copied = rows_copied + $6, updated_at = pg_catalog.clock_timestamp() \
                   WHERE uid = $1 AND source_schema = $2 AND source_table = $3 AND state = 'incremental'";
        let CopiedRange { table, rows, last, from } = range;
        let rows = i64::try_from(*rows).unwrap_or(i64::MAX);
        let uid = self.key().to_owned();
        let parameters: [&(dyn postgres_types::ToSql + Sync); 6] =
            [&uid, &table.schema, &table.name, last, &PgLsn::from(from.0), &rows];
        reach(Point::BeforeRangeNoted)?;
        self.note(sql, &parameters).await?;
        reach(Point::AfterRangeNoted)
    }

    /// Rolls back what is open, and notes that a table is to be copied from its beginning.
    ///
    /// # Errors
    /// As `begin`.
    pub async fn copy_again(&mut self, table: &TableName) -> Result<(), Failure> {
        self.roll_back().await;
        self.begin().await?;
        let sql = "UPDATE penstock.table_state SET state = 'stale', ready_lsn = NULL, copied_by = NULL, copied_to = NULL, \
                       updated_at = pg_catalog.clock_timestamp() \
                   WHERE uid = $1 AND source_schema = $2 AND source_table = $3";
        let uid = self.key().to_owned();
        self.note(sql, &[&uid, &table.schema, &table.name]).await?;
        self.commit_without_position()
            .await
            .map_err(|error| failed(&error, "noting that a table is to be copied again"))
    }
}
