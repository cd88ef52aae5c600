//! A table and entries for it.

use std::collections::BTreeMap;

use penstock_crds::transform::{ColumnMask, HashMask, RedactMask, TableTransform, TruncateMask};

use crate::change::table::{SourceColumn, SourceTable, TableName};
use crate::change::{ColumnType, Relation, RelationColumn, RelationId, ReplicaIdentity, Steps};
use crate::transform::{Entries, MaskKey, MaskKeys, TableSteps, Transforms, Unsuitable};

pub(super) const ID: RelationId = RelationId(16_400);
pub(super) const KEY: &[u8] = b"a key of at least 16 bytes";

pub(super) fn column(name: &str, oid: u32, sql: &str) -> SourceColumn {
    SourceColumn {
        name: name.into(),
        column_type: ColumnType::built_in(oid, -1, sql),
        is_not_null: name == "id",
        constant_default: None,
        generated: None,
        is_masked: false,
    }
}

/// `shop.users (id int primary key, mail text default 'nobody', name text, token uuid, size int, twice int generated)`.
pub(super) fn users() -> SourceTable {
    let twice = SourceColumn { generated: Some("(size * 2)".into()), ..column("twice", 23, "integer") };
    let mail = SourceColumn { constant_default: Some("'nobody'::text".into()), ..column("mail", 25, "text") };
    SourceTable {
        id: ID,
        name: TableName::new("shop", "users"),
        columns: vec![
            column("id", 23, "integer"),
            mail,
            column("name", 25, "text"),
            column("token", 2950, "uuid"),
            column("size", 23, "integer"),
            twice,
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

/// As the stream describes it; columns in the order of the names.
pub(super) fn relation(names: &[&str]) -> Relation {
    let table = users();
    let column = |name: &&str| {
        let own = table.columns.iter().find(|column| column.name == **name);
        RelationColumn {
            name: (*name).into(),
            type_oid: own.map_or(25, |own| own.column_type.oid),
            type_modifier: -1,
            is_key: *name == "id",
        }
    };
    Relation {
        id: ID,
        schema: "shop".into(),
        name: "users".into(),
        replica_identity: ReplicaIdentity::Default,
        columns: names.iter().map(column).collect(),
    }
}

pub(super) fn whole() -> Relation {
    relation(&["id", "mail", "name", "token", "size"])
}

pub(super) fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

pub(super) fn entry() -> TableTransform {
    TableTransform { tables: names(&["shop.users"]), ..TableTransform::default() }
}

pub(super) fn hash(columns: &[&str]) -> ColumnMask {
    let hash = Some(HashMask { key_secret: "pii".into() });
    ColumnMask { columns: names(columns), hash, redact: None, truncate: None }
}

pub(super) fn redact(columns: &[&str]) -> ColumnMask {
    let redact = Some(RedactMask { with: "***".into() });
    ColumnMask { columns: names(columns), hash: None, redact, truncate: None }
}

pub(super) fn truncate(columns: &[&str], length: u32) -> ColumnMask {
    let truncate = Some(TruncateMask { length });
    ColumnMask { columns: names(columns), hash: None, redact: None, truncate }
}

pub(super) fn keys() -> MaskKeys {
    MaskKeys::from([("pii".to_owned(), MaskKey::new(KEY).unwrap())])
}

pub(super) fn transforms(
    entries: &[TableTransform],
    tables: &[SourceTable],
) -> Result<Transforms, Unsuitable> {
    let entries = Entries::new(entries, &BTreeMap::new()).unwrap();
    Transforms::new(&entries, &keys(), tables, &BTreeMap::new())
}

/// What the entry does to `shop.users`.
pub(super) fn steps(entry: TableTransform) -> TableSteps {
    let transforms = transforms(&[entry], &[users()]).unwrap();
    transforms.of(ID).unwrap().as_ref().clone()
}

/// Why the entry does not fit `shop.users`.
pub(super) fn refusal(entry: TableTransform) -> String {
    refusal_of(entry, users())
}

pub(super) fn refusal_of(entry: TableTransform, table: SourceTable) -> String {
    transforms(&[entry], &[table]).unwrap_err().to_string()
}
