//! How the worker reaches a PostgreSQL server: credentials, TLS, SQL sessions, the replication connection,
//! and what their errors mean. Shared by the stages that talk to a database; not a stage itself.

mod authentication;
mod copy_both;
mod credentials;
mod endpoint;
mod error;
mod replication;
mod session;
mod tls;
mod transport;
mod type_catalogue;

pub use copy_both::{CopyBoth, StreamMessage};
pub use credentials::{Credentials, EndpointFiles};
pub use endpoint::{End, Endpoint};
pub use error::{ConnectError, ServerError, classify, classify_or};
pub use replication::{ReplicationConnection, ReplicationError, TextRow};
pub use session::Session;
pub use type_catalogue::{Resolved, TypeCatalogue, write_names};
