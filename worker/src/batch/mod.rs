//! Changes in, fewer operations out: coalesces the changes of a batch per key without changing what they do.
//! Pure: no I/O, no clock.

mod operation;

pub use operation::{Operation, UpdateRow};

/// What the batch must know of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableTraits {
    /// Indexes of the columns that name a row in the sink; empty: only the whole row does.
    pub key: Vec<usize>,
    /// The order of its changes can be seen in the sink (another unique index, a foreign key), so it is kept:
    /// among all such tables together, and without coalescing.
    pub order_matters: bool,
}
