//! The source stage and the connection layer against real servers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod connection;
mod copy;
mod kit;
mod preflight;
mod publication;
mod reader;
mod slot;
mod tls;
