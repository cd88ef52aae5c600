//! Values of the source on their way into the sink: bytes that are not looked into.

use std::error::Error;
use std::fmt;

use bytes::{BufMut as _, BytesMut};
use postgres_types::{Format, IsNull, ToSql, Type, to_sql_checked};

use crate::change::Value;

/// Where the element type's OID stands in an array's binary format, after dimensions and flags.
const ELEMENT_OID: std::ops::Range<usize> = 8..12;

/// Writes a binary value. An array of a type that has another OID in the sink gets the sink's; everything else is
/// the same on both servers.
pub(super) fn put_binary(bytes: &[u8], element_oid: Option<u32>, out: &mut BytesMut) {
    let parts = element_oid.zip(bytes.get(..ELEMENT_OID.start)).zip(bytes.get(ELEMENT_OID.end..));
    match parts {
        Some(((oid, head), tail)) => {
            out.put_slice(head);
            out.put_u32(oid);
            out.put_slice(tail);
        }
        None => out.put_slice(bytes),
    }
}

/// A value as a parameter, in the format in which it came.
pub(super) struct Parameter<'a> {
    pub(super) value: &'a Value,
    pub(super) element_oid: Option<u32>,
}

impl fmt::Debug for Parameter<'_> {
    /// Never the value: parameters may be logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parameter").finish_non_exhaustive()
    }
}

impl ToSql for Parameter<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        match self.value {
            Value::Null => return Ok(IsNull::Yes),
            Value::Unchanged => return Err("an unchanged value was about to be written".into()),
            Value::Binary(bytes) => put_binary(bytes, self.element_oid, out),
            Value::Text(bytes) => out.put_slice(bytes),
        }
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        match self.value {
            Value::Binary(_) => Format::Binary,
            // The server looks for the type's binary format before it sees that the value is NULL.
            Value::Null | Value::Unchanged | Value::Text(_) => Format::Text,
        }
    }

    to_sql_checked!();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(bytes: &[u8], element_oid: Option<u32>) -> Vec<u8> {
        let mut out = BytesMut::new();
        put_binary(bytes, element_oid, &mut out);
        out.to_vec()
    }

    #[test]
    fn array_gets_the_sinks_element_type_and_keeps_everything_else() {
        let array: Vec<u8> = (0..24).collect();
        let mut expected = array.clone();
        expected.splice(8..12, [0, 0, 0x40, 0x84]);
        assert_eq!(written(&array, Some(0x4084)), expected);
        assert_eq!(written(&array, None), array);
        assert_eq!(written(&array[..11], Some(0x4084)), array[..11], "not an array: the sink will say so");
    }

    #[test]
    fn unchanged_value_cannot_be_written() {
        let parameter = Parameter { value: &Value::Unchanged, element_oid: None };
        assert!(parameter.to_sql(&Type::TEXT, &mut BytesMut::new()).is_err());
    }
}
