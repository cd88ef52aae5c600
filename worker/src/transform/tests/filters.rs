use bytes::Bytes;

use super::fixtures::*;
use crate::change::table::SourceTable;
use crate::change::travel::Format;
use crate::change::{Change, OldRow, ReplicaIdentity, Row, Value};
use crate::transform::{CopyColumns, Plan, RowError, TableSteps};
use penstock_crds::transform::TableTransform;

fn filter(text: &str) -> TableTransform {
    TableTransform { filter: Some(text.into()), ..entry() }
}

/// `shop.users` with REPLICA IDENTITY FULL.
fn full() -> SourceTable {
    SourceTable { replica_identity: ReplicaIdentity::Full, ..users() }
}

fn steps_of(text: &str, table: &SourceTable) -> TableSteps {
    let transforms = transforms(&[filter(text)], std::slice::from_ref(table)).unwrap();
    transforms.of(ID).unwrap().as_ref().clone()
}

fn plan(text: &str) -> Plan {
    let relation = crate::change::Relation { replica_identity: ReplicaIdentity::Full, ..whole() };
    steps_of(text, &full()).plan(&relation).unwrap()
}

fn text(value: &str) -> Value {
    Value::Text(Bytes::copy_from_slice(value.as_bytes()))
}

/// `id`, `mail`, `name`, `token` and `size`; a word `null` is NULL, `?` did not change.
fn row(values: [&str; 5]) -> Row {
    let value = |value: &str| match value {
        "null" => Value::Null,
        "?" => Value::Unchanged,
        other => text(other),
    };
    Row(values.into_iter().map(value).collect())
}

const UUID: &str = "00000000-0000-0000-0000-00000000000a";

fn sized(size: &str) -> Row {
    row(["1", "m", "n", UUID, size])
}

fn passes(filter: &str, new: Row) -> Result<bool, RowError> {
    Ok(plan(filter).apply(Change::Insert { relation: ID, new })?.is_some())
}

fn update(filter: &str, old: Row, new: Row) -> Result<Option<Change>, RowError> {
    plan(filter).apply(Change::Update { relation: ID, old: Some(OldRow::Full(old)), new })
}

#[test]
fn what_cannot_be_decided_of_every_row_is_refused_before_any_comes() {
    for (text, why) in [
        ("size >", "it is no CEL expression"),
        ("seize > 5", "the table has no column seize"),
        ("size == 'a'", "int is compared with string"),
        ("size > 1.5", "a number that is not whole"),
        ("mail", "a filter wants bool, and column mail is string"),
        ("!size", "! wants bool, and column size is int"),
        ("size > null", "take two ints or two strings, and not int and null"),
        ("mail in ['a', 5]", "in compares string with int"),
        ("mail.matches('a')", "matches is not taken"),
        ("twice > 5", "column twice is generated"),
        ("size + 1 > 5", "+ is not taken"),
        ("[1, 2].exists(x, x == size)", "it has a macro"),
        ("mail.domain == 'a'", ".domain is a field"),
        ("(size > 5) == null", "what is never null"),
    ] {
        let told = refusal_of(filter(text), full());
        assert!(told.contains(&format!("shop.users, filter `{text}`: ")) && told.contains(why), "{told}");
    }
    let mut numeric = full();
    numeric.columns.push(column("price", 1700, "numeric(10,2)"));
    let told = refusal_of(filter("price > 5"), numeric);
    assert!(
        told.contains("column price is numeric(10,2), and a filter takes columns of the types"),
        "{told}"
    );
}

#[test]
fn a_filter_asks_for_what_every_old_row_has() {
    let told = refusal_of(filter("id > 5 && size > 5"), users());
    assert!(
        told.contains("shop.users, column size: the filter names it, and it is not in the replica identity"),
        "{told}"
    );
    assert!(!told.contains("column id"), "{told}");
    steps_of("id > 5", &users());
    steps_of("size > 5", &full());
    let partitioned = SourceTable { is_partitioned: true, ..full() };
    let told = refusal_of(filter("size > 5"), partitioned.clone());
    assert!(told.contains("the table is partitioned, and the column is not in its primary key"), "{told}");
    steps_of("id > 5", &partitioned);
}

#[test]
fn an_identity_that_is_taken_back_stops_the_rows() {
    let steps = steps_of("size > 5", &full());
    let told = steps.plan(&whole()).unwrap_err().to_string();
    assert!(
        told.contains("column size: the filter names it, and it is not in the replica identity"),
        "{told}"
    );
}

#[test]
fn rows_are_decided_as_cel_says() {
    for (filter, is_in) in [
        ("size == 7", true),
        ("size != 7 || mail == 'm'", true),
        ("size in [1, 7, 9]", true),
        ("size in [-7]", false),
        ("size > -7 && !(name == 'x')", true),
        ("name == null", false),
        ("token == '00000000-0000-0000-0000-00000000000a'", true),
        ("mail.startsWith('m') && mail.endsWith('') && mail.contains('m')", true),
        ("size(mail) == 1 && mail.size() < 2", true),
        ("mail < 'n' && name >= 'n'", true),
        ("true", true),
    ] {
        assert_eq!(passes(filter, sized("7")), Ok(is_in), "{filter}");
    }
    assert_eq!(
        passes("size(mail) == 2", row(["1", "äß", "n", UUID, "1"])),
        Ok(true),
        "characters, not bytes"
    );
    let binary = Row(vec![
        Value::Binary(Bytes::from_static(&[0, 0, 0, 1])),
        Value::Binary(Bytes::from_static(b"m")),
        Value::Null,
        Value::Binary(Bytes::from_static(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10])),
        Value::Binary(Bytes::from_static(&[0xff, 0xff, 0xff, 0xfe])),
    ]);
    let filter = format!("size == -2 && name == null && token == '{UUID}' && mail == 'm'");
    assert_eq!(passes(&filter, binary), Ok(true));
}

#[test]
fn null_is_a_value_for_equality_and_an_error_for_order_unless_the_rest_decides() {
    for filter in [
        "size == 7",
        "size in [7]",
        "size != null && size > 5",
        "size > 5 && size != null",
        "false && size > 5",
    ] {
        assert_eq!(passes(filter, sized("null")), Ok(false), "{filter}");
    }
    for filter in
        ["size == null", "size != 7", "size in [null]", "size == null || size > 5", "size > 5 || true"]
    {
        assert_eq!(passes(filter, sized("null")), Ok(true), "{filter}");
    }
    for (filter, nulls) in [
        ("size > 5", "size"),
        ("mail.contains('a')", "mail"),
        ("'a'.startsWith(mail)", "mail"),
        ("size(mail) == 0", "mail"),
        ("!(size < 5) && mail == null", "mail, size"),
    ] {
        let undecided = passes(filter, row(["1", "null", "n", UUID, "null"])).unwrap_err();
        let told = undecided.of(&users().name).message;
        assert!(told.contains(&format!("`{filter}` is neither true nor false where {nulls}")), "{told}");
    }
}

#[test]
fn a_row_that_comes_into_the_filter_is_inserted_and_one_that_leaves_it_is_deleted() {
    let old = || OldRow::Full(sized("1"));
    assert_eq!(update("size > 5", sized("1"), sized("2")), Ok(None));
    assert_eq!(
        update("size > 5", sized("1"), sized("9")),
        Ok(Some(Change::Insert { relation: ID, new: sized("9") }))
    );
    assert_eq!(
        update("size < 5", sized("1"), sized("9")),
        Ok(Some(Change::Delete { relation: ID, old: old() }))
    );
    assert_eq!(
        update("size < 5", sized("1"), sized("2")),
        Ok(Some(Change::Update { relation: ID, old: Some(old()), new: sized("2") }))
    );
    let delete = |filter| plan(filter).apply(Change::Delete { relation: ID, old: old() }).unwrap();
    assert!(delete("size > 5").is_none() && delete("size < 5").is_some());
    let emptied = Change::Truncate { relations: vec![ID], cascade: false, restart_identity: false };
    assert_eq!(plan("size > 5").apply(emptied.clone()), Ok(Some(emptied)));
}

#[test]
fn values_that_did_not_change_are_those_of_the_old_row() {
    let old = row(["1", "large", "x", UUID, "1"]);
    let unchanged = row(["1", "?", "x", UUID, "9"]);
    let inserted = row(["1", "large", "x", UUID, "9"]);
    assert_eq!(
        update("size > 5 && mail == 'large'", old.clone(), unchanged.clone()),
        Ok(Some(Change::Insert { relation: ID, new: inserted }))
    );
    let Ok(Some(Change::Update { new, .. })) = update("mail == 'large'", old, unchanged.clone()) else {
        panic!("it stays in the filter");
    };
    assert_eq!(new, unchanged, "what did not change is not written");
}

#[test]
fn by_its_key_a_row_comes_in_whole_or_its_table_is_copied_again() {
    let plan = steps_of("id > 5", &users()).plan(&whole()).unwrap();
    let key = |id: &str| OldRow::Key(row([id, "null", "null", "null", "null"]));
    let moved = |from: &str, new| plan.apply(Change::Update { relation: ID, old: Some(key(from)), new });
    let new = row(["9", "m", "n", UUID, "1"]);
    assert_eq!(moved("1", new.clone()), Ok(Some(Change::Insert { relation: ID, new })));
    assert_eq!(moved("1", row(["9", "?", "n", UUID, "1"])), Err(RowError::ValueMissing));
    assert_eq!(
        moved("9", row(["1", "?", "n", UUID, "1"])),
        Ok(Some(Change::Delete { relation: ID, old: key("9") }))
    );
    let stays = |new| plan.apply(Change::Update { relation: ID, old: None, new }).unwrap();
    assert!(
        stays(row(["9", "?", "n", UUID, "1"])).is_some() && stays(row(["1", "?", "n", UUID, "1"])).is_none()
    );
    assert_eq!(moved("null", sized("1")), Err(RowError::NotWhole), "a key is never NULL");
}

#[test]
fn columns_that_only_the_filter_looks_at_are_read_and_not_written() {
    let hidden = TableTransform {
        drop_columns: names(&["size", "token", "twice"]),
        ..filter("size > 5 && name != null")
    };
    let transforms = transforms(&[hidden], &[full()]).unwrap();
    let columns = CopyColumns::of(&full(), transforms.of(ID).map(AsRef::as_ref), |_| false);
    assert_eq!(
        (&columns.source, &columns.sink),
        (&names(&["id", "mail", "name", "size"]), &names(&["id", "mail", "name"]))
    );
    let mut rows = columns.transform(Format::Text).unwrap();
    let written = rows.push(b"1\ta\tb\t9\n2\ta\tb\t1\n3\t\\N\t\\\\N\t7\n4\ta\t\\N\t9\n").unwrap();
    assert_eq!(&written[..], b"1\ta\tb\n3\t\\N\t\\\\N\n");
    assert!(matches!(rows.push(b"1\ta\tb\t\\N\n"), Err(RowError::Undecided { .. })));
    let mut rows = columns.transform(Format::Binary).unwrap();
    let head = [b"PGCOPY\n\xff\r\n\0".as_slice(), &[0; 8]].concat();
    let row =
        |size: u8| [b"\0\x04\0\0\0\x01a\0\0\0\x01b\0\0\0\x01c\0\0\0\x04\0\0\0".as_slice(), &[size]].concat();
    let data = [head.clone(), row(1), row(6), vec![0xff, 0xff]].concat();
    let written = rows.push(&data).unwrap();
    let kept = b"\0\x03\0\0\0\x01a\0\0\0\x01b\0\0\0\x01c".to_vec();
    assert_eq!(&written[..], [head, kept, vec![0xff, 0xff]].concat());
}
