//! The first load through masks: the data of one COPY becomes that of another. Bytes come in as the server cut them, and whole
//! rows go out.

use std::sync::Arc;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::TableSteps;
use super::error::RowError;
use super::mask::{ColumnMask, Input};
use crate::change::table::SourceTable;
use crate::change::travel::Format;

/// `PGCOPY\n\377\r\n\0`, flags, and the length of an extension.
const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";
const HEADER_BYTES: usize = 19;

/// The columns of a table that a COPY reads, and those that another one writes, in the same order.
#[derive(Clone, Debug, Default)]
pub struct CopyColumns {
    /// Names in the source.
    pub source: Vec<String>,
    /// Names in the sink.
    pub sink: Vec<String>,
    masks: Vec<ColumnMask>,
}

impl CopyColumns {
    /// Of a table of the source, without the columns that the sink (which has them under these names) does not take.
    pub fn of(table: &SourceTable, steps: Option<&TableSteps>, is_left_out: impl Fn(&str) -> bool) -> Self {
        let mut columns = Self::default();
        for column in table.columns.iter().filter(|column| column.generated.is_none()) {
            let name = match steps {
                None => Some(column.name.as_str()),
                Some(steps) => steps.steps.name_of(&column.name),
            };
            let Some(name) = name.filter(|name| !is_left_out(name)) else { continue };
            columns.source.push(column.name.clone());
            columns.sink.push(name.to_owned());
            let mask = steps.and_then(|steps| steps.masks.get(&column.name));
            columns.masks.push(mask.map(|mask| (Arc::clone(mask), Input::of(&column.column_type))));
        }
        columns
    }

    /// What masks the rows; `None`: the bytes can pass as they are.
    pub fn mask(&self, format: Format) -> Option<CopyMask> {
        let has_masks = self.masks.iter().any(Option::is_some);
        has_masks.then(|| CopyMask {
            masks: self.masks.clone(),
            format,
            rest: BytesMut::new(),
            is_begun: false,
            is_ended: false,
        })
    }
}

/// Masks the data of one COPY.
#[derive(Debug)]
pub struct CopyMask {
    masks: Vec<ColumnMask>,
    format: Format,
    /// What came of a row that is not whole yet.
    rest: BytesMut,
    /// The header of the binary format was passed on.
    is_begun: bool,
    /// Its trailer was.
    is_ended: bool,
}

impl CopyMask {
    /// Takes a piece of the data, and gives the rows that are whole by now.
    ///
    /// # Errors
    /// A value cannot be masked, or the data is not that of a COPY with these columns.
    pub fn push(&mut self, piece: &[u8]) -> Result<Bytes, RowError> {
        self.rest.extend_from_slice(piece);
        let mut out = BytesMut::with_capacity(self.rest.len());
        match self.format {
            Format::Binary => while self.binary_part(&mut out)? {},
            Format::Text => while self.text_row(&mut out)? {},
        }
        Ok(out.freeze())
    }

    /// All data came.
    ///
    /// # Errors
    /// It ends within a row.
    pub fn finish(&self) -> Result<(), RowError> {
        let is_whole = self.rest.is_empty() && (self.format == Format::Text || self.is_ended);
        if is_whole { Ok(()) } else { Err(RowError::NotWhole) }
    }

    /// Header, a row or the trailer; `false`: more must come first.
    fn binary_part(&mut self, out: &mut BytesMut) -> Result<bool, RowError> {
        if !self.is_begun {
            let Some(header) = self.rest.get(..HEADER_BYTES) else { return Ok(false) };
            // An extension of the header does not exist in any version.
            if !header.starts_with(SIGNATURE) || header.get(15..) != Some(&[0; 4]) {
                return Err(RowError::NotWhole);
            }
            out.extend_from_slice(header);
            self.rest.advance(HEADER_BYTES);
            self.is_begun = true;
            return Ok(true);
        }
        let Some(count) = number::<2>(&self.rest, 0).map(i16::from_be_bytes) else { return Ok(false) };
        if count == -1 {
            out.put_i16(-1);
            self.rest.advance(2);
            self.is_ended = true;
            return Ok(false);
        }
        if self.is_ended || usize::try_from(count) != Ok(self.masks.len()) {
            return Err(RowError::NotWhole);
        }
        let Some(length) = binary_row_length(&self.rest, self.masks.len())? else { return Ok(false) };
        let mut row = self.rest.split_to(length).freeze();
        row.advance(2);
        out.put_i16(count);
        for mask in &self.masks {
            let length = row.try_get_i32().map_err(|_| RowError::NotWhole)?;
            let Ok(bytes) = usize::try_from(length) else {
                out.put_i32(-1);
                continue;
            };
            let value = row.split_to(bytes);
            match mask {
                None => put_value(out, &value)?,
                Some((mask, input)) => put_value(out, &mask.binary(&value, *input)?)?,
            }
        }
        Ok(true)
    }

    /// A line; `false`: more must come first.
    fn text_row(&mut self, out: &mut BytesMut) -> Result<bool, RowError> {
        // A line end within a value is written as a backslash and a letter.
        let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') else { return Ok(false) };
        let line = self.rest.split_to(end + 1).freeze();
        let line = line.get(..end).unwrap_or_default();
        let mut values = 0;
        for (place, value) in line.split(|byte| *byte == b'\t').enumerate() {
            values += 1;
            let mask = self.masks.get(place).ok_or(RowError::NotWhole)?;
            if place > 0 {
                out.put_u8(b'\t');
            }
            match mask {
                Some((mask, _)) if value != b"\\N" => escape(&mask.text(&unescape(value))?, out),
                Some(_) | None => out.extend_from_slice(value),
            }
        }
        if values != self.masks.len() {
            return Err(RowError::NotWhole);
        }
        out.put_u8(b'\n');
        Ok(true)
    }
}

fn number<const BYTES: usize>(bytes: &[u8], at: usize) -> Option<[u8; BYTES]> {
    bytes.get(at..at.checked_add(BYTES)?)?.try_into().ok()
}

/// Bytes of the row that begins here; `None`: it is not whole yet.
fn binary_row_length(bytes: &[u8], columns: usize) -> Result<Option<usize>, RowError> {
    let mut at = 2;
    for _ in 0..columns {
        let Some(length) = number::<4>(bytes, at).map(i32::from_be_bytes) else { return Ok(None) };
        at += 4;
        match usize::try_from(length) {
            Ok(length) => at = at.checked_add(length).ok_or(RowError::NotWhole)?,
            Err(_) if length == -1 => {}
            Err(_) => return Err(RowError::NotWhole),
        }
    }
    Ok((bytes.len() >= at).then_some(at))
}

fn put_value(out: &mut BytesMut, value: &[u8]) -> Result<(), RowError> {
    out.put_i32(i32::try_from(value.len()).map_err(|_| RowError::NotWhole)?);
    out.extend_from_slice(value);
    Ok(())
}

/// What COPY wrote of a value, as the value is.
fn unescape(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    let mut bytes = value.iter();
    while let Some(byte) = bytes.next() {
        if *byte != b'\\' {
            out.push(*byte);
            continue;
        }
        out.push(match bytes.next() {
            Some(b'b') => 0x08,
            Some(b'f') => 0x0c,
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(b'v') => 0x0b,
            Some(other) => *other,
            None => b'\\',
        });
    }
    out
}

/// A value as COPY reads it.
fn escape(value: &[u8], out: &mut BytesMut) {
    for byte in value {
        match byte {
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            other => out.put_u8(*other),
        }
    }
}
