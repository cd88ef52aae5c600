//! One end of the pipeline and how to connect to it.

use std::fmt;

use penstock_crds::connection::PostgresConnection;
use penstock_crds::report::Reason;

use super::credentials::EndpointFiles;
use super::error::ConnectError;
use super::replication::ReplicationConnection;
use super::session::Session;

/// Which database of the pipeline: the one that is read or the one that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The database that is read.
    Source,
    /// The database that is written.
    Sink,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Sink => "sink",
        })
    }
}

impl End {
    /// The reason when this end does not answer, or answers that it cannot now.
    pub fn unreachable(self) -> Reason {
        match self {
            Self::Source => Reason::SourceUnreachable,
            Self::Sink => Reason::SinkUnreachable,
        }
    }

    /// The reason when this end refuses the user name or password.
    pub fn authentication_failed(self) -> Reason {
        match self {
            Self::Source => Reason::SourceAuthenticationFailed,
            Self::Sink => Reason::SinkAuthenticationFailed,
        }
    }

    /// The reason when TLS with this end fails.
    pub fn tls_failed(self) -> Reason {
        match self {
            Self::Source => Reason::SourceTlsFailed,
            Self::Sink => Reason::SinkTlsFailed,
        }
    }

    /// The reason when the role lacks a privilege at this end.
    pub fn privilege_missing(self) -> Reason {
        match self {
            Self::Source => Reason::SourcePrivilegeMissing,
            Self::Sink => Reason::SinkPrivilegeMissing,
        }
    }

    /// The reason when this end is out of disk, memory or connections.
    pub fn out_of_resources(self) -> Reason {
        match self {
            Self::Source => Reason::SourceUnreachable,
            Self::Sink => Reason::SinkOutOfResources,
        }
    }

    /// The environment variable that gives the user name on a laptop.
    pub fn username_variable(self) -> &'static str {
        match self {
            Self::Source => "PENSTOCK_SOURCE_USERNAME",
            Self::Sink => "PENSTOCK_SINK_USERNAME",
        }
    }

    /// The environment variable that gives the password on a laptop.
    pub fn password_variable(self) -> &'static str {
        match self {
            Self::Source => "PENSTOCK_SOURCE_PASSWORD",
            Self::Sink => "PENSTOCK_SINK_PASSWORD",
        }
    }
}

/// Everything that is needed to connect to one end. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Which end.
    pub end: End,
    /// Where it is, as the manifest says.
    pub connection: PostgresConnection,
    /// Where its credentials and certificates are.
    pub files: EndpointFiles,
}

impl Endpoint {
    /// Opens an SQL session. Credentials and certificates are read anew, so a rotated Secret is taken up by
    /// the next connection. Gives up after 10 s.
    pub async fn connect(&self, application_name: &str) -> Result<Session, ConnectError> {
        Session::open(self, application_name).await
    }

    /// Opens a connection in replication mode (`replication=database`), with the same rules.
    pub async fn connect_replication(
        &self,
        application_name: &str,
    ) -> Result<ReplicationConnection, ConnectError> {
        ReplicationConnection::open(self, application_name).await
    }
}

/// What every connection pins, so that neither the role's nor the database's settings change what a value
/// looks like, hide rows, or end a transaction that must live. `row_security = off` makes a query fail where a
/// policy would silently leave rows out. The server probes idle connections, so that what a lost node held (locks,
/// snapshots, slots) is free in half a minute. Settings that a version does not know are left out.
pub(super) const PIN_SETTINGS: &str = "SELECT pg_catalog.set_config(pinned.name, pinned.value, false) \
     FROM (VALUES ('client_min_messages', 'warning'), ('datestyle', 'ISO'), ('intervalstyle', 'postgres'), \
     ('extra_float_digits', '1'), ('bytea_output', 'hex'), ('standard_conforming_strings', 'on'), \
     ('timezone', 'UTC'), ('lc_monetary', 'C'), ('xmloption', 'content'), ('array_nulls', 'on'), ('row_security', 'off'), ('statement_timeout', '0'), ('lock_timeout', '0'), \
     ('idle_in_transaction_session_timeout', '0'), ('idle_session_timeout', '0'), \
     ('transaction_timeout', '0'), ('tcp_keepalives_idle', '15'), ('tcp_keepalives_interval', '5'), \
     ('tcp_keepalives_count', '3')) AS pinned (name, value) \
     WHERE EXISTS (SELECT FROM pg_catalog.pg_settings AS known WHERE pg_catalog.lower(known.name) = pinned.name)";
