//! The rules one by one.

use super::*;
use crate::batch::{BatchError, Operation, UpdateRow};

fn coalesced(changes: impl IntoIterator<Item = Change>) -> Vec<Operation> {
    batch_of(&keyed(), changes).take()
}

fn inserted(rows: &[&str]) -> Operation {
    Operation::Insert { relation: TABLE, rows: rows.iter().map(|words| row(words)).collect() }
}

fn updated(rows: &[(&str, &str)]) -> Operation {
    let rows = rows.iter().map(|(old, new)| UpdateRow { old: OldRow::Key(row(old)), new: row(new) });
    Operation::Update { relation: TABLE, rows: rows.collect() }
}

fn deleted(rows: &[&str]) -> Operation {
    Operation::Delete { relation: TABLE, rows: rows.iter().map(|words| OldRow::Key(row(words))).collect() }
}

fn truncated() -> Operation {
    Operation::Truncate { relations: vec![TABLE], cascade: false, restart_identity: false }
}

#[test]
fn last_change_of_a_key_wins() {
    assert_eq!(coalesced([insert("1 a x"), update("1 b y"), update("1 c z")]), [inserted(&["1 c z"])]);
    assert_eq!(coalesced([update("1 b y"), update("1 c z")]), [updated(&[("1 null null", "1 c z")])]);
    assert_eq!(coalesced([update("1 b y"), delete("1 null null")]), [deleted(&["1 null null"])]);
    assert_eq!(coalesced([delete("1 null null")]), [deleted(&["1 null null"])]);
}

#[test]
fn unchanged_values_keep_what_the_batch_knows_and_stay_unchanged_otherwise() {
    assert_eq!(coalesced([insert("1 a big"), update("1 b unchanged")]), [inserted(&["1 b big"])]);
    assert_eq!(
        coalesced([update("1 a big"), update("1 b unchanged"), update("1 unchanged unchanged")]),
        [updated(&[("1 null null", "1 b big")])]
    );
    assert_eq!(
        coalesced([update("1 a unchanged"), update("1 b unchanged")]),
        [updated(&[("1 null null", "1 b unchanged")])]
    );
    assert_eq!(coalesced([insert("1 a null"), update("1 b unchanged")]), [inserted(&["1 b null"])]);
}

#[test]
fn row_that_comes_and_goes_is_nothing() {
    assert_eq!(coalesced([insert("1 a x"), update("1 b y"), delete("1 null null")]), []);
    assert_eq!(coalesced([insert("1 a x"), delete("1 null null"), insert("1 c z")]), [inserted(&["1 c z"])]);
}

#[test]
fn row_that_goes_and_comes_is_replaced_whole() {
    let replaced = [updated(&[("1 null null", "1 b null")])];
    assert_eq!(coalesced([delete("1 null null"), insert("1 b null")]), replaced);
    assert_eq!(coalesced([update("1 a x"), delete("1 null null"), insert("1 b null")]), replaced);
    // Not the values of the row that was there before.
    assert_eq!(
        coalesced([update("1 a big"), delete("1 null null"), insert("1 b new"), update("1 c unchanged")]),
        [updated(&[("1 null null", "1 c new")])]
    );
    assert_eq!(
        coalesced([delete("1 null null"), insert("1 b x"), delete("1 null null")]),
        [deleted(&["1 null null"])]
    );
}

#[test]
fn removals_come_first_and_rows_keep_their_order() {
    let operations = coalesced([
        insert("9 a x"),
        update("5 a x"),
        delete("7 null null"),
        insert("2 a x"),
        delete("3 null null"),
    ]);
    assert_eq!(
        operations,
        [
            deleted(&["7 null null", "3 null null"]),
            updated(&[("5 null null", "5 a x")]),
            inserted(&["9 a x", "2 a x"])
        ]
    );
}

#[test]
fn key_change_stands_between_what_came_before_and_after() {
    let operations =
        coalesced([insert("1 a x"), update_from("1 null null", "2 a unchanged"), insert("1 b y")]);
    assert_eq!(
        operations,
        [inserted(&["1 a x"]), updated(&[("1 null null", "2 a unchanged")]), inserted(&["1 b y"])]
    );
}

#[test]
fn key_changes_go_together_only_while_their_keys_do_not_meet() {
    let change = |from: &str, to: &str| update_from(&format!("{from} null null"), &format!("{to} a x"));
    assert_eq!(coalesced([change("1", "11"), change("2", "12"), change("3", "13")]).len(), 1);
    assert_eq!(coalesced([change("1", "2"), change("2", "3")]).len(), 2, "one after the other");
    assert_eq!(coalesced([change("2", "3"), change("1", "2")]).len(), 2, "into the key that was left");
    let swap = [change("1", "0"), change("2", "1"), change("0", "2")];
    assert_eq!(coalesced(swap).len(), 3);
    // A change in place between two key changes is not passed by the second.
    let operations = coalesced([change("1", "11"), update("11 b y"), change("2", "12")]);
    assert_eq!(operations.len(), 3);
    assert_eq!(operations[1], updated(&[("11 null null", "11 b y")]));
}

/// The server sends the old key also when a key column is stored out of line, and then leaves it out of the new row.
#[test]
fn old_key_that_is_the_same_is_no_key_change() {
    let operations =
        coalesced([update_from("1 null null", "unchanged b y"), update_from("1 null null", "1 c unchanged")]);
    assert_eq!(operations, [updated(&[("1 null null", "1 c y")])]);
}

#[test]
fn key_of_a_table_with_identity_full_is_taken_from_its_old_row() {
    let operations = coalesced([update_full("1 a x", "1 b x"), update_full("1 b x", "2 b unchanged")]);
    assert_eq!(
        operations,
        [updated(&[("1 null null", "1 b x")]), updated(&[("1 null null", "2 b unchanged")])]
    );
    let change = Change::Delete { relation: TABLE, old: OldRow::Full(row("1 a x")) };
    assert_eq!(coalesced([change]), [deleted(&["1 null null"])]);
}

#[test]
fn truncate_is_a_barrier_for_its_tables_only() {
    let mut batch = Batch::new(UNLIMITED);
    for change in [
        insert("1 a x"),
        on(OTHER, insert("1 a x")),
        truncate(&[TABLE]),
        insert("1 b y"),
        on(OTHER, update("1 b y")),
    ] {
        batch.push(&keyed(), change).unwrap();
    }
    let other = Operation::Insert { relation: OTHER, rows: vec![row("1 b y")] };
    assert_eq!(batch.take(), [inserted(&["1 a x"]), truncated(), inserted(&["1 b y"]), other]);
}

#[test]
fn tables_whose_order_matters_keep_it_among_each_other() {
    let mut batch = Batch::new(UNLIMITED);
    for change in [
        insert("1 a x"),
        insert("2 a x"),
        on(OTHER, insert("1 a x")),
        update("1 b x"),
        update("1 c x"),
        update_from("1 null null", "3 c x"),
        delete("3 null null"),
        insert("3 d x"),
    ] {
        batch.push(&ordered(), change).unwrap();
    }
    assert_eq!(
        batch.take(),
        [
            inserted(&["1 a x", "2 a x"]),
            Operation::Insert { relation: OTHER, rows: vec![row("1 a x")] },
            updated(&[("1 null null", "1 b x"), ("1 null null", "1 c x"), ("1 null null", "3 c x")]),
            deleted(&["3 null null"]),
            inserted(&["3 d x"]),
        ]
    );
}

#[test]
fn keyless_table_names_its_rows_by_the_whole_of_them() {
    let full = |words: &str| OldRow::Full(row(words));
    let gone = Change::Delete { relation: TABLE, old: full("1 b x") };
    let operations =
        batch_of(&keyless(), [insert("1 a x"), update_full("1 a x", "1 b unchanged"), gone]).take();
    assert_eq!(
        operations,
        [
            inserted(&["1 a x"]),
            Operation::Update {
                relation: TABLE,
                rows: vec![UpdateRow { old: full("1 a x"), new: row("1 b unchanged") }]
            },
            Operation::Delete { relation: TABLE, rows: vec![full("1 b x")] },
        ]
    );
}

#[test]
fn history_that_cannot_be_is_refused() {
    let relation = TABLE;
    let gone = || delete("1 null null");
    for (changes, error) in [
        (vec![insert("1 a x"), insert("1 b y")], BatchError::KeyTaken { relation }),
        (vec![update("1 a x"), insert("1 b y")], BatchError::KeyTaken { relation }),
        (vec![gone(), update("1 a x")], BatchError::KeyGone { relation }),
        (vec![gone(), gone()], BatchError::KeyGone { relation }),
        (vec![insert("1 a x"), gone(), update("1 a x")], BatchError::KeyGone { relation }),
        (vec![insert("1 a x"), gone(), gone()], BatchError::KeyGone { relation }),
        (vec![insert("null a x")], BatchError::KeyIncomplete { relation, column: 0 }),
        (vec![update("unchanged a x")], BatchError::KeyIncomplete { relation, column: 0 }),
        (vec![delete("null a x")], BatchError::KeyIncomplete { relation, column: 0 }),
        (vec![update_from("null 1 x", "1 a x")], BatchError::KeyIncomplete { relation, column: 0 }),
        (vec![insert("1 unchanged x")], BatchError::UnchangedInInsert { relation, column: 1 }),
        (vec![insert("1 a x"), insert("2 a")], BatchError::WidthChanged { relation, before: 3, now: 2 }),
        (vec![update_from("1 null", "2 a x")], BatchError::WidthChanged { relation, before: 2, now: 3 }),
    ] {
        let mut batch = Batch::new(UNLIMITED);
        let first_error = changes.into_iter().find_map(|change| batch.push(&keyed(), change).err());
        assert_eq!(first_error, Some(error));
    }
    for change in [update("1 a x"), update_from("1 null null", "1 a x"), delete("1 null null")] {
        let error = Batch::new(UNLIMITED).push(&keyless(), change).unwrap_err();
        assert_eq!(error, BatchError::OldRowMissing { relation });
    }
}

/// A key is its values, not their bytes run together; and binary `1` is not text `1`.
#[test]
fn keys_of_several_columns_do_not_run_together() {
    let traits = TableTraits { key: vec![1, 0], order_matters: false };
    let operations = batch_of(&traits, [insert("ab c x"), insert("a bc x"), insert("b ca x")]).take();
    assert_eq!(operations, [inserted(&["ab c x", "a bc x", "b ca x"])]);
    let operations = batch_of(&traits, [delete("a b null"), delete("b a null")]).take();
    assert_eq!(operations, [deleted(&["a b null", "b a null"])]);
    let text = Change::Insert {
        relation: TABLE,
        new: Row(vec![Value::Text(Bytes::from_static(b"1")), Value::Null]),
    };
    assert_eq!(batch_of(&keyed(), [insert("1 null"), text]).rows(), 2);
}
