//! Limits and honest accounting.

use super::*;
use crate::batch::Operation;

const BIG: usize = 1 << 20;

fn row_with_big(key: &str, byte: u8) -> Row {
    Row(vec![value(key), value("small"), Value::Binary(Bytes::from(vec![byte; BIG]))])
}

#[test]
fn coalescing_gives_memory_back() {
    let mut batch = Batch::new(UNLIMITED);
    for byte in 0..50 {
        batch
            .push(&keyed(), Change::Update { relation: TABLE, old: None, new: row_with_big("1", byte) })
            .unwrap();
    }
    assert_eq!(batch.rows(), 1);
    assert!((BIG..BIG + 1000).contains(&batch.size_bytes()), "{}", batch.size_bytes());
    batch.push(&keyed(), delete("1 null null")).unwrap();
    assert!(batch.size_bytes() < 1000, "{}", batch.size_bytes());
    batch.take();
    assert_eq!((batch.size_bytes(), batch.rows(), batch.is_empty()), (0, 0, true));
}

#[test]
fn rows_that_cancel_out_count_by_their_keys() {
    let mut batch = Batch::new(Limits { max_rows: usize::MAX, max_bytes: 100_000 });
    for key in 0.. {
        let key = key.to_string();
        batch.push(&keyed(), Change::Insert { relation: TABLE, new: row_with_big(&key, 1) }).unwrap();
        batch.push(&keyed(), delete(&format!("{key} null null"))).unwrap();
        if batch.is_full() {
            break;
        }
    }
    assert!((100..2_000).contains(&batch.rows()), "{}", batch.rows());
    assert_eq!(batch.take(), []);
}

#[test]
fn limits_count_coalesced_rows_and_bytes() {
    let mut batch = Batch::new(Limits { max_rows: 2, max_bytes: usize::MAX });
    for change in [insert("1 a x"), update("1 b y"), update("1 c z")] {
        batch.push(&keyed(), change).unwrap();
        assert!(!batch.is_full());
    }
    batch.push(&keyed(), insert("2 a x")).unwrap();
    assert!(batch.is_full());
    let mut batch = Batch::new(Limits { max_rows: usize::MAX, max_bytes: BIG });
    batch.push(&ordered(), insert("1 a x")).unwrap();
    assert!(!batch.is_full());
    batch.push(&ordered(), Change::Insert { relation: TABLE, new: row_with_big("2", 1) }).unwrap();
    assert!(batch.is_full());
}

/// The size of what is handed out is the size that was promised, but for the heads of operations and index.
#[test]
fn size_is_that_of_the_rows_held() {
    for traits in [keyed(), ordered()] {
        let mut batch = Batch::new(UNLIMITED);
        for key in 0..100 {
            let new = Row(vec![value(&key.to_string()), Value::Binary(vec![7; 1000].into())]);
            batch.push(&traits, Change::Insert { relation: TABLE, new }).unwrap();
        }
        let promised = batch.size_bytes();
        let operations = batch.take();
        let [Operation::Insert { rows, .. }] = operations.as_slice() else { panic!("{operations:?}") };
        let held: usize = rows.iter().map(Row::size).sum();
        assert!(promised >= held && promised < held + 100 * 200, "{promised} for {held}");
    }
}

/// A value that is carried over from a message that was mostly something else does not keep that message.
#[test]
fn carried_value_does_not_keep_a_big_message_alive() {
    let message = Bytes::from(vec![7; BIG]);
    let first =
        Row(vec![value("1"), Value::Binary(message.slice(..100)), Value::Binary(message.slice(100..))]);
    drop(message.clone());
    let second = Row(vec![value("1"), Value::Unchanged, value("small")]);
    let mut batch = batch_of(
        &keyed(),
        [
            Change::Update { relation: TABLE, old: None, new: first },
            Change::Update { relation: TABLE, old: None, new: second },
        ],
    );
    assert!(message.is_unique(), "nobody but the test holds the message");
    let operations = batch.take();
    let Operation::Update { rows, .. } = &operations[0] else { panic!() };
    assert_eq!(rows[0].new.0[1], Value::Binary(Bytes::from(vec![7; 100])));
}

/// But a big value that stays through many updates is not copied by each.
#[test]
fn big_value_that_stays_is_not_copied() {
    let big = Bytes::from(vec![7; BIG]);
    let first = Row(vec![value("1"), value("a"), Value::Binary(big.clone())]);
    let update = |new| Change::Update { relation: TABLE, old: None, new };
    let changes = [update(first), update(row("1 b unchanged")), update(row("1 c unchanged"))];
    let operations = batch_of(&keyed(), changes).take();
    let Operation::Update { rows, .. } = &operations[0] else { panic!() };
    let Value::Binary(kept) = &rows[0].new.0[2] else { panic!() };
    assert_eq!(kept.as_ptr(), big.as_ptr());
}

/// A key that is remembered holds its own bytes, not those of the message.
#[test]
fn remembered_key_does_not_keep_a_message_alive() {
    let message = Bytes::from(vec![b'1'; BIG]);
    let new = Row(vec![Value::Binary(message.slice(..1)), Value::Binary(message.slice(1..))]);
    let mut batch = batch_of(&keyed(), [Change::Insert { relation: TABLE, new }, delete("1 null")]);
    assert!(message.is_unique());
    assert_eq!(batch.take(), []);
}
