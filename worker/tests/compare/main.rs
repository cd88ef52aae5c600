//! Source comparison: what differs is found and named, what is equal is never called different, and neither end nor the
//! worker is stopped.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;

mod finds;
mod kit;
mod load;
mod protocol;
mod shapes;
mod throughput;
