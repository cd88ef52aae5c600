//! What is done to rows between decode and batch: columns left out, renamed, masked. Pure: no I/O, no clock.
//!
//! All that is known of a table elsewhere (its shape, its key, how far it is copied) stays the source's. From here on the sink
//! sees a source table with fewer columns, other names and other types.
//!
//! ```text
//!  spec.transforms, catalogue ── Transforms::new ──> per table: TableSteps, held against its columns
//!                                                     │ table(), change(): what the sink is told
//!                                                     └ plan(relation) ──> Plan ── apply(change), CopyMask::push(bytes)
//! ```

mod catalogue;
mod change;
mod copy;
mod entries;
mod error;
mod mask;
mod plan;
mod sql;
#[cfg(test)]
mod tests;

pub use copy::{CopyColumns, CopyMask};
pub use entries::Entries;
pub use error::{RowError, Unsuitable};
pub use mask::MaskKey;
pub use plan::Plan;
pub use sql::settings;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use penstock_crds::transform::TableTransform;

use crate::change::table::{SourceTable, TableName};
use crate::change::{Relation, RelationId, Steps, TableShape};
use crate::evolve;
use mask::{Input, Mask};

/// By the name of their Secret.
pub type MaskKeys = BTreeMap<String, MaskKey>;

/// What is done to the tables of a pipeline.
#[derive(Clone, Debug, Default)]
pub struct Transforms {
    tables: HashMap<RelationId, Arc<TableSteps>>,
    /// Tables that have another name in the sink.
    names: BTreeMap<TableName, String>,
}

/// A table whose columns changed, as the sink gets it.
#[derive(Clone, Debug)]
pub struct Told {
    /// What its next rows look like.
    pub relation: Relation,
    /// What happened.
    pub change: evolve::Change,
    /// As it is at present.
    pub table: SourceTable,
    /// What is done to its rows; `None`: nothing.
    pub plan: Option<Plan>,
}

/// Why the sink cannot be told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Untold {
    /// The entry does not fit the columns.
    #[error(transparent)]
    Unsuitable(#[from] Unsuitable),
    /// What the rows that are there hold is not what the transform gives now; why, as a clause.
    #[error("{0}")]
    RowsUnknown(String),
}

/// What is done to one table.
#[derive(Clone, Debug)]
pub struct TableSteps {
    name: TableName,
    steps: Steps,
    masks: BTreeMap<String, Arc<Mask>>,
    /// Columns that the table computes.
    generated: BTreeSet<String>,
    /// How values of types that somebody made are read, by the OID that the stream gives them.
    inputs: BTreeMap<u32, Input>,
}

impl Transforms {
    /// Holds the entries against the columns that the tables have.
    ///
    /// # Errors
    /// Everything that does not fit, in one sentence each.
    pub fn new(
        entries: &Entries,
        keys: &MaskKeys,
        tables: &[SourceTable],
        shapes: &BTreeMap<RelationId, TableShape>,
    ) -> Result<Self, Unsuitable> {
        let mut made = Self::default();
        let mut wrong = entries.without_table(tables);
        for table in tables {
            let entry = match entries.of(&table.name) {
                Ok(None) => continue,
                Ok(Some(entry)) => entry,
                Err(several) => {
                    wrong.push(several);
                    continue;
                }
            };
            match TableSteps::new(entry, keys, table, shapes.get(&table.id)) {
                Ok(steps) => match steps.table(table) {
                    Ok(_) if steps.steps.is_empty() => {}
                    Ok(_) => drop(made.tables.insert(table.id, Arc::new(steps))),
                    Err(Unsuitable(found)) => wrong.extend(found),
                },
                Err(Unsuitable(found)) => wrong.extend(found),
            }
            if let Some(name) = &entry.rename_table {
                made.names.insert(table.name.clone(), name.clone());
            }
        }
        wrong.extend(entries.meeting(tables, &made.names));
        if wrong.is_empty() { Ok(made) } else { Err(Unsuitable(wrong)) }
    }

    /// What is done to a table; `None`: nothing.
    pub fn of(&self, table: RelationId) -> Option<&Arc<TableSteps>> {
        self.tables.get(&table)
    }

    /// Names in the sink of the tables that have another one.
    pub fn names(&self) -> &BTreeMap<TableName, String> {
        &self.names
    }

    /// A table as the sink gets it.
    ///
    /// # Errors
    /// Its columns are others by now, and do not fit.
    pub fn table(&self, table: &SourceTable) -> Result<SourceTable, Unsuitable> {
        self.of(table.id).map_or_else(|| Ok(table.clone()), |steps| steps.table(table))
    }

    /// Tables as the sink gets them.
    ///
    /// # Errors
    /// As [`Self::table`].
    pub fn tables(&self, tables: &[SourceTable]) -> Result<Vec<SourceTable>, Unsuitable> {
        tables.iter().map(|table| self.table(table)).collect()
    }

    /// What the sink is told about a table whose columns changed, which is `present` by now.
    ///
    /// # Errors
    /// It cannot be told: the entry does not fit any more, or the rows that are there hold something else.
    pub fn tell(
        &self,
        relation: &Relation,
        change: &evolve::Change,
        present: &SourceTable,
    ) -> Result<Told, Untold> {
        let Some(steps) = self.of(present.id) else {
            let (relation, change, table) = (relation.clone(), change.clone(), present.clone());
            return Ok(Told { relation, change, table, plan: None });
        };
        let plan = steps.plan(relation)?;
        let table = steps.table(present)?;
        let change = steps.change(relation, &plan, change).map_err(Untold::RowsUnknown)?;
        Ok(Told { relation: plan.relation.clone(), change, table, plan: Some(plan) })
    }

    /// As [`Self::veil`], for each table.
    pub fn veil_all(&self, shapes: &mut BTreeMap<RelationId, TableShape>) {
        for (table, shape) in shapes {
            self.veil(*table, shape);
        }
    }

    /// Takes values out of a table's shape that the sink must not hold: the shape is kept there.
    pub fn veil(&self, table: RelationId, shape: &mut TableShape) {
        if let Some(steps) = self.of(table) {
            steps.veil(shape);
        }
    }
}

impl TableSteps {
    fn new(
        entry: &TableTransform,
        keys: &MaskKeys,
        table: &SourceTable,
        shape: Option<&TableShape>,
    ) -> Result<Self, Unsuitable> {
        let masks = entries::masks(entry, keys, &table.name)?;
        let set = |names: &[String]| names.iter().cloned().collect();
        let steps = Steps {
            select: Some(set(&entry.select_columns)).filter(|_| !entry.select_columns.is_empty()),
            drop: set(&entry.drop_columns),
            rename: entry.rename_columns.clone(),
            mask: masks.iter().map(|(column, mask)| (column.clone(), mask.note())).collect(),
        };
        let generated = table.columns.iter().filter(|column| column.generated.is_some());
        let generated = generated.map(|column| column.name.clone()).collect();
        let inputs = shape.map(|shape| inputs(table, shape)).unwrap_or_default();
        Ok(Self { name: table.name.clone(), steps, masks, generated, inputs })
    }

    /// What is done, as it is kept beside the rows.
    pub fn steps(&self) -> &Steps {
        &self.steps
    }

    /// Whether values of the columns are others in the sink than in the source.
    pub fn masks<'a>(&self, columns: impl IntoIterator<Item = &'a String>) -> bool {
        columns.into_iter().any(|column| self.masks.contains_key(column))
    }
}

/// The types of columns that somebody made, as the stream names them: domains too, which the catalogue sees through.
fn inputs(table: &SourceTable, shape: &TableShape) -> BTreeMap<u32, Input> {
    let pairs = shape.columns.iter().filter_map(|own| {
        let column = table.columns.iter().find(|column| column.name == own.name)?;
        Some((own.type_oid, Input::of(&column.column_type)?))
    });
    pairs.collect()
}
