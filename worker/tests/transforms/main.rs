//! Transforms between real servers: what is left out, renamed or masked is so everywhere (first load, stream, ranges, sink
//! tables, comparison), through kills, changed columns and changed transforms; and no table ever holds rows of two transforms.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod columns;
#[path = "../common/mod.rs"]
mod common;
mod comparison;
mod kit;
mod loads;
mod ownership;
mod restarts;
