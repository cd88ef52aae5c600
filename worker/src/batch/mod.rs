//! Changes in, fewer operations out: coalesces the changes of a batch per key without changing what they do.
//! Pure: no I/O, no clock.
//!
//! ```text
//!            table with a key                        order matters, or no key
//! change ──> segment of its table (last wins) ─┐        │
//!            │ key change, TRUNCATE            v        v
//!            └──────────── seal ───────────> steps, in order ──take()──> operations
//! ```
//! Coalesced tables may move against each other and against the ordered ones: no constraint joins them.

mod error;
mod key;
mod operation;
mod row_change;
mod segment;
mod steps;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use error::BatchError;
pub use operation::{Operation, UpdateRow};

use crate::change::{Change, OldRow, RelationId};
use key::Key;
use row_change::{InPlace, KeyedChange, RowChange};
use segment::Segment;
use steps::Steps;

/// What the batch must know of a table. It may change only between two batches, as may the table's columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableTraits {
    /// Indexes of the columns that name a row in the sink: those of the replica identity, or a part of it that is
    /// unique and not null; empty: only the whole row names it (replica identity FULL).
    pub key: Vec<usize>,
    /// The order of its changes can be seen in the sink (another unique index, a foreign key), so it is kept:
    /// among all such tables together, and without coalescing.
    pub order_matters: bool,
}

/// How much a batch may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rows.
    pub max_rows: usize,
    /// Bytes of memory.
    pub max_bytes: usize,
}

/// Changes that go to the sink together.
#[derive(Debug)]
pub struct Batch {
    limits: Limits,
    steps: Steps,
    segments: BTreeMap<RelationId, Segment>,
    segment_rows: usize,
    segment_bytes: usize,
}

impl Batch {
    /// An empty batch.
    pub fn new(limits: Limits) -> Self {
        Self { limits, steps: Steps::default(), segments: BTreeMap::new(), segment_rows: 0, segment_bytes: 0 }
    }

    /// Takes a change in. `traits` are those of its table; a TRUNCATE does not need them. After an error the
    /// batch is void: what it holds must not reach the sink.
    pub fn push(&mut self, traits: &TableTraits, change: Change) -> Result<(), BatchError> {
        let (relation, change) = match change {
            Change::Insert { relation, new } => (relation, RowChange::Insert { new }),
            Change::Update { relation, old, new } => (relation, RowChange::Update { old, new }),
            Change::Delete { relation, old } => (relation, RowChange::Delete { old }),
            Change::Truncate { relations, cascade, restart_identity } => {
                for relation in &relations {
                    self.seal(*relation);
                }
                self.steps.append(Operation::Truncate { relations, cascade, restart_identity });
                return Ok(());
            }
        };
        change.check(relation)?;
        if traits.key.is_empty() {
            return self.push_keyless(change, relation);
        }
        let width = change.width();
        let change = change.with_key(&traits.key, relation)?;
        if traits.order_matters {
            self.push_in_order(change, traits, relation, width);
            Ok(())
        } else {
            self.coalesce(change, traits, relation, width)
        }
    }

    /// Bytes that it keeps in memory.
    pub fn size_bytes(&self) -> usize {
        self.steps.bytes() + self.segment_bytes
    }

    /// Rows that it holds, rows that came and went within it included: their keys are remembered.
    pub fn rows(&self) -> usize {
        self.steps.rows() + self.segment_rows
    }

    /// It holds nothing.
    pub fn is_empty(&self) -> bool {
        self.rows() == 0 && self.steps.is_empty()
    }

    /// It has reached a limit: time to take it.
    pub fn is_full(&self) -> bool {
        self.rows() >= self.limits.max_rows || self.size_bytes() >= self.limits.max_bytes
    }

    /// Hands out what is to be done, in order, and is empty then.
    pub fn take(&mut self) -> Vec<Operation> {
        while let Some((&relation, _)) = self.segments.first_key_value() {
            self.seal(relation);
        }
        std::mem::take(&mut self.steps).into_operations()
    }

    fn push_keyless(&mut self, change: RowChange, relation: RelationId) -> Result<(), BatchError> {
        match change {
            RowChange::Insert { new } => self.steps.insert(relation, new),
            RowChange::Update { old: Some(old @ OldRow::Full(_)), new } => {
                self.steps.update(relation, UpdateRow { old, new });
            }
            RowChange::Delete { old: old @ OldRow::Full(_) } => self.steps.delete(relation, old),
            RowChange::Update { old: Some(OldRow::Key(_)) | None, .. }
            | RowChange::Delete { old: OldRow::Key(_) } => {
                return Err(BatchError::OldRowMissing { relation });
            }
        }
        Ok(())
    }

    fn push_in_order(
        &mut self,
        change: KeyedChange,
        traits: &TableTraits,
        relation: RelationId,
        width: usize,
    ) {
        let name = |key: &Key| OldRow::Key(key.to_row(&traits.key, width));
        match change {
            KeyedChange::InPlace { change: InPlace::Insert(new), .. } => self.steps.insert(relation, new),
            KeyedChange::InPlace { key: old, change: InPlace::Update(new) }
            | KeyedChange::Move { old, new, .. } => {
                self.steps.update(relation, UpdateRow { old: name(&old), new });
            }
            KeyedChange::InPlace { key, change: InPlace::Delete } => self.steps.delete(relation, name(&key)),
        }
    }

    fn coalesce(
        &mut self,
        change: KeyedChange,
        traits: &TableTraits,
        relation: RelationId,
        width: usize,
    ) -> Result<(), BatchError> {
        match change {
            KeyedChange::Move { old, key, new } => {
                self.seal(relation);
                let row = UpdateRow { old: OldRow::Key(old.to_row(&traits.key, width)), new };
                self.steps.change_key(relation, old, key, row);
            }
            KeyedChange::InPlace { key, change } => {
                let segment =
                    self.segments.entry(relation).or_insert_with(|| Segment::new(&traits.key, width));
                let before = (segment.rows(), segment.bytes());
                segment.apply(relation, key, change, width)?;
                self.segment_rows = self.segment_rows - before.0 + segment.rows();
                self.segment_bytes = self.segment_bytes - before.1 + segment.bytes();
            }
        }
        Ok(())
    }

    /// Ends the coalescing of the table's changes so far: what follows comes after them.
    fn seal(&mut self, relation: RelationId) {
        if let Some(segment) = self.segments.remove(&relation) {
            self.segment_rows -= segment.rows();
            self.segment_bytes -= segment.bytes();
            for operation in segment.into_operations(relation) {
                self.steps.append(operation);
            }
        }
    }
}
