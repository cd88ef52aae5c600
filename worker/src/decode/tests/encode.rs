//! The server's side of the protocol, for tests only.

use bytes::{BufMut, Bytes, BytesMut};

use crate::change::{Change, OldRow, Relation, ReplicaIdentity, Row, Value};
use crate::decode::Message;

pub(super) fn encode(message: &Message) -> Bytes {
    let mut out = BytesMut::new();
    match message {
        Message::Begin { final_lsn, commit_time, xid } => {
            out.put_u8(b'B');
            out.put_u64(final_lsn.0);
            out.put_i64(commit_time.0);
            out.put_u32(*xid);
        }
        Message::Commit { commit_lsn, end_lsn, commit_time } => {
            out.put_slice(&[b'C', 0]);
            out.put_u64(commit_lsn.0);
            out.put_u64(end_lsn.0);
            out.put_i64(commit_time.0);
        }
        Message::Origin { commit_lsn, name } => {
            out.put_u8(b'O');
            out.put_u64(commit_lsn.0);
            put_string(&mut out, name);
        }
        Message::Relation(relation) => put_relation(&mut out, relation),
        Message::Type { oid, schema, name } => {
            out.put_u8(b'Y');
            out.put_u32(*oid);
            put_schema(&mut out, schema);
            put_string(&mut out, name);
        }
        Message::Change(change) => put_change(&mut out, change),
        Message::Logical(message) => {
            out.put_slice(&[b'M', u8::from(message.transactional)]);
            out.put_u64(message.lsn.0);
            put_string(&mut out, &message.prefix);
            put_bytes(&mut out, &message.content);
        }
    }
    out.freeze()
}

fn put_relation(out: &mut BytesMut, relation: &Relation) {
    out.put_u8(b'R');
    out.put_u32(relation.id.0);
    put_schema(out, &relation.schema);
    put_string(out, &relation.name);
    out.put_u8(match relation.replica_identity {
        ReplicaIdentity::Default => b'd',
        ReplicaIdentity::Nothing => b'n',
        ReplicaIdentity::Full => b'f',
        ReplicaIdentity::Index => b'i',
    });
    out.put_u16(relation.columns.len().try_into().unwrap());
    for column in &relation.columns {
        out.put_u8(column.is_key.into());
        put_string(out, &column.name);
        out.put_u32(column.type_oid);
        out.put_i32(column.type_modifier);
    }
}

fn put_change(out: &mut BytesMut, change: &Change) {
    match change {
        Change::Insert { relation, new } => {
            out.put_u8(b'I');
            out.put_u32(relation.0);
            put_row(out, b'N', new);
        }
        Change::Update { relation, old, new } => {
            out.put_u8(b'U');
            out.put_u32(relation.0);
            if let Some(old) = old {
                put_old(out, old);
            }
            put_row(out, b'N', new);
        }
        Change::Delete { relation, old } => {
            out.put_u8(b'D');
            out.put_u32(relation.0);
            put_old(out, old);
        }
        Change::Truncate { relations, cascade, restart_identity } => {
            out.put_u8(b'T');
            out.put_u32(relations.len().try_into().unwrap());
            out.put_u8(u8::from(*cascade) | u8::from(*restart_identity) << 1);
            for relation in relations {
                out.put_u32(relation.0);
            }
        }
    }
}

fn put_old(out: &mut BytesMut, old: &OldRow) {
    match old {
        OldRow::Key(row) => put_row(out, b'K', row),
        OldRow::Full(row) => put_row(out, b'O', row),
    }
}

fn put_row(out: &mut BytesMut, letter: u8, row: &Row) {
    out.put_u8(letter);
    out.put_u16(row.0.len().try_into().unwrap());
    for value in &row.0 {
        match value {
            Value::Null => out.put_u8(b'n'),
            Value::Unchanged => out.put_u8(b'u'),
            Value::Text(bytes) => {
                out.put_u8(b't');
                put_bytes(out, bytes);
            }
            Value::Binary(bytes) => {
                out.put_u8(b'b');
                put_bytes(out, bytes);
            }
        }
    }
}

fn put_bytes(out: &mut BytesMut, bytes: &Bytes) {
    out.put_u32(bytes.len().try_into().unwrap());
    out.put_slice(bytes);
}

fn put_string(out: &mut BytesMut, text: &str) {
    out.put_slice(text.as_bytes());
    out.put_u8(0);
}

fn put_schema(out: &mut BytesMut, schema: &str) {
    put_string(out, if schema == "pg_catalog" { "" } else { schema });
}
