//! Which rows are carried: a CEL expression, compiled once, and held against the types of the columns before any row comes.
//!
//! ```text
//!  spec.transforms[].filter ── cel ──> Program ── FilterPlan (stream), CopyFilter (first load): decides rows
//!                               └──── Term: what may stand in it, with types; and the same as SQL, for comparison
//! ```

mod decide;
mod reading;
mod sql;
mod term;

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use cel::extractors::This;
use cel::{Context, Program, Value};

use super::RowError;
use crate::change::table::{SourceColumn, SourceTable};
use crate::change::{ReplicaIdentity, TableShape};
pub(super) use decide::{CopyFilter, FilterPlan};
use reading::Kind;
use term::Term;

/// The functions that a filter takes. Those of the crate count the bytes of a text, and find nothing in NULL; CEL's definition
/// wants its characters, and an error.
static FUNCTIONS: LazyLock<Context<'static>> = LazyLock::new(|| {
    let mut functions = Context::empty();
    functions.add_function("startsWith", |This(text): This<Arc<String>>, start: Arc<String>| {
        text.starts_with(start.as_str())
    });
    functions.add_function("endsWith", |This(text): This<Arc<String>>, end: Arc<String>| {
        text.ends_with(end.as_str())
    });
    functions.add_function("contains", |This(text): This<Arc<String>>, part: Arc<String>| {
        text.contains(part.as_str())
    });
    functions.add_function("size", |This(text): This<Arc<String>>| {
        i64::try_from(text.chars().count()).unwrap_or(i64::MAX)
    });
    functions
});

/// A filter that fits the columns of its table.
#[derive(Debug)]
pub(super) struct Filter {
    text: String,
    program: Program,
    term: Term,
    /// The columns that it names.
    columns: BTreeMap<String, Column>,
    /// The table's old rows are whole only as far as its key goes, whatever the stream says: those of a partition have the
    /// identity of the partition.
    is_partitioned: bool,
}

#[derive(Clone, Copy, Debug)]
struct Column {
    kind: Kind,
    /// The OID by which the stream names its type, where it was looked at.
    type_oid: Option<u32>,
}

impl Filter {
    /// # Errors
    /// It is no CEL, or does not fit the columns; why, with the table.
    pub(super) fn new(text: &str, table: &SourceTable, shape: Option<&TableShape>) -> Result<Self, String> {
        let text = text.trim();
        let unfit = |why: String| format!("{}, filter `{text}`: {why}", table.name);
        let program = Program::compile(text).map_err(|errors| {
            let lines = errors.to_string();
            unfit(format!(
                "it is no CEL expression: {}",
                lines.split_whitespace().collect::<Vec<_>>().join(" ")
            ))
        })?;
        let kind_of = |name: &str| {
            let column = table.columns.iter().find(|column| column.name == name);
            column.ok_or_else(|| format!("the table has no column {name}")).and_then(kind)
        };
        let type_of = |name: &str| kind_of(name).map(Kind::gives);
        let term = Term::filter(program.expression(), &type_of).map_err(unfit)?;
        let mut columns = BTreeMap::new();
        for name in program.references().variables() {
            let kind = kind_of(name).map_err(unfit)?;
            let own = shape.and_then(|shape| shape.columns.iter().find(|column| column.name == name));
            columns.insert(name.to_owned(), Column { kind, type_oid: own.map(|own| own.type_oid) });
        }
        Ok(Self { text: text.to_owned(), program, term, columns, is_partitioned: table.is_partitioned })
    }

    /// As it is kept beside the rows.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// The columns that it names.
    pub(super) fn columns(&self) -> impl Iterator<Item = &String> {
        self.columns.keys()
    }

    pub(super) fn names(&self, column: &str) -> bool {
        self.columns.contains_key(column)
    }

    /// Why it does not fit the table as it is by now, with the table and column.
    pub(super) fn unfit(&self, table: &SourceTable) -> Vec<String> {
        let mut wrong = Vec::new();
        for (name, known) in &self.columns {
            let Some(column) = table.columns.iter().find(|column| column.name == *name) else { continue };
            match kind(column) {
                Err(why) => wrong.push(format!("{}, column {name}: {why}", table.name)),
                Ok(kind) if kind.gives() != known.kind.gives() => wrong.push(format!(
                    "{}, column {name}: it is {} by now, and the filter was read for another type",
                    table.name, column.column_type.sql
                )),
                Ok(_) => {}
            }
        }
        let named_by = match table.replica_identity {
            _ if table.is_partitioned => Some(&table.primary_key),
            ReplicaIdentity::Full => None,
            ReplicaIdentity::Default | ReplicaIdentity::Index | ReplicaIdentity::Nothing => {
                Some(&table.identity_columns)
            }
        };
        if let Some(key) = named_by {
            let outside = self.columns.keys().filter(|column| !key.contains(column));
            wrong.extend(
                outside.map(|column| identity_unfit(&table.name.to_string(), column, table.is_partitioned)),
            );
        }
        wrong
    }

    /// Whether the filter is true of a row with these values of its columns.
    fn decide(&self, values: Vec<(&str, Value)>) -> Result<bool, RowError> {
        let is_null =
            |(name, value): &(&str, Value)| matches!(value, Value::Null).then(|| (*name).to_owned());
        let nulls: Vec<String> = values.iter().filter_map(is_null).collect();
        let mut row = FUNCTIONS.new_inner_scope();
        for (name, value) in values {
            row.add_variable_from_value(name, value);
        }
        match self.program.execute(&row) {
            Ok(Value::Bool(is_true)) => Ok(is_true),
            // Its words hold the values.
            Ok(_) | Err(_) => Err(RowError::Undecided { filter: self.text.clone(), nulls: nulls.join(", ") }),
        }
    }
}

fn kind(column: &SourceColumn) -> Result<Kind, String> {
    let SourceColumn { name, column_type, generated, .. } = column;
    if generated.is_some() {
        return Err(format!("column {name} is generated, and does not travel"));
    }
    Kind::of(column_type).ok_or_else(|| {
        format!(
            "column {name} is {}, and a filter takes columns of the types boolean, smallint, integer, bigint, text, varchar, \
             char, uuid and enums",
            column_type.sql
        )
    })
}

/// What became of a row that the filter held for another one is told by what it was.
fn identity_unfit(table: &str, column: &str, is_partitioned: bool) -> String {
    if is_partitioned {
        return format!(
            "{table}, column {column}: the filter names it, the table is partitioned, and the column is not in its primary key; \
             filter by columns of the primary key alone"
        );
    }
    format!(
        "{table}, column {column}: the filter names it, and it is not in the replica identity, so that nobody could tell which \
         rows leave the filter; run ALTER TABLE {table} REPLICA IDENTITY FULL at the source, or filter by columns of the replica \
         identity alone"
    )
}
