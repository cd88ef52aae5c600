//! Any message that can be written is read back, and no bytes at all make the decoder panic.

use std::panic::catch_unwind;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::encode::encode;
use super::fixtures::{VERSIONS, payloads};
use crate::change::{
    Change, Lsn, OldRow, Position, Relation, RelationColumn, RelationId, ReplicaIdentity, Row, Value,
};
use crate::decode::{Assembler, LogicalMessage, Message, PgTimestamp, decode};

fn lsn() -> impl Strategy<Value = Lsn> {
    any::<u64>().prop_map(Lsn)
}

fn time() -> impl Strategy<Value = PgTimestamp> {
    any::<i64>().prop_map(PgTimestamp)
}

/// A name: never empty (an empty schema means `pg_catalog`), any character but zero.
fn name() -> impl Strategy<Value = String> {
    "[^\0]{1,12}"
}

fn content() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..40).prop_map(Bytes::from)
}

fn sent_value() -> impl Strategy<Value = Value> {
    prop_oneof![Just(Value::Null), content().prop_map(Value::Binary), content().prop_map(Value::Text)]
}

fn sent_row() -> impl Strategy<Value = Row> {
    vec(sent_value(), 0..8).prop_map(Row)
}

fn updated_row() -> impl Strategy<Value = Row> {
    vec(prop_oneof![3 => sent_value(), 1 => Just(Value::Unchanged)], 0..8).prop_map(Row)
}

fn old_row() -> impl Strategy<Value = OldRow> {
    prop_oneof![sent_row().prop_map(OldRow::Key), sent_row().prop_map(OldRow::Full)]
}

fn relation_id() -> impl Strategy<Value = RelationId> {
    any::<u32>().prop_map(RelationId)
}

fn relation() -> impl Strategy<Value = Relation> {
    let identity = prop_oneof![
        Just(ReplicaIdentity::Default),
        Just(ReplicaIdentity::Nothing),
        Just(ReplicaIdentity::Full),
        Just(ReplicaIdentity::Index)
    ];
    let column = (name(), any::<u32>(), any::<i32>(), any::<bool>()).prop_map(
        |(name, type_oid, type_modifier, is_key)| RelationColumn { name, type_oid, type_modifier, is_key },
    );
    (relation_id(), name(), name(), identity, vec(column, 0..8)).prop_map(
        |(id, schema, name, replica_identity, columns)| Relation {
            id,
            schema,
            name,
            replica_identity,
            columns,
        },
    )
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (relation_id(), sent_row()).prop_map(|(relation, new)| Change::Insert { relation, new }),
        (relation_id(), proptest::option::of(old_row()), updated_row())
            .prop_map(|(relation, old, new)| Change::Update { relation, old, new }),
        (relation_id(), old_row()).prop_map(|(relation, old)| Change::Delete { relation, old }),
        (vec(relation_id(), 0..5), any::<bool>(), any::<bool>()).prop_map(
            |(relations, cascade, restart_identity)| Change::Truncate {
                relations,
                cascade,
                restart_identity
            }
        ),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        (lsn(), time(), any::<u32>()).prop_map(|(final_lsn, commit_time, xid)| Message::Begin {
            final_lsn,
            commit_time,
            xid
        }),
        (lsn(), lsn(), time()).prop_map(|(commit_lsn, end_lsn, commit_time)| Message::Commit {
            commit_lsn,
            end_lsn,
            commit_time
        }),
        (lsn(), name()).prop_map(|(commit_lsn, name)| Message::Origin { commit_lsn, name }),
        (any::<u32>(), name(), name()).prop_map(|(oid, schema, name)| Message::Type { oid, schema, name }),
        relation().prop_map(Message::Relation),
        change().prop_map(Message::Change),
        (any::<bool>(), lsn(), name(), content()).prop_map(|(transactional, lsn, prefix, content)| {
            Message::Logical(LogicalMessage { transactional, lsn, prefix, content })
        }),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read(message in message()) {
        prop_assert_eq!(decode(encode(&message)).unwrap(), message);
    }
}

const EXECUTIONS_MIN: usize = 100_000;
const EXECUTIONS_MAX: usize = 400_000;
/// After it, the minimum is enough: the machine is busy.
const TIME_ENOUGH: Duration = Duration::from_secs(3);

/// Random bytes, and recorded messages with bytes changed, cut, doubled and exchanged. What is accepted must be
/// written back byte by byte, so nothing is skipped or made up; the assembler must survive all of it, too.
#[test]
fn no_bytes_make_the_decoder_panic() {
    let started = Instant::now();
    let mut random = StdRng::seed_from_u64(2024);
    let recorded: Vec<Bytes> = VERSIONS.iter().flat_map(|(_, file)| payloads(file)).collect();
    let mut assembler = Assembler::new(Position::default());
    let mut accepted = 0_usize;
    for execution in 0..EXECUTIONS_MAX {
        if execution >= EXECUTIONS_MIN && started.elapsed() > TIME_ENOUGH {
            break;
        }
        let payload = if execution % 4 == 0 { noise(&mut random) } else { mutant(&mut random, &recorded) };
        let result = catch_unwind(|| decode(payload.clone()));
        let Ok(result) = result else { panic!("panics on {}", hex::encode(&payload)) };
        let Ok(message) = result else { continue };
        accepted += 1;
        assert_eq!(encode(&message), payload, "read as {message:?}");
        let mut events = Vec::new();
        if assembler.accept(message, &mut events).is_err() {
            assembler = Assembler::new(Position::default());
        }
    }
    assert!(accepted > EXECUTIONS_MIN / 20, "the mutants reach the depths: {accepted}");
}

/// A message type and random bytes.
fn noise(random: &mut StdRng) -> Bytes {
    const TYPES: &[u8] = b"BCORYIUDTM";
    let length = random.random_range(0..60);
    let mut bytes: Vec<u8> = (0..length).map(|_| random.random()).collect();
    if let Some(first) = bytes.first_mut().filter(|_| random.random_range(0..8) > 0) {
        *first = TYPES[random.random_range(0..TYPES.len())];
    }
    bytes.into()
}

/// A recorded message with up to four things done to it; long values are shortened by starting from short ones
/// most of the time.
fn mutant(random: &mut StdRng, recorded: &[Bytes]) -> Bytes {
    let pick = |random: &mut StdRng| recorded[random.random_range(0..recorded.len())].clone();
    let mut bytes = pick(random).to_vec();
    for _ in 0..random.random_range(1..=4) {
        let at = random.random_range(0..=bytes.len().min(80));
        match random.random_range(0..7) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at.min(bytes.len()), random.random()),
            2 => bytes.extend_from_slice(&pick(random)),
            3 => {
                let other = pick(random);
                let tail = other.get(at..).unwrap_or_default();
                bytes.truncate(at);
                bytes.extend_from_slice(tail);
            }
            4 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
            5 if at < bytes.len() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.random_range(0..5)],
            _ if at < bytes.len() => bytes[at] = random.random(),
            _ => bytes.clear(),
        }
    }
    bytes.into()
}
