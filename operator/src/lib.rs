//! The operator of Penstock: reconciles `CdcPipeline`s into workers.
//!
//! `watch -> observe -> plan -> apply -> status`, one direction. `controller.rs` is the table of contents.

mod apply;
mod call;
pub mod controller;
pub mod leader;
pub mod metrics;
mod names;
mod observe;
pub mod plan;
pub mod serve;
pub mod telemetry;
pub mod world;
