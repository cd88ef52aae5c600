//! What can be wrong with a message.

use std::fmt;

/// A message that is not as the protocol says: which one, where in it, and what is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} message of pgoutput, {place} at byte {offset}: {problem}")]
pub struct DecodeError {
    /// Name of the message in the protocol's documentation.
    pub message: &'static str,
    /// The field that could not be read.
    pub place: Place,
    /// Where the field starts in the message, from 0.
    pub offset: usize,
    /// What is wrong with it.
    pub problem: Problem,
}

/// A field of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The repeated part it belongs to and its number there, from 0: a value of the new row, a column.
    pub within: Option<(&'static str, usize)>,
    /// Name of the field.
    pub field: &'static str,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.within {
            Some((part, number)) => write!(f, "{part} {number}, {}", self.field),
            None => f.write_str(self.field),
        }
    }
}

/// What is wrong with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The message ends before the field does.
    #[error("needs {needed} bytes, {left} are left")]
    TooShort {
        /// Bytes that the field takes.
        needed: usize,
        /// Bytes that the message has left.
        left: usize,
    },
    /// The message goes on after its last field.
    #[error("{0} bytes are left over")]
    TrailingBytes(usize),
    /// A number that must not be negative.
    #[error("{0} is negative")]
    Negative(i32),
    /// A string without its closing zero byte.
    #[error("the string has no end")]
    UnterminatedString,
    /// A string that is not UTF-8. The connection asks for UTF-8.
    #[error("the string is not UTF-8")]
    NotUtf8,
    /// A message type that protocol version 1 does not have, or that was not asked for.
    #[error("no such message type: {}", Letter(*.0))]
    UnknownMessage(u8),
    /// A letter that may not stand here.
    #[error("expected {expected}, found {}", Letter(*.found))]
    Unexpected {
        /// Letters that may stand here.
        expected: &'static str,
        /// What stands there.
        found: u8,
    },
    /// A flag that this protocol version does not have.
    #[error("unknown flags {0:#04x}")]
    UnknownFlags(u8),
    /// An unchanged TOAST value where the server always sends values.
    #[error("an unchanged value cannot stand here")]
    UnchangedValue,
}

/// A byte for people.
struct Letter(u8);

impl fmt::Display for Letter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_ascii_graphic() {
            write!(f, "`{}`", char::from(self.0))
        } else {
            write!(f, "{:#04x}", self.0)
        }
    }
}
