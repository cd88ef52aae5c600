//! What a broken message is told.

use bytes::Bytes;

use super::encode::encode;
use super::fixtures::{VERSIONS, payloads};
use crate::decode::{Message, Problem, decode};

fn error_of(payload: impl Into<Vec<u8>>) -> String {
    decode(Bytes::from(payload.into())).unwrap_err().to_string()
}

#[test]
fn error_names_message_field_and_byte() {
    let insert = |rest: &[u8]| [b"I\0\0\0\x07", rest].concat();
    for (payload, sentence) in [
        (vec![], "unrecognised message of pgoutput, type at byte 0: needs 1 bytes, 0 are left"),
        (b"S".to_vec(), "unrecognised message of pgoutput, type at byte 0: no such message type: `S`"),
        (b"\x07".to_vec(), "unrecognised message of pgoutput, type at byte 0: no such message type: 0x07"),
        (b"B\0\0".to_vec(), "Begin message of pgoutput, final LSN at byte 1: needs 8 bytes, 2 are left"),
        (b"C\x01".to_vec(), "Commit message of pgoutput, flags at byte 1: unknown flags 0x01"),
        (insert(b"K"), "Insert message of pgoutput, row type at byte 5: expected `N`, found `K`"),
        (insert(b"N\xff\xff"), "Insert message of pgoutput, number of values at byte 6: -1 is negative"),
        (
            insert(b"N\0\x02nx"),
            "Insert message of pgoutput, new row, value 1, kind at byte 9: expected `n`, `u`, `t` or `b`, found `x`",
        ),
        (
            insert(b"N\0\x01u"),
            "Insert message of pgoutput, new row, value 0, kind at byte 8: an unchanged value cannot stand here",
        ),
        (
            insert(b"N\0\x01b\0\0\0\x05abc"),
            "Insert message of pgoutput, new row, value 0, binary at byte 13: needs 5 bytes, 3 are left",
        ),
        (
            insert(b"N\0\x01t\xff\xff\xff\xfe"),
            "Insert message of pgoutput, new row, value 0, length at byte 9: -2 is negative",
        ),
        (insert(b"N\0\x01nn"), "Insert message of pgoutput, end at byte 9: 1 bytes are left over"),
        (
            b"D\0\0\0\x07K\0\x01u".to_vec(),
            "Delete message of pgoutput, old row, value 0, kind at byte 8: an unchanged value cannot stand here",
        ),
        (
            b"U\0\0\0\x07K\0\0K".to_vec(),
            "Update message of pgoutput, new row type at byte 8: expected `N`, found `K`",
        ),
        (
            b"O\0\0\0\0\0\0\0\0abc".to_vec(),
            "Origin message of pgoutput, name at byte 9: the string has no end",
        ),
        (
            b"O\0\0\0\0\0\0\0\0\xff\0".to_vec(),
            "Origin message of pgoutput, name at byte 9: the string is not UTF-8",
        ),
        (
            b"R\0\0\0\x07s\0t\0x".to_vec(),
            "Relation message of pgoutput, replica identity at byte 9: expected `d`, `n`, `f` or `i`, found `x`",
        ),
        (
            b"R\0\0\0\x07s\0t\0d\0\x01\x02\0\0\0\0\x17\0\0\0\0".to_vec(),
            "Relation message of pgoutput, column 0, flags at byte 12: unknown flags 0x02",
        ),
        (
            b"T\0\0\0\x02\0\0\0\0\x07".to_vec(),
            "Truncate message of pgoutput, relation OIDs at byte 6: needs 8 bytes, 4 are left",
        ),
        (b"T\0\0\0\0\x04".to_vec(), "Truncate message of pgoutput, options at byte 5: unknown flags 0x04"),
        (b"M\x02".to_vec(), "Message message of pgoutput, flags at byte 1: unknown flags 0x02"),
    ] {
        assert_eq!(error_of(payload), sentence);
    }
}

#[test]
fn every_shorter_or_longer_message_is_refused() {
    let (_, file) = VERSIONS[0];
    for payload in payloads(file) {
        for length in 0..payload.len() {
            assert!(decode(payload.slice(..length)).is_err(), "{length} bytes of {payload:?}");
        }
        let longer = [&payload[..], b"\0"].concat();
        assert!(decode(longer.into()).is_err(), "{payload:?} and a byte");
    }
}

/// A count is held against what the message has left before memory is reserved for it.
#[test]
fn huge_counts_reserve_no_memory() {
    const HUGE: usize = 0x7fff_ffff;
    const MANY: usize = 0x7fff;
    for (payload, needed) in [
        (&b"T\x7f\xff\xff\xff\0"[..], HUGE * 4),
        (b"I\0\0\0\x07N\x7f\xff", MANY),
        (b"R\0\0\0\x07s\0t\0d\x7f\xff", MANY * 10),
    ] {
        let error = decode(Bytes::copy_from_slice(payload)).unwrap_err();
        assert_eq!(error.problem, Problem::TooShort { needed, left: 0 }, "{error}");
    }
}

#[test]
fn catalogue_schema_has_its_name() {
    let written = Message::Type { oid: 1, schema: "pg_catalog".to_owned(), name: "t".to_owned() };
    assert!(encode(&written).starts_with(b"Y\0\0\0\x01\0t"));
    assert_eq!(decode(encode(&written)).unwrap(), written);
}

/// A row shares the memory of the message it came in.
#[test]
fn values_are_not_copied() {
    use crate::change::{Change, RelationId, Row, Value};
    let value = Value::Binary(Bytes::from_static(b"0123456789"));
    let change = Change::Insert { relation: RelationId(7), new: Row(vec![value]) };
    let payload = encode(&Message::Change(change));
    let range = payload.as_ptr_range();
    let Message::Change(Change::Insert { new, .. }) = decode(payload.clone()).unwrap() else { panic!() };
    let Value::Binary(bytes) = &new.0[0] else { panic!() };
    assert!(range.contains(&bytes.as_ptr()));
}
