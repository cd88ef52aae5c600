//! What a batch asks of the sink.

use crate::change::{OldRow, RelationId, Row};

/// One step for the sink. Steps are applied in the order in which the batch gives them.
///
/// For a table that is coalesced, the rows of one operation name different rows of the sink, and no row's new key
/// is another's old key: one statement may apply them all. For a table whose order matters (or that has no key),
/// the rows of one operation are applied one after the other, as given; only its inserts may go together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// New rows, without `Unchanged`.
    Insert {
        /// Table.
        relation: RelationId,
        /// The rows.
        rows: Vec<Row>,
    },
    /// Changed rows.
    Update {
        /// Table.
        relation: RelationId,
        /// The rows.
        rows: Vec<UpdateRow>,
    },
    /// Removed rows.
    Delete {
        /// Table.
        relation: RelationId,
        /// Which.
        rows: Vec<OldRow>,
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

/// A changed row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpdateRow {
    /// Names the row in the sink: [`OldRow::Key`] for a table with a key (its key columns hold values, the
    /// others are NULL and mean nothing), [`OldRow::Full`] for one without.
    pub old: OldRow,
    /// The row as it is. A value that is `Unchanged` stays as it is in the sink.
    pub new: Row,
}
