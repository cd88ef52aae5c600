//! A change of one row, and the name of the row that it changes.

use super::BatchError;
use super::key::Key;
use crate::change::{OldRow, RelationId, Row, Value};

/// A change of one row.
pub(super) enum RowChange {
    Insert { new: Row },
    Update { old: Option<OldRow>, new: Row },
    Delete { old: OldRow },
}

/// A change of one row of a table with a key.
pub(super) enum KeyedChange {
    /// The row keeps its key.
    InPlace { key: Key, change: InPlace },
    /// The key itself changed.
    Move { old: Key, key: Key, new: Row },
}

/// What happens to the row of a key.
pub(super) enum InPlace {
    Insert(Row),
    Update(Row),
    Delete,
}

impl RowChange {
    /// Number of columns.
    pub(super) fn width(&self) -> usize {
        match self {
            Self::Insert { new } | Self::Update { new, .. } => new.0.len(),
            Self::Delete { old: OldRow::Key(old) | OldRow::Full(old) } => old.0.len(),
        }
    }

    /// Refuses what no source can mean.
    pub(super) fn check(&self, relation: RelationId) -> Result<(), BatchError> {
        match self {
            Self::Insert { new } => match new.0.iter().position(|value| *value == Value::Unchanged) {
                Some(column) => Err(BatchError::UnchangedInInsert { relation, column }),
                None => Ok(()),
            },
            Self::Update { old: Some(OldRow::Key(old) | OldRow::Full(old)), new }
                if old.0.len() != new.0.len() =>
            {
                Err(BatchError::WidthChanged { relation, before: old.0.len(), now: new.0.len() })
            }
            Self::Update { .. } | Self::Delete { .. } => Ok(()),
        }
    }

    /// Works out which row it changes.
    pub(super) fn with_key(self, columns: &[usize], relation: RelationId) -> Result<KeyedChange, BatchError> {
        let key_of = |row: &Row| Key::of(row, columns, relation);
        let in_place = |key, change| Ok(KeyedChange::InPlace { key, change });
        match self {
            Self::Insert { new } => in_place(key_of(&new)?, InPlace::Insert(new)),
            Self::Update { old: None, new } => in_place(key_of(&new)?, InPlace::Update(new)),
            Self::Update { old: Some(OldRow::Key(old) | OldRow::Full(old)), mut new } => {
                fill_unchanged_key(&mut new, &old, columns);
                let (old, key) = (key_of(&old)?, key_of(&new)?);
                // A key that is stored out of line comes with the old row although it did not change.
                if old == key {
                    in_place(key, InPlace::Update(new))
                } else {
                    Ok(KeyedChange::Move { old, key, new })
                }
            }
            Self::Delete { old: OldRow::Key(old) | OldRow::Full(old) } => {
                in_place(key_of(&old)?, InPlace::Delete)
            }
        }
    }
}

/// Unchanged means: as in the old row, which always has the key.
fn fill_unchanged_key(new: &mut Row, old: &Row, columns: &[usize]) {
    for &column in columns {
        if let (Some(value @ Value::Unchanged), Some(old)) = (new.0.get_mut(column), old.0.get(column)) {
            *value = old.clone();
        }
    }
}
