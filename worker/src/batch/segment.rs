//! The coalesced changes of one table: what became of each key since the segment began.

use std::collections::HashMap;

use bytes::Bytes;

use super::key::Key;
use super::row_change::InPlace;
use super::{BatchError, Operation, UpdateRow};
use crate::change::{OldRow, RelationId, Row, Value};

/// What became of a key. The two that are gone are kept to notice a history that cannot be.
#[derive(Debug)]
enum State {
    /// It was not there and is now.
    Inserted(Row),
    /// It was there and is still, as another row.
    Updated(Row),
    /// It was there and is gone.
    Deleted,
    /// It came and went.
    Cancelled,
}

/// The coalesced changes of one table between two barriers.
#[derive(Debug)]
pub(super) struct Segment {
    columns: Vec<usize>,
    width: usize,
    /// In the order in which the keys first changed, which is the source's own order of new rows.
    states: Vec<(Key, State)>,
    index: HashMap<Key, usize>,
    bytes: usize,
}

impl Segment {
    /// Of a table with that key and that many columns.
    pub(super) fn new(columns: &[usize], width: usize) -> Self {
        Self { columns: columns.to_vec(), width, states: Vec::new(), index: HashMap::new(), bytes: 0 }
    }

    /// Keys that it remembers.
    pub(super) fn rows(&self) -> usize {
        self.states.len()
    }

    /// Bytes that it keeps in memory.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes a change in. The last one wins; what it leaves unchanged stays as the segment knows it.
    pub(super) fn apply(
        &mut self,
        relation: RelationId,
        key: Key,
        change: InPlace,
        width: usize,
    ) -> Result<(), BatchError> {
        if width != self.width {
            return Err(BatchError::WidthChanged { relation, before: self.width, now: width });
        }
        let Some((_, state)) = self.index.get(&key).and_then(|&at| self.states.get_mut(at)) else {
            let state = State::first(change);
            // The key stands in the list and in the index, which share its bytes.
            self.bytes += key.size() + size_of::<(Key, usize)>() + state.size();
            self.index.insert(key.clone(), self.states.len());
            self.states.push((key, state));
            return Ok(());
        };
        let next = state.next(relation, change)?;
        self.bytes = self.bytes - state.size() + next.size();
        *state = next;
        Ok(())
    }

    /// What is to be done, each kind in one operation. Removals come first: a key may come back in other bytes
    /// that mean the same value (1.0 and 1.00).
    pub(super) fn into_operations(self, relation: RelationId) -> Vec<Operation> {
        let (mut inserted, mut updated, mut deleted) = (Vec::new(), Vec::new(), Vec::new());
        for (key, state) in self.states {
            match state {
                State::Inserted(row) => inserted.push(row),
                State::Updated(new) => {
                    updated.push(UpdateRow { old: OldRow::Key(key.to_row(&self.columns, self.width)), new });
                }
                State::Deleted => deleted.push(OldRow::Key(key.to_row(&self.columns, self.width))),
                State::Cancelled => {}
            }
        }
        let mut operations = Vec::new();
        if !deleted.is_empty() {
            operations.push(Operation::Delete { relation, rows: deleted });
        }
        if !updated.is_empty() {
            operations.push(Operation::Update { relation, rows: updated });
        }
        if !inserted.is_empty() {
            operations.push(Operation::Insert { relation, rows: inserted });
        }
        operations
    }
}

impl State {
    /// After the first change of its key.
    fn first(change: InPlace) -> Self {
        match change {
            InPlace::Insert(new) => Self::Inserted(new),
            InPlace::Update(new) => Self::Updated(new),
            InPlace::Delete => Self::Deleted,
        }
    }

    /// After a further change.
    fn next(&self, relation: RelationId, change: InPlace) -> Result<Self, BatchError> {
        match (self, change) {
            (Self::Cancelled, InPlace::Insert(new)) => Ok(Self::Inserted(new)),
            (Self::Deleted, InPlace::Insert(new)) => Ok(Self::Updated(new)),
            (Self::Inserted(_) | Self::Updated(_), InPlace::Insert(_)) => {
                Err(BatchError::KeyTaken { relation })
            }
            (Self::Inserted(earlier), InPlace::Update(new)) => Ok(Self::Inserted(merge(earlier, new))),
            (Self::Updated(earlier), InPlace::Update(new)) => Ok(Self::Updated(merge(earlier, new))),
            (Self::Inserted(_), InPlace::Delete) => Ok(Self::Cancelled),
            (Self::Updated(_), InPlace::Delete) => Ok(Self::Deleted),
            (Self::Deleted | Self::Cancelled, InPlace::Update(_) | InPlace::Delete) => {
                Err(BatchError::KeyGone { relation })
            }
        }
    }

    fn size(&self) -> usize {
        size_of::<Self>()
            + match self {
                // The row's own head is part of this enum.
                Self::Inserted(row) | Self::Updated(row) => row.size() - size_of::<Row>(),
                Self::Deleted | Self::Cancelled => 0,
            }
    }
}

/// The newer row, with the earlier one's values where it is unchanged.
///
/// A value is a slice of the message it came in and keeps all of it in memory. So what is carried over is copied,
/// unless it is at least half of the earlier row: then little is wasted, and a big value that stays through many
/// updates is not copied each time.
fn merge(earlier: &Row, mut newer: Row) -> Row {
    let carried = |(earlier, newer): (&Value, &Value)| match newer {
        Value::Unchanged => earlier.size(),
        Value::Null | Value::Binary(_) | Value::Text(_) => 0,
    };
    let carried_bytes: usize = earlier.0.iter().zip(&newer.0).map(carried).sum();
    let earlier_bytes: usize = earlier.0.iter().map(Value::size).sum();
    let is_copied = carried_bytes * 2 < earlier_bytes;
    for (newer, earlier) in newer.0.iter_mut().zip(&earlier.0) {
        if *newer == Value::Unchanged {
            *newer = if is_copied { copy(earlier) } else { earlier.clone() };
        }
    }
    newer
}

fn copy(value: &Value) -> Value {
    match value {
        Value::Null => Value::Null,
        Value::Unchanged => Value::Unchanged,
        Value::Binary(bytes) => Value::Binary(Bytes::copy_from_slice(bytes)),
        Value::Text(bytes) => Value::Text(Bytes::copy_from_slice(bytes)),
    }
}
