//! What can keep the source from being read, with the sentence a person needs.

use std::fmt::Display;

use penstock_crds::report::Reason;

use super::publication::PublicationName;
use super::slot::SlotName;
use crate::change::Lsn;
use crate::change::table::TableName;
use crate::failure::Failure;
use crate::postgres::{ConnectError, End, Endpoint, ReplicationError, ServerError, classify_or};

/// What can keep the source from being read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// The database refused or did not answer; already classified.
    #[error(transparent)]
    Database(#[from] Failure),
    /// A version outside 14 to 18.
    #[error("The source runs PostgreSQL {0}, and versions 14 to 18 can be read. Upgrade the server.")]
    VersionUnsupported(String),
    /// `wal_level` is not `logical`.
    #[error(
        "The source has wal_level = {0}, so its changes cannot be followed. Run ALTER SYSTEM SET wal_level = \
         'logical' and restart the server (managed services have a parameter for it)."
    )]
    NotLogical(String),
    /// The server is a standby.
    #[error(
        "The source is a standby (in recovery), so no publication can be kept there. Set \
         source.postgres.connection.host to the primary."
    )]
    Standby,
    /// The role lacks REPLICATION.
    #[error("The source's role {role} cannot follow changes. Run ALTER ROLE {} REPLICATION.", quoted(role))]
    ReplicationMissing {
        /// The role.
        role: String,
    },
    /// The role lacks privileges on tables or on the database.
    #[error("The source's role {role} lacks privileges: {}. Run {}.", .missing.join(", "), .statements.join("; "))]
    PrivilegesMissing {
        /// The role.
        role: String,
        /// What it lacks.
        missing: Vec<String>,
        /// What gives it.
        statements: Vec<String>,
    },
    /// The role does not own tables that a managed publication must contain.
    #[error(
        "The source's role {role} does not own {}, so it cannot publish them. Make it a member of the owner: {}; or \
         let the owner create a publication and name it in source.postgres.publication.", listed(.tables),
        .statements.join("; ")
    )]
    OwnershipMissing {
        /// The role.
        role: String,
        /// The tables.
        tables: Vec<TableName>,
        /// What makes it a member of their owners.
        statements: Vec<String>,
    },
    /// All slots are taken.
    #[error(
        "The source has no free replication slot: {used} of {max} are taken. Drop one that nobody needs \
         (pg_replication_slots lists them) or raise max_replication_slots and restart the server."
    )]
    NoFreeSlot {
        /// Slots there are.
        used: i64,
        /// `max_replication_slots`.
        max: i64,
    },
    /// All WAL senders are taken.
    #[error(
        "The source has no free WAL sender: {used} of {max} run (pg_stat_replication lists them). Raise \
         max_wal_senders and restart the server."
    )]
    NoFreeWalSender {
        /// WAL senders that run.
        used: i64,
        /// `max_wal_senders`.
        max: i64,
    },
    /// An entry of `tables` matches nothing.
    #[error(
        "No table of the source matches {}. Create it, or correct source.postgres.tables; names are compared as \
         PostgreSQL stores them, unquoted ones in lower case.", .0.join(", ")
    )]
    NoMatch(Vec<String>),
    /// An entry of `tables` matches something whose changes are not in the log.
    #[error(
        "{} cannot be copied: its changes are not in the source's log. Take it out of source.postgres.tables, \
         or name the other tables one by one.", .0.join(" and ")
    )]
    NotPublishable(Vec<String>),
    /// Tables whose rows cannot be named in UPDATE and DELETE.
    #[error("UPDATE and DELETE cannot be followed: {}", .0.join(" "))]
    IdentityMissing(Vec<String>),
    /// Columns of types that cannot be carried without loss.
    #[error(
        "Columns cannot be carried without loss: {}. Change the column's type, or take the table out of \
         source.postgres.tables.", .0.join("; ")
    )]
    UnsupportedType(Vec<String>),
    /// The publication does not publish what the pipeline needs.
    #[error("The publication {publication} of the source {problem}. Run: {statement}")]
    PublicationUnsuitable {
        /// The publication.
        publication: PublicationName,
        /// What is wrong with it.
        problem: String,
        /// What puts it right.
        statement: String,
    },
    /// Old transactions are still open after a table was added to the publication.
    #[error(
        "Tables were added to the publication {publication}, and transactions that began before are still open at \
         the source (oldest: {oldest}). It goes on when they end."
    )]
    OldTransactions {
        /// The publication.
        publication: PublicationName,
        /// The oldest of them.
        oldest: String,
    },
    /// The slot does not exist.
    #[error(
        "The replication slot {0} is gone from the source, so changes since the last checkpoint may be lost. \
         To have all tables copied again from a new slot, run penstock-worker begin-anew; to go on without what is \
         lost, penstock-worker accept-loss."
    )]
    SlotMissing(SlotName),
    /// The slot exists and can no longer be read.
    #[error(
        "The replication slot {slot} cannot be read any more: {problem}. Changes are lost. To have all tables copied \
         again from a new slot, run penstock-worker begin-anew; to go on without what is lost, penstock-worker \
         accept-loss. A larger max_slot_wal_keep_size (or idle_replication_slot_timeout) prevents it."
    )]
    SlotInvalidated {
        /// The slot.
        slot: SlotName,
        /// What the server says.
        problem: String,
    },
    /// Somebody else reads the slot.
    #[error("The replication slot {slot} is read by somebody else: {by}. It goes on when the slot is free.")]
    SlotInUse {
        /// The slot.
        slot: SlotName,
        /// Who.
        by: String,
    },
    /// The server is not the one that the checkpoint was made with.
    #[error(
        "The source is another server than before: {0}. Set source.postgres.connection back to the first one."
    )]
    Changed(String),
    /// A table was rewritten, or its partitions changed, while it was copied.
    #[error("{table} was {what} while it was copied; it is copied again.")]
    Rewritten {
        /// The table.
        table: TableName,
        /// `rewritten`, `dropped`, `given other partitions`.
        what: &'static str,
    },
    /// Somebody waits to rewrite a table that is about to be copied.
    #[error("Somebody waits to rewrite a table that is about to be copied; it is copied when that is done.")]
    MadeWay,
    /// The slot stands past the place from where changes are needed: the source would leave them out silently.
    #[error(
        "The replication slot {slot} stands at {confirmed}, past {start}, which the sink has: the sink lost \
         commits. Restore the sink, or have all tables copied again from a new slot: penstock-worker begin-anew."
    )]
    SlotAhead {
        /// The slot.
        slot: SlotName,
        /// Where the slot stands.
        confirmed: Lsn,
        /// What was asked for.
        start: Lsn,
    },
    /// Bytes that are not the protocol.
    #[error("The source sent bytes that are not the protocol: {0}. Check that no proxy changes them.")]
    Protocol(String),
}

impl SourceError {
    /// The reason.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Database(failure) => failure.reason,
            Self::VersionUnsupported(_) | Self::NotLogical(_) | Self::Standby => Reason::SourceNotLogical,
            Self::ReplicationMissing { .. }
            | Self::PrivilegesMissing { .. }
            | Self::OwnershipMissing { .. } => Reason::SourcePrivilegeMissing,
            Self::NoFreeSlot { .. } | Self::NoFreeWalSender { .. } => Reason::NoFreeReplicationSlot,
            Self::NoMatch(_) | Self::NotPublishable(_) => Reason::TableMissing,
            Self::IdentityMissing(_) => Reason::ReplicaIdentityMissing,
            Self::UnsupportedType(_) => Reason::UnsupportedColumnType,
            Self::PublicationUnsuitable { .. } => Reason::PublicationUnsuitable,
            Self::OldTransactions { .. } | Self::SlotInUse { .. } => Reason::SlotInUse,
            Self::SlotMissing(_) => Reason::SlotMissing,
            Self::SlotInvalidated { .. } => Reason::SlotInvalidated,
            Self::SlotAhead { .. } => Reason::SinkLostCommits,
            Self::Changed(_) => Reason::SourceChanged,
            Self::Rewritten { .. } | Self::MadeWay => Reason::TableRewritten,
            Self::Protocol(_) => Reason::ProtocolViolation,
        }
    }

    /// A connection that could not be opened.
    pub(super) fn connect(endpoint: &Endpoint, error: &ConnectError) -> Self {
        Self::Database(error.failure(endpoint.end, &endpoint.connection))
    }

    /// An SQL error. A table that is gone is missing; what stands for nothing in particular is tried again.
    pub(super) fn sql(error: &tokio_postgres::Error, doing: &str) -> Self {
        let otherwise = match error.code().map(tokio_postgres::error::SqlState::code) {
            Some("42P01") => Reason::TableMissing,
            _ => Reason::SourceUnreachable,
        };
        Self::Database(classify_or(End::Source, error, doing, otherwise))
    }

    /// An error on the replication connection.
    pub(super) fn replication(error: ReplicationError, doing: &str) -> Self {
        match error {
            ReplicationError::Lost(error) => Self::lost(&error, doing),
            ReplicationError::Server(error) => Self::server(&error, doing),
            ReplicationError::Protocol(problem) => Self::Protocol(problem),
        }
    }

    pub(super) fn server(error: &ServerError, doing: &str) -> Self {
        let reason = error.reason_at(End::Source).unwrap_or(Reason::SourceUnreachable);
        Self::Database(Failure::new(reason, format!("The source reported an error while {doing}: {error}.")))
    }

    pub(super) fn lost(error: &dyn Display, doing: &str) -> Self {
        let message = format!("The connection to the source was lost while {doing}: {error}.");
        Self::Database(Failure::new(Reason::SourceUnreachable, message))
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        if let SourceError::Database(failure) = error {
            return failure;
        }
        Self::new(error.reason(), error.to_string())
    }
}

fn quoted(role: &str) -> String {
    crate::change::table::quote_identifier(role)
}

fn listed(tables: &[TableName]) -> String {
    tables.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
