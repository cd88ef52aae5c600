//! Columns that change while their table is streamed: what is carried out on the sink, what is left, what stops, and what
//! is copied again. Every table ends equal, row for row.

mod additions;
#[path = "../common/mod.rs"]
mod common;
mod decisions;
mod labels;
mod order;
mod relaxing;
mod rewrites;
mod support;
mod unlogged;
