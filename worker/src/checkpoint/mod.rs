//! The checkpoint on the worker's volume, and how it is reconciled with slot and sink at start.
//!
//! The order of every step forward is: sink commit, volume fsync, acknowledge. So `slot <= volume <= sink`, and each
//! departure from it says what happened.

mod error;
mod reconcile;
mod volume;

pub use reconcile::{Beginning, Known, KnownSource, NoticeAtStart, reconcile};
pub use volume::{Identity, Record, Volume};
