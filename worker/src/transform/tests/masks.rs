use bytes::Bytes;
use proptest::prelude::*;

use super::fixtures::*;
use crate::change::{Change, OldRow, Row, Value};
use crate::transform::mask::{Input, Mask};
use crate::transform::{MaskKey, RowError};
use penstock_crds::transform::TableTransform;

fn hashing(key: &[u8]) -> Mask {
    Mask::Hash("pii".into(), MaskKey::new(key).unwrap())
}

fn text(mask: &Mask, value: &str) -> String {
    String::from_utf8(mask.text(value.as_bytes()).unwrap().to_vec()).unwrap()
}

#[test]
fn a_hash_is_hmac_sha_256_as_others_compute_it() {
    // RFC 4231, cases 1 and 6: a short key, and one that is longer than a block.
    let short = hashing(&[0x0b; 20]);
    assert_eq!(text(&short, "Hi There"), "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
    let long = hashing(&[0xaa; 131]);
    assert_eq!(
        text(&long, "Test Using Larger Than Block-Size Key - Hash Key First"),
        "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
    );
}

#[test]
fn the_pads_for_sql_give_the_same_hash() {
    use sha2::{Digest as _, Sha256};
    for key in [&[7_u8; 16][..], &[9; 64], &[1; 200]] {
        let key = MaskKey::new(key).unwrap();
        let (inner, outer) = key.pads();
        let inner = Sha256::digest([hex::decode(inner).unwrap(), b"value".to_vec()].concat());
        let outer = Sha256::digest([hex::decode(outer).unwrap(), inner.to_vec()].concat());
        assert_eq!(text(&Mask::Hash("a".into(), key), "value"), hex::encode(outer));
    }
}

#[test]
fn a_value_has_the_same_hash_in_both_formats() {
    let mask = hashing(KEY);
    let binary = |bytes: &[u8], input| mask.binary(bytes, Some(input)).unwrap();
    for (bytes, input, written) in [
        (&b"anna"[..], Input::Text, "anna"),
        (&(-7_i16).to_be_bytes()[..], Input::Integer, "-7"),
        (&2_147_483_647_i32.to_be_bytes()[..], Input::Integer, "2147483647"),
        (&i64::MIN.to_be_bytes()[..], Input::Integer, "-9223372036854775808"),
        (
            &[0xa0, 0xee, 0xbc, 0x99, 0x9c, 0x0b, 0x4e, 0xf8, 0xbb, 0x6d, 0x6b, 0xb9, 0xbd, 0x38, 0x0a, 0x11]
                [..],
            Input::Uuid,
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        ),
    ] {
        assert_eq!(binary(bytes, input), mask.text(written.as_bytes()).unwrap(), "{written}");
    }
}

#[test]
fn characters_are_kept_whole() {
    let mask = Mask::Truncate(2);
    for (value, kept) in [("", ""), ("ä", "ä"), ("äöü", "äö"), ("a\u{1f600}b", "a\u{1f600}")] {
        assert_eq!(text(&mask, value), kept);
    }
    assert_eq!(mask.text(b"\xff\xfe\xfd"), Err(RowError::NotText));
}

#[test]
fn a_value_that_is_not_of_its_type_is_refused_and_not_guessed() {
    let mask = hashing(KEY);
    assert_eq!(mask.binary(b"abc", Some(Input::Integer)), Err(RowError::OtherType));
    assert_eq!(mask.binary(b"abc", Some(Input::Uuid)), Err(RowError::OtherType));
    assert_eq!(mask.binary(b"abc", None), Err(RowError::UnknownType));
}

#[test]
fn null_stays_null_and_what_was_not_sent_stays_unchanged() {
    for mask in [hashing(KEY), Mask::Redact(Bytes::from_static(b"***")), Mask::Truncate(1)] {
        for value in [Value::Null, Value::Unchanged] {
            assert_eq!(mask.value(value.clone(), Some(Input::Text)), Ok(value));
        }
    }
}

#[test]
fn another_key_or_another_word_is_another_step_and_no_step_tells_the_key() {
    let notes = [hashing(KEY), hashing(b"another key of 16 bytes"), Mask::Truncate(1), Mask::Truncate(2)];
    let notes: Vec<String> = notes.iter().map(Mask::note).collect();
    for (place, note) in notes.iter().enumerate() {
        assert!(!notes[..place].contains(note), "{note}");
        assert!(!note.contains("key of") && !note.contains(&hex::encode(KEY)), "{note}");
    }
    assert_eq!(format!("{:?}", MaskKey::new(KEY)), "Some(MaskKey)");
    assert_eq!(MaskKey::new(b"15 bytes of key"), None);
}

fn int(value: i32) -> Value {
    Value::Binary(Bytes::copy_from_slice(&value.to_be_bytes()))
}

fn string(value: &str) -> Value {
    Value::Binary(Bytes::copy_from_slice(value.as_bytes()))
}

#[test]
fn every_kind_of_change_is_masked_old_rows_too() {
    let steps = steps(TableTransform {
        drop_columns: names(&["token"]),
        mask_columns: vec![redact(&["mail"]), hash(&["id"])],
        ..entry()
    });
    let plan = steps.plan(&whole()).unwrap();
    let row = |id: i32, mail: Value| Row(vec![int(id), mail, string("n"), Value::Unchanged, int(5)]);
    let id = |id: i32| Value::Binary(hashing(KEY).text(id.to_string().as_bytes()).unwrap());
    let masked = |of: i32, mail: Value| Row(vec![id(of), mail, string("n"), int(5)]);
    let stars = || string("***");
    let update = Change::Update {
        relation: ID,
        old: Some(OldRow::Full(row(1, string("a@b")))),
        new: row(2, Value::Unchanged),
    };
    assert_eq!(
        plan.apply(update).unwrap(),
        Change::Update {
            relation: ID,
            old: Some(OldRow::Full(masked(1, stars()))),
            new: masked(2, Value::Unchanged)
        }
    );
    let key = Row(vec![int(1), Value::Null, Value::Null, Value::Null, Value::Null]);
    let key_in_sink = Row(vec![id(1), Value::Null, Value::Null, Value::Null]);
    let delete = Change::Delete { relation: ID, old: OldRow::Key(key) };
    assert_eq!(plan.apply(delete).unwrap(), Change::Delete { relation: ID, old: OldRow::Key(key_in_sink) });
    let insert = Change::Insert { relation: ID, new: row(3, string("c@d")) };
    assert_eq!(plan.apply(insert).unwrap(), Change::Insert { relation: ID, new: masked(3, stars()) });
    let short = Change::Insert { relation: ID, new: Row(vec![int(3)]) };
    assert_eq!(plan.apply(short), Err(RowError::NotWhole));
}

proptest! {
    #[test]
    fn no_part_of_a_hashed_or_redacted_value_is_left(value in "[g-z]{4,40}") {
        for mask in [hashing(KEY), Mask::Redact(Bytes::from_static(b"***"))] {
            let masked = text(&mask, &value);
            prop_assert!(!masked.contains(&value[..4]), "{masked}");
        }
    }

    #[test]
    fn a_truncated_value_is_the_beginning_of_the_value(value in "\\PC*", length in 1_usize..20) {
        let masked = text(&Mask::Truncate(length), &value);
        prop_assert!(value.starts_with(&masked));
        prop_assert_eq!(masked.chars().count(), value.chars().count().min(length));
    }
}
