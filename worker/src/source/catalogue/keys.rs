//! How UPDATE and DELETE name a row of each table, and the tables where they cannot.

use std::collections::HashMap;

use tokio_postgres::Client;

use super::super::error::SourceError;
use super::FoundTable;
use crate::change::table::SourceColumn;
use crate::change::{RelationId, ReplicaIdentity};

/// The keys of a table.
#[derive(Clone, Debug, Default)]
pub(super) struct Identity {
    pub(super) primary_key: Vec<String>,
    pub(super) is_primary_key_deferrable: bool,
    pub(super) columns: Vec<String>,
}

/// An index that may name rows.
struct Key {
    is_primary: bool,
    is_replica_identity: bool,
    /// A deferrable key names no row in the log.
    is_immediate: bool,
    columns: Vec<String>,
}

/// Keys of the chosen tables. Refused: a table, or a partition of one, whose UPDATE and DELETE would not carry
/// the key; with the statement that puts it right.
pub(super) async fn read_identities(
    client: &Client,
    found: &[FoundTable],
    columns: &HashMap<RelationId, Vec<SourceColumn>>,
) -> Result<HashMap<RelationId, Identity>, SourceError> {
    let keys = read_keys(client, found).await?;
    let none = Vec::new();
    let chosen: HashMap<RelationId, &FoundTable> =
        found.iter().filter(|table| table.is_chosen()).map(|table| (table.id, table)).collect();
    let mut identities = HashMap::new();
    let mut problems = Vec::new();
    // A partitioned table between root and partition has no rows that could be logged.
    for table in found.iter().filter(|table| table.is_chosen() || !table.is_partitioned) {
        let own = keys.get(&table.id).unwrap_or(&none);
        let root_columns = columns.get(&table.root).map_or(&[][..], Vec::as_slice);
        if let Err(problem) = check(table, own, root_columns, chosen.get(&table.root).copied()) {
            problems.push(problem);
        } else if table.is_chosen() {
            identities.insert(table.id, identity(table, own, root_columns));
        }
    }
    if problems.is_empty() { Ok(identities) } else { Err(SourceError::IdentityMissing(problems)) }
}

fn identity(table: &FoundTable, keys: &[Key], columns: &[SourceColumn]) -> Identity {
    let of = |is_it: fn(&Key) -> bool| {
        keys.iter().find(|key| is_it(key)).map(|key| key.columns.clone()).unwrap_or_default()
    };
    let primary_key = of(|key| key.is_primary);
    let identity_columns = match table.replica_identity {
        ReplicaIdentity::Default => of(|key| key.is_primary && key.is_immediate),
        ReplicaIdentity::Index => of(|key| key.is_replica_identity),
        ReplicaIdentity::Full => columns
            .iter()
            .filter(|column| column.generated.is_none())
            .map(|column| column.name.clone())
            .collect(),
        ReplicaIdentity::Nothing => Vec::new(),
    };
    let is_primary_key_deferrable = keys.iter().any(|key| key.is_primary && !key.is_immediate);
    Identity { primary_key, is_primary_key_deferrable, columns: identity_columns }
}

fn check(
    table: &FoundTable,
    keys: &[Key],
    columns: &[SourceColumn],
    root: Option<&FoundTable>,
) -> Result<(), String> {
    let name = &table.name;
    let sql = table.name.quoted();
    if let Some(root) = root.filter(|root| root.replica_identity != table.replica_identity) {
        let wanted = match root.replica_identity {
            ReplicaIdentity::Default => "DEFAULT",
            ReplicaIdentity::Full => "FULL",
            ReplicaIdentity::Nothing => "NOTHING",
            ReplicaIdentity::Index => "USING INDEX <its part of the root's index>",
        };
        return Err(format!(
            "the partition {name} has another replica identity than {}: run ALTER TABLE {sql} REPLICA IDENTITY {wanted}.",
            root.name
        ));
    }
    let generated = |key: &Key| {
        columns.iter().any(|column| column.generated.is_some() && key.columns.contains(&column.name))
    };
    let with_full = format!("ALTER TABLE {sql} REPLICA IDENTITY FULL");
    match table.replica_identity {
        ReplicaIdentity::Full => Ok(()),
        ReplicaIdentity::Nothing => Err(format!(
            "{name} has REPLICA IDENTITY NOTHING: run ALTER TABLE {sql} REPLICA IDENTITY DEFAULT (with a primary \
             key) or {with_full}."
        )),
        ReplicaIdentity::Default => match keys.iter().find(|key| key.is_primary) {
            None => Err(format!("{name} has no primary key: add one, or run {with_full}.")),
            Some(key) if !key.is_immediate => Err(format!(
                "the primary key of {name} is deferrable: make it not deferrable, or run {with_full}."
            )),
            Some(key) if generated(key) => {
                Err(format!("the primary key of {name} holds a generated column: run {with_full}."))
            }
            Some(_) => Ok(()),
        },
        ReplicaIdentity::Index => match keys.iter().find(|key| key.is_replica_identity) {
            None => Err(format!(
                "the index of the replica identity of {name} is gone: run ALTER TABLE {sql} REPLICA IDENTITY \
                 DEFAULT (with a primary key), USING INDEX with another, or {with_full}."
            )),
            Some(key) if generated(key) => {
                Err(format!("the replica identity of {name} holds a generated column: run {with_full}."))
            }
            Some(_) => Ok(()),
        },
    }
}

async fn read_keys(
    client: &Client,
    found: &[FoundTable],
) -> Result<HashMap<RelationId, Vec<Key>>, SourceError> {
    let ids: Vec<u32> = found.iter().map(|table| table.id.0).collect();
    let rows = client
        .query(
            "SELECT i.indrelid, i.indisprimary, i.indisreplident, i.indimmediate, ARRAY ( \
               SELECT a.attname::text \
               FROM pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY AS k (number, place) \
               JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.number \
               WHERE k.place <= i.indnkeyatts ORDER BY k.place) \
             FROM pg_catalog.pg_index AS i \
             WHERE i.indrelid = ANY ($1) AND i.indisvalid AND (i.indisprimary OR i.indisreplident)",
            &[&ids],
        )
        .await
        .map_err(|error| SourceError::sql(&error, "reading keys"))?;
    let mut keys: HashMap<RelationId, Vec<Key>> = HashMap::new();
    for row in rows {
        keys.entry(RelationId(row.get(0))).or_default().push(Key {
            is_primary: row.get(1),
            is_replica_identity: row.get(2),
            is_immediate: row.get(3),
            columns: row.get(4),
        });
    }
    Ok(keys)
}
