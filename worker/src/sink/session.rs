//! Sessions with the sink.

use super::error::failed;
use crate::failure::Failure;
use crate::postgres::{End, Endpoint, Session};

/// What a session is for; decides how long a statement may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Start, tables, states.
    Control,
    /// Chunks of the first load: one COPY lasts as long as its chunk is read from the source.
    Load,
    /// Batches of changes.
    Write,
    /// The snapshot of a barrier: mostly idle.
    Hold,
}

impl Purpose {
    fn statement_timeout_min(self) -> u32 {
        match self {
            Self::Control | Self::Write | Self::Hold => 10,
            Self::Load => 60,
        }
    }
}

/// A frozen worker must not keep its locks: another run ends its sessions, and these bounds do where that is not
/// allowed. Names are all qualified, so nothing in a schema of the user's can stand in for them.
fn settings(purpose: Purpose) -> String {
    format!(
        "SET search_path = ''; \
         SET default_transaction_isolation = 'read committed'; SET default_transaction_read_only = off; \
         SET default_transaction_deferrable = off; SET synchronous_commit = on; SET lock_timeout = '30s'; \
         SET idle_in_transaction_session_timeout = '60s'; SET statement_timeout = '{}min'",
        purpose.statement_timeout_min()
    )
}

/// Opens a session and sets it up.
pub(super) async fn open(
    endpoint: &Endpoint,
    application_name: &str,
    purpose: Purpose,
) -> Result<Session, Failure> {
    let session = endpoint
        .connect(application_name)
        .await
        .map_err(|error| error.failure(End::Sink, &endpoint.connection))?;
    session
        .batch_execute(&settings(purpose))
        .await
        .map_err(|error| failed(&error, "setting up a session"))?;
    Ok(session)
}
