//! What is wrong with an entry, and with a row.

use penstock_crds::report::Reason;

use crate::change::table::TableName;
use crate::failure::Failure;

/// Why entries of `transforms` do not fit the tables: a clause each, with table and column.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("The transforms do not fit: {}.", .0.join("; "))]
pub struct Unsuitable(pub Vec<String>);

/// Why a transform cannot be done to a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// It is no text, though the column's type is.
    #[error("a value is not valid UTF-8")]
    NotText,
    /// It has not the length that its type has.
    #[error("a value is not of the type that its column has")]
    OtherType,
    /// It is of a type that the column did not have when the tables were looked at.
    #[error("the type of a column was changed")]
    UnknownType,
    /// The row has fewer values than its table has columns, or the data of a COPY is cut short.
    #[error("a row is not whole")]
    NotWhole,
}

impl From<Unsuitable> for Failure {
    fn from(error: Unsuitable) -> Self {
        Self::new(Reason::TransformUnsuitable, format!("{error} Nothing is carried until they do."))
    }
}

impl RowError {
    /// Of a row of that table. The values themselves are what must not be told.
    pub fn of(self, table: &TableName) -> Failure {
        match self {
            Self::UnknownType => Failure::new(
                Reason::TablesChanged,
                format!("A row of {table} could not be masked: {self}; the tables are looked at again."),
            ),
            Self::NotText | Self::OtherType => Failure::new(
                Reason::TransformFailed,
                format!(
                    "A row of {table} could not be masked: {self}. Nothing of its transaction was carried. Mask the column \
                     with redact, or leave it out."
                ),
            ),
            Self::NotWhole => Failure::new(
                Reason::ProtocolViolation,
                format!(
                    "A row of {table} could not be read: {self}. Nothing of its transaction was carried."
                ),
            ),
        }
    }
}
