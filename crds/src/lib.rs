//! The `CdcPipeline` resource, its status, the revision that is minted from it, and the report that a
//! worker gives to the operator. Types and pure functions only; no I/O.

// The derive of kube repeats each type inside a function, where `pub` reaches nobody.
#![allow(unreachable_pub)]

pub mod comparison;
pub mod conditions;
pub mod connection;
pub mod crd;
pub mod directive;
pub mod manifest;
pub mod names;
pub mod report;
pub mod revision;
pub mod rollout;
pub mod scheduling;
pub mod source;
pub mod spec;
pub mod status;
pub mod table_pattern;
pub mod transform;
pub mod worker;

pub use spec::{CdcPipeline, CdcPipelineSpec};
pub use status::CdcPipelineStatus;
