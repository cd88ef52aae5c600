//! What becomes of a change under a filter: a row that comes into it is inserted, and one that leaves it is deleted.

use std::sync::Arc;

use bytes::Bytes;
use cel::Value as CelValue;

use super::reading::Kind;
use super::{Filter, identity_unfit};
use crate::change::table::SourceTable;
use crate::change::travel::Format;
use crate::change::{Change, OldRow, Relation, RelationColumn, ReplicaIdentity, Row, STABLE_OIDS_END, Value};
use crate::transform::RowError;

/// A filter for the rows of one relation.
#[derive(Clone, Debug)]
pub(in crate::transform) struct FilterPlan {
    filter: Arc<Filter>,
    /// Where its columns are in the stream's rows. Without a kind, the column got another type since it was looked at.
    columns: Vec<(String, usize, Option<Kind>)>,
    /// Old rows have their key alone, of which no part is NULL.
    is_by_key: bool,
}

impl FilterPlan {
    /// # Errors
    /// Rows of the relation cannot be filtered; why, with table and column.
    pub(in crate::transform) fn new(filter: &Arc<Filter>, relation: &Relation) -> Result<Self, Vec<String>> {
        let table = format!("{}.{}", relation.schema, relation.name);
        let is_full = relation.replica_identity == ReplicaIdentity::Full;
        let (mut columns, mut wrong) = (Vec::new(), Vec::new());
        for (name, known) in &filter.columns {
            let found = relation.columns.iter().enumerate().find(|(_, column)| column.name == *name);
            let Some((place, column)) = found else {
                wrong.push(format!(
                    "{table}, column {name}: the filter names it, and the rows have no such column"
                ));
                continue;
            };
            if !is_full && !column.is_key {
                wrong.push(identity_unfit(&table, name, false));
            }
            match kind(column, known) {
                Ok(kind) => columns.push((name.clone(), place, kind)),
                Err(()) => wrong.push(format!(
                    "{table}, column {name}: the filter names it, and rows come in which it has another type"
                )),
            }
        }
        let is_by_key = !is_full || filter.is_partitioned;
        if wrong.is_empty() {
            Ok(Self { filter: Arc::clone(filter), columns, is_by_key })
        } else {
            Err(wrong)
        }
    }

    /// The change as the rows in the filter see it; `None`: not at all.
    pub(in crate::transform) fn change(&self, change: Change) -> Result<Option<Change>, RowError> {
        Ok(match change {
            Change::Insert { relation, new } => {
                self.has(&new, None)?.then_some(Change::Insert { relation, new })
            }
            Change::Delete { relation, old } => self.had(&old)?.then_some(Change::Delete { relation, old }),
            Change::Update { relation, old: None, new } => {
                // Without an old row the key is as it was, and with it what the filter says.
                self.has(&new, None)?.then_some(Change::Update { relation, old: None, new })
            }
            Change::Update { relation, old: Some(old), new } => {
                match (self.had(&old)?, self.has(&new, Some(&old))?) {
                    (true, true) => Some(Change::Update { relation, old: Some(old), new }),
                    (true, false) => Some(Change::Delete { relation, old }),
                    (false, true) => Some(Change::Insert { relation, new: whole(row_of(&old), new)? }),
                    (false, false) => None,
                }
            }
            Change::Truncate { .. } => Some(change),
        })
    }

    fn had(&self, old: &OldRow) -> Result<bool, RowError> {
        let row = row_of(old);
        // Of a partition without FULL only the key comes, and NULL in the place of all else.
        let is_null = |(_, place, _): &(String, usize, _)| row.0.get(*place) == Some(&Value::Null);
        if self.is_by_key && self.columns.iter().any(is_null) {
            return Err(RowError::NotWhole);
        }
        self.has(row, None)
    }

    /// A large value that did not change is in the old row.
    fn has(&self, row: &Row, old: Option<&OldRow>) -> Result<bool, RowError> {
        let value = |(_, place, kind): &(String, usize, Option<Kind>)| {
            let value = match (row.0.get(*place), old.and_then(|old| row_of(old).0.get(*place))) {
                (Some(Value::Unchanged), Some(old)) if *old != Value::Null => old,
                (Some(value), _) => value,
                (None, _) => return Err(RowError::NotWhole),
            };
            kind.ok_or(RowError::UnknownType)?.value(value)
        };
        let mut values = Vec::with_capacity(self.columns.len());
        for column in &self.columns {
            values.push((column.0.as_str(), value(column)?));
        }
        self.filter.decide(values)
    }
}

/// How a column of the stream is read; `Err`: as another type than the filter was checked for.
fn kind(column: &RelationColumn, known: &super::Column) -> Result<Option<Kind>, ()> {
    if column.type_oid < STABLE_OIDS_END {
        let kind = Kind::of_oid(column.type_oid).filter(|kind| kind.gives() == known.kind.gives());
        return kind.map(Some).ok_or(());
    }
    let is_known = known.type_oid.is_none_or(|type_oid| type_oid == column.type_oid);
    Ok(is_known.then_some(known.kind))
}

fn row_of(old: &OldRow) -> &Row {
    match old {
        OldRow::Key(row) | OldRow::Full(row) => row,
    }
}

/// The new row, with the old one's values where they did not change. What is left out of a new row is large, and never NULL.
fn whole(old: &Row, Row(mut values): Row) -> Result<Row, RowError> {
    for (value, old) in values.iter_mut().zip(&old.0) {
        match (&*value, old) {
            (Value::Unchanged, Value::Null | Value::Unchanged) => return Err(RowError::ValueMissing),
            (Value::Unchanged, Value::Binary(_) | Value::Text(_)) => value.clone_from(old),
            (Value::Null | Value::Binary(_) | Value::Text(_), _) => {}
        }
    }
    Ok(Row(values))
}

/// A filter for the data of a COPY.
#[derive(Clone, Debug)]
pub(in crate::transform) struct CopyFilter {
    filter: Arc<Filter>,
    columns: Vec<(String, usize, Kind)>,
}

impl CopyFilter {
    /// Of a table whose columns are copied in this order; those that the filter names, and that are not among them, come after
    /// them.
    pub(in crate::transform) fn new(
        filter: &Arc<Filter>,
        table: &SourceTable,
        copied: &mut Vec<String>,
    ) -> Self {
        let mut columns = Vec::new();
        for (name, known) in &filter.columns {
            let place = copied.iter().position(|column| column == name).unwrap_or_else(|| {
                copied.push(name.clone());
                copied.len() - 1
            });
            let own = table.columns.iter().find(|column| column.name == *name);
            let kind = own.and_then(|own| Kind::of(&own.column_type)).unwrap_or(known.kind);
            columns.push((name.clone(), place, kind));
        }
        Self { filter: Arc::clone(filter), columns }
    }

    /// Whether a row is carried.
    pub(in crate::transform) fn has(&self, row: &[Option<Bytes>], format: Format) -> Result<bool, RowError> {
        let mut values = Vec::with_capacity(self.columns.len());
        for (name, place, kind) in &self.columns {
            let value = match (row.get(*place).ok_or(RowError::NotWhole)?, format) {
                (None, _) => CelValue::Null,
                (Some(bytes), Format::Binary) => kind.binary(bytes)?,
                (Some(text), Format::Text) => kind.text(text)?,
            };
            values.push((name.as_str(), value));
        }
        self.filter.decide(values)
    }
}
