//! Ranges of the incremental snapshot come into the sink where the stream meets their watermark.

use std::sync::Arc;

use bytes::Bytes;
use penstock_crds::report::NoticeReason;

use super::apply::Applier;
use super::followed::{Progress, incremental_table, unreadable_key};
use super::ranges::Waiting;
use crate::change::{Change, Lsn, Position, RelationId};
use crate::failure::Failure;
use crate::incremental::{self, Copied};
use crate::sink::CopiedRange;
use crate::source::RangeAnswer;

impl Applier<'_> {
    /// Opens the first range, if there is a table to copy.
    pub(super) fn begin_ranges(&mut self) {
        self.open_range(false);
    }

    fn open_range(&mut self, is_again: bool) {
        let Some(relation) = self.ranges.current() else { return };
        // Changes are kept from before the snapshot is taken.
        if let Some(table) = incremental_table(&mut self.tables, relation) {
            table.opening();
        }
        self.ranges.open(is_again);
    }

    /// Takes what the reader of ranges says.
    pub(super) fn take_answer(&mut self, answer: RangeAnswer) {
        let current = self.ranges.current();
        match answer {
            RangeAnswer::Seen(snapshot) => self.each_incremental(|_, table| table.seen(&snapshot)),
            RangeAnswer::Waits { oldest } => self.ends.status.notice(
                NoticeReason::SnapshotWaits,
                format!(
                    "rows are copied when the transactions that were running at the source have ended; the oldest: {oldest}"
                ),
            ),
            RangeAnswer::Opened(snapshot) => {
                let mut is_usable = false;
                self.each_incremental(|relation, table| {
                    if Some(relation) == current {
                        is_usable = table.opened(&snapshot);
                    } else {
                        table.seen(&snapshot);
                    }
                });
                if is_usable { self.ranges.read() } else { self.open_range(true) }
            }
            RangeAnswer::Read { read, last, watermark } => {
                self.ranges.waiting = Some(Waiting { read, last, watermark });
            }
        }
    }

    fn each_incremental(&mut self, mut f: impl FnMut(RelationId, &mut incremental::Table)) {
        for (relation, table) in &mut self.tables {
            if let Progress::Incremental(table) = &mut table.progress {
                f(*relation, table);
            }
        }
    }

    /// The source transaction that carried the watermarks is settled: if one is ours, its range is brought into the sink
    /// and committed with the position.
    pub(super) async fn land(&mut self, position: Position, watermarks: &[Bytes]) -> Result<(), Failure> {
        if watermarks.is_empty() {
            return Ok(());
        }
        // The rows were sent before the watermark was written.
        while let Some(answer) = self.ranges.try_next() {
            self.take_answer(answer?);
        }
        let is_ours =
            |waiting: &mut Waiting| watermarks.iter().any(|content| content == waiting.watermark.as_bytes());
        let (Some(waiting), Some(relation)) = (self.ranges.waiting.take_if(is_ours), self.ranges.current())
        else {
            return Ok(());
        };
        if !self.land_range(relation, waiting, position.commit_lsn).await? {
            self.open_range(true);
            return Ok(());
        }
        self.pass(position);
        self.commit().await?;
        self.ends.heartbeat_due.set();
        self.open_range(false);
        Ok(())
    }

    /// `false`: the range has to be read again.
    async fn land_range(
        &mut self,
        relation: RelationId,
        waiting: Waiting,
        commit: Lsn,
    ) -> Result<bool, Failure> {
        let Waiting { read, last, .. } = waiting;
        let Some(table) = incremental_table(&mut self.tables, relation) else { return Ok(false) };
        if !table.has_columns_of(&read) {
            table.abandon();
            return Ok(false);
        }
        table.set_shape(&read.relation).map_err(unreadable_key)?;
        self.adopt_shape(Arc::new(read.relation.clone())).await?;
        let count = read.rows.len() as u64;
        let Some(table) = incremental_table(&mut self.tables, relation) else { return Ok(false) };
        let Some(rows) = table.land(read).map_err(unreadable_key)? else { return Ok(false) };
        let is_whole = *table.copied() == Copied::Everything;
        for new in rows {
            self.push(Change::Insert { relation, new }).await?;
        }
        if let Some(table) = self.tables.get_mut(&relation) {
            let name = table.name.clone();
            self.copied.push(CopiedRange { table: name, rows: count, last: last.clone(), from: commit });
            if is_whole {
                table.progress = Progress::Ready { from: commit };
            }
        }
        self.ranges.done(last);
        Ok(true)
    }

    /// What was copied is committed.
    pub(super) fn tell_copied(&mut self) {
        for range in self.copied.drain(..) {
            self.ends.metrics.snapshot_rows.inc_by(range.rows);
            self.ends.status.snapshot(|progress| {
                progress.rows_copied += range.rows;
                progress.tables_copied += u32::from(range.last.is_none());
            });
            if range.last.is_none() {
                tracing::info!(table = %range.table, "all rows are copied");
                if self.ranges.current().is_none() {
                    let message = format!("all tables are copied; the last one as it was at {}", range.from);
                    self.ends.status.notice(NoticeReason::SnapshotCompleted, message);
                }
            }
        }
    }
}
