//! Keys whose order the source and the worker agree on.

use bytes::Bytes;

use super::order::KeyOrder;
use crate::change::table::{SourceTable, quote_identifier, quote_literal};
use crate::change::{Relation, ReplicaIdentity, Row, Value};

/// The key by whose ranges a table can be copied: the columns that name a row in the stream, if the order of all of
/// them is known. `None`: the table is copied as a whole.
pub fn key_of(table: &SourceTable) -> Option<Vec<KeyColumn>> {
    let names = match table.replica_identity {
        ReplicaIdentity::Default | ReplicaIdentity::Index => &table.identity_columns,
        ReplicaIdentity::Full | ReplicaIdentity::Nothing => &table.primary_key,
    };
    let column = |name: &String| {
        // A generated column is not in the stream.
        let column =
            table.columns.iter().find(|column| column.name == *name && column.generated.is_none())?;
        let order = KeyOrder::of_type(column.column_type.oid)?;
        Some(KeyColumn { name: name.clone(), type_sql: column.column_type.sql.clone(), order })
    };
    names.iter().map(column).collect::<Option<Vec<_>>>().filter(|key| !key.is_empty())
}

/// A column of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyColumn {
    /// Its name.
    pub name: String,
    /// Its type as SQL writes it.
    pub type_sql: String,
    /// How its values are ordered.
    pub order: KeyOrder,
}

impl KeyColumn {
    /// The columns' names, quoted, as SQL lists them.
    pub fn names(key: &[Self]) -> String {
        let names: Vec<String> = key.iter().map(|column| quote_identifier(&column.name)).collect();
        names.join(", ")
    }

    /// Values of the columns, as SQL lists them; `texts` is what the server writes for them.
    pub fn literals(key: &[Self], texts: &[String]) -> String {
        let literal =
            |(column, text): (&Self, &String)| format!("{}::{}", quote_literal(text), column.type_sql);
        key.iter().zip(texts).map(literal).collect::<Vec<_>>().join(", ")
    }
}

/// Values of a key's columns. Ordered as the source's index is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(Vec<Vec<u8>>);

/// A row whose key cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// The stream described no such column, or sent no value for it.
    #[error("a column of the key is not in the row")]
    Missing,
    /// Other columns name the rows now.
    #[error("other columns name the rows now")]
    Changed,
    /// NULL, or a value in text.
    #[error("a column of the key has no value in binary form")]
    NotBinary,
}

impl Key {
    /// Of binary values, in the order of the key's columns.
    pub fn new(columns: &[KeyColumn], values: &[Bytes]) -> Self {
        Self(columns.iter().zip(values).map(|(column, value)| column.order.bytes(value)).collect())
    }

    pub(super) fn of_row(columns: &[KeyColumn], places: &[usize], row: &Row) -> Result<Self, InvalidKey> {
        if places.len() != columns.len() {
            return Err(InvalidKey::Missing);
        }
        let part = |(column, place): (&KeyColumn, &usize)| match row.0.get(*place) {
            Some(Value::Binary(bytes)) => Ok(column.order.bytes(bytes)),
            Some(Value::Null | Value::Text(_)) => Err(InvalidKey::NotBinary),
            Some(Value::Unchanged) | None => Err(InvalidKey::Missing),
        };
        columns.iter().zip(places).map(part).collect::<Result<_, _>>().map(Self)
    }

    /// Of a changed row; a column of the key that did not change may be a TOAST value that was not sent again.
    pub(super) fn of_changed_row(
        columns: &[KeyColumn],
        places: &[usize],
        old: &Row,
        new: &Row,
    ) -> Result<Self, InvalidKey> {
        if places.iter().all(|place| new.0.get(*place) != Some(&Value::Unchanged)) {
            return Self::of_row(columns, places, new);
        }
        let merged =
            old.0.iter().zip(&new.0).map(|(old, new)| if *new == Value::Unchanged { old } else { new });
        Self::of_row(columns, places, &Row(merged.cloned().collect()))
    }
}

/// Where the key's columns are in the rows of a relation, if they are what names its rows.
pub(super) fn places(key: &[KeyColumn], relation: &Relation) -> Result<Vec<usize>, InvalidKey> {
    let place = |column: &KeyColumn| relation.columns.iter().position(|other| other.name == column.name);
    let places: Vec<usize> = key.iter().map(place).collect::<Option<_>>().ok_or(InvalidKey::Missing)?;
    let names_rows = |place: usize| relation.columns.get(place).is_some_and(|column| column.is_key);
    let is_whole = relation.replica_identity == ReplicaIdentity::Full
        || (0..relation.columns.len()).all(|place| places.contains(&place) == names_rows(place));
    if is_whole { Ok(places) } else { Err(InvalidKey::Changed) }
}
