//! Sessions with the sink.

use penstock_crds::report::Reason;
use penstock_crds::spec::SessionReplicationRole;
use tokio_postgres::error::SqlState;

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

/// Leaves a session as it is, or keeps foreign keys and ordinary triggers out of it. `Origin` sets nothing: that too
/// takes a privilege, and it is what a session begins with.
pub(super) async fn act_as(session: &Session, role: SessionReplicationRole) -> Result<(), Failure> {
    match role {
        SessionReplicationRole::Origin => Ok(()),
        SessionReplicationRole::Replica => {
            let set = session.batch_execute("SET session_replication_role = replica").await;
            set.map_err(|error| match error.code() {
                Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => Failure::new(
                    Reason::SinkPrivilegeMissing,
                    "The sink's role may not set session_replication_role, which sink.postgres.sessionReplicationRole: Replica \
                     asks for. Let a superuser run GRANT SET ON PARAMETER session_replication_role TO it (PostgreSQL 15 and \
                     later), use a superuser, or set the field to Origin.",
                ),
                _ => failed(&error, "setting session_replication_role"),
            })
        }
    }
}
