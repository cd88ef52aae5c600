//! The statements that make a sink table like its source table. Pure.

use std::fmt::Write as _;

use super::owner::TableMap;
use crate::change::table::{SourceColumn, SourceTable, quote_identifier, quote_literal};
use crate::change::{ColumnType, Definition, MadeType, ReplicaIdentity, TypeKind};

/// The columns that name a row in UPDATE and DELETE; `None` where the whole row does, or nothing.
pub(super) fn key_columns(table: &SourceTable) -> Option<&[String]> {
    match table.replica_identity {
        ReplicaIdentity::Default | ReplicaIdentity::Index => {
            Some(table.identity_columns.as_slice()).filter(|columns| !columns.is_empty())
        }
        ReplicaIdentity::Full | ReplicaIdentity::Nothing => None,
    }
}

/// A list of quoted column names.
pub(super) fn column_list<S: AsRef<str>>(columns: &[S]) -> String {
    columns.iter().map(|column| quote_identifier(column.as_ref())).collect::<Vec<_>>().join(", ")
}

/// A type in the sink: one that somebody made moves with its schema, one of an extension is where the sink has it.
pub(super) fn type_sql(column_type: &ColumnType, tables: &TableMap) -> String {
    match &column_type.kind {
        TypeKind::BuiltIn => column_type.sql.clone(),
        TypeKind::Array(element) => format!("{}[]", type_sql(element, tables)),
        TypeKind::Made(made) => {
            let name =
                if made.extension.is_some() { made.name.clone() } else { tables.type_name(&made.name) };
            format!("{}{}", name.quoted(), made.modifier_sql)
        }
    }
}

/// `CREATE TYPE …`, where that is all there is to it: a multirange type comes with its range type.
pub(super) fn create_type(made: &MadeType, tables: &TableMap) -> Option<String> {
    let sql = tables.type_name(&made.name).quoted();
    match &made.definition {
        Definition::Enum(labels) => {
            let labels = labels.iter().map(|label| quote_literal(label)).collect::<Vec<_>>().join(", ");
            Some(format!("CREATE TYPE {sql} AS ENUM ({labels})"))
        }
        Definition::Composite { attributes, is_of_table: false } => {
            let attribute =
                |(name, part): &(String, _)| format!("{} {}", quote_identifier(name), type_sql(part, tables));
            let attributes = attributes.iter().map(attribute).collect::<Vec<_>>().join(", ");
            Some(format!("CREATE TYPE {sql} AS ({attributes})"))
        }
        Definition::Range { subtype, multirange, is_plain: true } => {
            let multirange = tables.type_name(multirange).quoted();
            let subtype = type_sql(subtype, tables);
            Some(format!(
                "CREATE TYPE {sql} AS RANGE (SUBTYPE = {subtype}, MULTIRANGE_TYPE_NAME = {multirange})"
            ))
        }
        Definition::Domain(over) => Some(format!("CREATE DOMAIN {sql} AS {}", type_sql(over, tables))),
        Definition::Base
        | Definition::Composite { .. }
        | Definition::Range { .. }
        | Definition::Multirange(_) => None,
    }
}

/// `CREATE TABLE …`, and the unique index of the replica identity where the primary key is not it.
pub(super) fn create_table(table: &SourceTable, tables: &TableMap) -> Vec<String> {
    let name = tables.sink_name(&table.name).quoted();
    let mut lines: Vec<_> =
        table.columns.iter().map(|column| format!("    {}", column_definition(column, tables))).collect();
    if !table.primary_key.is_empty() {
        // As late as the source may have checked it.
        let deferred = if table.is_primary_key_deferrable { " DEFERRABLE INITIALLY DEFERRED" } else { "" };
        lines.push(format!("    PRIMARY KEY ({}){deferred}", column_list(&table.primary_key)));
    }
    let mut statements = vec![format!("CREATE TABLE {name} (\n{}\n)", lines.join(",\n"))];
    if let Some(columns) = key_columns(table)
        && !is_same_set(columns, &table.primary_key)
    {
        statements.push(format!("CREATE UNIQUE INDEX ON {name} ({})", column_list(columns)));
    }
    statements
}

/// `"name" type …`, as CREATE TABLE and ADD COLUMN want it.
fn column_definition(column: &SourceColumn, tables: &TableMap) -> String {
    let not_null = if column.is_not_null { " NOT NULL" } else { "" };
    format!("{}{not_null}", nullable_definition(column, tables))
}

/// The definition without NOT NULL, which a table that holds rows would refuse.
pub(super) fn nullable_definition(column: &SourceColumn, tables: &TableMap) -> String {
    let mut sql = format!("{} {}", quote_identifier(&column.name), type_sql(&column.column_type, tables));
    if let Some(expression) = &column.generated {
        let _infallible = write!(sql, " GENERATED ALWAYS AS ({expression}) STORED");
    } else if let Some(default) = &column.constant_default {
        let _infallible = write!(sql, " DEFAULT {default}");
    }
    sql
}

fn is_same_set(left: &[String], right: &[String]) -> bool {
    left.len() == right.len() && left.iter().all(|column| right.contains(column))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::fixtures::{column, mood, orders};

    #[test]
    fn table_is_made_with_what_the_source_has() {
        let mut table = orders();
        table
            .columns
            .push(SourceColumn { generated: Some("total * 2".into()), ..column("double", 1700, "numeric") });
        assert_eq!(
            create_table(&table, &TableMap::default()),
            [
                "CREATE TABLE \"shop\".\"orders\" (\n    \"id\" bigint NOT NULL,\n    \"total\" numeric(10,2),\n    \
              \"note\" text DEFAULT 'none'::text,\n    \"double\" numeric GENERATED ALWAYS AS (total * 2) STORED,\n    \
              PRIMARY KEY (\"id\")\n)"
            ]
        );
    }

    #[test]
    fn identity_index_that_is_not_the_primary_key_is_made_too() {
        let mut table = orders();
        table.identity_columns = vec!["total".into()];
        assert_eq!(
            create_table(&table, &TableMap::default())[1],
            "CREATE UNIQUE INDEX ON \"shop\".\"orders\" (\"total\")"
        );
    }

    #[test]
    fn enum_type_moves_with_its_schema() {
        let tables = TableMap::new([("shop".to_owned(), "copy".to_owned())].into());
        let mut column = column("mood", 16_500, "shop.mood");
        column.column_type.kind = TypeKind::Made(Box::new(mood()));
        column.constant_default = Some("'it''s'".into());
        assert_eq!(nullable_definition(&column, &tables), "\"mood\" \"copy\".\"mood\" DEFAULT 'it''s'");
        let made = create_type(&mood(), &tables);
        assert_eq!(made.as_deref(), Some("CREATE TYPE \"copy\".\"mood\" AS ENUM ('sad', 'it''s')"));
    }
}
