//! How rows of one relation are transformed. Made when the stream describes it, and cheap for each row.

use std::sync::Arc;

use super::error::RowError;
use super::mask::{ColumnMask, Input};
use super::{TableSteps, Unsuitable};
use crate::change::{Change, OldRow, Relation, RelationColumn, Row, Value};

/// How rows of one relation are transformed.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The relation as the sink gets it.
    pub relation: Relation,
    /// For each of its columns the place in the stream's rows, in their order.
    pub(super) places: Vec<usize>,
    pub(super) masks: Vec<ColumnMask>,
}

impl TableSteps {
    /// How rows of the relation are transformed.
    ///
    /// # Errors
    /// The entry names a column that the relation does not have: rows of it are not carried, lest a value be that is
    /// left out or masked.
    pub fn plan(&self, relation: &Relation) -> Result<Plan, Unsuitable> {
        // Columns that the table computes are never in the stream.
        let generated = self.generated.iter().map(String::as_str);
        let streamed = relation.columns.iter().map(|column| column.name.as_str());
        let mut wrong = self.missing_columns(streamed.chain(generated));
        if !wrong.is_empty() {
            return Err(Unsuitable(wrong));
        }
        let (mut columns, mut places, mut masks) = (Vec::new(), Vec::new(), Vec::new());
        for (place, column) in relation.columns.iter().enumerate() {
            let Some(treatment) = self.steps.of(&column.name) else { continue };
            let mask = self.masks.get(&column.name);
            let name = treatment.name.to_owned();
            if columns.iter().any(|other: &RelationColumn| other.name == name) {
                wrong.push(format!("{}: two columns would be called {name} in the sink", self.name));
            }
            columns.push(match mask {
                None => RelationColumn { name, ..column.clone() },
                Some(_) => RelationColumn { name, type_oid: 25, type_modifier: -1, is_key: column.is_key },
            });
            places.push(place);
            masks.push(mask.map(|mask| (Arc::clone(mask), self.input(column.type_oid))));
        }
        if !wrong.is_empty() {
            return Err(Unsuitable(wrong));
        }
        Ok(Plan { relation: Relation { columns, ..relation.clone() }, places, masks })
    }

    pub(super) fn input(&self, type_oid: u32) -> Option<Input> {
        if Input::is_known_by_oid(type_oid) {
            Input::of_oid(type_oid)
        } else {
            self.inputs.get(&type_oid).copied()
        }
    }
}

impl Plan {
    /// A change as the sink gets it.
    ///
    /// # Errors
    /// A value cannot be masked.
    pub fn apply(&self, change: Change) -> Result<Change, RowError> {
        Ok(match change {
            Change::Insert { relation, new } => Change::Insert { relation, new: self.row(new)? },
            Change::Update { relation, old, new } => {
                let old = old.map(|old| self.old_row(old)).transpose()?;
                Change::Update { relation, old, new: self.row(new)? }
            }
            Change::Delete { relation, old } => Change::Delete { relation, old: self.old_row(old)? },
            Change::Truncate { .. } => change,
        })
    }

    fn old_row(&self, old: OldRow) -> Result<OldRow, RowError> {
        Ok(match old {
            OldRow::Key(row) => OldRow::Key(self.row(row)?),
            OldRow::Full(row) => OldRow::Full(self.row(row)?),
        })
    }

    fn row(&self, Row(mut values): Row) -> Result<Row, RowError> {
        let columns = self.places.iter().zip(&self.masks);
        let value = |(place, mask): (&usize, &ColumnMask)| {
            let value = values.get_mut(*place).ok_or(RowError::NotWhole)?;
            let value = std::mem::replace(value, Value::Null);
            match mask {
                None => Ok(value),
                Some((mask, input)) => mask.value(value, *input),
            }
        };
        columns.map(value).collect::<Result<_, _>>().map(Row)
    }
}
