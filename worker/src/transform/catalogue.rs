//! A table as the sink gets it: columns that are carried, under their names there. Everything that does not fit is said.

use std::collections::BTreeSet;

use super::mask::{Input, Mask};
use super::{TableSteps, Unsuitable};
use crate::change::table::{SourceColumn, SourceTable, quote_identifier};
use crate::change::{ColumnType, ReplicaIdentity, TableShape};
use crate::incremental::KeyColumn;

/// PostgreSQL cuts longer names.
const NAME_BYTES_MAX: usize = 63;

/// What masked columns are in the sink.
pub(super) fn masked_type() -> ColumnType {
    ColumnType::built_in(25, -1, "text")
}

impl TableSteps {
    /// The table as the sink gets it.
    ///
    /// # Errors
    /// What does not fit, all of it.
    pub fn table(&self, table: &SourceTable) -> Result<SourceTable, Unsuitable> {
        let mut wrong = self.missing_columns(table.columns.iter().map(|column| column.name.as_str()));
        wrong.extend(self.steps_without_column());
        wrong.extend(self.unfit_keys(table));
        for column in &table.columns {
            wrong.extend(self.unfit_column(column, table));
        }
        wrong.extend(self.unfit_names(table));
        if wrong.is_empty() { Ok(self.carried(table)) } else { Err(Unsuitable(wrong)) }
    }

    fn carried(&self, table: &SourceTable) -> SourceTable {
        let names = |columns: &[String]| {
            columns.iter().filter_map(|column| self.steps.name_of(column)).map(str::to_owned).collect()
        };
        let column = |column: &SourceColumn| {
            let name = self.steps.name_of(&column.name)?.to_owned();
            if !self.masks.contains_key(&column.name) {
                return Some(SourceColumn { name, ..column.clone() });
            }
            Some(SourceColumn {
                name,
                column_type: masked_type(),
                is_not_null: column.is_not_null,
                constant_default: None,
                generated: None,
                is_masked: true,
            })
        };
        SourceTable {
            columns: table.columns.iter().filter_map(column).collect(),
            primary_key: names(&table.primary_key),
            identity_columns: names(&table.identity_columns),
            steps: self.steps.clone(),
            ..table.clone()
        }
    }

    /// Columns that the entry names and the table does not have.
    pub(super) fn missing_columns<'a>(&self, columns: impl Iterator<Item = &'a str>) -> Vec<String> {
        let has: BTreeSet<&str> = columns.collect();
        let named = [
            ("selectColumns", self.steps.select.iter().flatten().collect::<Vec<_>>()),
            ("dropColumns", self.steps.drop.iter().collect()),
            ("renameColumns", self.steps.rename.keys().collect()),
            ("maskColumns", self.steps.mask.keys().collect()),
        ];
        let missing = named.iter().flat_map(|(step, columns)| {
            columns.iter().filter(|column| !has.contains(column.as_str())).map(move |column| {
                format!("{}, column {column}: {step} names it, and the table has no such column", self.name)
            })
        });
        missing.collect()
    }

    /// What is done to columns that are not carried.
    fn steps_without_column(&self) -> Vec<String> {
        let steps = [
            ("renameColumns", self.steps.rename.keys().collect::<Vec<_>>()),
            ("maskColumns", self.steps.mask.keys().collect()),
        ];
        let idle = steps.iter().flat_map(|(step, columns)| {
            columns.iter().filter(|column| self.steps.of(column).is_none()).map(move |column| {
                format!(
                    "{}, column {column}: {step} names it, and it is left out: take it out of one of the two",
                    self.name
                )
            })
        });
        idle.collect()
    }

    /// What names a row must arrive, and tell rows apart.
    fn unfit_keys(&self, table: &SourceTable) -> Vec<String> {
        let identity = match table.replica_identity {
            ReplicaIdentity::Default | ReplicaIdentity::Index => &table.identity_columns[..],
            ReplicaIdentity::Full | ReplicaIdentity::Nothing => &[],
        };
        let key: BTreeSet<&String> = table.primary_key.iter().chain(identity).collect();
        let unfit =
            |column: &&String| match (self.steps.of(column), self.masks.get(*column).map(AsRef::as_ref)) {
                (None, _) => Some("is left out"),
                (Some(_), Some(Mask::Redact(_))) => Some("is redacted"),
                (Some(_), Some(Mask::Truncate(_))) => Some("is truncated"),
                (Some(_), Some(Mask::Hash(..)) | None) => None,
            };
        let told = key.iter().filter_map(|column| {
            let what = unfit(column)?;
            Some(format!(
                "{}, column {column}: it {what}, and names the rows (primary key or replica identity), which could not be told \
                 apart any more; carry it as it is, or mask it with hash",
                self.name
            ))
        });
        told.collect()
    }

    fn unfit_column(&self, column: &SourceColumn, table: &SourceTable) -> Option<String> {
        let SourceColumn { name, column_type, generated, .. } = column;
        self.steps.of(name)?;
        let mask = self.masks.get(name);
        if let Some(expression) = generated {
            if mask.is_some() {
                return Some(format!(
                    "{}, column {name}: it is generated, and computed in the sink; leave it out",
                    self.name
                ));
            }
            let changed = self.changed_column_in(expression, table)?;
            return Some(format!(
                "{}, column {name}: it is generated, and would be computed in the sink from column {changed}, which is left \
                 out, renamed or masked; leave {name} out",
                self.name
            ));
        }
        let mask = mask.filter(|mask| !mask.takes(Input::of(column_type)))?;
        Some(format!("{}, column {name}: it is {}, and {}", self.name, column_type.sql, mask.takes_what()))
    }

    /// A column that is not in the sink as it is in the source, and may be spoken of in an expression. Its text is searched for
    /// the name: what is found too much is refused too much.
    fn changed_column_in<'a>(&self, expression: &str, table: &'a SourceTable) -> Option<&'a str> {
        let is_changed = |name: &str| {
            self.steps.of(name).is_none_or(|treatment| treatment.name != name || treatment.mask.is_some())
        };
        let quoted = |name: &str| quote_identifier(name).trim_matches('"').to_owned();
        let names = table.columns.iter().map(|column| column.name.as_str());
        names
            .filter(|name| is_changed(name))
            .find(|name| expression.contains(name) || expression.contains(&quoted(name)))
    }

    fn unfit_names(&self, table: &SourceTable) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut seen = BTreeSet::new();
        for column in &table.columns {
            let Some(name) = self.steps.name_of(&column.name) else { continue };
            if !seen.insert(name) {
                wrong.push(format!("{}: two columns would be called {name} in the sink", self.name));
            }
            if name.len() > NAME_BYTES_MAX {
                wrong
                    .push(format!("{}, column {name}: a name has at most {NAME_BYTES_MAX} bytes", self.name));
            }
        }
        if seen.is_empty() {
            wrong.push(format!("{}: no column is carried", self.name));
        }
        wrong
    }

    /// A key under the names that it has in the sink; `None` where its values are others there.
    pub fn key(&self, key: &[KeyColumn]) -> Option<Vec<KeyColumn>> {
        let column = |column: &KeyColumn| {
            let treatment = self.steps.of(&column.name).filter(|treatment| treatment.mask.is_none())?;
            Some(KeyColumn { name: treatment.name.to_owned(), ..column.clone() })
        };
        key.iter().map(column).collect()
    }

    /// A shape's columns under the names that they have in the sink.
    pub fn shape(&self, shape: &TableShape) -> TableShape {
        let columns = shape.columns.iter().filter_map(|column| {
            Some(crate::change::ShapeColumn {
                name: self.steps.name_of(&column.name)?.to_owned(),
                ..column.clone()
            })
        });
        TableShape { columns: columns.collect(), ..shape.clone() }
    }

    pub(super) fn veil(&self, shape: &mut TableShape) {
        for column in shape.parts.iter_mut().flat_map(|part| &mut part.columns) {
            let is_hidden = self.steps.of(&column.name).is_none_or(|treatment| treatment.mask.is_some());
            if is_hidden && let Some(missing) = &mut column.missing {
                missing.clear();
            }
        }
    }
}
