//! The source stage and the connection layer against real servers.

mod connection;
mod copy;
mod kit;
mod preflight;
mod publication;
mod reader;
mod slot;
mod tls;
