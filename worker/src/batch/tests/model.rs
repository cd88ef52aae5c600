//! Tables in memory. The source's makes changes as PostgreSQL would send them; the sink's applies operations as
//! strictly as a database would.

use std::collections::BTreeMap;

use super::*;
use crate::batch::{Operation, UpdateRow};

/// Columns: key, a second key or plain column, a plain one, one that may be left out when it does not change.
pub(super) const WIDTH: usize = 4;
pub(super) const BIG: usize = 3;

pub(super) type Rows = Vec<Row>;
/// What each table holds, as a multiset.
pub(super) type Tables = BTreeMap<RelationId, Rows>;

/// Takes one row with these values away.
fn take_row(rows: &mut Rows, matches: impl Fn(&Row) -> bool) -> Option<Row> {
    rows.iter().position(matches).map(|at| rows.remove(at))
}

pub(super) fn key_of(row: &Row, key: &[usize]) -> Vec<Value> {
    key.iter().map(|&column| row.0[column].clone()).collect()
}

pub(super) fn sorted(tables: &Tables) -> BTreeMap<RelationId, Vec<String>> {
    let texts = |rows: &Rows| {
        let mut texts: Vec<_> = rows.iter().map(|row| format!("{row:?}")).collect();
        texts.sort();
        texts
    };
    tables.iter().map(|(relation, rows)| (*relation, texts(rows))).collect()
}

/// Applies one operation. Of a coalesced table it takes the rows backwards: any order must do.
pub(super) fn apply(tables: &mut Tables, traits: &BTreeMap<RelationId, TableTraits>, operation: Operation) {
    match operation {
        Operation::Insert { relation, mut rows } => {
            let TableTraits { key, order_matters } = &traits[&relation];
            if !order_matters {
                rows.reverse();
            }
            let table = tables.entry(relation).or_default();
            for row in rows {
                assert!(!row.0.contains(&Value::Unchanged));
                assert!(key.is_empty() || table.iter().all(|other| key_of(other, key) != key_of(&row, key)));
                table.push(row);
            }
        }
        Operation::Update { relation, mut rows } => {
            let TableTraits { key, order_matters } = &traits[&relation];
            if !order_matters {
                rows.reverse();
            }
            let table = tables.entry(relation).or_default();
            for row in rows {
                apply_update(table, key, row);
            }
        }
        Operation::Delete { relation, rows } => {
            let key = &traits[&relation].key;
            let table = tables.entry(relation).or_default();
            for old in rows {
                take_row(table, |row| names(&old, row, key)).expect("the row to delete is there");
            }
        }
        Operation::Truncate { relations, .. } => {
            for relation in relations {
                tables.entry(relation).or_default().clear();
            }
        }
    }
}

fn apply_update(table: &mut Rows, key: &[usize], UpdateRow { old, mut new }: UpdateRow) {
    let before = take_row(table, |row| names(&old, row, key)).expect("the row to update is there");
    for (new, before) in new.0.iter_mut().zip(before.0) {
        if *new == Value::Unchanged {
            *new = before;
        }
    }
    assert!(
        key.is_empty() || table.iter().all(|other| key_of(other, key) != key_of(&new, key)),
        "key is taken"
    );
    table.push(new);
}

fn names(old: &OldRow, row: &Row, key: &[usize]) -> bool {
    match old {
        OldRow::Key(old) => {
            assert!(!key.is_empty());
            assert!((0..WIDTH).all(|column| key.contains(&column) || old.0[column] == Value::Null));
            key_of(old, key) == key_of(row, key)
        }
        OldRow::Full(old) => {
            assert!(key.is_empty());
            old == row
        }
    }
}
