use bytes::Bytes;

use super::*;
use crate::change::table::TableName;
use crate::change::{RelationColumn, ReplicaIdentity};

const ID: RelationId = RelationId(7);

fn subject(key: &[&str]) -> Subject {
    Subject {
        name: TableName::new("public", "t"),
        sink: TableName::new("public", "t"),
        shard: 0,
        columns: vec!["id".into(), "body".into()],
        projection: None,
        left_out: Vec::new(),
        key: key.iter().map(ToString::to_string).collect(),
        is_key_built_in: true,
        estimated_rows: 0,
    }
}

fn relation(names: &[&str]) -> Relation {
    let column = |name: &&str| RelationColumn {
        name: (*name).to_owned(),
        type_oid: 25,
        type_modifier: -1,
        is_key: *name == "id",
    };
    Relation {
        id: ID,
        schema: "public".into(),
        name: "t".into(),
        replica_identity: ReplicaIdentity::Default,
        columns: names.iter().map(column).collect(),
    }
}

fn streamed() -> Streamed {
    let columns = subject(&[]).columns;
    let replica_identity = ReplicaIdentity::Default;
    Streamed { columns, replica_identity, identity_columns: vec!["id".into()] }
}

/// `-` is NULL, `?` a value that was not sent.
fn row(id: &str, body: &str) -> Row {
    let value = |text: &str| match text {
        "-" => Value::Null,
        "?" => Value::Unchanged,
        text => Value::Text(Bytes::copy_from_slice(text.as_bytes())),
    };
    Row(vec![value(id), value(body)])
}

fn insert(id: &str, body: &str) -> Change {
    Change::Insert { relation: ID, new: row(id, body) }
}

fn update(old: Option<OldRow>, id: &str, body: &str) -> Change {
    Change::Update { relation: ID, old, new: row(id, body) }
}

fn old_key(id: &str) -> OldRow {
    OldRow::Key(row(id, "-"))
}

fn after(key: &[&str], changes: &[Change]) -> TableChanges {
    let subject = subject(key);
    let mut all = Changes::default();
    all.describe(&relation(&["id", "body"]), &subject, &streamed());
    for change in changes {
        all.apply(ID, &subject, change);
    }
    all.take(ID)
}

fn at(changes: &TableChanges, id: &str) -> Last {
    changes.rows[&vec![id.to_owned()]].clone()
}

fn whole(id: &str, body: Cell, origin: Option<&str>) -> Last {
    Last::Row { cells: vec![Cell::of(id), body], origin: origin.map(|key| vec![key.to_owned()]) }
}

#[test]
fn the_last_state_of_a_key_counts() {
    let changes = after(
        &["id"],
        &[
            insert("1", "a"),
            update(None, "1", "b"),
            insert("2", "-"),
            Change::Delete { relation: ID, old: old_key("2") },
        ],
    );
    assert_eq!(at(&changes, "1"), whole("1", Cell::of("b"), None));
    assert_eq!(at(&changes, "2"), Last::Gone);
}

#[test]
fn a_value_that_is_not_sent_is_that_of_the_row_whatever_its_key_became() {
    let changes = after(
        &["id"],
        &[
            update(Some(old_key("1")), "2", "?"),
            update(Some(old_key("2")), "3", "?"),
            insert("4", "long"),
            update(None, "4", "?"),
        ],
    );
    assert_eq!(at(&changes, "3"), whole("3", Cell::Unchanged, Some("1")));
    assert_eq!((at(&changes, "1"), at(&changes, "2")), (Last::Gone, Last::Gone));
    assert_eq!(at(&changes, "4"), whole("4", Cell::of("long"), None));
    let full = after(&["id"], &[update(Some(OldRow::Full(row("1", "whole"))), "1", "?")]);
    assert_eq!(at(&full, "1"), whole("1", Cell::of("whole"), Some("1")));
}

#[test]
fn keys_that_swap_their_rows_keep_apart() {
    let changes = after(
        &["id"],
        &[
            update(Some(old_key("1")), "0", "?"),
            update(Some(old_key("2")), "1", "?"),
            update(Some(old_key("0")), "2", "?"),
        ],
    );
    assert_eq!(at(&changes, "1"), whole("1", Cell::Unchanged, Some("2")));
    assert_eq!(at(&changes, "2"), whole("2", Cell::Unchanged, Some("1")));
}

#[test]
fn rows_without_key_come_and_go() {
    let old = || OldRow::Full(row("1", "-"));
    let changes = after(
        &[],
        &[insert("1", "-"), update(Some(old()), "2", "?"), Change::Delete { relation: ID, old: old() }],
    );
    let values = |id: &str| vec![Some(id.to_owned()), None];
    let expected = [(1, "1"), (-1, "1"), (1, "2"), (-1, "1")];
    assert_eq!(changes.deltas, expected.map(|(sign, id)| Delta { sign, values: values(id) }));
    let mut all = Changes::default();
    all.describe(&relation(&["id", "body"]), &subject(&[]), &streamed());
    let partial = Change::Delete { relation: ID, old: old_key("1") };
    all.apply(ID, &subject(&[]), &partial);
    assert!(all.take(ID).void.unwrap().contains("an old row that is not whole"));
}

/// An UPDATE of the key says nothing of the old row once the replica identity is another one.
#[test]
fn a_table_whose_replica_identity_is_another_one_than_at_the_snapshot_is_void() {
    let subject = subject(&["id"]);
    let mut by_index = relation(&["id", "body"]);
    by_index.replica_identity = ReplicaIdentity::Index;
    let mut by_another_key = relation(&["id", "body"]);
    for column in &mut by_another_key.columns {
        column.is_key = column.name == "body";
    }
    for described in [by_index, by_another_key] {
        let mut all = Changes::default();
        all.describe(&described, &subject, &streamed());
        all.apply(ID, &subject, &update(None, "2", "a"));
        let changes = all.take(ID);
        assert!(changes.rows.is_empty() && changes.void.unwrap().contains("altered"));
    }
}

#[test]
fn a_table_that_is_truncated_or_altered_or_changed_too_much_is_void() {
    let truncate = Change::Truncate { relations: vec![ID], cascade: false, restart_identity: false };
    let void = |changes: TableChanges| changes.void.unwrap_or_default();
    assert!(void(after(&["id"], &[truncate, insert("1", "a")])).contains("truncated"));
    let subject = subject(&["id"]);
    for shapes in [vec![vec!["id"]], vec![vec!["id", "body"], vec!["body", "id"]], vec![vec!["id", "other"]]]
    {
        let mut all = Changes::default();
        for shape in shapes {
            all.describe(&relation(&shape), &subject, &streamed());
        }
        assert!(void(all.take(ID)).contains("altered"));
    }
    let many: Vec<Change> = (0..120_000).map(|id| insert(&id.to_string(), &"x".repeat(200))).collect();
    assert!(void(after(&["id"], &many)).contains("24 MiB"));
    let hot: Vec<Change> = (0..120_000).map(|_| update(None, "1", &"x".repeat(200))).collect();
    assert_eq!(after(&["id"], &hot).void, None);
}
