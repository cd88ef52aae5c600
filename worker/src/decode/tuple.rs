//! Rows as they stand in INSERT, UPDATE and DELETE messages (`TupleData`).

use super::error::{DecodeError, Problem};
use super::reader::Reader;
use crate::change::{OldRow, Row, Value};

/// The letter of its kind.
const VALUE_BYTES_MIN: usize = 1;

/// Which row of a message; only a new row of an UPDATE may leave values out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Inserted,
    Updated,
    Old,
}

impl Part {
    fn label(self) -> &'static str {
        match self {
            Self::Inserted | Self::Updated => "new row, value",
            Self::Old => "old row, value",
        }
    }
}

/// The row of an INSERT, with its letter.
pub(super) fn inserted(reader: &mut Reader) -> Result<Row, DecodeError> {
    let offset = reader.offset();
    match reader.byte("row type")? {
        b'N' => row(reader, Part::Inserted),
        found => Err(reader.error("row type", offset, Problem::Unexpected { expected: "`N`", found })),
    }
}

/// The rows of an UPDATE: the old one where the server sends it, and the new one.
pub(super) fn updated(reader: &mut Reader) -> Result<(Option<OldRow>, Row), DecodeError> {
    let offset = reader.offset();
    let old = match reader.byte("row type")? {
        b'K' => OldRow::Key(row(reader, Part::Old)?),
        b'O' => OldRow::Full(row(reader, Part::Old)?),
        b'N' => return Ok((None, row(reader, Part::Updated)?)),
        found => {
            let expected = "`K`, `O` or `N`";
            return Err(reader.error("row type", offset, Problem::Unexpected { expected, found }));
        }
    };
    let offset = reader.offset();
    match reader.byte("new row type")? {
        b'N' => Ok((Some(old), row(reader, Part::Updated)?)),
        found => Err(reader.error("new row type", offset, Problem::Unexpected { expected: "`N`", found })),
    }
}

/// The row of a DELETE, with its letter.
pub(super) fn deleted(reader: &mut Reader) -> Result<OldRow, DecodeError> {
    let offset = reader.offset();
    match reader.byte("row type")? {
        b'K' => Ok(OldRow::Key(row(reader, Part::Old)?)),
        b'O' => Ok(OldRow::Full(row(reader, Part::Old)?)),
        found => Err(reader.error("row type", offset, Problem::Unexpected { expected: "`K` or `O`", found })),
    }
}

fn row(reader: &mut Reader, part: Part) -> Result<Row, DecodeError> {
    let count = reader.count16("number of values")?;
    reader.need("values", count * VALUE_BYTES_MIN)?;
    let mut values = Vec::with_capacity(count);
    for number in 0..count {
        reader.within = Some((part.label(), number));
        values.push(value(reader, part)?);
    }
    reader.within = None;
    Ok(Row(values))
}

fn value(reader: &mut Reader, part: Part) -> Result<Value, DecodeError> {
    let offset = reader.offset();
    match reader.byte("kind")? {
        b'n' => Ok(Value::Null),
        b'u' if part == Part::Updated => Ok(Value::Unchanged),
        b'u' => Err(reader.error("kind", offset, Problem::UnchangedValue)),
        b't' => {
            let length = reader.count32("length")?;
            Ok(Value::Text(reader.bytes("text", length)?))
        }
        b'b' => {
            let length = reader.count32("length")?;
            Ok(Value::Binary(reader.bytes("binary", length)?))
        }
        found => {
            let expected = "`n`, `u`, `t` or `b`";
            Err(reader.error("kind", offset, Problem::Unexpected { expected, found }))
        }
    }
}
