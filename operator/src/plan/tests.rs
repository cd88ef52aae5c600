//! Plans as golden files, one per situation, and what holds of every plan.

mod cluster;
mod comparison;
mod decided;
mod golden;
mod masks;
mod properties;
mod rollout;
pub(crate) mod scene;
mod schedule;
