//! What a batch refuses instead of guessing.

use crate::change::RelationId;

/// A history that cannot be: the source's own constraints exclude it, so the stream (or what was made of it) is
/// wrong. Never holds a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// INSERT of a key that is there.
    #[error("table with OID {}: a row is inserted with a key that another row has", relation.0)]
    KeyTaken {
        /// Table.
        relation: RelationId,
    },
    /// UPDATE or DELETE of a key that is gone.
    #[error("table with OID {}: a row is changed that was removed before", relation.0)]
    KeyGone {
        /// Table.
        relation: RelationId,
    },
    /// A row without the value of a key column.
    #[error("table with OID {}: column {column} is part of the key, but the row has no value for it", relation.0)]
    KeyIncomplete {
        /// Table.
        relation: RelationId,
        /// Index of the column.
        column: usize,
    },
    /// UPDATE or DELETE of a table without a key, and not with its whole old row.
    #[error("table with OID {} has no key, so its UPDATE and DELETE need the whole old row: REPLICA IDENTITY FULL", relation.0)]
    OldRowMissing {
        /// Table.
        relation: RelationId,
    },
    /// INSERT with a value left out.
    #[error("table with OID {}: a row is inserted without a value for column {column}", relation.0)]
    UnchangedInInsert {
        /// Table.
        relation: RelationId,
        /// Index of the column.
        column: usize,
    },
    /// Rows of different shapes in one batch.
    #[error("table with OID {}: rows of {before} and of {now} columns in one batch", relation.0)]
    WidthChanged {
        /// Table.
        relation: RelationId,
        /// Columns before.
        before: usize,
        /// Columns now.
        now: usize,
    },
}
