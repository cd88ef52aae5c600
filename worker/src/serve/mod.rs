//! The worker's HTTP: health and metrics in plain text for the cluster, the report over TLS for the operator.

mod control;
mod health;
mod metrics;

pub use control::{ControlError, router, serve_control};
pub use health::serve_health;
pub use metrics::Metrics;
