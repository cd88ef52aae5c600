//! Tables that the unit tests share.

use crate::change::table::{EnumType, SourceColumn, SourceTable, TableName};
use crate::change::{RelationId, ReplicaIdentity};

/// A plain column.
pub(super) fn column(name: &str, type_oid: u32, type_sql: &str) -> SourceColumn {
    SourceColumn {
        name: name.into(),
        type_oid,
        type_sql: type_sql.into(),
        is_not_null: false,
        constant_default: None,
        generated: None,
        enum_type: None,
    }
}

/// `shop.mood`.
pub(super) fn mood() -> EnumType {
    EnumType { name: TableName::new("shop", "mood"), labels: vec!["sad".into(), "it's".into()] }
}

/// `shop.orders(id bigint primary key, total numeric(10,2), note text default 'none')`.
pub(super) fn orders() -> SourceTable {
    SourceTable {
        id: RelationId(16_400),
        name: TableName::new("shop", "orders"),
        columns: vec![
            SourceColumn { is_not_null: true, ..column("id", 20, "bigint") },
            column("total", 1700, "numeric(10,2)"),
            SourceColumn { constant_default: Some("'none'::text".into()), ..column("note", 25, "text") },
        ],
        replica_identity: ReplicaIdentity::Default,
        primary_key: vec!["id".into()],
        identity_columns: vec!["id".into()],
        is_partitioned: false,
        foreign_key_peers: Vec::new(),
        estimated_rows: 0,
    }
}
