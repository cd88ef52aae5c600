//! The PostgreSQL sink and the checkpoint on the volume, against a real server.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod barrier;
mod fence;
mod load;
mod rows;
mod start;
mod support;
mod tables;
mod values;
mod volume;
