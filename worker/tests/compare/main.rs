//! Source comparison: what differs is found and named, what is equal is never called different, and neither end nor the
//! worker is stopped.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;

#[path = "../types/samples.rs"]
#[allow(dead_code, reason = "the tests of types use more of it")]
mod samples;

mod altered;
mod finds;
mod gives_way;
mod kit;
mod load;
mod protocol;
mod shapes;
mod tells;
mod throughput;
