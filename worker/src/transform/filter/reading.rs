//! How values of columns are read for a filter.

use std::sync::Arc;

use cel::Value;

use super::term::Type;
use crate::change::{self, ColumnType, Definition};
use crate::transform::RowError;
use crate::transform::mask::{integer, uuid};

/// How the values of a column are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::transform) enum Kind {
    Bool,
    /// Of 2, 4 or 8 bytes in binary.
    Int,
    /// As it is in both formats.
    Text,
    /// `character(n)`: the blanks at its end are none of it, as everywhere in PostgreSQL.
    Padded,
    /// 16 bytes in binary.
    Uuid,
}

impl Kind {
    /// `None`: a filter does not take such columns.
    pub(in crate::transform) fn of(column_type: &ColumnType) -> Option<Self> {
        match column_type.made() {
            None if column_type.is_built_in() => Self::of_oid(column_type.oid),
            None => None,
            Some(made) => matches!(made.definition, Definition::Enum(_)).then_some(Self::Text),
        }
    }

    /// Of a built-in type.
    pub(super) fn of_oid(oid: u32) -> Option<Self> {
        match oid {
            16 => Some(Self::Bool),
            // smallint, integer, bigint
            21 | 23 | 20 => Some(Self::Int),
            // text, varchar
            25 | 1043 => Some(Self::Text),
            1042 => Some(Self::Padded),
            2950 => Some(Self::Uuid),
            _ => None,
        }
    }

    pub(super) fn gives(self) -> Type {
        match self {
            Self::Bool => Type::Bool,
            Self::Int => Type::Int,
            Self::Text | Self::Padded | Self::Uuid => Type::Text,
        }
    }

    /// A value of the stream.
    pub(super) fn value(self, value: &change::Value) -> Result<Value, RowError> {
        match value {
            change::Value::Null => Ok(Value::Null),
            change::Value::Unchanged => Err(RowError::ValueMissing),
            change::Value::Binary(bytes) => self.binary(bytes),
            change::Value::Text(text) => self.text(text),
        }
    }

    /// A value in its binary format.
    pub(in crate::transform) fn binary(self, bytes: &[u8]) -> Result<Value, RowError> {
        match self {
            Self::Bool => match bytes {
                [value] => Ok(Value::Bool(*value != 0)),
                _ => Err(RowError::OtherType),
            },
            Self::Int => integer(bytes).map(Value::Int),
            Self::Text | Self::Padded => self.text(bytes),
            Self::Uuid => uuid(bytes).map(|text| Value::String(Arc::new(text))),
        }
    }

    /// What the type's output function wrote.
    pub(in crate::transform) fn text(self, text: &[u8]) -> Result<Value, RowError> {
        let text = std::str::from_utf8(text).map_err(|_| RowError::NotText)?;
        match self {
            Self::Bool => match text {
                "t" => Ok(Value::Bool(true)),
                "f" => Ok(Value::Bool(false)),
                _ => Err(RowError::OtherType),
            },
            Self::Int => text.parse().map(Value::Int).map_err(|_| RowError::OtherType),
            Self::Text | Self::Uuid => Ok(Value::String(Arc::new(text.to_owned()))),
            Self::Padded => Ok(Value::String(Arc::new(text.trim_end_matches(' ').to_owned()))),
        }
    }
}
