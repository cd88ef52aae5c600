//! Rows and changes.

use bytes::Bytes;

use super::RelationId;

/// One value of a row, as the source sent it. Bytes stay bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// SQL NULL.
    Null,
    /// A TOAST value that the UPDATE did not touch and the source therefore did not send. Never NULL,
    /// never a guess: it is left out of SET.
    Unchanged,
    /// The type's binary send format.
    Binary(Bytes),
    /// The type's text output, for types without a send function.
    Text(Bytes),
}

impl Value {
    /// Bytes it keeps in memory.
    pub fn size(&self) -> usize {
        match self {
            Self::Null | Self::Unchanged => 0,
            Self::Binary(bytes) | Self::Text(bytes) => bytes.len(),
        }
    }
}

/// Values in the order of the relation's columns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Row(pub Vec<Value>);

impl Row {
    /// Bytes it keeps in memory, its own overhead included.
    pub fn size(&self) -> usize {
        size_of::<Self>() + self.0.iter().map(|value| size_of::<Value>() + value.size()).sum::<usize>()
    }
}

/// What an UPDATE or DELETE says of the row as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OldRow {
    /// The replica identity's columns hold values, the others are NULL and mean nothing. In an UPDATE it
    /// comes only when a key column changed (`K`).
    Key(Row),
    /// The whole row (`O`, replica identity FULL).
    Full(Row),
}

/// One change of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new row.
    Insert {
        /// Table.
        relation: RelationId,
        /// The row.
        new: Row,
    },
    /// A changed row.
    Update {
        /// Table.
        relation: RelationId,
        /// The row as it was, if the source sent it.
        old: Option<OldRow>,
        /// The row as it is; may hold `Unchanged`.
        new: Row,
    },
    /// A removed row.
    Delete {
        /// Table.
        relation: RelationId,
        /// The row as it was.
        old: OldRow,
    },
    /// Emptied tables.
    Truncate {
        /// Tables, all at once.
        relations: Vec<RelationId>,
        /// TRUNCATE … CASCADE.
        cascade: bool,
        /// TRUNCATE … RESTART IDENTITY.
        restart_identity: bool,
    },
}

impl Change {
    /// Tables that it changes.
    pub fn relations(&self) -> &[RelationId] {
        match self {
            Self::Insert { relation, .. } | Self::Update { relation, .. } | Self::Delete { relation, .. } => {
                std::slice::from_ref(relation)
            }
            Self::Truncate { relations, .. } => relations,
        }
    }

    /// Bytes it keeps in memory.
    pub fn size(&self) -> usize {
        let old_size = |old: &OldRow| match old {
            OldRow::Key(row) | OldRow::Full(row) => row.size(),
        };
        size_of::<Self>()
            + match self {
                Self::Insert { new, .. } => new.size(),
                Self::Update { old, new, .. } => new.size() + old.as_ref().map_or(0, old_size),
                Self::Delete { old, .. } => old_size(old),
                Self::Truncate { relations, .. } => size_of_val(relations.as_slice()),
            }
    }
}
