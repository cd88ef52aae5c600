//! Which tables a pipeline means, and what the role may do with them.

use std::collections::{HashMap, HashSet};

use penstock_crds::table_pattern::TablePattern;
use tokio_postgres::Client;

use super::super::error::SourceError;
use super::super::raw::Raw;
use crate::change::table::TableName;
use crate::change::{RelationId, ReplicaIdentity};

/// A table of the pipeline, or a partition of one.
#[expect(clippy::struct_excessive_bools, reason = "independent facts of the catalogue")]
#[derive(Clone, Debug)]
pub(in crate::source) struct FoundTable {
    pub(in crate::source) id: RelationId,
    pub(in crate::source) name: TableName,
    /// The table of the pipeline that it belongs to: itself, or the partitioned table above it.
    pub(in crate::source) root: RelationId,
    pub(in crate::source) is_partitioned: bool,
    pub(in crate::source) replica_identity: ReplicaIdentity,
    pub(in crate::source) owner: String,
    /// The role may act as the owner.
    pub(in crate::source) is_owned: bool,
    pub(in crate::source) has_schema_usage: bool,
    pub(in crate::source) has_select: bool,
    /// A row-level policy would hide rows from the role.
    pub(in crate::source) has_active_policy: bool,
    /// `None` until the table was analysed.
    row_statistics: Option<u64>,
}

impl FoundTable {
    /// A table of the pipeline and not a partition of one.
    pub(in crate::source) fn is_chosen(&self) -> bool {
        self.id == self.root
    }
}

/// What can stand in `pg_class` under a table's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ordinary,
    Partitioned,
    /// With the word for it, and whether it holds rows of its own: a wildcard passes over those that do not.
    Other(&'static str, bool),
}

impl Kind {
    fn of(relkind: &str, persistence: &str) -> Self {
        match (relkind, persistence) {
            ("r" | "p", "u") => Self::Other("an unlogged table", true),
            ("r" | "p", "t") => Self::Other("a temporary table", true),
            ("r", _) => Self::Ordinary,
            ("p", _) => Self::Partitioned,
            ("f", _) => Self::Other("a foreign table", true),
            ("m", _) => Self::Other("a materialized view", false),
            _ => Self::Other("a view", false),
        }
    }
}

/// Resolves patterns to tables, partitions of chosen tables included (as such).
pub(in crate::source) async fn find_tables(
    client: &Client,
    patterns: &[TablePattern],
) -> Result<Vec<FoundTable>, SourceError> {
    let chosen = match_names(client, patterns).await?;
    tables_of(client, &chosen).await
}

/// These tables and their partitions.
pub(in crate::source) async fn tables_of(
    client: &Client,
    chosen: &[u32],
) -> Result<Vec<FoundTable>, SourceError> {
    let tree = read_partitions(client, chosen).await?;
    let below: HashSet<RelationId> = tree.iter().filter(|(root, id)| root != id).map(|(_, id)| *id).collect();
    let roots: HashMap<RelationId, RelationId> =
        tree.into_iter().filter(|(root, _)| !below.contains(root)).map(|(root, id)| (id, root)).collect();
    let mut found = read_tables(client, &roots).await?;
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// The relations that the patterns name, whatever they are part of.
async fn match_names(client: &Client, patterns: &[TablePattern]) -> Result<Vec<u32>, SourceError> {
    let rows = client
        .query(
            "SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text \
             FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
             WHERE c.relkind IN ('r', 'p', 'f', 'm', 'v') AND c.oid >= 16384 \
             AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'penstock') \
             AND n.nspname NOT LIKE 'pg\\_toast\\_temp\\_%'",
            &[],
        )
        .await
        .map_err(|error| SourceError::sql(&error, "listing its tables"))?;
    let mut chosen = Vec::new();
    let mut refused = Vec::new();
    let mut is_matched = vec![false; patterns.len()];
    for row in rows {
        let name = TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
        let kind = Kind::of(row.get(3), row.get(4));
        let written = name.to_string();
        for (pattern, is_matched) in patterns.iter().zip(&mut is_matched) {
            if !pattern.matches(&name.schema, &name.name) {
                continue;
            }
            match kind {
                Kind::Ordinary | Kind::Partitioned => {
                    *is_matched = true;
                    chosen.push(row.get(0));
                }
                Kind::Other(word, holds_rows) if holds_rows || pattern.to_string() == written => {
                    *is_matched = true;
                    refused.push(format!("{written}, {word},"));
                }
                Kind::Other(..) => {}
            }
        }
    }
    let unmatched: Vec<String> = patterns
        .iter()
        .zip(is_matched)
        .filter(|(_, is_matched)| !is_matched)
        .map(|(pattern, _)| pattern.to_string())
        .collect();
    refused.sort();
    refused.dedup();
    match (unmatched.is_empty(), refused.is_empty()) {
        (false, _) => Err(SourceError::NoMatch(unmatched)),
        (_, false) => Err(SourceError::NotPublishable(refused)),
        (true, true) => Ok(chosen),
    }
}

/// Pairs of a chosen table and itself or a partition below it, at any depth.
async fn read_partitions(
    client: &Client,
    chosen: &[u32],
) -> Result<Vec<(RelationId, RelationId)>, SourceError> {
    let rows = client
        .query(
            "WITH RECURSIVE tree (root, id) AS ( \
               SELECT c.oid, c.oid FROM pg_catalog.pg_class AS c WHERE c.oid = ANY ($1) \
               UNION ALL SELECT tree.root, i.inhrelid FROM tree JOIN pg_catalog.pg_inherits AS i \
                 ON i.inhparent = tree.id JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid \
                 WHERE c.relispartition) \
             SELECT root, id FROM tree",
            &[&chosen],
        )
        .await
        .map_err(|error| SourceError::sql(&error, "listing partitions"))?;
    Ok(rows.iter().map(|row| (RelationId(row.get(0)), RelationId(row.get(1)))).collect())
}

async fn read_tables(
    client: &Client,
    roots: &HashMap<RelationId, RelationId>,
) -> Result<Vec<FoundTable>, SourceError> {
    let ids: Vec<u32> = roots.keys().map(|id| id.0).collect();
    let rows = client
        .query(
            "SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text, \
               c.relreplident::text, pg_catalog.pg_get_userbyid(c.relowner)::text, \
               pg_catalog.pg_has_role(c.relowner, 'USAGE'), \
               pg_catalog.has_schema_privilege(n.oid, 'USAGE'), \
               pg_catalog.has_table_privilege(c.oid, 'SELECT'), pg_catalog.row_security_active(c.oid), \
               c.reltuples::float8 \
             FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
             WHERE c.oid = ANY ($1)",
            &[&ids],
        )
        .await
        .map_err(|error| SourceError::sql(&error, "reading its tables"))?;
    let mut found = Vec::with_capacity(rows.len());
    let mut refused = Vec::new();
    for row in rows {
        let id = RelationId(row.get(0));
        let name = TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
        let kind = Kind::of(row.get(3), row.get(4));
        if let Kind::Other(word, _) = kind {
            refused.push(format!("{name}, {word} among the partitions,"));
            continue;
        }
        found.push(FoundTable {
            id,
            name,
            root: roots.get(&id).copied().unwrap_or(id),
            is_partitioned: kind == Kind::Partitioned,
            replica_identity: replica_identity(row.get(5)),
            owner: row.get(6),
            is_owned: row.get(7),
            has_schema_usage: row.get(8),
            has_select: row.get(9),
            has_active_policy: row.get(10),
            row_statistics: whole_rows(row.get(11)),
        });
    }
    if refused.is_empty() { Ok(found) } else { Err(SourceError::NotPublishable(refused)) }
}

fn replica_identity(letter: &str) -> ReplicaIdentity {
    match letter {
        "d" => ReplicaIdentity::Default,
        "f" => ReplicaIdentity::Full,
        "i" => ReplicaIdentity::Index,
        _ => ReplicaIdentity::Nothing,
    }
}

/// `reltuples`: -1 means that nobody has counted yet.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an estimate, checked to be >= 0"
)]
fn whole_rows(estimate: f64) -> Option<u64> {
    (estimate >= 0.0).then_some(estimate as u64)
}

/// Rows of a table and its partitions, as the statistics say; where one was never analysed, as the planner
/// guesses from the size of the files.
pub(super) async fn estimate_rows(
    client: &Client,
    found: &[FoundTable],
    table: &FoundTable,
) -> Result<u64, SourceError> {
    let parts = found.iter().filter(|part| part.root == table.id && !part.is_partitioned);
    if let Some(rows) = parts.map(|part| part.row_statistics).sum::<Option<u64>>() {
        return Ok(rows);
    }
    let sql = format!("EXPLAIN (FORMAT JSON) SELECT FROM {}", table.name.quoted());
    let row = client
        .query_one(&sql, &[])
        .await
        .map_err(|error| SourceError::sql(&error, &format!("estimating the rows of {}", table.name)))?;
    // The type of the column is json, which the driver hands out as text through its own wrapper only.
    let Raw(plan) = row.get(0);
    let plan: serde_json::Value = serde_json::from_slice(plan).unwrap_or_default();
    Ok(plan[0]["Plan"]["Plan Rows"].as_u64().unwrap_or_default())
}
