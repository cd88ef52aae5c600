//! A table as the stream describes it (RELATION message of pgoutput).

/// OID of a table in the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelationId(pub u32);

/// A table as the stream describes it, valid for the changes that follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// OID in the source.
    pub id: RelationId,
    /// Schema.
    pub schema: String,
    /// Name within the schema.
    pub name: String,
    /// What UPDATE and DELETE carry of the old row.
    pub replica_identity: ReplicaIdentity,
    /// Published columns in order; rows of the stream have the same order.
    pub columns: Vec<RelationColumn>,
}

impl Relation {
    /// Whether rows are named by the column, and not by all of them.
    pub fn is_named_by(&self, column: &RelationColumn) -> bool {
        column.is_key && self.replica_identity != ReplicaIdentity::Full
    }
}

/// A column as the stream describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationColumn {
    /// Name.
    pub name: String,
    /// OID of the type in the source.
    pub type_oid: u32,
    /// Type modifier, -1 for none.
    pub type_modifier: i32,
    /// Part of the replica identity. With identity FULL every column is.
    pub is_key: bool,
}

/// What UPDATE and DELETE carry of the old row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// The primary key (`d`).
    Default,
    /// Nothing (`n`).
    Nothing,
    /// The whole row (`f`).
    Full,
    /// A chosen unique index (`i`).
    Index,
}
