//! What a rewrite of rows leaves behind in the catalogue.
//!
//! ALTER TABLE that rewrites rows gives them a new file, and writes the description of the columns that it changed. So do
//! other commands, one each: VACUUM FULL, CLUSTER and TRUNCATE give a new file; SET NOT NULL, SET DEFAULT and RENAME
//! write descriptions. VACUUM FULL and CLUSTER also write those of columns that had a missing value, which they put
//! into the rows; but they leave the default alone, which ALTER COLUMN … TYPE makes anew.
//!
//! SET UNLOGGED and SET LOGGED give a new file as well, and what is written in between is not in the log. Unlike VACUUM
//! FULL, CLUSTER and TRUNCATE they make the TOAST table anew, where there is one. A table's first file has the number of its OID.

use crate::change::{PartColumn, ShapeColumn, ShapePart, TableShape};

/// Whether the values of carried columns may be others than they were.
pub(super) fn is_rewritten(recorded: &TableShape, present: &TableShape) -> bool {
    // Columns that are generated are none of the stream's; the sink computes its own.
    let is_carried =
        |column: &PartColumn| !recorded.columns.iter().any(|own| own.name == column.name && own.is_generated);
    pairs(recorded, present).any(|(before, now)| {
        before.file != now.file
            && before.columns.iter().filter(|column| is_carried(column)).any(|column| {
                now.columns
                    .iter()
                    .find(|other| other.number == column.number)
                    .is_some_and(|other| is_described_anew(column, other))
            })
    })
}

/// Whether a table that holds rows may have been UNLOGGED for a while. The server refuses that for what a publication
/// names; partitions, and tables that are published with all others or with their schema, are not named. A part that is new
/// may have been made UNLOGGED: then it has another file than its first, whose number is its OID.
pub(super) fn may_have_been_unlogged(recorded: &TableShape, present: &TableShape) -> bool {
    let is_recorded = |now: &ShapePart| recorded.parts.iter().any(|before| before.id == now.id);
    let came_with_another_file = present.parts.iter().any(|now| !is_recorded(now) && now.file != now.id);
    let was_toggled = pairs(recorded, present).any(|(before, now)| {
        let is_rewritten_by_alter = before.toast != now.toast || now.toast == 0;
        let was_named_meanwhile = before.entries.iter().any(|entry| now.entries.contains(entry));
        before.file != now.file && is_rewritten_by_alter && !was_named_meanwhile
    });
    came_with_another_file || was_toggled
}

fn is_described_anew(before: &PartColumn, now: &PartColumn) -> bool {
    let was_put_into_rows = before.missing.is_some()
        && now.missing.is_none()
        && before.default == now.default
        && now.default != 0;
    before.version != now.version && !was_put_into_rows
}

/// The tables that held rows then, as they are now.
fn pairs<'a>(
    recorded: &'a TableShape,
    present: &'a TableShape,
) -> impl Iterator<Item = (&'a ShapePart, &'a ShapePart)> {
    recorded
        .parts
        .iter()
        .filter_map(|before| Some((before, present.parts.iter().find(|now| now.id == before.id)?)))
}

/// What rows that were there when a column was added hold in it.
pub(super) fn value_of_existing_rows(
    recorded: &TableShape,
    present: &TableShape,
    column: &ShapeColumn,
) -> Result<Option<String>, String> {
    let mut found: Option<Option<String>> = None;
    for (before, now) in pairs(recorded, present) {
        let unknown = || format!("what its rows hold in the new column {} is not known", column.name);
        let Some(own) = now.columns.iter().find(|own| own.name == column.name) else { return Err(unknown()) };
        let is_certain = own.missing.is_some() || before.file == now.file;
        let is_other = found.as_ref().is_some_and(|found| *found != own.missing);
        if !is_certain || is_other {
            return Err(unknown());
        }
        found = Some(own.missing.clone());
    }
    Ok(found.flatten())
}
