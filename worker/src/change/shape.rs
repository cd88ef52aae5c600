//! A table's columns as the source's catalogue tells them apart: by number, and with what a rewrite of its rows leaves
//! behind. Kept in the sink beside the rows, so that a later look sees what happened in between.

use serde::{Deserialize, Serialize};

use super::table::{SourceTable, TableName};
use super::{Relation, RelationColumn, RelationId, ReplicaIdentity};

/// The columns of a table at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableShape {
    /// In order, dropped ones left out.
    pub columns: Vec<ShapeColumn>,
    /// The number that was given last. Every column that is added gets the next one, and none comes twice.
    pub last_number: i16,
    /// What holds the rows: the table, or its partitions.
    pub parts: Vec<ShapePart>,
    /// Labels of the enum types that its columns are made of.
    #[serde(default)]
    pub labels: Vec<ShapeLabel>,
}

/// A label of an enum type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShapeLabel {
    /// OID: stays with the label when it is renamed.
    pub id: u32,
    /// OID of the type.
    pub type_oid: u32,
    /// As it is written.
    pub label: String,
}

/// A column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShapeColumn {
    /// `attnum`: stays with the column through renaming and changes of its type.
    pub number: i16,
    /// Name.
    pub name: String,
    /// OID of its type.
    pub type_oid: u32,
    /// Type modifier, -1 for none.
    pub type_modifier: i32,
    /// NOT NULL.
    pub is_not_null: bool,
    /// Computed by the table, and never in the stream.
    pub is_generated: bool,
    /// OID of its default or expression; 0 without one. Another one after `ALTER COLUMN … TYPE` or `SET DEFAULT`.
    pub default: u32,
}

/// A table that holds rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShapePart {
    /// OID.
    pub id: u32,
    /// The file of the rows: another one after every rewrite, also after VACUUM FULL, CLUSTER and TRUNCATE.
    pub file: u32,
    /// OID of its TOAST table; 0 without one. ALTER TABLE that gives it a new file makes this anew, the other commands do
    /// not.
    #[serde(default)]
    pub toast: u32,
    /// OIDs of its own entries in publications, any of which keeps it from being set UNLOGGED.
    #[serde(default)]
    pub entries: Vec<u32>,
    /// Its columns.
    pub columns: Vec<PartColumn>,
}

/// A column of a table that holds rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartColumn {
    /// `attnum` in this table; partitions may have other numbers than their root.
    pub number: i16,
    /// Name.
    pub name: String,
    /// The transaction that last wrote the column's description.
    pub version: u32,
    /// OID of its default; 0 without one.
    pub default: u32,
    /// What rows from before the column was added hold, as text, as long as nobody rewrote them (`attmissingval`).
    pub missing: Option<String>,
}

/// A table as the catalogue has it at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresentTable {
    /// What its columns are made of.
    pub table: SourceTable,
    /// Its shape.
    pub shape: TableShape,
}

impl TableShape {
    /// The columns that the stream carries.
    pub fn carried(&self) -> impl Iterator<Item = &ShapeColumn> {
        self.columns.iter().filter(|column| !column.is_generated)
    }

    /// The column of that number.
    pub fn column(&self, number: i16) -> Option<&ShapeColumn> {
        self.columns.iter().find(|column| column.number == number)
    }

    /// The same, but for what says nothing of the rows: how its parts are published, and which labels there are.
    #[must_use]
    pub fn of_rows(&self) -> Self {
        let mut shape = Self { labels: Vec::new(), ..self.clone() };
        shape.parts.iter_mut().for_each(|part| part.entries.clear());
        shape
    }

    /// Whether the stream describes the table like this.
    pub fn is_of(&self, relation: &Relation) -> bool {
        self.carried().count() == relation.columns.len()
            && self.carried().zip(&relation.columns).all(|(own, column)| own.is_like(column))
    }

    /// As the stream would describe it.
    pub fn relation(
        &self,
        id: RelationId,
        name: &TableName,
        identity: ReplicaIdentity,
        key: &[String],
    ) -> Relation {
        let column = |column: &ShapeColumn| RelationColumn {
            name: column.name.clone(),
            type_oid: column.type_oid,
            type_modifier: column.type_modifier,
            is_key: key.contains(&column.name),
        };
        Relation {
            id,
            schema: name.schema.clone(),
            name: name.name.clone(),
            replica_identity: identity,
            columns: self.carried().map(column).collect(),
        }
    }
}

impl ShapeColumn {
    /// Whether the stream describes the column like this.
    pub fn is_like(&self, column: &RelationColumn) -> bool {
        (&self.name, self.type_oid, self.type_modifier)
            == (&column.name, column.type_oid, column.type_modifier)
    }
}

impl PresentTable {
    /// As the stream would describe it.
    pub fn relation(&self) -> Relation {
        let SourceTable { id, name, replica_identity, identity_columns, .. } = &self.table;
        self.shape.relation(*id, name, *replica_identity, identity_columns)
    }
}
