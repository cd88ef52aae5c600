//! What errors of a database mean: a stable reason, and a sentence that names what was tried and what to do.

use std::error::Error as _;
use std::fmt::{self, Write as _};
use std::io;
use std::path::PathBuf;

use penstock_crds::connection::PostgresConnection;
use penstock_crds::report::Reason;
use postgres_protocol::message::backend::ErrorFields;
use tokio_postgres::error::DbError;

use super::endpoint::End;
use crate::failure::Failure;

/// An error that the server reported.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
pub struct ServerError {
    /// SQLSTATE, five characters.
    pub code: String,
    /// What went wrong.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What the server advises.
    pub hint: Option<String>,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.message, self.code)?;
        for more in [&self.detail, &self.hint].into_iter().flatten() {
            write!(f, ". {}", more.trim_end_matches('.'))?;
        }
        Ok(())
    }
}

impl From<&DbError> for ServerError {
    fn from(error: &DbError) -> Self {
        Self {
            code: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: error.detail().map(str::to_owned),
            hint: error.hint().map(str::to_owned),
        }
    }
}

impl ServerError {
    /// Reads an `ErrorResponse` or `NoticeResponse`. Fields that are not UTF-8 (before the client encoding is agreed) are kept as
    /// far as they are.
    pub(super) fn read(mut fields: ErrorFields<'_>) -> Self {
        use fallible_iterator::FallibleIterator as _;
        let mut error = Self::default();
        while let Ok(Some(field)) = fields.next() {
            let text = String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'C' => error.code = text,
                b'M' => error.message = text,
                b'D' => error.detail = Some(text),
                b'H' => error.hint = Some(text),
                _ => {}
            }
        }
        error
    }

    /// The reason that the SQLSTATE stands for at any time; `None` when it depends on what was being done.
    pub fn reason_at(&self, end: End) -> Option<Reason> {
        let class = self.code.get(..2).unwrap_or_default();
        match (class, self.code.as_str()) {
            // Shut down, starting up, ended by an administrator, a query cancelled; a standby after a failover.
            // Deadlocks, serialization failures and lock timeouts pass by themselves as well.
            ("08" | "40" | "57", _) | (_, "25006" | "55P03") => Some(end.unreachable()),
            ("53", _) | (_, "58030") => Some(end.out_of_resources()),
            (_, "42501") => Some(end.privilege_missing()),
            ("28", _) => Some(end.authentication_failed()),
            _ => None,
        }
    }
}

/// Why a connection could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// A file with a user name or password is absent, empty or unreadable.
    #[error("{} cannot be used: {problem}", path.display())]
    CredentialsMissing {
        /// The file.
        path: PathBuf,
        /// The Secret it is mounted from.
        secret: String,
        /// Its key in the Secret.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A file with a certificate or key is absent or unreadable.
    #[error("{} cannot be read: {problem}", path.display())]
    CertificateMissing {
        /// The file.
        path: PathBuf,
        /// The Secret it is mounted from.
        secret: String,
        /// Its key in the Secret.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A file with a certificate or key does not hold one.
    #[error("{} cannot be used: {problem}", path.display())]
    CertificateInvalid {
        /// The file.
        path: PathBuf,
        /// The Secret it is mounted from.
        secret: String,
        /// Its key in the Secret.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// DNS does not know the host.
    #[error("the host name cannot be resolved: {0}")]
    HostUnknown(String),
    /// The host refuses or drops the connection.
    #[error("{0}")]
    Unreachable(String),
    /// No answer in time.
    #[error("no answer within 10 s")]
    TimedOut,
    /// The server does not speak TLS.
    #[error("the server does not offer TLS")]
    TlsNotOffered,
    /// TLS failed.
    #[error("{0}")]
    Tls(String),
    /// The server asks for an authentication that is not supported or not safe, or fails to prove itself.
    #[error("{0}")]
    Authentication(String),
    /// The server answered something that is not the protocol.
    #[error("the server does not speak the PostgreSQL protocol: {0}")]
    Protocol(String),
    /// The server refused.
    #[error(transparent)]
    Server(#[from] ServerError),
}

impl ConnectError {
    /// An error of the stream: of TLS if it comes from there.
    pub(super) fn from_io(error: &io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(tls) => Self::Tls(tls.to_string()),
            None if error.kind() == io::ErrorKind::UnexpectedEof => {
                Self::Unreachable("the server closed the connection".into())
            }
            None => Self::Unreachable(error.to_string()),
        }
    }

    pub(super) fn from_postgres(error: tokio_postgres::Error) -> Self {
        if let Some(server) = error.as_db_error() {
            return Self::Server(server.into());
        }
        if error.is_closed() {
            return Self::Unreachable("the server closed the connection".into());
        }
        if let Some(tls) = find_source::<rustls::Error>(&error) {
            return Self::Tls(tls.to_string());
        }
        let text = chain(&error);
        match error.into_source().map(<dyn std::error::Error + Send + Sync>::downcast::<io::Error>) {
            // With these two kinds tokio-postgres says that the peer's proof or messages make no sense.
            Some(Ok(io)) if matches!(io.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Other) => {
                Self::Authentication(text)
            }
            Some(Ok(io)) => Self::from_io(&io),
            Some(Err(_)) | None => Self::Authentication(text),
        }
    }

    /// The reason.
    pub fn reason(&self, end: End) -> Reason {
        match self {
            Self::CredentialsMissing { .. } | Self::CertificateMissing { .. } => Reason::CredentialsMissing,
            Self::CertificateInvalid { .. } | Self::TlsNotOffered | Self::Tls(_) => end.tls_failed(),
            Self::HostUnknown(_) | Self::Unreachable(_) | Self::TimedOut | Self::Protocol(_) => {
                end.unreachable()
            }
            Self::Authentication(_) => end.authentication_failed(),
            Self::Server(error) => {
                match (end, error.code.as_str(), error.message.contains("max_wal_senders")) {
                    (End::Source, "53300", true) => Reason::NoFreeReplicationSlot,
                    // Too many connections pass; only a full disk or memory is the sink's own reason.
                    (_, "53300", _) => end.unreachable(),
                    _ => error.reason_at(end).unwrap_or_else(|| end.unreachable()),
                }
            }
        }
    }

    /// The failure, with a sentence that says what to do.
    pub fn failure(&self, end: End, connection: &PostgresConnection) -> Failure {
        let PostgresConnection { host, port, database, .. } = connection;
        let message = format!(
            "The {end} {host}:{port}, database {database}, cannot be connected to: {self}. {}",
            self.advice(end, connection)
        );
        Failure::new(self.reason(end), message)
    }

    fn advice(&self, end: End, connection: &PostgresConnection) -> String {
        match self {
            Self::CredentialsMissing { secret, key, .. } => format!(
                "Create the Secret {secret} with the key {key} in the pipeline's namespace; on a laptop set {} and {}.",
                end.username_variable(),
                end.password_variable()
            ),
            Self::CertificateMissing { secret, key, .. } => {
                format!("Create the Secret {secret} with the key {key} in the pipeline's namespace.")
            }
            Self::CertificateInvalid { secret, key, .. } => {
                format!("Put PEM into the key {key} of the Secret {secret}.")
            }
            Self::HostUnknown(_) => "Check connection.host.".into(),
            Self::Unreachable(_) | Self::TimedOut | Self::Protocol(_) => {
                "Check that the server runs, that connection.host and port are right, and that the network lets \
                 the worker through."
                    .into()
            }
            Self::TlsNotOffered => {
                "Turn on ssl at the server, or set connection.tls.mode to disable.".into()
            }
            Self::Tls(problem) => tls_advice(problem, &connection.host),
            Self::Authentication(_) => {
                "Use SCRAM-SHA-256 for the role (password_encryption and pg_hba.conf of the server).".into()
            }
            Self::Server(error) => server_advice(error, connection),
        }
    }
}

fn tls_advice(problem: &str, host: &str) -> String {
    let advice = if problem.contains("UnknownIssuer") || problem.contains("BadSignature") {
        "Put the CA that signed the server's certificate into the Secret that connection.tls.caSecret names, key ca.crt."
    } else if problem.contains("not valid for name") || problem.contains("NotValidForName") {
        return format!(
            "The server's certificate is not made for {host}: set connection.host to a name in it, or \
             connection.tls.mode to verify-ca."
        );
    } else if problem.contains("CaUsedAsEndEntity") {
        "The server shows a CA certificate as its own: give it a certificate that the CA has signed."
    } else if problem.contains("xpired") {
        "Renew the server's certificate."
    } else if problem.contains("received fatal alert") {
        "The server refuses the worker's certificate: set connection.tls.clientCertificateSecret to one that it trusts."
    } else {
        "Check connection.tls."
    };
    advice.into()
}

fn server_advice(error: &ServerError, connection: &PostgresConnection) -> String {
    match error.code.as_str() {
        "28P01" => format!(
            "Put the right username and password into the Secret {}; a change is taken up within half a minute.",
            connection.credentials_secret
        ),
        "28000" => "Let the role in: it needs LOGIN and a matching line in the server's pg_hba.conf.".into(),
        "3D000" => "Create the database or correct connection.database.".into(),
        "42501" => {
            "Grant the role what is missing (REPLICATION to follow changes, CONNECT on the database).".into()
        }
        "53300" if error.message.contains("max_wal_senders") => "Raise max_wal_senders at the server.".into(),
        "53300" => "Raise max_connections at the server or close idle connections.".into(),
        "57P03" => "It is tried again until the server is up.".into(),
        _ => String::from("It is tried again."),
    }
}

/// What an SQL error means when `otherwise` is the reason of everything that only the caller can judge.
/// `doing` completes "… failed while": `reading the tables`.
pub fn classify_or(end: End, error: &tokio_postgres::Error, doing: &str, otherwise: Reason) -> Failure {
    if let Some(server) = error.as_db_error().map(ServerError::from) {
        let reason = server.reason_at(end).unwrap_or(otherwise);
        return Failure::new(reason, format!("The {end} reported an error while {doing}: {server}."));
    }
    let is_lost = error.is_closed() || find_source::<io::Error>(error).is_some();
    let reason = if is_lost { end.unreachable() } else { otherwise };
    Failure::new(reason, format!("The connection to the {end} failed while {doing}: {}.", chain(error)))
}

/// What an SQL error means. Errors that stand for nothing in particular are the source's being unreachable
/// (tried again), or the sink's refusing the row.
pub fn classify(end: End, error: &tokio_postgres::Error, doing: &str) -> Failure {
    let otherwise = match end {
        End::Source => Reason::SourceUnreachable,
        End::Sink => Reason::SinkRejectedRow,
    };
    classify_or(end, error, doing, otherwise)
}

fn find_source<E: std::error::Error + 'static>(error: &tokio_postgres::Error) -> Option<&E> {
    let mut next = error.source();
    while let Some(current) = next {
        if let Some(found) = current.downcast_ref::<E>() {
            return Some(found);
        }
        // An io::Error hides what it wraps from `source`.
        let wrapped = current.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(found) = wrapped.and_then(|wrapped| wrapped.downcast_ref::<E>()) {
            return Some(found);
        }
        next = current.source();
    }
    None
}

/// The error and what caused it, in one line.
fn chain(error: &tokio_postgres::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let _infallible = write!(text, ": {cause}");
        next = cause.source();
    }
    text
}
