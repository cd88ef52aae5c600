//! Columns of the pipeline's tables, with the types they are carried as.

use std::collections::{BTreeSet, HashMap};

use tokio_postgres::Client;

use super::super::constant_default::constant_default;
use super::super::error::SourceError;
use super::super::types::{Carried, TypeCatalogue};
use super::FoundTable;
use crate::change::RelationId;
use crate::change::table::{EnumType, SourceColumn, TableName};

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
    let attributes = read_attributes(client, ids).await?;
    let type_oids: BTreeSet<u32> = attributes.iter().map(|attribute| attribute.type_oid).collect();
    let types = TypeCatalogue::load(client, &type_oids.into_iter().collect::<Vec<_>>()).await?;
    let names: HashMap<RelationId, &TableName> = chosen.iter().map(|table| (table.id, &table.name)).collect();

    let mut carried = Vec::with_capacity(attributes.len());
    let mut refused = Vec::new();
    for attribute in attributes {
        match types.carry(attribute.type_oid, attribute.type_modifier) {
            Ok(as_type) => carried.push((attribute, as_type)),
            Err(cause) => {
                let table = names.get(&attribute.table).map(ToString::to_string).unwrap_or_default();
                refused.push(format!("{table}, column {}: {cause}", attribute.name));
            }
        }
    }
    if !refused.is_empty() {
        return Err(SourceError::UnsupportedType(refused));
    }

    let type_names = format_types(client, &carried).await?;
    let enums = read_enums(client, &types, &carried).await?;
    let mut columns: HashMap<RelationId, Vec<SourceColumn>> = HashMap::new();
    for ((attribute, as_type), type_sql) in carried.into_iter().zip(type_names) {
        columns.entry(attribute.table).or_default().push(column(attribute, as_type, type_sql, &enums));
    }
    Ok(columns)
}

fn column(
    attribute: Attribute,
    as_type: Carried,
    type_sql: String,
    enums: &HashMap<u32, EnumType>,
) -> SourceColumn {
    let (default, generated) = match attribute.expression {
        Some(expression) if attribute.is_generated => (None, Some(expression)),
        expression => (expression, None),
    };
    SourceColumn {
        name: attribute.name,
        type_oid: as_type.oid,
        type_sql,
        is_not_null: attribute.is_not_null || as_type.is_not_null,
        constant_default: default.and_then(|default| constant_default(&default, as_type.is_enum)),
        generated,
        enum_type: enums.get(&as_type.oid).cloned(),
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

/// The types as SQL writes them, in the order of the columns.
async fn format_types(client: &Client, carried: &[(Attribute, Carried)]) -> Result<Vec<String>, SourceError> {
    let oids: Vec<u32> = carried.iter().map(|(_, as_type)| as_type.oid).collect();
    let modifiers: Vec<i32> = carried.iter().map(|(_, as_type)| as_type.modifier).collect();
    let rows = client
        .query(
            "SELECT pg_catalog.format_type(t.id, t.modifier) \
             FROM ROWS FROM (pg_catalog.unnest($1::oid[]), pg_catalog.unnest($2::int4[])) \
               WITH ORDINALITY AS t (id, modifier, place) \
             ORDER BY t.place",
            &[&oids, &modifiers],
        )
        .await
        .map_err(|error| SourceError::sql(&error, "reading the names of types"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

async fn read_enums(
    client: &Client,
    types: &TypeCatalogue,
    carried: &[(Attribute, Carried)],
) -> Result<HashMap<u32, EnumType>, SourceError> {
    let oids: BTreeSet<u32> =
        carried.iter().filter(|(_, as_type)| as_type.is_enum).map(|(_, as_type)| as_type.oid).collect();
    let mut enums: HashMap<u32, EnumType> = oids
        .iter()
        .filter_map(|oid| types.0.get(oid).map(|found| (*oid, found)))
        .map(|(oid, found)| {
            let name = TableName::new(found.schema.clone(), found.name.clone());
            (oid, EnumType { name, labels: Vec::new() })
        })
        .collect();
    let rows = client
        .query(
            "SELECT enumtypid, enumlabel::text FROM pg_catalog.pg_enum WHERE enumtypid = ANY ($1) \
             ORDER BY enumtypid, enumsortorder",
            &[&oids.into_iter().collect::<Vec<_>>()],
        )
        .await
        .map_err(|error| SourceError::sql(&error, "reading enum types"))?;
    for row in rows {
        if let Some(found) = enums.get_mut(&row.get::<_, u32>(0)) {
            found.labels.push(row.get(1));
        }
    }
    Ok(enums)
}
