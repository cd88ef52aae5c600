//! The worker of Penstock.

pub mod change;
pub mod failure;
pub mod postgres;
