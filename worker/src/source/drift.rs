//! What became of the tables since they were inspected.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use penstock_crds::table_pattern::TablePattern;
use tokio_postgres::Client;

use super::catalogue::find_tables;
use super::error::SourceError;
use super::publication::{PublicationName, carried_tables};
use crate::change::PublishedAs;
use crate::change::table::{SourceTable, TableName};

/// Tables as they are followed: what [`drift`] compares with.
#[derive(Clone, Debug)]
pub struct Followed {
    /// As they were inspected.
    pub tables: Vec<SourceTable>,
    /// As the publication carried them.
    pub carried: BTreeMap<TableName, PublishedAs>,
}

/// What is no longer as it was, as a clause; `None` while all is. Names are given anew, so tables are told apart by
/// their OIDs.
pub async fn drift(
    client: &Client,
    publication: &PublicationName,
    followed: &Followed,
) -> Result<Option<String>, SourceError> {
    if let Some((table, now)) = first_renamed(client, &followed.tables).await? {
        return Ok(Some(format!("the table {table} {now}")));
    }
    let carried = carried_tables(client, publication, &followed.tables).await?;
    let is_lost = |table: &&SourceTable| {
        let entry = carried.get(&table.name);
        entry.is_none() || entry != followed.carried.get(&table.name)
    };
    Ok(followed.tables.iter().find(is_lost).map(|table| {
        format!("the publication {publication} stopped carrying every change of {}", table.name)
    }))
}

/// The first table that does not have its name any more, and what happened to it.
async fn first_renamed(
    client: &Client,
    tables: &[SourceTable],
) -> Result<Option<(TableName, String)>, SourceError> {
    let ids: Vec<u32> = tables.iter().map(|table| table.id.0).collect();
    let rows = client
        .query(
            "SELECT c.oid, n.nspname::text, c.relname::text FROM pg_catalog.pg_class AS c \
             JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = ANY ($1)",
            &[&ids],
        )
        .await
        .map_err(|error| SourceError::sql(&error, "looking at its tables again"))?;
    let now: HashMap<u32, TableName> = rows
        .iter()
        .map(|row| (row.get(0), TableName::new(row.get::<_, String>(1), row.get::<_, String>(2))))
        .collect();
    Ok(tables.iter().find_map(|table| match now.get(&table.id.0) {
        None => Some((table.name.clone(), "was dropped".to_owned())),
        Some(name) if *name != table.name => Some((table.name.clone(), format!("was renamed to {name}"))),
        Some(_) => None,
    }))
}

/// Tables that the patterns name and that are not among the followed ones.
pub async fn new_tables(
    client: &Client,
    patterns: &[TablePattern],
    followed: &Followed,
) -> Result<Vec<TableName>, SourceError> {
    let known: BTreeSet<&TableName> = followed.tables.iter().map(|table| &table.name).collect();
    let found = find_tables(client, patterns).await?;
    let new = found.into_iter().filter(|table| table.is_chosen() && !known.contains(&table.name));
    Ok(new.map(|table| table.name).collect())
}
