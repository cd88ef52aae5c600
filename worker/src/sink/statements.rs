//! The SQL that writes rows. Everything is qualified; values are parameters. Pure.

use super::plan::{Plan, PlanColumn};
use crate::change::travel::Format;

/// What a statement does, as far as its text depends on it. Places are those of the stream's rows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Shape {
    /// COPY of whole rows.
    Copy(Format),
    /// INSERT of one row.
    Insert,
    /// UPDATE of these columns in one row.
    Update(Vec<usize>),
    /// DELETE of one row.
    Delete,
}

/// The statement's text. Its parameters are first the values to set, in the order of `Update`'s columns or of the
/// table, then what names the row: the key, or without one every column.
pub(super) fn sql(plan: &Plan, shape: &Shape) -> String {
    let table = plan.sink.quoted();
    match shape {
        Shape::Copy(format) => {
            format!("COPY {table} ({}) FROM STDIN ({})", names(plan), format.copy_options())
        }
        Shape::Insert => {
            let overriding = if plan.overrides_identity { " OVERRIDING SYSTEM VALUE" } else { "" };
            let values = parameters(plan.written().count());
            format!("INSERT INTO {table} ({}){overriding} VALUES ({values})", names(plan))
        }
        // Nothing to set: whether the row is there still matters.
        Shape::Update(columns) if columns.is_empty() => {
            format!("SELECT FROM {table} AS target WHERE {} FOR NO KEY UPDATE", row_named(plan, 0))
        }
        Shape::Update(columns) => {
            let assignments: Vec<_> = columns
                .iter()
                .filter_map(|place| plan.columns.get(*place)?.as_ref())
                .zip(1..)
                .map(|(column, number)| format!("{} = ${number}", column.name))
                .collect();
            format!(
                "UPDATE {table} AS target SET {} WHERE {}",
                assignments.join(", "),
                row_named(plan, assignments.len())
            )
        }
        Shape::Delete => format!("DELETE FROM {table} AS target WHERE {}", row_named(plan, 0)),
    }
}

/// One TRUNCATE of all tables, as the source did it. `ONLY`: tables that inherit are named by themselves. A table
/// cannot be truncated while something of it is still to be checked, so its constraints are checked before; the source
/// did the same.
pub(super) fn truncate<'a>(
    plans: impl Iterator<Item = &'a Plan>,
    restart_identity: bool,
    deferrable: Option<&str>,
) -> String {
    let tables: Vec<_> = plans
        .map(|plan| format!("{}{}", if plan.is_partitioned { "" } else { "ONLY " }, plan.sink.quoted()))
        .collect();
    let identity = if restart_identity { " RESTART IDENTITY" } else { "" };
    let truncate = format!("TRUNCATE TABLE {}{identity}", tables.join(", "));
    match deferrable {
        None => truncate,
        Some(constraints) => {
            let set = |when: &str| format!("SET CONSTRAINTS {constraints} {when}");
            [set("IMMEDIATE"), truncate, set("DEFERRED")].join("; ")
        }
    }
}

fn names(plan: &Plan) -> String {
    plan.written().map(|(_, column)| column.name.as_str()).collect::<Vec<_>>().join(", ")
}

fn parameters(count: usize) -> String {
    (1..=count).map(|number| format!("${number}")).collect::<Vec<_>>().join(", ")
}

fn row_named(plan: &Plan, parameters_before: usize) -> String {
    let numbers = parameters_before + 1..;
    if plan.key.is_empty() {
        return whole_row(plan, numbers);
    }
    let key = plan.key_columns().zip(numbers);
    // Without the casts a composite type's parameter would be any record, which no server can read, and a domain over
    // an enum type would have no equality. They do not keep an index from being used.
    let is_equal = |((_, column), number): ((usize, &PlanColumn), usize)| {
        let PlanColumn { name, cast_sql, equality, .. } = column;
        format!("target.{name}::{cast_sql} {equality} ${number}::{cast_sql}")
    };
    key.map(is_equal).collect::<Vec<_>>().join(" AND ")
}

/// One of the rows that are this one byte for byte. `*=` compares the stored images: it takes NULL for equal to
/// NULL, knows every type (JSON and points too), and tells 1.0 from 1.00, which `=` does not. The casts turn domains
/// into their base types.
fn whole_row(plan: &Plan, numbers: std::ops::RangeFrom<usize>) -> String {
    let table = plan.sink.quoted();
    let columns: Vec<(&PlanColumn, usize)> = plan.written().map(|(_, column)| column).zip(numbers).collect();
    let stored: Vec<_> =
        columns.iter().map(|(column, _)| format!("same.{}::{}", column.name, column.cast_sql)).collect();
    let given: Vec<_> =
        columns.iter().map(|(column, number)| format!("${number}::{}", column.cast_sql)).collect();
    // A ctid is unique within one table only.
    let (place, same_place) = if plan.is_partitioned {
        ("(target.tableoid, target.ctid)", "same.tableoid, same.ctid")
    } else {
        ("target.ctid", "same.ctid")
    };
    format!(
        "{place} = (SELECT {same_place} FROM {table} AS same WHERE ROW({})::pg_catalog.record \
         OPERATOR(pg_catalog.*=) ROW({})::pg_catalog.record LIMIT 1)",
        stored.join(", "),
        given.join(", ")
    )
}
