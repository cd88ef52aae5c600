//! What the source's catalogue says about the pipeline's tables.

mod columns;
mod keys;
mod tables;

use std::collections::HashMap;

use tokio_postgres::Client;

pub(super) use tables::{FoundTable, find_tables, tables_of};

use super::error::SourceError;
use crate::change::table::SourceTable;
use crate::change::{RelationId, Steps};

/// Describes the tables that were found: columns, types, identity, foreign keys.
pub(super) async fn describe(client: &Client, found: &[FoundTable]) -> Result<Vec<SourceTable>, SourceError> {
    let chosen: Vec<&FoundTable> = found.iter().filter(|table| table.is_chosen()).collect();
    let ids: Vec<u32> = chosen.iter().map(|table| table.id.0).collect();
    let mut columns = columns::read_columns(client, &chosen, &ids).await?;
    let identities = keys::read_identities(client, found, &columns).await?;
    let mut peers = read_foreign_keys(client, found).await?;
    let mut tables = Vec::with_capacity(chosen.len());
    for table in chosen {
        let identity = identities.get(&table.id).cloned().unwrap_or_default();
        tables.push(SourceTable {
            id: table.id,
            name: table.name.clone(),
            columns: columns.remove(&table.id).unwrap_or_default(),
            replica_identity: table.replica_identity,
            primary_key: identity.primary_key,
            is_primary_key_deferrable: identity.is_primary_key_deferrable,
            identity_columns: identity.columns,
            is_partitioned: table.is_partitioned,
            foreign_key_peers: peers.remove(&table.id).unwrap_or_default(),
            estimated_rows: tables::estimate_rows(client, found, table).await?,
            steps: Steps::default(),
        });
    }
    Ok(tables)
}

/// Both directions of every foreign key; an end that is a partition counts as its chosen root.
async fn read_foreign_keys(
    client: &Client,
    found: &[FoundTable],
) -> Result<HashMap<RelationId, Vec<RelationId>>, SourceError> {
    let roots: HashMap<RelationId, RelationId> = found.iter().map(|table| (table.id, table.root)).collect();
    let ids: Vec<u32> = roots.keys().map(|id| id.0).collect();
    let rows = client
        .query(
            "SELECT conrelid, confrelid FROM pg_catalog.pg_constraint \
             WHERE contype = 'f' AND conrelid = ANY ($1) AND confrelid = ANY ($1) AND conrelid <> confrelid",
            &[&ids],
        )
        .await
        .map_err(|error| SourceError::sql(&error, "reading foreign keys"))?;
    let mut peers: HashMap<RelationId, Vec<RelationId>> = HashMap::new();
    for row in rows {
        let root = |column: usize| roots.get(&RelationId(row.get(column))).copied();
        let (Some(from), Some(to)) = (root(0), root(1)) else { continue };
        if from != to {
            peers.entry(from).or_default().push(to);
            peers.entry(to).or_default().push(from);
        }
    }
    for list in peers.values_mut() {
        list.sort_unstable();
        list.dedup();
    }
    Ok(peers)
}
