//! Transforms that are others than those that a table's rows were brought with: such a table is copied again, so that no row of
//! the one is ever beside a row of the other.

use std::collections::{BTreeMap, BTreeSet};

use penstock_crds::report::Reason;

use super::Context;
use super::shapes::{announce_copy, rules};
use super::start::{Assigned, Fenced, Source};
use crate::change::table::TableName;
use crate::change::{ShapeColumn, Steps, TableShape};
use crate::failure::Failure;
use crate::sink::Recorded;

/// The tables to whose rows something else was done on their way than is now. They are copied again.
pub(super) fn compare_steps(
    context: Context<'_>,
    source: &Source,
    assigned: &Assigned,
    fenced: &mut Fenced,
    recorded: &BTreeMap<TableName, Recorded>,
    begins_anew: bool,
) -> Result<BTreeSet<TableName>, Failure> {
    let (mut restepped, mut rewritten) = (BTreeMap::new(), BTreeSet::new());
    let nothing = Steps::default();
    for table in &assigned.tables {
        let (Some(known), Some(shape)) = (recorded.get(&table.name), source.shapes.get(&table.id)) else {
            continue;
        };
        let now = source.transforms.of(table.id).map_or(&nothing, |steps| steps.steps());
        if known.steps.as_ref() == Some(now) {
            continue;
        }
        if known.steps.as_ref().is_some_and(|was| did_the_same(was, now, &known.shape, shape)) {
            rewritten.insert(table.name.clone());
            continue;
        }
        if known.is_followed && !begins_anew {
            if !rules(context).may_copy {
                return Err(steps_changed(&table.name));
            }
            announce_copy(context, &table.name, "its transforms are others");
        }
        restepped.insert(table.name.clone(), not_carried_any_more(known, now, shape));
    }
    let names = restepped.keys().cloned().collect();
    fenced.sink.copy_with_other_steps(restepped);
    fenced.sink.note_steps_anew(rewritten);
    Ok(names)
}

/// Whether the rows that are there are as those that come will be. A column that is gone, and was left out, is nothing to them.
fn did_the_same(was: &Steps, now: &Steps, recorded: &TableShape, present: &TableShape) -> bool {
    let is_written =
        |column: &&ShapeColumn| present.column(column.number).is_some() || was.of(&column.name).is_some();
    let columns = present.columns.iter().chain(recorded.columns.iter().filter(is_written));
    was.do_the_same(now, columns.map(|column| column.name.as_str()))
}

/// Columns of the sink that hold values, and get none any more.
fn not_carried_any_more(known: &Recorded, now: &Steps, shape: &TableShape) -> Vec<String> {
    let carried: BTreeSet<&str> =
        shape.columns.iter().filter_map(|column| now.name_of(&column.name)).collect();
    let Some(was) = &known.steps else { return Vec::new() };
    let written = known.shape.columns.iter().filter_map(|column| was.name_of(&column.name));
    written.filter(|column| !carried.contains(column)).map(str::to_owned).collect()
}

fn steps_changed(table: &TableName) -> Failure {
    let message = format!(
        "The transforms of {table} are others than those that its rows in the sink were brought with. They are not copied again,          because source.postgres.snapshot.mode is Never. Set the transforms (and the keys of their masks) back; or take the table          out of source.postgres.tables, make the sink's rows what the transforms give while nobody writes it, and put it back."
    );
    Failure::new(Reason::SinkDiverged, message)
}
