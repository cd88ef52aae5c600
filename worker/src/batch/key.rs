//! A row's key as bytes of its own: it outlives the message that the row came in.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::BatchError;
use crate::change::{RelationId, Row, Value};

const TAG_BINARY: u8 = b'b';
const TAG_TEXT: u8 = b't';

/// The values of the key columns, in their order: each a tag, a length and its bytes. Equal bytes are equal
/// values; equal values may have different bytes (1.0 and 1.00), which count as different keys, as they do for
/// the source when it decides whether a key changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key(Bytes);

impl Key {
    /// The key of the row. The values are copied, so that a small key does not keep a big message in memory.
    pub(super) fn of(row: &Row, columns: &[usize], relation: RelationId) -> Result<Self, BatchError> {
        let mut encoded = BytesMut::new();
        for &column in columns {
            let (tag, bytes) = match row.0.get(column) {
                Some(Value::Binary(bytes)) => (TAG_BINARY, bytes),
                Some(Value::Text(bytes)) => (TAG_TEXT, bytes),
                Some(Value::Null | Value::Unchanged) | None => {
                    return Err(BatchError::KeyIncomplete { relation, column });
                }
            };
            encoded.put_u8(tag);
            encoded.put_u64(bytes.len() as u64);
            encoded.put_slice(bytes);
        }
        Ok(Self(encoded.freeze()))
    }

    /// A row of that width with the key's values, NULL in all other columns.
    pub(super) fn to_row(&self, columns: &[usize], width: usize) -> Row {
        let mut row = Row(vec![Value::Null; width]);
        let mut rest = self.0.clone();
        for &column in columns {
            let tag = rest.get_u8();
            let length = usize::try_from(rest.get_u64()).unwrap_or(usize::MAX);
            let bytes = rest.split_to(length);
            if let Some(value) = row.0.get_mut(column) {
                *value = if tag == TAG_BINARY { Value::Binary(bytes) } else { Value::Text(bytes) };
            }
        }
        row
    }

    /// Bytes that it keeps in memory.
    pub(super) fn size(&self) -> usize {
        size_of::<Self>() + self.0.len()
    }
}
