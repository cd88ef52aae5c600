//! Which rows changed between the snapshot and the barrier, and what they are at the barrier. Pure.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use super::cell::Cell;
use super::subject::Subject;
use crate::change::{Change, OldRow, Relation, RelationId, ReplicaIdentity, Row, Value};
use crate::transform::Plan;

/// Text of a key's columns.
pub(super) type Key = Vec<String>;

/// Memory for the changes of all tables.
const BYTES_MAX: usize = 24 << 20;

/// How the stream describes a table that is as it was at the snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Streamed {
    /// All columns that it sends.
    pub(super) columns: Vec<String>,
    /// What old rows hold.
    pub(super) replica_identity: ReplicaIdentity,
    /// The columns of that key.
    pub(super) identity_columns: Vec<String>,
}

impl Streamed {
    fn is(&self, relation: &Relation) -> bool {
        let has = |name: &String| relation.columns.iter().any(|column| column.name == *name);
        let is_key = |name: &String| self.identity_columns.contains(name);
        relation.columns.len() == self.columns.len()
            && self.columns.iter().all(has)
            && relation.replica_identity == self.replica_identity
            && (relation.replica_identity == ReplicaIdentity::Full
                || relation.columns.iter().all(|column| column.is_key == is_key(&column.name)))
    }
}

/// What changed of all tables.
#[derive(Debug, Default)]
pub(super) struct Changes {
    tables: HashMap<RelationId, TableChanges>,
}

/// What changed of one table.
#[derive(Debug, Default)]
pub(super) struct TableChanges {
    /// How the stream described the table first.
    shape: Option<Shape>,
    /// By key: what the row is at the barrier.
    pub(super) rows: BTreeMap<Key, Last>,
    /// Of a table without a key: rows that came and went, in order.
    pub(super) deltas: Vec<Delta>,
    bytes: usize,
    /// Why the table cannot be compared at this barrier.
    pub(super) void: Option<String>,
}

/// A row at the barrier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Last {
    /// There is none.
    Gone,
    /// Its values. Those that are `Unchanged` are those of the snapshot's row with the key `origin`.
    Row { cells: Vec<Cell>, origin: Option<Key> },
}

impl Last {
    /// Bytes it keeps in memory.
    fn size(&self) -> usize {
        let strings = |key: &Key| key.iter().map(|part| size_of::<String>() + part.len()).sum::<usize>();
        size_of::<Self>()
            + match self {
                Self::Gone => 0,
                Self::Row { cells, origin } => {
                    cells.iter().map(Cell::size).sum::<usize>() + origin.as_ref().map_or(0, strings)
                }
            }
    }
}

/// A row of a table without key that came (1) or went (-1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Delta {
    pub(super) sign: i64,
    /// Values as text.
    pub(super) values: Vec<Option<String>>,
}

impl TableChanges {
    /// Nothing is known to have changed.
    pub(super) fn is_empty(&self) -> bool {
        self.void.is_none() && self.rows.is_empty() && self.deltas.is_empty()
    }
}

#[derive(Debug)]
struct Shape {
    /// As the stream describes it.
    relation: Relation,
    /// What is done to its rows on their way.
    plan: Option<Plan>,
    /// Where the subject's columns are in the rows of the stream.
    columns: Vec<usize>,
    key: Vec<usize>,
}

impl Changes {
    /// What changed of a table.
    pub(super) fn take(&mut self, id: RelationId) -> TableChanges {
        self.tables.remove(&id).unwrap_or_default()
    }

    /// The stream describes a table. One that is altered in between cannot be compared at this barrier.
    pub(super) fn describe(&mut self, relation: &Relation, subject: &Subject, streamed: &Streamed) {
        let table = self.tables.entry(relation.id).or_default();
        let is_first = table.shape.is_none();
        let shape = streamed.is(relation).then(|| Shape::new(relation, subject)).flatten();
        let is_same = table.shape.as_ref().is_none_or(|known| known.relation == *relation);
        match shape {
            Some(shape) if is_same => {
                if is_first {
                    table.shape = Some(shape);
                }
            }
            Some(_) | None => table.give_up("it was altered meanwhile"),
        }
    }

    /// Takes a change of a table. One that makes no sense, or that was not described, is of a table that is not as it
    /// was at the snapshot.
    pub(super) fn apply(&mut self, id: RelationId, subject: &Subject, change: &Change) {
        let table = self.tables.entry(id).or_default();
        if table.void.is_some() {
            return;
        }
        if matches!(change, Change::Truncate { .. }) {
            table.give_up("it was truncated meanwhile");
            return;
        }
        let taken = if subject.has_key() { table.apply_keyed(change) } else { table.apply_keyless(change) };
        if let Err(what) = taken {
            table.give_up(&format!("the stream sent {what}: it was altered meanwhile"));
        }
        self.keep_within_bounds();
    }
}

impl Changes {
    /// Gives up the table of which most changed, if all that changed is too much.
    fn keep_within_bounds(&mut self) {
        let all: usize = self.tables.values().map(|table| table.bytes).sum();
        let largest = self.tables.values_mut().max_by_key(|table| table.bytes);
        if let Some(table) = largest.filter(|_| all > BYTES_MAX) {
            let mib = BYTES_MAX >> 20;
            table.give_up(&format!("so many rows changed meanwhile that they do not fit into {mib} MiB"));
        }
    }
}

impl Shape {
    /// `None`: the table has other columns than when it was inspected.
    fn new(relation: &Relation, subject: &Subject) -> Option<Self> {
        let plan = match &subject.projection {
            None => None,
            Some(projection) => Some(projection.steps.plan(relation).ok()?),
        };
        let streamed = relation;
        let relation = plan.as_ref().map_or(streamed, |plan| &plan.relation);
        let place = |name: &String| relation.columns.iter().position(|column| column.name == *name);
        Some(Self {
            relation: streamed.clone(),
            columns: subject.columns.iter().map(place).collect::<Option<_>>()?,
            key: subject.key.iter().map(place).collect::<Option<_>>()?,
            plan,
        })
    }

    /// A change as the sink should have it.
    fn transformed<'a>(&self, change: &'a Change) -> Result<Cow<'a, Change>, &'static str> {
        let Some(plan) = &self.plan else { return Ok(Cow::Borrowed(change)) };
        plan.apply(change.clone()).map(Cow::Owned).map_err(|_| "a value that cannot be masked")
    }

    fn key(&self, row: &Row, old: Option<&Row>) -> Result<Key, &'static str> {
        let part = |place: &usize| match (row.0.get(*place), old.and_then(|old| old.0.get(*place))) {
            (Some(Value::Unchanged), Some(old)) => text(old),
            (Some(value), _) => text(value),
            (None, _) => None,
        };
        self.key.iter().map(|place| part(place).ok_or("a key without a value")).collect()
    }

    fn cells(&self, row: &Row) -> Result<Vec<Cell>, &'static str> {
        self.columns
            .iter()
            .map(|place| row.0.get(*place).and_then(cell).ok_or("a value that is no text"))
            .collect()
    }

    fn texts(&self, row: &Row, old: Option<&Row>) -> Result<Vec<Option<String>>, &'static str> {
        let value = |place: &usize| match (row.0.get(*place), old.and_then(|old| old.0.get(*place))) {
            (Some(Value::Unchanged), Some(Value::Null)) | (Some(Value::Null), _) => Ok(None),
            (Some(Value::Unchanged), Some(value)) | (Some(value), _) => {
                text(value).map(Some).ok_or("a value that is no text")
            }
            (None, _) => Err("a row that is too short"),
        };
        self.columns.iter().map(value).collect()
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::Text(bytes) => std::str::from_utf8(bytes).ok().map(str::to_owned),
        Value::Null | Value::Unchanged | Value::Binary(_) => None,
    }
}

fn cell(value: &Value) -> Option<Cell> {
    match value {
        Value::Null => Some(Cell::Null),
        Value::Unchanged => Some(Cell::Unchanged),
        Value::Text(bytes) => std::str::from_utf8(bytes).ok().map(Cell::of),
        Value::Binary(_) => None,
    }
}

fn row_of(old: &OldRow) -> &Row {
    match old {
        OldRow::Key(row) | OldRow::Full(row) => row,
    }
}

impl TableChanges {
    fn give_up(&mut self, why: &str) {
        *self = Self { void: Some(why.to_owned()), shape: self.shape.take(), ..Self::default() };
    }

    fn apply_keyed(&mut self, change: &Change) -> Result<(), &'static str> {
        let shape = self.shape.as_ref().ok_or("a row that it had not described")?;
        let change = shape.transformed(change)?;
        match change.as_ref() {
            Change::Insert { new, .. } => {
                let (key, cells) = (shape.key(new, None)?, shape.cells(new)?);
                self.set(key, Last::Row { cells, origin: None });
            }
            Change::Delete { old, .. } => {
                let key = shape.key(row_of(old), None)?;
                self.set(key, Last::Gone);
            }
            Change::Update { old, new, .. } => {
                let old_row = old.as_ref().map(row_of);
                let key = shape.key(new, old_row)?;
                let old_key = old_row.map_or_else(|| Ok(key.clone()), |row| shape.key(row, None))?;
                let mut cells = shape.cells(new)?;
                let mut origin = Some(old_key.clone());
                if let Some(OldRow::Full(row)) = old {
                    fill(&mut cells, &shape.cells(row)?);
                } else if let Some(Last::Row { cells: before, origin: first }) = self.rows.get(&old_key) {
                    fill(&mut cells, before);
                    origin.clone_from(first);
                }
                if old_key != key {
                    self.set(old_key, Last::Gone);
                }
                self.set(key, Last::Row { cells, origin });
            }
            Change::Truncate { .. } => {}
        }
        Ok(())
    }

    fn set(&mut self, key: Key, last: Last) {
        let key_bytes = key.iter().map(|part| size_of::<String>() + part.len()).sum::<usize>();
        self.bytes += last.size();
        match self.rows.insert(key, last) {
            Some(before) => self.bytes = self.bytes.saturating_sub(before.size()),
            None => self.bytes += key_bytes,
        }
    }

    fn apply_keyless(&mut self, change: &Change) -> Result<(), &'static str> {
        let shape = self.shape.as_ref().ok_or("a row that it had not described")?;
        let change = shape.transformed(change)?;
        let (old, new) = match change.as_ref() {
            Change::Insert { new, .. } => (None, Some(shape.texts(new, None)?)),
            Change::Delete { old: OldRow::Full(old), .. } => (Some(shape.texts(old, None)?), None),
            Change::Update { old: Some(OldRow::Full(old)), new, .. } => {
                (Some(shape.texts(old, None)?), Some(shape.texts(new, Some(old))?))
            }
            Change::Update { .. } | Change::Delete { .. } => return Err("an old row that is not whole"),
            Change::Truncate { .. } => (None, None),
        };
        for (sign, values) in [(-1, old), (1, new)] {
            let Some(values) = values else { continue };
            self.bytes += size_of::<Delta>()
                + values
                    .iter()
                    .map(|value| size_of::<String>() + value.as_ref().map_or(0, String::len))
                    .sum::<usize>();
            self.deltas.push(Delta { sign, values });
        }
        Ok(())
    }
}

/// Values that were not sent again are those of before.
fn fill(cells: &mut [Cell], before: &[Cell]) {
    for (cell, before) in cells.iter_mut().zip(before) {
        if *cell == Cell::Unchanged {
            cell.clone_from(before);
        }
    }
}

#[cfg(test)]
#[path = "changes_tests.rs"]
mod tests;
