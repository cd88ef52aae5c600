//! The order that the assembler enforces.

use std::sync::Arc;

use bytes::Bytes;

use crate::change::{
    Change, Lsn, OldRow, Position, Relation, RelationColumn, RelationId, ReplicaIdentity, Row, Value,
};
use crate::decode::{Assembler, Event, LogicalMessage, Message, PgTimestamp, ProtocolViolation};

const TABLE: RelationId = RelationId(7);
const NOW: PgTimestamp = PgTimestamp(42);

fn begin(lsn: u64, xid: u32) -> Message {
    Message::Begin { final_lsn: Lsn(lsn), commit_time: NOW, xid }
}

fn commit(lsn: u64) -> Message {
    Message::Commit { commit_lsn: Lsn(lsn), end_lsn: Lsn(lsn + 8), commit_time: NOW }
}

fn relation(columns: usize, replica_identity: ReplicaIdentity) -> Relation {
    let column = |number| RelationColumn {
        name: format!("c{number}"),
        type_oid: 23,
        type_modifier: -1,
        is_key: number == 0,
    };
    let columns = (0..columns).map(column).collect();
    Relation { id: TABLE, schema: "shop".to_owned(), name: "item".to_owned(), replica_identity, columns }
}

fn described(columns: usize) -> Message {
    Message::Relation(relation(columns, ReplicaIdentity::Default))
}

fn row(width: usize) -> Row {
    Row(vec![Value::Null; width])
}

fn insert(width: usize) -> Message {
    Message::Change(Change::Insert { relation: TABLE, new: row(width) })
}

fn said(transactional: bool) -> LogicalMessage {
    LogicalMessage { transactional, lsn: Lsn(3), prefix: "p".to_owned(), content: Bytes::new() }
}

/// All events, or the first violation.
fn run(
    after: Position,
    messages: impl IntoIterator<Item = Message>,
) -> Result<Vec<Event>, ProtocolViolation> {
    let mut assembler = Assembler::new(after);
    let mut events = Vec::new();
    for message in messages {
        assembler.accept(message, &mut events)?;
    }
    Ok(events)
}

fn from_the_start(messages: impl IntoIterator<Item = Message>) -> Result<Vec<Event>, ProtocolViolation> {
    run(Position::default(), messages)
}

#[test]
fn changes_are_numbered_and_the_commit_stands_after_the_last() {
    let events = from_the_start([begin(10, 1), described(2), insert(2), insert(2), commit(10)]).unwrap();
    let change = |ordinal| Event::Change { change: Change::Insert { relation: TABLE, new: row(2) }, ordinal };
    assert_eq!(
        events,
        [
            Event::Begin { commit_lsn: Lsn(10), xid: 1, commit_time: NOW },
            Event::Relation(Arc::new(relation(2, ReplicaIdentity::Default))),
            change(1),
            change(2),
            Event::Commit {
                position: Position { commit_lsn: Lsn(10), xid: 1, ordinal: 2 },
                end_lsn: Lsn(18),
                commit_time: NOW
            },
        ]
    );
}

#[test]
fn transactions_up_to_the_position_are_dropped_and_the_next_is_described() {
    let after = Position { commit_lsn: Lsn(20), xid: 2, ordinal: 1 };
    let transaction = |lsn, xid| [begin(lsn, xid), insert(2), commit(lsn)];
    let first = [begin(10, 1), described(2), insert(2), Message::Logical(said(true)), commit(10)];
    let messages =
        first.into_iter().chain(transaction(20, 2)).chain(transaction(30, 3)).chain(transaction(40, 4));
    let events = run(after, messages).unwrap();
    assert_eq!(events.len(), 7, "{events:?}");
    assert!(matches!(events[0], Event::Begin { xid: 3, .. }));
    assert!(matches!(events[1], Event::Relation(_)));
    assert!(matches!(events[3], Event::Commit { .. }));
    assert!(matches!(events[4], Event::Begin { xid: 4, .. }));
    assert!(matches!(events[5], Event::Change { ordinal: 1, .. }));
}

/// An idle checkpoint names the end of a commit record, where the next one may begin.
#[test]
fn transaction_right_after_an_idle_position_is_kept() {
    let after = Position { commit_lsn: Lsn(20), xid: 0, ordinal: 0 };
    assert_eq!(run(after, [begin(20, 2), commit(20)]).unwrap().len(), 2);
}

#[test]
fn table_is_announced_again_only_when_it_became_another() {
    let events = from_the_start([
        begin(10, 1),
        described(2),
        insert(2),
        described(2),
        insert(2),
        described(3),
        insert(3),
        commit(10),
    ])
    .unwrap();
    let announced = events.iter().filter(|event| matches!(event, Event::Relation(_))).count();
    assert_eq!((announced, events.len()), (2, 7));
}

#[test]
fn messages_beside_transactions_always_come_through() {
    let after = Position { commit_lsn: Lsn(100), xid: 9, ordinal: 1 };
    let events =
        run(after, [Message::Logical(said(false)), begin(10, 1), Message::Logical(said(true)), commit(10)]);
    assert_eq!(events.unwrap(), [Event::Message(said(false))]);
}

#[test]
fn broken_order_is_refused() {
    use ProtocolViolation as Violation;
    let outside = |what| Violation::OutsideTransaction(what);
    let truncate = Change::Truncate { relations: vec![TABLE], cascade: false, restart_identity: false };
    let empty_type = Message::Type { oid: 1, schema: String::new(), name: String::new() };
    let origin = Message::Origin { commit_lsn: Lsn(1), name: String::new() };
    for (messages, violation) in [
        (vec![commit(10)], outside("Commit")),
        (vec![insert(2)], outside("change")),
        (vec![described(2)], outside("Relation")),
        (vec![empty_type], outside("Type")),
        (vec![origin], outside("Origin")),
        (vec![Message::Logical(said(true))], outside("transactional message")),
        (vec![begin(10, 1), begin(20, 2)], Violation::BeginInTransaction { open: 1, next: 2 }),
        (vec![begin(10, 1), insert(2)], Violation::UnknownRelation(TABLE)),
        (vec![begin(10, 1), Message::Change(truncate)], Violation::UnknownRelation(TABLE)),
        (
            vec![begin(10, 1), commit(11)],
            Violation::CommitOfAnother { xid: 1, announced: Lsn(10), commit_lsn: Lsn(11), end_lsn: Lsn(19) },
        ),
        (
            vec![begin(10, 1), Message::Commit { commit_lsn: Lsn(10), end_lsn: Lsn(10), commit_time: NOW }],
            Violation::CommitOfAnother { xid: 1, announced: Lsn(10), commit_lsn: Lsn(10), end_lsn: Lsn(10) },
        ),
        (
            vec![begin(10, 1), commit(10), begin(10, 2)],
            Violation::OutOfOrder { xid: 2, commit_lsn: Lsn(10), last: Lsn(10) },
        ),
        (
            vec![begin(10, 1), described(2), insert(3)],
            Violation::WrongWidth { table: "shop.item".to_owned(), values: 3, columns: 2 },
        ),
    ] {
        assert_eq!(from_the_start(messages).unwrap_err(), violation);
    }
}

/// Also in transactions that are dropped: a stream that is wrong there is wrong everywhere.
#[test]
fn dropped_transactions_are_checked_too() {
    let after = Position { commit_lsn: Lsn(100), xid: 1, ordinal: 1 };
    assert!(run(after, [begin(10, 1), described(2), insert(3)]).is_err());
    assert!(run(after, [begin(10, 1), commit(10), begin(5, 2)]).is_err());
}

#[test]
fn old_rows_fit_the_replica_identity() {
    let delete = |old| Message::Change(Change::Delete { relation: TABLE, old });
    let update = |old| Message::Change(Change::Update { relation: TABLE, old: Some(old), new: row(2) });
    let fits = |identity, message| {
        from_the_start([begin(10, 1), Message::Relation(relation(2, identity)), message]).is_ok()
    };
    for (identity, key_fits, full_fits) in [
        (ReplicaIdentity::Default, true, false),
        (ReplicaIdentity::Index, true, false),
        (ReplicaIdentity::Full, false, true),
        (ReplicaIdentity::Nothing, false, false),
    ] {
        for change in [delete, update] {
            assert_eq!(fits(identity, change(OldRow::Key(row(2)))), key_fits, "{identity:?}");
            assert_eq!(fits(identity, change(OldRow::Full(row(2)))), full_fits, "{identity:?}");
        }
        assert!(!fits(identity, delete(OldRow::Key(row(1)))));
    }
}
