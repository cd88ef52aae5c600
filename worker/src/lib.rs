//! The worker of Penstock.

pub mod batch;
pub mod change;
pub mod failure;
pub mod postgres;
pub mod source;
