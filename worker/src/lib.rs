//! The worker of Penstock.

pub mod batch;
pub mod change;
pub mod checkpoint;
pub mod decode;
pub mod failure;
pub mod postgres;
pub mod sink;
