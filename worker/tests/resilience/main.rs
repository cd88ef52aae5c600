//! The worker dies, or a database stops answering, at every place where one step could be taken for another: nothing
//! is lost, doubled or out of order.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;

mod cell;
mod fault;
mod ledger;
mod matrix;
mod order;
mod scenario;
mod stage;
mod stalls;
mod stock;
mod torture;
mod witness;
mod zombie;
