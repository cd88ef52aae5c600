//! What keeps a sink table from taking the rows of a source table, and the statement that would change it. Pure.

use super::catalogue::{SinkColumn, SinkTable, TableKind};
use super::ddl::{column_list, key_columns, nullable_definition, type_sql};
use super::owner::TableMap;
use crate::change::table::{SourceColumn, SourceTable, quote_identifier, quote_literal};

/// OIDs below are the same on every server; types made by extensions, users and initdb scripts lie above.
pub(super) const STABLE_OIDS_END: u32 = 10_000;

const VARBIT: u32 = 1562;
const VARCHAR: u32 = 1043;
const TEXT: u32 = 25;

/// One thing that is different, and what would make it fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Difference {
    /// A clause: `column total is numeric(8,2), the source's is numeric(10,2)`.
    pub(super) what: String,
    /// SQL to run on the sink, without semicolon.
    pub(super) statement: String,
}

impl Difference {
    fn new(what: impl Into<String>, statement: impl Into<String>) -> Self {
        Self { what: what.into(), statement: statement.into() }
    }
}

/// Everything that keeps `sink` from taking the rows of `source`; empty when nothing does. More columns are fine
/// if rows can be inserted without them, wider types and fewer constraints too.
pub(super) fn differences(source: &SourceTable, sink: &SinkTable, tables: &TableMap) -> Vec<Difference> {
    let name = sink.name.quoted();
    if let Some(difference) = not_a_table(sink) {
        return vec![difference];
    }
    let mut found: Vec<_> = source
        .columns
        .iter()
        .flat_map(|column| match sink.column(&column.name) {
            Some(existing) => column_differences(&name, column, existing, tables),
            None => vec![missing_column(&name, column, tables)],
        })
        .collect();
    found.extend(columns_that_block_inserts(sink, |name| {
        source.columns.iter().any(|column| column.name == name)
    }));
    if let Some(columns) = key_columns(source)
        && !sink.has_key(columns)
    {
        found.push(missing_key(&name, columns, columns == source.primary_key));
    }
    found
}

/// A view and the like cannot take rows.
pub(super) fn not_a_table(sink: &SinkTable) -> Option<Difference> {
    match sink.kind {
        TableKind::Ordinary | TableKind::Partitioned => None,
        TableKind::NotATable => {
            let name = sink.name.quoted();
            Some(Difference::new(
                "it is not a table",
                format!(
                    "ALTER TABLE {name} RENAME TO {}",
                    quote_identifier(&format!("{}_old", sink.name.name))
                ),
            ))
        }
    }
}

/// Columns that the stream does not fill and that have no value of their own.
pub(super) fn columns_that_block_inserts(
    sink: &SinkTable,
    is_filled: impl Fn(&str) -> bool,
) -> Vec<Difference> {
    let name = sink.name.quoted();
    sink.columns
        .iter()
        .filter(|column| {
            column.is_not_null && !column.has_default && !column.is_generated && !is_filled(&column.name)
        })
        .map(|column| {
            Difference::new(
                format!(
                    "column {} is NOT NULL without a default, and the source has no such column",
                    column.name
                ),
                format!("ALTER TABLE {name} ALTER COLUMN {} DROP NOT NULL", quote_identifier(&column.name)),
            )
        })
        .collect()
}

/// No unique index names rows by these columns.
pub(super) fn missing_key<S: AsRef<str>>(table: &str, columns: &[S], is_primary: bool) -> Difference {
    let list = column_list(columns);
    let plain = columns.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ");
    let statement = if is_primary {
        format!("ALTER TABLE {table} ADD PRIMARY KEY ({list})")
    } else {
        format!("CREATE UNIQUE INDEX ON {table} ({list})")
    };
    Difference::new(format!("no unique index is on exactly the columns that name a row ({plain})"), statement)
}

fn missing_column(table: &str, column: &SourceColumn, tables: &TableMap) -> Difference {
    Difference::new(
        format!("column {} is missing", column.name),
        format!("ALTER TABLE {table} ADD COLUMN {}", nullable_definition(column, tables)),
    )
}

fn column_differences(
    table: &str,
    source: &SourceColumn,
    sink: &SinkColumn,
    tables: &TableMap,
) -> Vec<Difference> {
    let (name, column) = (&source.name, quote_identifier(&source.name));
    let alter = format!("ALTER TABLE {table} ALTER COLUMN {column}");
    if sink.is_generated != source.generated.is_some() {
        let remake = format!(
            "ALTER TABLE {table} DROP COLUMN {column}, ADD COLUMN {}",
            nullable_definition(source, tables)
        );
        return vec![if sink.is_generated {
            Difference::new(
                format!("column {name} is generated, the source's is not"),
                format!("{alter} DROP EXPRESSION"),
            )
        } else {
            Difference::new(format!("column {name} is not generated, the source's is"), remake)
        }];
    }
    let mut found = Vec::new();
    if !takes_type(source, sink, tables) {
        let wanted = type_sql(source, tables);
        found.push(Difference::new(
            format!("column {name} is {}, the source's is {wanted}", sink.type_sql),
            format!("{alter} TYPE {wanted} USING {column}::{wanted}"),
        ));
    } else if let Some(enum_type) = &source.enum_type {
        let missing = enum_type
            .labels
            .iter()
            .filter(|label| !source.type_sql.ends_with("[]") && !sink.enum_labels.contains(label));
        found.extend(missing.map(|label| missing_label(&sink.type_sql, label)));
    }
    if sink.is_not_null && !source.is_not_null && !sink.is_generated {
        found.push(Difference::new(
            format!("column {name} is NOT NULL, the source's is not"),
            format!("{alter} DROP NOT NULL"),
        ));
    }
    found
}

/// An enum type lacks a label.
pub(super) fn missing_label(type_sql: &str, label: &str) -> Difference {
    Difference::new(
        format!("type {type_sql} lacks the label {label}"),
        format!("ALTER TYPE {type_sql} ADD VALUE {}", quote_literal(label)),
    )
}

fn takes_type(source: &SourceColumn, sink: &SinkColumn, tables: &TableMap) -> bool {
    if source.type_oid < STABLE_OIDS_END {
        return sink.type_sql == source.type_sql
            || takes_stable_type(source.type_oid, sink, &source.type_sql);
    }
    unqualified(&type_sql(source, tables)) == unqualified(&sink.type_sql)
}

/// A built-in type of another modifier: only where every value of the source's fits.
fn takes_stable_type(source_oid: u32, sink: &SinkColumn, source_sql: &str) -> bool {
    takes_modifier(source_oid, modifier_in(source_sql), sink)
}

/// Whether the sink's column takes every value of a built-in type with that modifier, byte by byte. Text takes
/// varchar; a type without modifier takes all of its kind; a longer varchar takes a shorter one.
pub(super) fn takes_modifier(source_oid: u32, source_modifier: Option<i32>, sink: &SinkColumn) -> bool {
    if sink.type_oid != source_oid {
        return source_oid == VARCHAR && sink.type_oid == TEXT;
    }
    match (sink.type_modifier, source_modifier) {
        (-1, _) => true,
        (sink_modifier, Some(source_modifier)) => {
            source_modifier >= 0
                && (source_modifier == sink_modifier
                    || (matches!(source_oid, VARCHAR | VARBIT) && source_modifier < sink_modifier))
        }
        (_, None) => false,
    }
}

/// The modifier as the catalogue holds it, for the two types whose length may differ; `None` for all others.
fn modifier_in(type_sql: &str) -> Option<i32> {
    let inner = type_sql.strip_suffix(')')?;
    let (name, length) = inner.rsplit_once('(')?;
    let length: i32 = length.parse().ok()?;
    match name {
        "character varying" => length.checked_add(4), // the length word counts, as atttypmod has it
        "bit varying" => Some(length),
        _ => None,
    }
}

/// A type's name without its schema: extensions may live in another one.
fn unqualified(type_sql: &str) -> String {
    let mut is_quoted = false;
    let after_dot = type_sql.char_indices().filter_map(|(at, character)| {
        is_quoted ^= character == '"';
        (character == '.' && !is_quoted).then_some(at + 1)
    });
    let name = after_dot.last().and_then(|at| type_sql.get(at..)).unwrap_or(type_sql);
    name.replace('"', "")
}
