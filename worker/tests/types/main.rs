//! Types and shapes of tables, between real servers, with PostgreSQL itself as the judge.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod coverage;
mod large;
mod random;
mod refusals;
mod round_trip;
mod samples;
mod shapes;
