//! How rows of the stream go into a sink table: the stream's columns matched with the catalogue's. Pure.

use std::collections::BTreeSet;

use super::catalogue::{OwnValue, SinkTable, TableKind};
use super::compare::{Difference, columns_that_block_inserts, missing_key, not_a_table};
use super::fit::takes_built_in;
use crate::batch::TableTraits;
use crate::change::table::{TableName, quote_identifier};
use crate::change::travel::Format;
use crate::change::{Relation, RelationColumn, ReplicaIdentity, STABLE_OIDS_END};

/// How rows of one relation go into its sink table. Made when the stream describes the relation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) sink: TableName,
    pub(super) is_partitioned: bool,
    /// One per column of the relation; `None` for a column that the sink computes itself.
    pub(super) columns: Vec<Option<PlanColumn>>,
    /// Places in `columns` of what names a row; empty when only the whole row does.
    pub(super) key: Vec<usize>,
    /// An identity column is GENERATED ALWAYS.
    pub(super) overrides_identity: bool,
    order_matters: bool,
}

/// A column of the sink that takes a column of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PlanColumn {
    /// Quoted.
    pub(super) name: String,
    /// The type for a cast.
    pub(super) cast_sql: String,
    /// Equality of the type, for SQL.
    pub(super) equality: String,
    /// See `SinkColumn::has_binary_format`.
    pub(super) has_binary_format: bool,
}

/// A type of the stream that the sink's column does not take; its name is asked of the sink.
pub(super) struct TypeMismatch<'a> {
    pub(super) column: &'a RelationColumn,
    /// The type of the sink's column.
    pub(super) sink_type: String,
}

/// Why rows of a relation cannot go into the table.
#[derive(Default)]
pub(super) struct Misfit<'a> {
    pub(super) missing: Vec<&'a RelationColumn>,
    pub(super) types: Vec<TypeMismatch<'a>>,
    pub(super) others: Vec<Difference>,
}

impl Plan {
    /// Matches the columns by name.
    pub(super) fn new<'a>(relation: &'a Relation, sink: &SinkTable) -> Result<Self, Misfit<'a>> {
        Self::without(relation, sink, &BTreeSet::new())
    }

    /// The same, without columns that the sink does not take.
    pub(super) fn without<'a>(
        relation: &'a Relation,
        sink: &SinkTable,
        left_out: &BTreeSet<String>,
    ) -> Result<Self, Misfit<'a>> {
        if let Some(difference) = not_a_table(sink) {
            return Err(Misfit { others: vec![difference], ..Misfit::default() });
        }
        let mut misfit = Misfit::default();
        let is_taken =
            |column: &RelationColumn| relation.is_named_by(column) || !left_out.contains(&column.name);
        let plan = |column| if is_taken(column) { plan_column(column, sink, &mut misfit) } else { None };
        let columns = relation.columns.iter().map(plan).collect();
        let is_filled =
            |name: &str| relation.columns.iter().any(|column| column.name == *name && is_taken(column));
        misfit.others.extend(columns_that_block_inserts(sink, is_filled));
        let key = key_places(relation, sink, &mut misfit);
        if !misfit.missing.is_empty() || !misfit.types.is_empty() || !misfit.others.is_empty() {
            return Err(misfit);
        }
        let is_partitioned = sink.kind == TableKind::Partitioned;
        let key_names: Vec<_> =
            key.iter().filter_map(|place| relation.columns.get(*place)).map(|c| &c.name).collect();
        // Partitions may have constraints of their own, which are not looked for.
        let order_matters = is_partitioned
            || sink.has_order_constraints
            || sink.unique_indexes.iter().any(|index| !(index.is_key && index.is_on(&key_names)));
        Ok(Self {
            sink: sink.name.clone(),
            is_partitioned,
            columns,
            key,
            overrides_identity: sink
                .columns
                .iter()
                .any(|column| column.own_value == OwnValue::IdentityAlways),
            order_matters,
        })
    }

    /// What batching needs to know.
    pub(super) fn traits(&self) -> TableTraits {
        TableTraits { key: self.key.clone(), order_matters: self.order_matters }
    }

    /// The columns that are written, with their places in the stream's rows.
    pub(super) fn written(&self) -> impl Iterator<Item = (usize, &PlanColumn)> {
        self.columns
            .iter()
            .enumerate()
            .filter_map(|(place, column)| column.as_ref().map(|column| (place, column)))
    }

    /// Whether rows can go by COPY in the format.
    pub(super) fn takes(&self, format: Format) -> bool {
        match format {
            Format::Binary => self.written().all(|(_, column)| column.has_binary_format),
            Format::Text => true,
        }
    }

    /// The columns that name a row, with their places in the stream's rows.
    pub(super) fn key_columns(&self) -> impl Iterator<Item = (usize, &PlanColumn)> {
        self.key.iter().filter_map(|place| Some((*place, self.columns.get(*place)?.as_ref()?)))
    }

    /// Names of the columns that name a row, for people.
    pub(super) fn key_names(&self) -> String {
        if self.key.is_empty() {
            return "the whole row".to_owned();
        }
        self.key_columns().map(|(_, column)| column.name.clone()).collect::<Vec<_>>().join(", ")
    }
}

fn plan_column<'a>(
    column: &'a RelationColumn,
    sink: &SinkTable,
    misfit: &mut Misfit<'a>,
) -> Option<PlanColumn> {
    let Some(existing) = sink.column(&column.name) else {
        misfit.missing.push(column);
        return None;
    };
    if existing.is_generated() {
        return None;
    }
    let is_stable = column.type_oid < STABLE_OIDS_END;
    if is_stable && !takes_built_in(column.type_oid, column.type_modifier, &existing.column_type) {
        misfit.types.push(TypeMismatch { column, sink_type: existing.column_type.sql.clone() });
    }
    Some(PlanColumn {
        name: quote_identifier(&column.name),
        cast_sql: existing.cast_sql.clone(),
        equality: existing.equality.clone(),
        has_binary_format: existing.has_binary_format,
    })
}

/// The replica identity, if the sink has a unique index on it. With identity FULL: the sink's primary key, or any
/// unique index on columns that are never NULL; else none. One that is deferrable does not name a row within a
/// transaction.
fn key_places(relation: &Relation, sink: &SinkTable, misfit: &mut Misfit<'_>) -> Vec<usize> {
    let place = |name: &String| relation.columns.iter().position(|column| column.name == *name);
    match relation.replica_identity {
        ReplicaIdentity::Nothing => Vec::new(),
        ReplicaIdentity::Full => sink
            .unique_indexes
            .iter()
            .filter(|index| index.is_key && index.is_immediate)
            .filter(|index| {
                index
                    .columns
                    .iter()
                    .all(|name| sink.column(name).is_some_and(|c| c.is_not_null && !c.is_generated()))
            })
            .find_map(|index| index.columns.iter().map(place).collect::<Option<Vec<_>>>())
            .unwrap_or_default(),
        ReplicaIdentity::Default | ReplicaIdentity::Index => {
            let places: Vec<_> = relation
                .columns
                .iter()
                .enumerate()
                .filter(|(_, column)| column.is_key)
                .map(|(place, _)| place)
                .collect();
            let names: Vec<_> =
                places.iter().filter_map(|place| relation.columns.get(*place)).map(|c| &c.name).collect();
            if !names.is_empty() && !sink.has_key(&names) {
                misfit.others.push(missing_key(
                    &sink.name.quoted(),
                    &names,
                    relation.replica_identity == ReplicaIdentity::Default,
                ));
            }
            places
        }
    }
}
