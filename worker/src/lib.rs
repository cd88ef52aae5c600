//! The worker of Penstock.

pub mod batch;
pub mod change;
pub mod decode;
