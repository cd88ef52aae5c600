//! What real servers sent (`examples/capture_pgoutput.rs` writes the files).

use std::collections::HashMap;
use std::fmt::Write;

use bytes::{Buf, Bytes};

use super::encode::encode;
use crate::change::{Change, OldRow, Position, Relation, RelationId, Row, Value};
use crate::decode::{Assembler, Event, Message, decode};

pub(super) const VERSIONS: [(&str, &[u8]); 4] = [
    ("15", include_bytes!("../../../tests/fixtures/pgoutput/pg15.bin")),
    ("16", include_bytes!("../../../tests/fixtures/pgoutput/pg16.bin")),
    ("17", include_bytes!("../../../tests/fixtures/pgoutput/pg17.bin")),
    ("18", include_bytes!("../../../tests/fixtures/pgoutput/pg18.bin")),
];

pub(super) fn payloads(file: &'static [u8]) -> Vec<Bytes> {
    let mut rest = Bytes::from_static(file);
    let mut payloads = Vec::new();
    while rest.has_remaining() {
        let length = rest.get_u32();
        payloads.push(rest.split_to(length as usize));
    }
    payloads
}

#[test]
fn messages_of_every_server_version_are_read_as_recorded() {
    let readings = VERSIONS.map(|(version, file)| (version, describe(file)));
    for (version, reading) in &readings {
        assert_eq!(*reading, readings[0].1, "PostgreSQL {version} differs from {}", readings[0].0);
    }
    insta::assert_snapshot!("history", readings[0].1);
}

#[test]
fn recorded_messages_are_written_back_byte_by_byte() {
    for (version, file) in VERSIONS {
        for payload in payloads(file) {
            let message = decode(payload.clone()).unwrap();
            assert_eq!(encode(&message), payload, "PostgreSQL {version}: {message:?}");
        }
    }
}

#[test]
fn recorded_streams_are_whole_transactions_in_commit_order() {
    for (version, file) in VERSIONS {
        let events = assemble(file, Position::default());
        let commits: Vec<_> = events
            .iter()
            .filter_map(|event| match event {
                Event::Commit { position, end_lsn, .. } => Some((*position, *end_lsn)),
                Event::Begin { .. } | Event::Relation(_) | Event::Change { .. } | Event::Message(_) => None,
            })
            .collect();
        assert!(commits.len() > 20, "PostgreSQL {version}");
        assert!(commits.windows(2).all(|pair| pair[0].1 <= pair[1].0.commit_lsn), "PostgreSQL {version}");
    }
}

/// Starting after any commit gives exactly the rest of the whole stream, and still every table's description.
#[test]
fn stream_goes_on_exactly_after_any_position() {
    let (_, file) = VERSIONS[3];
    let whole = assemble(file, Position::default());
    for (index, event) in whole.iter().enumerate() {
        let Event::Commit { position, .. } = event else { continue };
        let rest = assemble(file, *position);
        let settled = |event: &&Event| {
            // Messages beside transactions are given out whatever is settled.
            !matches!(event, Event::Relation(_))
                && !matches!(event, Event::Message(message) if !message.transactional)
        };
        let expected: Vec<_> = whole[index + 1..].iter().filter(settled).collect();
        assert_eq!(rest.iter().filter(settled).collect::<Vec<_>>(), expected, "after {position:?}");

        let mut described = HashMap::new();
        for event in &rest {
            match event {
                Event::Relation(relation) => {
                    described.insert(relation.id, relation.columns.len());
                }
                Event::Change { change: Change::Insert { relation, new }, .. } => {
                    assert_eq!(described.get(relation), Some(&new.0.len()), "after {position:?}");
                }
                Event::Begin { .. } | Event::Change { .. } | Event::Commit { .. } | Event::Message(_) => {}
            }
        }
    }
}

fn assemble(file: &'static [u8], after: Position) -> Vec<Event> {
    let mut assembler = Assembler::new(after);
    let mut events = Vec::new();
    for payload in payloads(file) {
        assembler.accept(decode(payload).unwrap(), &mut events).unwrap();
    }
    assert!(!assembler.is_in_transaction());
    events
}

/// One line per message, without what differs from run to run: addresses, times, ids.
fn describe(file: &'static [u8]) -> String {
    let mut tables: HashMap<RelationId, String> = HashMap::new();
    let mut lines = String::new();
    for payload in payloads(file) {
        let line = match decode(payload).unwrap() {
            Message::Begin { .. } => "Begin".to_owned(),
            Message::Commit { .. } => "Commit".to_owned(),
            Message::Origin { commit_lsn, name } => format!("  Origin {name} at {commit_lsn}"),
            Message::Type { schema, name, .. } => format!("  Type {schema}.{name}"),
            Message::Relation(relation) => {
                tables.insert(relation.id, relation.name.clone());
                describe_relation(&relation)
            }
            Message::Change(change) => describe_change(&change, &tables),
            Message::Logical(message) => format!(
                "{}Message {}: {:?}",
                if message.transactional { "  " } else { "" },
                message.prefix,
                message.content
            ),
        };
        writeln!(lines, "{line}").unwrap();
    }
    lines
}

fn describe_relation(relation: &Relation) -> String {
    let column = |column: &crate::change::RelationColumn| {
        // Types of the user have other OIDs in each server.
        let oid = if column.type_oid < 16_384 { column.type_oid.to_string() } else { "user".to_owned() };
        let key = if column.is_key { "*" } else { "" };
        format!("{key}{} {oid}/{}", column.name, column.type_modifier)
    };
    let columns: Vec<_> = relation.columns.iter().map(column).collect();
    let (schema, name, identity) = (&relation.schema, &relation.name, relation.replica_identity);
    format!("  Relation {schema}.{name} {identity:?}: {}", columns.join(", "))
}

fn describe_change(change: &Change, tables: &HashMap<RelationId, String>) -> String {
    match change {
        Change::Insert { relation, new } => format!("  Insert {}: {}", tables[relation], describe_row(new)),
        Change::Update { relation, old, new } => {
            let old = old.as_ref().map(|old| format!("{} -> ", describe_old(old))).unwrap_or_default();
            format!("  Update {}: {old}{}", tables[relation], describe_row(new))
        }
        Change::Delete { relation, old } => format!("  Delete {}: {}", tables[relation], describe_old(old)),
        Change::Truncate { relations, cascade, restart_identity } => {
            let names: Vec<_> = relations.iter().map(|relation| tables[relation].as_str()).collect();
            format!("  Truncate {} cascade={cascade} restart_identity={restart_identity}", names.join(", "))
        }
    }
}

fn describe_old(old: &OldRow) -> String {
    match old {
        OldRow::Key(row) => format!("key {}", describe_row(row)),
        OldRow::Full(row) => format!("full {}", describe_row(row)),
    }
}

fn describe_row(row: &Row) -> String {
    const SHOWN_MAX: usize = 40;
    let show = |kind: &str, bytes: &Bytes| match bytes.len() {
        0..=SHOWN_MAX => format!("{kind}{bytes:?}"),
        length => format!("{kind}{:?}…{length}", bytes.slice(..10)),
    };
    let values: Vec<_> = row
        .0
        .iter()
        .map(|value| match value {
            Value::Null => "NULL".to_owned(),
            Value::Unchanged => "unchanged".to_owned(),
            Value::Binary(bytes) => show("", bytes),
            Value::Text(bytes) => show("text ", bytes),
        })
        .collect();
    format!("({})", values.join(", "))
}
