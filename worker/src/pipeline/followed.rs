//! The tables whose changes are applied, and what goes wrong with them.

use std::collections::HashMap;

use penstock_crds::report::Reason;

use crate::change::table::TableName;
use crate::change::{Change, Lsn, Relation, RelationId};
use crate::failure::Failure;
use crate::incremental::{self, Copied, InvalidKey};

/// The tables of this shard, as they were inspected.
pub(super) type FollowedTables = HashMap<RelationId, FollowedTable>;

/// A table whose changes are applied.
pub(super) struct FollowedTable {
    pub(super) name: TableName,
    pub(super) progress: Progress,
}

/// Which changes of a table are applied.
pub(super) enum Progress {
    /// Its rows are copied.
    Ready {
        /// Changes are applied from this commit on; the copy holds those before.
        from: Lsn,
    },
    /// Its rows are being copied in ranges. Next: `Ready`.
    Incremental(Box<incremental::Table>),
}

impl Progress {
    pub(super) fn counts_from(&self, commit: Lsn) -> bool {
        match self {
            Self::Ready { from } => commit >= *from,
            Self::Incremental(_) => true,
        }
    }
}

/// What of a change concerns this shard.
pub(super) enum Concern {
    /// Its tables are not of this shard.
    None,
    /// It counts, but the copy of its table holds it already.
    Counted,
    /// It counts and is to be applied.
    Applied(Change),
}

pub(super) fn incremental_table(
    tables: &mut FollowedTables,
    relation: RelationId,
) -> Option<&mut incremental::Table> {
    match &mut tables.get_mut(&relation)?.progress {
        Progress::Incremental(table) => Some(table),
        Progress::Ready { .. } => None,
    }
}

/// Notes that a table was emptied. `false`: none of its rows is copied yet, so the sink has nothing to empty; and the stream may
/// not have come to the shape in which it is copied, so that nothing of it can be matched with the sink.
pub(super) fn truncated_with_rows(tables: &mut FollowedTables, relation: RelationId) -> bool {
    let Some(table) = incremental_table(tables, relation) else { return true };
    table.truncated();
    *table.copied() != Copied::Nothing
}

/// Its key was changed: the next attempt looks at the table anew.
pub(super) fn unreadable_key(error: InvalidKey) -> Failure {
    let message = format!(
        "The key of a table was changed while its rows were copied ({error}); the tables are looked at again."
    );
    Failure::new(Reason::TablesChanged, message)
}

/// Its key was changed: the next attempt looks at the table anew.
pub(super) fn key_is_gone(relation: &Relation, error: InvalidKey) -> Failure {
    let message = format!(
        "The key of {}.{} was changed while its rows were copied ({error}); the table is looked at again.",
        relation.schema, relation.name
    );
    Failure::new(Reason::TablesChanged, message)
}

/// The next attempt looks at the source anew.
pub(super) fn replaced(table: &TableName, what: &str) -> Failure {
    let message = format!(
        "The source table {table} {what} while its changes were read; the tables are looked at again."
    );
    Failure::new(Reason::TablesChanged, message)
}
