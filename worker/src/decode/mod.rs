//! The source's `pgoutput` stream (protocol version 1) as messages, and the messages as whole transactions.
//! Pure: bytes in, values out, no I/O. Nothing that arrives makes it panic.
//!
//! Format: <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>

mod assembler;
mod error;
mod message;
mod reader;
mod recognition;
#[cfg(test)]
mod tests;
mod tuple;

pub use assembler::{Assembler, Event, ProtocolViolation};
pub use error::{DecodeError, Place, Problem};
pub use message::{LogicalMessage, Message, PgTimestamp, decode};
pub use recognition::{Recognised, Recognition};
