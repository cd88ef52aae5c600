//! Rows in PostgreSQL's COPY formats, binary and text
//! (<https://www.postgresql.org/docs/current/sql-copy.html#id-1.9.3.55.9>). Pure.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::plan::Plan;
use crate::change::travel::Format;
use crate::change::{Row, Value};

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
/// Sent to the server at a time.
const CHUNK_BYTES: usize = 256 * 1024;

/// Writes rows and hands them out in chunks.
pub(super) struct CopyEncoder {
    buffer: BytesMut,
    format: Format,
}

/// A row cannot be written in the format: it has a value of the other one, too many columns or too few.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct WrongFormat;

/// The format that every value of the rows has, if there is one. NULLs have any.
pub(super) fn format_of(rows: &[Row]) -> Option<Format> {
    let values = || rows.iter().flat_map(|row| &row.0);
    let has_text = values().any(|value| matches!(value, Value::Text(_)));
    let has_binary = values().any(|value| matches!(value, Value::Binary(_)));
    match (has_binary, has_text) {
        (true, true) => None,
        (true | false, false) => Some(Format::Binary),
        (false, true) => Some(Format::Text),
    }
}

impl CopyEncoder {
    /// Binary data begin with a header: no flags, no extension.
    pub(super) fn new(format: Format) -> Self {
        let mut buffer = BytesMut::with_capacity(CHUNK_BYTES);
        if format == Format::Binary {
            buffer.put_slice(SIGNATURE);
            buffer.put_u64(0);
        }
        Self { buffer, format }
    }

    /// Writes a row.
    pub(super) fn put(&mut self, plan: &Plan, row: &Row) -> Result<(), WrongFormat> {
        let values = plan.written().map(|(place, _)| row.0.get(place));
        match self.format {
            Format::Binary => self.put_binary(plan.written().count(), values),
            Format::Text => self.put_text(values),
        }
    }

    fn put_binary<'a>(
        &mut self,
        count: usize,
        values: impl Iterator<Item = Option<&'a Value>>,
    ) -> Result<(), WrongFormat> {
        self.buffer.put_i16(i16::try_from(count).map_err(|_| WrongFormat)?);
        for value in values {
            match value {
                Some(Value::Null) => self.buffer.put_i32(-1),
                Some(Value::Binary(bytes)) => {
                    self.buffer.put_i32(i32::try_from(bytes.len()).map_err(|_| WrongFormat)?);
                    self.buffer.put_slice(bytes);
                }
                Some(Value::Text(_) | Value::Unchanged) | None => return Err(WrongFormat),
            }
        }
        Ok(())
    }

    fn put_text<'a>(&mut self, values: impl Iterator<Item = Option<&'a Value>>) -> Result<(), WrongFormat> {
        for (number, value) in values.enumerate() {
            if number > 0 {
                self.buffer.put_u8(b'\t');
            }
            match value {
                Some(Value::Null) => self.buffer.put_slice(b"\\N"),
                Some(Value::Text(bytes)) => self.put_escaped(bytes),
                Some(Value::Binary(_) | Value::Unchanged) | None => return Err(WrongFormat),
            }
        }
        self.buffer.put_u8(b'\n');
        Ok(())
    }

    /// Backslashes, and what would end a value or a row, or be changed on the way. No byte of a longer UTF-8 character
    /// is one of these.
    fn put_escaped(&mut self, mut bytes: &[u8]) {
        let letter = |byte: u8| match byte {
            b'\\' => Some(b'\\'),
            b'\t' => Some(b't'),
            b'\n' => Some(b'n'),
            b'\r' => Some(b'r'),
            _ => None,
        };
        while let Some(at) = bytes.iter().position(|byte| letter(*byte).is_some()) {
            let (plain, rest) = bytes.split_at(at);
            self.buffer.put_slice(plain);
            if let Some((first, rest)) = rest.split_first() {
                self.buffer.put_slice(&[b'\\', letter(*first).unwrap_or(*first)]);
                bytes = rest;
            }
        }
        self.buffer.put_slice(bytes);
    }

    /// What is written so far, once it is worth sending.
    pub(super) fn full_chunk(&mut self) -> Option<Bytes> {
        (self.buffer.len() >= CHUNK_BYTES).then(|| self.buffer.split().freeze())
    }

    /// The rest; binary data end with a trailer.
    pub(super) fn finish(mut self) -> Bytes {
        if self.format == Format::Binary {
            self.buffer.put_i16(-1);
        }
        self.buffer.freeze()
    }
}
