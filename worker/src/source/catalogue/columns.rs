//! Columns of the pipeline's tables, with the types they are carried as.

use std::collections::{BTreeSet, HashMap};

use tokio_postgres::Client;

use super::super::constant_default::constant_default;
use super::super::error::SourceError;
use super::super::types::refusal;
use super::FoundTable;
use crate::change::RelationId;
use crate::change::table::{SourceColumn, TableName};
use crate::postgres::{Resolved, TypeCatalogue, write_names};

/// A row of `pg_attribute`.
struct Attribute {
    table: RelationId,
    name: String,
    is_not_null: bool,
    is_generated: bool,
    /// Default or generation expression.
    expression: Option<String>,
    type_oid: u32,
    type_modifier: i32,
}

/// Columns by table, in order. Columns that cannot be carried are refused, all of them in one sentence.
pub(super) async fn read_columns(
    client: &Client,
    chosen: &[&FoundTable],
    ids: &[u32],
) -> Result<HashMap<RelationId, Vec<SourceColumn>>, SourceError> {
    let failed = |error: tokio_postgres::Error| SourceError::sql(&error, "reading the types of columns");
    let attributes = read_attributes(client, ids).await?;
    let type_oids: BTreeSet<u32> = attributes.iter().map(|attribute| attribute.type_oid).collect();
    let types =
        TypeCatalogue::load(client, &type_oids.into_iter().collect::<Vec<_>>()).await.map_err(failed)?;
    let names: HashMap<RelationId, &TableName> = chosen.iter().map(|table| (table.id, &table.name)).collect();

    let mut refused = Vec::new();
    let mut refuse = |attribute: &Attribute, cause: &str| {
        let table = names.get(&attribute.table).map(ToString::to_string).unwrap_or_default();
        refused.push(format!("{table}, column {}: {cause}", attribute.name));
    };
    let mut found = Vec::with_capacity(attributes.len());
    for attribute in attributes {
        match types.resolve(attribute.type_oid, attribute.type_modifier) {
            Ok(resolved) => found.push((attribute, resolved)),
            Err(cause) => refuse(&attribute, &cause),
        }
    }
    write_names(client, found.iter_mut().map(|(_, resolved)| &mut resolved.column_type))
        .await
        .map_err(failed)?;
    let mut columns: HashMap<RelationId, Vec<SourceColumn>> = HashMap::new();
    for (attribute, resolved) in found {
        match refusal(&resolved.column_type) {
            None => columns.entry(attribute.table).or_default().push(column(attribute, resolved)),
            Some(cause) => refuse(&attribute, &cause),
        }
    }
    if refused.is_empty() { Ok(columns) } else { Err(SourceError::UnsupportedType(refused)) }
}

fn column(attribute: Attribute, resolved: Resolved) -> SourceColumn {
    let (default, generated) = match attribute.expression {
        Some(expression) if attribute.is_generated => (None, Some(expression)),
        expression => (expression, None),
    };
    let is_made = !resolved.column_type.is_built_in();
    SourceColumn {
        name: attribute.name,
        column_type: resolved.column_type,
        is_not_null: attribute.is_not_null || resolved.is_not_null,
        constant_default: default.and_then(|default| constant_default(&default, is_made)),
        generated,
        is_masked: false,
    }
}

async fn read_attributes(client: &Client, ids: &[u32]) -> Result<Vec<Attribute>, SourceError> {
    let rows = client
        .query(
            "SELECT a.attrelid, a.attname::text, a.attnotnull, a.attgenerated <> '', \
               pg_catalog.pg_get_expr(d.adbin, d.adrelid), a.atttypid, a.atttypmod \
             FROM pg_catalog.pg_attribute AS a \
             LEFT JOIN pg_catalog.pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
             WHERE a.attrelid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped \
             ORDER BY a.attrelid, a.attnum",
            &[&ids],
        )
        .await
        .map_err(|error| SourceError::sql(&error, "reading columns"))?;
    let attribute = |row: &tokio_postgres::Row| Attribute {
        table: RelationId(row.get(0)),
        name: row.get(1),
        is_not_null: row.get(2),
        is_generated: row.get(3),
        expression: row.get(4),
        type_oid: row.get(5),
        type_modifier: row.get(6),
    };
    Ok(rows.iter().map(attribute).collect())
}
