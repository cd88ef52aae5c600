//! Tables that the unit tests share.

use crate::change::table::{SourceColumn, SourceTable, TableName};
use crate::change::{ColumnType, Definition, MadeType, RelationId, ReplicaIdentity, Steps};

/// A plain column.
pub(super) fn column(name: &str, type_oid: u32, type_sql: &str) -> SourceColumn {
    SourceColumn {
        name: name.into(),
        column_type: ColumnType::built_in(type_oid, -1, type_sql),
        is_not_null: false,
        constant_default: None,
        generated: None,
        is_masked: false,
    }
}

/// `shop.mood`.
pub(super) fn mood() -> MadeType {
    MadeType {
        name: TableName::new("shop", "mood"),
        extension: None,
        modifier_sql: String::new(),
        definition: Definition::Enum(vec!["sad".into(), "it's".into()]),
    }
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
        is_primary_key_deferrable: false,
        identity_columns: vec!["id".into()],
        is_partitioned: false,
        foreign_key_peers: Vec::new(),
        estimated_rows: 0,
        steps: Steps::default(),
    }
}
