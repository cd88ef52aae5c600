//! Values of the source on their way into the sink: bytes that are not looked into. The binary formats of arrays
//! and composites hold OIDs of their types; since version 14 a server ignores those of types that are not built in.

use std::error::Error;
use std::fmt;

use bytes::{BufMut as _, BytesMut};
use postgres_types::{Format, IsNull, ToSql, Type, to_sql_checked};

use crate::change::Value;

/// A value as a parameter, in the format in which it came.
pub(super) struct Parameter<'a>(pub(super) &'a Value);

impl fmt::Debug for Parameter<'_> {
    /// Never the value: parameters may be logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parameter").finish_non_exhaustive()
    }
}

impl ToSql for Parameter<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        match self.0 {
            Value::Null => return Ok(IsNull::Yes),
            Value::Unchanged => return Err("an unchanged value was about to be written".into()),
            Value::Binary(bytes) | Value::Text(bytes) => out.put_slice(bytes),
        }
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        match self.0 {
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

    #[test]
    fn unchanged_value_cannot_be_written() {
        let parameter = Parameter(&Value::Unchanged);
        assert!(parameter.to_sql(&Type::TEXT, &mut BytesMut::new()).is_err());
    }
}
