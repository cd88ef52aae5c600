//! The incremental snapshot beside the stream: one range after another, of one table after another.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::change::RelationId;
use crate::change::table::SourceTable;
use crate::incremental::{KeyColumn, Read};
use crate::source::{RangeAnswer, RangeReader, RangeRequest, SourceError};

/// A table to be copied in ranges.
pub(super) struct RangeTable {
    pub(super) table: Arc<SourceTable>,
    pub(super) key: Arc<Vec<KeyColumn>>,
    /// The last key that is copied, as SQL literals.
    pub(super) last: Option<Vec<String>>,
}

/// A range whose rows wait for their watermark.
pub(super) struct Waiting {
    pub(super) read: Read,
    pub(super) last: Option<Vec<String>>,
    pub(super) watermark: String,
}

/// The tables that wait, and the one that is being copied, which is the first.
pub(super) struct Ranges {
    /// `None` when all is copied: it has a connection.
    reader: Option<RangeReader>,
    tables: VecDeque<RangeTable>,
    pub(super) waiting: Option<Waiting>,
}

impl Ranges {
    pub(super) fn new(reader: RangeReader, tables: Vec<RangeTable>) -> Self {
        Self { reader: Some(reader).filter(|_| !tables.is_empty()), tables: tables.into(), waiting: None }
    }

    /// The table that is being copied.
    pub(super) fn current(&self) -> Option<RelationId> {
        self.tables.front().map(|table| table.table.id)
    }

    /// Opens the next range of the present table.
    pub(super) fn open(&mut self, is_again: bool) {
        self.waiting = None;
        if let (Some(RangeTable { table, key, last }), Some(reader)) = (self.tables.front(), &self.reader) {
            let (table, key) = (Arc::clone(table), Arc::clone(key));
            reader.open(RangeRequest { table, key, after: last.clone(), is_again });
        }
    }

    /// Reads the range that is open.
    pub(super) fn read(&self) {
        if let Some(reader) = &self.reader {
            reader.read();
        }
    }

    /// The range is in the sink; `None`: it was the table's last.
    pub(super) fn done(&mut self, last: Option<Vec<String>>) {
        match (last, self.tables.front_mut()) {
            (Some(last), Some(table)) => table.last = Some(last),
            (None, _) => drop(self.tables.pop_front()),
            (Some(_), None) => {}
        }
        if self.tables.is_empty() {
            self.reader = None;
        }
    }

    /// The next answer; never, while there is nothing to copy.
    pub(super) async fn next(&mut self) -> Result<RangeAnswer, SourceError> {
        match &mut self.reader {
            Some(reader) => reader.next().await,
            None => std::future::pending().await,
        }
    }

    pub(super) fn try_next(&mut self) -> Option<Result<RangeAnswer, SourceError>> {
        self.reader.as_mut()?.try_next()
    }
}
