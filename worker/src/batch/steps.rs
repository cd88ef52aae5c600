//! Operations in the order in which the sink gets them.

use std::collections::HashSet;

use super::key::Key;
use super::{Operation, UpdateRow};
use crate::change::{OldRow, RelationId, Row};

/// Operations in their order. Consecutive ones of a kind on a table are one.
#[derive(Debug, Default)]
pub(super) struct Steps {
    operations: Vec<Operation>,
    rows: usize,
    bytes: usize,
    /// What the last operation may take in.
    last: Last,
}

#[derive(Debug, Default)]
enum Last {
    /// Nothing: it is whole.
    #[default]
    Closed,
    /// The next row of a table whose order is kept.
    InOrder,
    /// Key changes whose old and new keys none of these equals.
    KeyChanges(HashSet<Key>),
}

impl Steps {
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes that it keeps in memory.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    pub(super) fn into_operations(self) -> Vec<Operation> {
        self.operations
    }

    /// A whole operation, which takes nothing in later.
    pub(super) fn append(&mut self, operation: Operation) {
        self.rows += rows(&operation);
        self.bytes += bytes(&operation);
        self.operations.push(operation);
        self.last = Last::Closed;
    }

    /// The next row of a table whose order is kept.
    pub(super) fn insert(&mut self, relation: RelationId, row: Row) {
        if let (Last::InOrder, Some(Operation::Insert { relation: last, rows })) =
            (&self.last, self.operations.last_mut())
            && *last == relation
        {
            self.rows += 1;
            self.bytes += row.size();
            rows.push(row);
        } else {
            self.append(Operation::Insert { relation, rows: vec![row] });
            self.last = Last::InOrder;
        }
    }

    /// The next row of a table whose order is kept.
    pub(super) fn update(&mut self, relation: RelationId, row: UpdateRow) {
        if let (Last::InOrder, Some(Operation::Update { relation: last, rows })) =
            (&self.last, self.operations.last_mut())
            && *last == relation
        {
            self.rows += 1;
            self.bytes += update_size(&row);
            rows.push(row);
        } else {
            self.append(Operation::Update { relation, rows: vec![row] });
            self.last = Last::InOrder;
        }
    }

    /// The next row of a table whose order is kept.
    pub(super) fn delete(&mut self, relation: RelationId, row: OldRow) {
        if let (Last::InOrder, Some(Operation::Delete { relation: last, rows })) =
            (&self.last, self.operations.last_mut())
            && *last == relation
        {
            self.rows += 1;
            self.bytes += old_size(&row);
            rows.push(row);
        } else {
            self.append(Operation::Delete { relation, rows: vec![row] });
            self.last = Last::InOrder;
        }
    }

    /// A key change of a coalesced table. It joins others as long as one statement may do them all: 1 → 2 and
    /// 2 → 3 must come one after the other.
    pub(super) fn change_key(&mut self, relation: RelationId, old: Key, new: Key, row: UpdateRow) {
        if let (Last::KeyChanges(keys), Some(Operation::Update { relation: last, rows })) =
            (&mut self.last, self.operations.last_mut())
            && *last == relation
            && !keys.contains(&old)
            && !keys.contains(&new)
        {
            self.rows += 1;
            self.bytes += update_size(&row) + old.size() + new.size();
            rows.push(row);
            keys.extend([old, new]);
        } else {
            self.bytes += old.size() + new.size();
            self.append(Operation::Update { relation, rows: vec![row] });
            self.last = Last::KeyChanges(HashSet::from([old, new]));
        }
    }
}

fn rows(operation: &Operation) -> usize {
    match operation {
        Operation::Insert { rows, .. } => rows.len(),
        Operation::Update { rows, .. } => rows.len(),
        Operation::Delete { rows, .. } => rows.len(),
        Operation::Truncate { .. } => 0,
    }
}

fn bytes(operation: &Operation) -> usize {
    size_of::<Operation>()
        + match operation {
            Operation::Insert { rows, .. } => rows.iter().map(Row::size).sum(),
            Operation::Update { rows, .. } => rows.iter().map(update_size).sum(),
            Operation::Delete { rows, .. } => rows.iter().map(old_size).sum(),
            Operation::Truncate { relations, .. } => size_of_val(relations.as_slice()),
        }
}

fn update_size(row: &UpdateRow) -> usize {
    old_size(&row.old) + row.new.size()
}

fn old_size(old: &OldRow) -> usize {
    match old {
        OldRow::Key(row) | OldRow::Full(row) => size_of::<OldRow>() - size_of::<Row>() + row.size(),
    }
}
