//! One message of `pgoutput`, protocol version 1, with `binary` and `messages` on and `streaming` off.

use bytes::Bytes;

use super::error::{DecodeError, Problem};
use super::reader::Reader;
use super::tuple;
use crate::change::{Change, Lsn, Relation, RelationColumn, RelationId, ReplicaIdentity};

const FLAG_TRANSACTIONAL: u8 = 1;
const FLAG_CASCADE: u8 = 1;
const FLAG_RESTART_IDENTITY: u8 = 2;
const FLAG_KEY_COLUMN: u8 = 1;
/// Flags, an empty name, type OID and modifier.
const COLUMN_BYTES_MIN: usize = 10;

/// Microseconds since 2000-01-01 00:00 UTC, the epoch of PostgreSQL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PgTimestamp(pub i64);

impl PgTimestamp {
    /// Microseconds since 1970-01-01 00:00 UTC.
    pub fn unix_micros(self) -> i64 {
        const EPOCH: i64 = 946_684_800_000_000;
        self.0.saturating_add(EPOCH)
    }
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A transaction follows.
    Begin {
        /// Address of its COMMIT record.
        final_lsn: Lsn,
        /// When it was committed.
        commit_time: PgTimestamp,
        /// Its id.
        xid: u32,
    },
    /// The transaction is whole.
    Commit {
        /// Address of the COMMIT record.
        commit_lsn: Lsn,
        /// Address after the COMMIT record: what may be acknowledged.
        end_lsn: Lsn,
        /// When it was committed.
        commit_time: PgTimestamp,
    },
    /// The transaction came to the source by replication.
    Origin {
        /// Address of the commit where it came from.
        commit_lsn: Lsn,
        /// Name of the replication origin.
        name: String,
    },
    /// A table, before its first change and after it was altered.
    Relation(Relation),
    /// A type that is not built in, before the first table that uses it.
    Type {
        /// OID.
        oid: u32,
        /// Schema.
        schema: String,
        /// Name within the schema.
        name: String,
    },
    /// A changed row, or emptied tables.
    Change(Change),
    /// What somebody wrote with `pg_logical_emit_message`.
    Logical(LogicalMessage),
}

/// What somebody wrote with `pg_logical_emit_message`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogicalMessage {
    /// Part of the transaction in which it stands; else it stands by itself.
    pub transactional: bool,
    /// Address of the message.
    pub lsn: Lsn,
    /// Who it is for.
    pub prefix: String,
    /// What it says.
    pub content: Bytes,
}

/// Reads one message. Its values share the payload's memory.
pub fn decode(payload: Bytes) -> Result<Message, DecodeError> {
    let mut reader = Reader::new(payload);
    let message = read(&mut reader)?;
    reader.finish()?;
    Ok(message)
}

fn read(reader: &mut Reader) -> Result<Message, DecodeError> {
    match reader.byte("type")? {
        b'B' => begin(reader.identify("Begin")),
        b'C' => commit(reader.identify("Commit")),
        b'O' => origin(reader.identify("Origin")),
        b'R' => relation(reader.identify("Relation")).map(Message::Relation),
        b'Y' => custom_type(reader.identify("Type")),
        b'I' => insert(reader.identify("Insert")).map(Message::Change),
        b'U' => update(reader.identify("Update")).map(Message::Change),
        b'D' => delete(reader.identify("Delete")).map(Message::Change),
        b'T' => truncate(reader.identify("Truncate")).map(Message::Change),
        b'M' => logical_message(reader.identify("Message")).map(Message::Logical),
        unknown => Err(reader.error("type", 0, Problem::UnknownMessage(unknown))),
    }
}

fn begin(reader: &mut Reader) -> Result<Message, DecodeError> {
    Ok(Message::Begin {
        final_lsn: reader.lsn("final LSN")?,
        commit_time: PgTimestamp(reader.i64("commit time")?),
        xid: reader.u32("transaction id")?,
    })
}

fn commit(reader: &mut Reader) -> Result<Message, DecodeError> {
    reader.flags("flags", 0)?;
    Ok(Message::Commit {
        commit_lsn: reader.lsn("commit LSN")?,
        end_lsn: reader.lsn("end LSN")?,
        commit_time: PgTimestamp(reader.i64("commit time")?),
    })
}

fn origin(reader: &mut Reader) -> Result<Message, DecodeError> {
    Ok(Message::Origin { commit_lsn: reader.lsn("commit LSN")?, name: reader.string("name")? })
}

fn custom_type(reader: &mut Reader) -> Result<Message, DecodeError> {
    Ok(Message::Type { oid: reader.u32("OID")?, schema: schema(reader)?, name: reader.string("name")? })
}

/// A schema's name; the server writes `pg_catalog` as an empty one.
fn schema(reader: &mut Reader) -> Result<String, DecodeError> {
    let name = reader.string("schema")?;
    Ok(if name.is_empty() { "pg_catalog".to_owned() } else { name })
}

fn relation_id(reader: &mut Reader) -> Result<RelationId, DecodeError> {
    reader.u32("relation OID").map(RelationId)
}

fn relation(reader: &mut Reader) -> Result<Relation, DecodeError> {
    let id = relation_id(reader)?;
    let schema = schema(reader)?;
    let name = reader.string("name")?;
    let offset = reader.offset();
    let replica_identity = match reader.byte("replica identity")? {
        b'd' => ReplicaIdentity::Default,
        b'n' => ReplicaIdentity::Nothing,
        b'f' => ReplicaIdentity::Full,
        b'i' => ReplicaIdentity::Index,
        found => {
            let expected = "`d`, `n`, `f` or `i`";
            return Err(reader.error("replica identity", offset, Problem::Unexpected { expected, found }));
        }
    };
    let count = reader.count16("number of columns")?;
    reader.need("columns", count * COLUMN_BYTES_MIN)?;
    let mut columns = Vec::with_capacity(count);
    for number in 0..count {
        reader.within = Some(("column", number));
        let flags = reader.flags("flags", FLAG_KEY_COLUMN)?;
        columns.push(RelationColumn {
            is_key: flags & FLAG_KEY_COLUMN != 0,
            name: reader.string("name")?,
            type_oid: reader.u32("type OID")?,
            type_modifier: reader.i32("type modifier")?,
        });
    }
    reader.within = None;
    Ok(Relation { id, schema, name, replica_identity, columns })
}

fn insert(reader: &mut Reader) -> Result<Change, DecodeError> {
    Ok(Change::Insert { relation: relation_id(reader)?, new: tuple::inserted(reader)? })
}

fn update(reader: &mut Reader) -> Result<Change, DecodeError> {
    let relation = relation_id(reader)?;
    let (old, new) = tuple::updated(reader)?;
    Ok(Change::Update { relation, old, new })
}

fn delete(reader: &mut Reader) -> Result<Change, DecodeError> {
    Ok(Change::Delete { relation: relation_id(reader)?, old: tuple::deleted(reader)? })
}

fn truncate(reader: &mut Reader) -> Result<Change, DecodeError> {
    let count = reader.count32("number of relations")?;
    let flags = reader.flags("options", FLAG_CASCADE | FLAG_RESTART_IDENTITY)?;
    reader.need("relation OIDs", count.saturating_mul(size_of::<u32>()))?;
    let mut relations = Vec::with_capacity(count);
    for _ in 0..count {
        relations.push(relation_id(reader)?);
    }
    let (cascade, restart_identity) = (flags & FLAG_CASCADE != 0, flags & FLAG_RESTART_IDENTITY != 0);
    Ok(Change::Truncate { relations, cascade, restart_identity })
}

fn logical_message(reader: &mut Reader) -> Result<LogicalMessage, DecodeError> {
    let flags = reader.flags("flags", FLAG_TRANSACTIONAL)?;
    let lsn = reader.lsn("LSN")?;
    let prefix = reader.string("prefix")?;
    let length = reader.count32("length")?;
    let content = reader.bytes("content", length)?;
    Ok(LogicalMessage { transactional: flags & FLAG_TRANSACTIONAL != 0, lsn, prefix, content })
}
