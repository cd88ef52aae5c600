//! Throw-away PostgreSQL servers for tests: own folder, free port on 127.0.0.1, logical decoding on.
//!
//! A server ends with its [`Server`] (also when a test panics), and a watchdog ends it when the process that owns
//! it is killed.

mod account;
mod builder;
mod client;
mod identity;
mod processes;
mod server;
mod standby;
mod template;
#[cfg(test)]
mod tests;
mod version;

pub use builder::{Builder, ServerTls};
pub use client::{Client, TextRow};
pub use server::Server;
pub use standby::STANDBY_SLOT;
pub use version::Version;
