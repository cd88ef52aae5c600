//! A table as the source's catalogue describes it: what the sink needs to make one like it.

use std::fmt;

use super::{ColumnType, RelationId, ReplicaIdentity, Steps};

/// Schema and name, as PostgreSQL stores them (unquoted).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableName {
    /// Schema.
    pub schema: String,
    /// Name within the schema.
    pub name: String,
}

impl TableName {
    /// `schema.name`.
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self { schema: schema.into(), name: name.into() }
    }

    /// `"schema"."name"`, quoted for SQL.
    pub fn quoted(&self) -> String {
        format!("{}.{}", quote_identifier(&self.schema), quote_identifier(&self.name))
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// An identifier quoted for SQL: `a"b` becomes `"a""b"`.
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string quoted for SQL as an `E''` literal where it needs one.
pub fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

/// A table of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceTable {
    /// OID.
    pub id: RelationId,
    /// Name.
    pub name: TableName,
    /// Columns in order, dropped ones left out.
    pub columns: Vec<SourceColumn>,
    /// How UPDATE and DELETE name a row.
    pub replica_identity: ReplicaIdentity,
    /// Columns of the primary key in key order; empty without one.
    pub primary_key: Vec<String>,
    /// The primary key may be broken within a transaction (DEFERRABLE).
    pub is_primary_key_deferrable: bool,
    /// Columns of the replica identity: of the primary key (DEFAULT) or the chosen index (INDEX); all
    /// (FULL). Empty: UPDATE and DELETE cannot be carried.
    pub identity_columns: Vec<String>,
    /// A partitioned table: its partitions' rows are published and copied as its own.
    pub is_partitioned: bool,
    /// Tables that a foreign key of this one names, or that name this one.
    pub foreign_key_peers: Vec<RelationId>,
    /// Rows, as the source's statistics estimate them.
    pub estimated_rows: u64,
    /// What is done to its columns on their way. As the catalogue has it: nothing; else this is the table as the sink gets it.
    pub steps: Steps,
}

/// A column of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceColumn {
    /// Name.
    pub name: String,
    /// Its type; for a domain, what that is over.
    pub column_type: ColumnType,
    /// NOT NULL (of the column or of its domain).
    pub is_not_null: bool,
    /// A constant default as SQL writes it. Calls, sequences and everything that could differ between
    /// two servers are left out.
    pub constant_default: Option<String>,
    /// Expression of a stored generated column: computed in the sink, never in the stream.
    pub generated: Option<String>,
    /// Its values are masked: no default of the sink may stand in for them.
    pub is_masked: bool,
}
