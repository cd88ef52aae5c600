//! Rows in PostgreSQL's binary COPY format
//! (<https://www.postgresql.org/docs/current/sql-copy.html#id-1.9.3.55.9.4>). Pure.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::plan::Plan;
use crate::change::{Row, Value};

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
/// Sent to the server at a time.
const CHUNK_BYTES: usize = 256 * 1024;

/// Writes rows and hands them out in chunks.
pub(super) struct CopyEncoder {
    buffer: BytesMut,
}

/// A row cannot be written as binary COPY data: it has a value without binary format, too many columns or too few.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotBinary;

impl CopyEncoder {
    /// Begins with the header: no flags, no extension.
    pub(super) fn new() -> Self {
        let mut buffer = BytesMut::with_capacity(CHUNK_BYTES);
        buffer.put_slice(SIGNATURE);
        buffer.put_u64(0);
        Self { buffer }
    }

    /// Writes a row.
    pub(super) fn put(&mut self, plan: &Plan, row: &Row) -> Result<(), NotBinary> {
        self.buffer.put_i16(i16::try_from(plan.written().count()).map_err(|_| NotBinary)?);
        for (place, _) in plan.written() {
            match row.0.get(place) {
                Some(Value::Null) => self.buffer.put_i32(-1),
                Some(Value::Binary(bytes)) => {
                    self.buffer.put_i32(i32::try_from(bytes.len()).map_err(|_| NotBinary)?);
                    self.buffer.put_slice(bytes);
                }
                Some(Value::Text(_) | Value::Unchanged) | None => return Err(NotBinary),
            }
        }
        Ok(())
    }

    /// What is written so far, once it is worth sending.
    pub(super) fn full_chunk(&mut self) -> Option<Bytes> {
        (self.buffer.len() >= CHUNK_BYTES).then(|| self.buffer.split().freeze())
    }

    /// The rest, with the trailer.
    pub(super) fn finish(mut self) -> Bytes {
        self.buffer.put_i16(-1);
        self.buffer.freeze()
    }
}
