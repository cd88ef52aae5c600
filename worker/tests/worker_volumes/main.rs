//! What happens to the worker's volume: full, torn, garbled, gone, a disk that fails, a disk that lies, a machine without
//! power. The sink decides, so no row is ever wrong; the worker says what it found, and goes on by itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;

mod damaged;
mod each_operation;
mod failing;
mod kit;
mod power;
