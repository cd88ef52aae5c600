//! The operator of Penstock: reconciles CdcPipelines into workers.
//!
//! `watch -> observe -> plan -> apply -> status`, one direction.

pub mod names;
pub mod plan;
pub mod world;
