//! A canary beside the stable revision: its tables, the comparison of the two, promotion and the way back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;

mod chaos;
mod clean_up;
mod dependents;
mod detection;
mod exchange;
mod stage;
mod transforms;
