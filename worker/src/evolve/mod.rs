//! What happened to a table's columns between two looks, and what the rows that are there hold now. Pure.
//!
//! Three things are known, and none of them is enough: the shape that the sink's rows have (recorded), the catalogue as
//! it is now (present), and what the stream says about the rows that come next (the relation), which was true somewhere
//! in between. Columns are told apart by their numbers, which are given once. Where more than one history would look
//! the same, that is said, and nothing is guessed.

mod labels;
mod rewrite;
#[cfg(test)]
mod tests;
mod widen;

pub use labels::{RenamedLabel, renamed_labels, same_rows};
pub use widen::widens;

use rewrite::{is_rewritten, may_have_been_unlogged, value_of_existing_rows};
use widen::keeps_text;

use crate::change::{Relation, RelationColumn, ShapeColumn, ShapeLabel, ShapePart, TableShape};

/// Why the next rows are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// The stream described the table, and rows follow.
    Rows,
    /// The stream is where the present catalogue was read: nothing else happened to the table before.
    Present,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Explanation {
    /// All of it is known.
    Known(Change),
    /// What the rows that are there hold cannot be known; why, as a clause.
    Unknown(String),
}

/// From the recorded shape to that of the next rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Where each column of the relation comes from.
    pub columns: Vec<Origin>,
    /// Recorded columns that are not carried any more.
    pub dropped: Vec<String>,
    /// Columns that the table computes.
    pub generated: Vec<Generated>,
    /// What is to be recorded with the first row, if it is something else than before.
    pub shape: Option<TableShape>,
}

/// Where a column comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It is recorded.
    Kept {
        /// Under this name.
        from: String,
        /// What becomes of it later.
        later: Later,
    },
    /// It was added.
    Added {
        /// What the rows that were there hold, as text; `None`: NULL.
        existing: Option<String>,
    },
}

/// What becomes of a column after the next rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Later {
    /// It has the name that it has now.
    Stays,
    /// It has this name at present.
    Renamed(String),
    /// It is gone at present.
    Dropped,
}

/// What happened to a column that the table computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Generated {
    /// It was added.
    Added(String),
    /// It is computed in another way.
    Remade(String),
    /// It was renamed.
    Renamed(String, String),
    /// It was dropped.
    Dropped(String),
}

/// What happened between the recorded shape and the rows that the relation describes.
pub fn explain(
    recorded: &TableShape,
    present: &TableShape,
    relation: &Relation,
    occasion: Occasion,
) -> Explanation {
    if occasion == Occasion::Rows && recorded.is_of(relation) {
        return Explanation::Known(unchanged(recorded, present));
    }
    if is_rewritten(recorded, present) {
        return Explanation::Unknown("its rows were rewritten by ALTER TABLE".to_owned());
    }
    if may_have_been_unlogged(recorded, present) {
        let why =
            "its rows have a new file, and while the table was UNLOGGED nothing was sent of what was written";
        return Explanation::Unknown(why.to_owned());
    }
    let labels = match occasion {
        // Those of the rows may be of before.
        Occasion::Rows => &recorded.labels,
        Occasion::Present => &present.labels,
    };
    if let (Occasion::Present, Some(renamed)) = (occasion, renamed_labels(recorded, present).first()) {
        let RenamedLabel { from, to, .. } = renamed;
        return Explanation::Unknown(format!(
            "the label '{from}' of a type of its columns was renamed to '{to}'"
        ));
    }
    match between(recorded, present, relation, labels) {
        Ok(change) => Explanation::Known(change),
        Err(why) => Explanation::Unknown(why),
    }
}

/// Rows of the recorded shape; the sink may be ahead of them, because a person changed it for what comes.
fn unchanged(recorded: &TableShape, present: &TableShape) -> Change {
    let origin = |column: &ShapeColumn| Origin::Kept {
        from: column.name.clone(),
        later: later(column, present.column(column.number)),
    };
    Change { columns: recorded.carried().map(origin).collect(), ..Change::default() }
}

/// The columns that the relation speaks of, found among those that are recorded and those that were added since.
struct Match<'a> {
    /// As it is recorded.
    was: Option<&'a ShapeColumn>,
    /// As it is at present.
    now: Option<&'a ShapeColumn>,
}

impl Match<'_> {
    fn number(&self) -> i16 {
        self.was.or(self.now).map_or(0, |column| column.number)
    }

    /// It may have been renamed or got another type before the rows, or after them. One that is there at both ends was
    /// there in between, whatever its type was then; of the others the type must be one that is known.
    fn is_like(&self, column: &RelationColumn) -> bool {
        let ends = || self.was.iter().chain(&self.now);
        let has_type =
            |own: &&ShapeColumn| (own.type_oid, own.type_modifier) == (column.type_oid, column.type_modifier);
        ends().any(|own| own.name == column.name) && (ends().count() == 2 || ends().any(has_type))
    }

    /// As the rows have it.
    fn at_rows(&self, column: &RelationColumn) -> ShapeColumn {
        let own = self.now.or(self.was);
        ShapeColumn {
            number: self.number(),
            name: column.name.clone(),
            type_oid: column.type_oid,
            type_modifier: column.type_modifier,
            is_not_null: own.is_some_and(|own| own.is_not_null),
            is_generated: false,
            default: own.map_or(0, |own| own.default),
        }
    }
}

/// Which columns the relation speaks of. It has them in the order of their numbers, and each must be one column only.
fn matches<'a>(
    recorded: &'a TableShape,
    present: &'a TableShape,
    relation: &Relation,
) -> Result<Vec<Match<'a>>, String> {
    let mut numbers: Vec<i16> = recorded.carried().chain(present.carried()).map(|own| own.number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let candidate = |number: &i16| Match { was: recorded.column(*number), now: present.column(*number) };
    let mut found = Vec::new();
    let mut last = 0;
    for column in &relation.columns {
        let mut like = numbers.iter().map(candidate).filter(|candidate| candidate.is_like(column));
        match (like.next(), like.next()) {
            (Some(only), None) if only.number() > last => {
                last = only.number();
                found.push(only);
            }
            _ => return Err("its columns were changed again since".to_owned()),
        }
    }
    Ok(found)
}

/// The shape of the rows that the relation describes. Numbers only grow: of the columns that were added and are there
/// at present, those that the rows have not come after them.
fn shape_of_rows(
    recorded: &TableShape,
    present: &TableShape,
    relation: &Relation,
    found: &[Match<'_>],
) -> Result<TableShape, String> {
    let is_new = |column: &&ShapeColumn| column.number > recorded.last_number;
    let alive = present.columns.iter().filter(is_new).count();
    let given = usize::try_from(present.last_number.saturating_sub(recorded.last_number)).unwrap_or_default();
    if alive != given {
        return Err("columns that were added to it were dropped again".to_owned());
    }
    let has = |number: i16| found.iter().any(|own| own.number() == number);
    let next = present.carried().filter(is_new).find(|column| !has(column.number));
    let end = next.map(|column| column.number);
    let is_later = |number: i16| end.is_some_and(|end| number >= end);
    if found.iter().any(|own| is_later(own.number())) {
        return Err("its columns were changed again since".to_owned());
    }
    refuse_twins(recorded, present, found)?;
    let generated = present.columns.iter().filter(|column| column.is_generated && !is_later(column.number));
    let rows = found.iter().zip(&relation.columns).map(|(own, column)| own.at_rows(column));
    let mut columns: Vec<ShapeColumn> = rows.chain(generated.cloned()).collect();
    columns.sort_unstable_by_key(|column| column.number);
    Ok(TableShape {
        columns,
        labels: Vec::new(),
        last_number: end.map_or(present.last_number, |end| end - 1),
        parts: if end.is_some() { parts_before(recorded, present, is_later) } else { present.parts.clone() },
    })
}

/// Files of rows before the columns of which `is_later` were added. Whether that gave them another file, as a volatile default
/// does, nobody can see; so they are taken to be where they were recorded, and what the later columns hold for unknown.
fn parts_before(
    recorded: &TableShape,
    present: &TableShape,
    is_later: impl Fn(i16) -> bool,
) -> Vec<ShapePart> {
    let is_earlier =
        |name: &str| !present.columns.iter().any(|column| column.name == name && is_later(column.number));
    let before = |now: &ShapePart| {
        let ShapePart { file, toast, entries, .. } =
            recorded.parts.iter().find(|before| before.id == now.id)?.clone();
        let columns = now.columns.iter().filter(|column| is_earlier(&column.name)).cloned().collect();
        Some(ShapePart { id: now.id, file, toast, entries, columns })
    };
    present.parts.iter().filter_map(before).collect()
}

/// A column that is gone may have been renamed before, and then looks like one that was added after it.
fn refuse_twins(recorded: &TableShape, present: &TableShape, found: &[Match<'_>]) -> Result<(), String> {
    let last_kept = found.iter().filter_map(|own| own.was).map(|own| own.number).max().unwrap_or_default();
    let added = || found.iter().filter(|own| own.was.is_none()).filter_map(|own| own.now);
    let is_absent = |own: &&ShapeColumn| !found.iter().any(|other| other.number() == own.number);
    for gone in recorded.carried().filter(is_absent) {
        if present.column(gone.number).is_some() {
            return Err("its columns were changed again since".to_owned());
        }
        // The one that is taken for another that is gone too may be this one, renamed.
        if found.iter().any(|own| own.now.is_none()) {
            return Err("its columns were changed again since".to_owned());
        }
        let is_like = |new: &ShapeColumn| {
            widens((gone.type_oid, gone.type_modifier), (new.type_oid, new.type_modifier))
        };
        if gone.number > last_kept && added().any(is_like) {
            return Err(format!("column {} was dropped and another one like it added", gone.name));
        }
    }
    Ok(())
}

fn between(
    recorded: &TableShape,
    present: &TableShape,
    relation: &Relation,
    labels: &[ShapeLabel],
) -> Result<Change, String> {
    let found = matches(recorded, present, relation)?;
    let shape = shape_of_rows(recorded, present, relation, &found)?;
    let shape = TableShape { labels: labels.to_vec(), ..shape };
    let mut columns = Vec::new();
    for column in shape.carried() {
        let now = present.column(column.number);
        columns.push(match recorded.column(column.number) {
            Some(was) if !keeps_text(was, column) => {
                return Err(format!("column {} has another type", column.name));
            }
            Some(was) => Origin::Kept { from: was.name.clone(), later: later(column, now) },
            None if now.is_some_and(|now| now.name == column.name) => {
                Origin::Added { existing: value_of_existing_rows(recorded, present, column)? }
            }
            None => return Err("its columns were changed again since".to_owned()),
        });
    }
    let is_gone = |column: &&ShapeColumn| shape.column(column.number).is_none();
    let dropped = recorded.carried().filter(is_gone).map(|column| column.name.clone()).collect();
    let generated = generated(recorded, &shape);
    let shape = Some(shape).filter(|shape| shape != recorded);
    Ok(Change { columns, dropped, generated, shape })
}

fn later(column: &ShapeColumn, now: Option<&ShapeColumn>) -> Later {
    match now {
        None => Later::Dropped,
        Some(now) if now.name != column.name => Later::Renamed(now.name.clone()),
        Some(_) => Later::Stays,
    }
}

fn generated(recorded: &TableShape, shape: &TableShape) -> Vec<Generated> {
    let is_generated = |column: &&ShapeColumn| column.is_generated;
    let now = shape.columns.iter().filter(is_generated).filter_map(|column| {
        let name = || column.name.clone();
        match recorded.column(column.number) {
            None => Some(Generated::Added(name())),
            Some(was) if was.default != column.default => Some(Generated::Remade(name())),
            Some(was) if was.name != column.name => Some(Generated::Renamed(was.name.clone(), name())),
            Some(_) => None,
        }
    });
    let is_gone = |column: &&ShapeColumn| shape.column(column.number).is_none();
    let gone = recorded.columns.iter().filter(is_generated).filter(is_gone);
    now.chain(gone.map(|column| Generated::Dropped(column.name.clone()))).collect()
}
