//! Applying the operations is applying the changes one by one, for any history.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::model::{BIG, Tables, WIDTH, apply, key_of, sorted};
use super::*;
use crate::batch::Operation;

/// How a table names its rows.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Identity {
    Key,
    /// Two columns, of which the second is stored out of line: the old key always comes, the new may be left out.
    LongKey,
    /// FULL, but the sink has a key.
    FullWithKey,
    Full,
}

/// What somebody does to the source; what cannot be done to the row that is there does nothing.
#[derive(Clone, Debug)]
enum Step {
    Insert {
        table: usize,
        row: [u8; WIDTH],
    },
    /// `touched` says which columns get the new value. `in_line`: the big value is sent though it did not change.
    Update {
        table: usize,
        key: u8,
        row: [u8; WIDTH],
        touched: [bool; WIDTH],
        in_line: bool,
    },
    Delete {
        table: usize,
        key: u8,
    },
    Truncate {
        tables: Vec<usize>,
    },
    /// The batch goes to the sink.
    Take,
}

const TABLES: usize = 4;

fn step() -> impl Strategy<Value = Step> {
    let cells = || [0..6_u8, 0..2, 0..9, 0..9];
    prop_oneof![
        6 => (0..TABLES, cells()).prop_map(|(table, row)| Step::Insert { table, row }),
        8 => (0..TABLES, 0..6_u8, cells(), touched(), any::<bool>())
            .prop_map(|(table, key, row, touched, in_line)| Step::Update { table, key, row, touched, in_line }),
        4 => (0..TABLES, 0..6_u8).prop_map(|(table, key)| Step::Delete { table, key }),
        1 => vec(0..TABLES, 1..3).prop_map(|tables| Step::Truncate { tables }),
        1 => Just(Step::Take),
    ]
}

/// Key columns change less often than the others.
fn touched() -> impl Strategy<Value = [bool; WIDTH]> {
    let often = |percent: u32| prop::bool::weighted(f64::from(percent) / 100.0);
    [often(20), often(20), often(60), often(40)]
}

fn table() -> impl Strategy<Value = (Identity, bool)> {
    let identity = prop_oneof![
        4 => Just(Identity::Key), 2 => Just(Identity::LongKey), 1 => Just(Identity::FullWithKey), 1 => Just(Identity::Full)
    ];
    (identity, prop::bool::weighted(0.3))
}

fn row_of(cells: [u8; WIDTH]) -> Row {
    let value = |cell| match cell {
        8 => Value::Null,
        cell => Value::Binary(Bytes::from(vec![cell; 1 + usize::from(cell % 3)])),
    };
    Row(cells.map(value).to_vec())
}

/// The source: tables of known content that says what it would send.
struct Source {
    identities: Vec<Identity>,
    traits: BTreeMap<RelationId, TableTraits>,
    tables: Tables,
}

fn id(table: usize) -> RelationId {
    RelationId(u32::try_from(table).unwrap())
}

impl Source {
    fn new(tables: &[(Identity, bool)]) -> Self {
        let traits = tables.iter().enumerate().map(|(table, (identity, order_matters))| {
            let (key, order_matters) = match identity {
                Identity::Key | Identity::FullWithKey => (vec![0], *order_matters),
                Identity::LongKey => (vec![0, 1], *order_matters),
                Identity::Full => (vec![], true),
            };
            (id(table), TableTraits { key, order_matters })
        });
        Self {
            identities: tables.iter().map(|(identity, _)| *identity).collect(),
            traits: traits.collect(),
            tables: (0..tables.len()).map(|table| (id(table), Vec::new())).collect(),
        }
    }

    /// Does the step and returns what the stream would carry.
    fn perform(&mut self, step: &Step) -> Option<Change> {
        match step {
            Step::Insert { table, row } => self.insert(*table, row_of(*row)),
            Step::Update { table, key, row, touched, in_line } => {
                self.update(*table, *key, &row_of(*row), *touched, *in_line)
            }
            Step::Delete { table, key } => {
                let relation = id(*table);
                let at = self.find(*table, *key)?;
                let old = self.tables.get_mut(&relation)?.remove(at);
                Some(Change::Delete { relation, old: self.old_row(*table, old) })
            }
            Step::Truncate { tables } => {
                let mut relations: Vec<_> = tables.iter().map(|table| id(*table)).collect();
                relations.dedup();
                for relation in &relations {
                    self.tables.get_mut(relation).unwrap().clear();
                }
                Some(Change::Truncate { relations, cascade: false, restart_identity: true })
            }
            Step::Take => None,
        }
    }

    fn find(&self, table: usize, key: u8) -> Option<usize> {
        let wanted = row_of([key, 0, 0, 0]).0.swap_remove(0);
        self.tables[&id(table)].iter().position(|row| row.0[0] == wanted)
    }

    fn is_taken(&self, table: usize, row: &Row, except: Option<usize>) -> bool {
        let key = &self.traits[&id(table)].key;
        let mut others = self.tables[&id(table)].iter().enumerate().filter(|(at, _)| Some(*at) != except);
        !key.is_empty() && others.any(|(_, other)| key_of(other, key) == key_of(row, key))
    }

    fn insert(&mut self, table: usize, new: Row) -> Option<Change> {
        if self.is_taken(table, &new, None) {
            return None;
        }
        self.tables.get_mut(&id(table))?.push(new.clone());
        Some(Change::Insert { relation: id(table), new })
    }

    fn update(
        &mut self,
        table: usize,
        key: u8,
        values: &Row,
        touched: [bool; WIDTH],
        in_line: bool,
    ) -> Option<Change> {
        let (relation, at) = (id(table), self.find(table, key)?);
        let before = self.tables[&relation][at].clone();
        let mut after = before.clone();
        for column in (0..WIDTH).filter(|&column| touched[column]) {
            after.0[column] = values.0[column].clone();
        }
        if self.is_taken(table, &after, Some(at)) {
            return None;
        }
        self.tables.get_mut(&relation)?[at] = after.clone();
        let key = &self.traits[&relation].key;
        let key_changed = key_of(&before, key) != key_of(&after, key);
        let mut sent = after;
        if !touched[BIG] && !in_line {
            sent.0[BIG] = Value::Unchanged;
        }
        let identity = self.identities[table];
        if identity == Identity::LongKey && !touched[1] {
            sent.0[1] = Value::Unchanged;
        }
        let old = match identity {
            Identity::Key => key_changed.then(|| self.old_row(table, before)),
            Identity::LongKey | Identity::FullWithKey | Identity::Full => Some(self.old_row(table, before)),
        };
        Some(Change::Update { relation, old, new: sent })
    }

    fn old_row(&self, table: usize, row: Row) -> OldRow {
        let columns: &[usize] = match self.identities[table] {
            Identity::Full | Identity::FullWithKey => return OldRow::Full(row),
            Identity::Key => &[0],
            Identity::LongKey => &[0, 1],
        };
        let keep = |(column, value)| if columns.contains(&column) { value } else { Value::Null };
        OldRow::Key(Row(row.0.into_iter().enumerate().map(keep).collect()))
    }
}

/// What the tables whose order matters are asked to do, row by row, to be compared with their changes.
fn flatten(operations: &[Operation], traits: &BTreeMap<RelationId, TableTraits>) -> Vec<(RelationId, Row)> {
    let mut rows: Vec<(RelationId, Row)> = Vec::new();
    for operation in operations {
        match operation {
            Operation::Insert { relation, rows: new } => {
                rows.extend(new.iter().map(|row| (*relation, row.clone())));
            }
            Operation::Update { relation, rows: new } => {
                rows.extend(new.iter().map(|row| (*relation, row.new.clone())));
            }
            Operation::Delete { relation, rows: old } => rows.extend(old.iter().map(|old| match old {
                OldRow::Key(row) | OldRow::Full(row) => (*relation, row.clone()),
            })),
            Operation::Truncate { relations, .. } => {
                rows.extend(relations.iter().map(|relation| (*relation, Row(vec![]))));
            }
        }
    }
    rows.retain(|(relation, _)| traits[relation].order_matters);
    rows
}

/// The same of one change.
fn row_of_change(change: &Change, traits: &BTreeMap<RelationId, TableTraits>) -> Vec<(RelationId, Row)> {
    let operation = match change.clone() {
        Change::Insert { relation, new } => Operation::Insert { relation, rows: vec![new] },
        Change::Update { relation, mut new, old } => {
            if let Some(OldRow::Key(old) | OldRow::Full(old)) = old {
                for &column in &traits[&relation].key {
                    if new.0[column] == Value::Unchanged {
                        new.0[column] = old.0[column].clone();
                    }
                }
            }
            Operation::Insert { relation, rows: vec![new] }
        }
        Change::Delete { relation, old: OldRow::Key(mut old) | OldRow::Full(mut old) } => {
            let key = &traits[&relation].key;
            for column in (0..WIDTH).filter(|column| !key.is_empty() && !key.contains(column)) {
                old.0[column] = Value::Null;
            }
            Operation::Insert { relation, rows: vec![old] }
        }
        Change::Truncate { relations, cascade, restart_identity } => {
            Operation::Truncate { relations, cascade, restart_identity }
        }
    };
    flatten(&[operation], traits)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn operations_do_what_the_changes_do(
        tables in prop::array::uniform4(table()),
        steps in vec(step(), 0..120),
        max_rows in 1..60_usize,
    ) {
        let mut source = Source::new(&tables);
        let mut sink = source.tables.clone();
        let mut batch = Batch::new(Limits { max_rows, max_bytes: usize::MAX });
        let mut ordered_changes = Vec::new();
        for step in steps.iter().chain([&Step::Take]) {
            if let Some(change) = source.perform(step) {
                let relation = match &change {
                    Change::Insert { relation, .. } | Change::Update { relation, .. } | Change::Delete { relation, .. } => *relation,
                    Change::Truncate { relations, .. } => relations[0],
                };
                ordered_changes.extend(row_of_change(&change, &source.traits));
                batch.push(&source.traits[&relation], change).unwrap();
            }
            if matches!(step, Step::Take) || batch.is_full() {
                let operations = batch.take();
                prop_assert_eq!(flatten(&operations, &source.traits), std::mem::take(&mut ordered_changes));
                for operation in operations {
                    apply(&mut sink, &source.traits, operation);
                }
                prop_assert_eq!(sorted(&sink), sorted(&source.tables));
                prop_assert_eq!((batch.size_bytes(), batch.rows(), batch.is_empty()), (0, 0, true));
            }
        }
    }
}
