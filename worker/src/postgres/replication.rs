//! A connection in replication mode, over the messages of `postgres-protocol`: start-up, simple queries, and
//! the switch to COPY BOTH. <https://www.postgresql.org/docs/current/protocol-replication.html>

use std::io;

use bytes::{Buf, BytesMut};
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::message::backend::{DataRowBody, Message};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::authentication::authenticate;
use super::copy_both::CopyBoth;
use super::credentials::Credentials;
use super::endpoint::{Endpoint, PIN_SETTINGS};
use super::error::{ConnectError, ServerError};
use super::transport::{CONNECT_TIMEOUT, Transport};

/// Bytes asked of the kernel at a time.
const READ_BYTES: usize = 256 * 1024;
/// A read buffer that a large message has grown beyond this is given back.
const READ_BYTES_KEPT: usize = 1024 * 1024;
/// Longest message taken from a server; its own limit for one value is 1 GiB.
const MESSAGE_BYTES_MAX: usize = 1024 * 1024 * 1024 + 64 * 1024;
/// Tag, length.
const HEADER_BYTES: usize = 5;

/// What went wrong on a replication connection.
#[derive(Debug, thiserror::Error)]
pub enum ReplicationError {
    /// The connection is gone.
    #[error("the connection is lost: {0}")]
    Lost(#[from] io::Error),
    /// The server reported an error.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The server sent bytes that are not the protocol.
    #[error("the source sent bytes that are not the replication protocol: {0}")]
    Protocol(String),
}

impl From<ReplicationError> for ConnectError {
    fn from(error: ReplicationError) -> Self {
        match error {
            ReplicationError::Lost(error) => Self::from_io(&error),
            ReplicationError::Server(error) => Self::Server(error),
            ReplicationError::Protocol(problem) => Self::Protocol(problem),
        }
    }
}

/// One row of a simple query: text, or NULL.
pub type TextRow = Vec<Option<String>>;

/// A connection in replication mode, waiting for a command.
#[derive(Debug)]
pub struct ReplicationConnection {
    wire: Wire,
}

impl ReplicationConnection {
    pub(super) async fn open(endpoint: &Endpoint, application_name: &str) -> Result<Self, ConnectError> {
        timeout(CONNECT_TIMEOUT, Self::open_unbounded(endpoint, application_name))
            .await
            .unwrap_or(Err(ConnectError::TimedOut))
    }

    async fn open_unbounded(endpoint: &Endpoint, application_name: &str) -> Result<Self, ConnectError> {
        let credentials = Credentials::read(endpoint).await?;
        let mut wire = Wire { transport: Transport::open(endpoint).await?, buffer: BytesMut::new() };
        let parameters = [
            ("user", credentials.username.as_str()),
            ("database", endpoint.connection.database.as_str()),
            ("replication", "database"),
            ("application_name", application_name),
            ("client_encoding", "UTF8"),
        ];
        let mut startup = BytesMut::new();
        frontend::startup_message(parameters, &mut startup).map_err(|error| ConnectError::from_io(&error))?;
        wire.send(&startup).await.map_err(|error| ConnectError::from_io(&error))?;
        authenticate(&mut wire, &credentials).await?;
        while !matches!(wire.message().await?, Message::ReadyForQuery(_)) {}
        let mut connection = Self { wire };
        connection.query(PIN_SETTINGS).await?;
        Ok(connection)
    }

    /// Runs a replication command or SQL statement and returns its rows.
    pub async fn query(&mut self, sql: &str) -> Result<Vec<TextRow>, ReplicationError> {
        self.wire.send_query(sql).await?;
        let mut rows = Vec::new();
        let mut refused = None;
        loop {
            match self.wire.message().await {
                Ok(Message::DataRow(row)) => rows.push(read_row(&row)?),
                Ok(Message::ReadyForQuery(_)) => return refused.map_or(Ok(rows), Err),
                Ok(_) => {}
                Err(ReplicationError::Server(error)) => refused = Some(ReplicationError::Server(error)),
                Err(error) => return Err(error),
            }
        }
    }

    /// Runs `START_REPLICATION`; the connection then streams until it ends.
    pub async fn start_copy_both(mut self, sql: &str) -> Result<CopyBoth, ReplicationError> {
        self.wire.send_query(sql).await?;
        loop {
            let (tag, frame) = self.wire.frame().await?;
            match tag {
                b'W' => return Ok(CopyBoth::new(self.wire)),
                b'N' | b'S' => {}
                _ => {
                    let message = parse(frame)?;
                    if let Message::ErrorResponse(body) = message {
                        return Err(ServerError::read(body.fields()).into());
                    }
                    return Err(ReplicationError::Protocol(format!(
                        "message {:?} where streaming should begin",
                        char::from(tag)
                    )));
                }
            }
        }
    }
}

fn read_row(row: &DataRowBody) -> Result<TextRow, ReplicationError> {
    let bytes = row.buffer();
    row.ranges()
        .map(|range| {
            let Some(range) = range else { return Ok(None) };
            let value = bytes.get(range).ok_or(io::ErrorKind::InvalidData)?;
            Ok(Some(String::from_utf8_lossy(value).into_owned()))
        })
        .collect()
        .map_err(|error: io::Error| ReplicationError::Protocol(error.to_string()))
}

/// Messages on a byte stream. Lengths are the server's word: each is checked before it is used.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) transport: Transport,
    pub(super) buffer: BytesMut,
}

impl Wire {
    pub(super) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.transport.write_all(bytes).await?;
        self.transport.flush().await
    }

    async fn send_query(&mut self, sql: &str) -> Result<(), ReplicationError> {
        let mut query = BytesMut::new();
        frontend::query(sql, &mut query)?;
        Ok(self.send(&query).await?)
    }

    /// The next message that is no notice; an error of the server is an `Err`.
    pub(super) async fn message(&mut self) -> Result<Message, ReplicationError> {
        loop {
            let (_, frame) = self.frame().await?;
            let message = parse(frame)?;
            if let Message::ErrorResponse(body) = message {
                return Err(ServerError::read(body.fields()).into());
            }
            if !matches!(message, Message::NoticeResponse(_)) {
                return Ok(message);
            }
        }
    }

    async fn frame(&mut self) -> Result<(u8, BytesMut), ReplicationError> {
        loop {
            if let Some((tag, length)) = self.whole_frame()? {
                return Ok((tag, self.buffer.split_to(length)));
            }
            self.fill().await?;
        }
    }

    /// Tag and length of the first message in the buffer, header included, once it is there as a whole.
    pub(super) fn whole_frame(&self) -> Result<Option<(u8, usize)>, ReplicationError> {
        Ok(self.next_length()?.filter(|(_, length)| self.buffer.len() >= *length))
    }

    fn next_length(&self) -> Result<Option<(u8, usize)>, ReplicationError> {
        let Some(mut header) = self.buffer.get(..HEADER_BYTES) else { return Ok(None) };
        let tag = header.get_u8();
        let length = header.get_u32() as usize;
        if !(4..MESSAGE_BYTES_MAX).contains(&length) {
            let tag = char::from(tag);
            return Err(ReplicationError::Protocol(format!("message {tag:?} claims {length} bytes")));
        }
        Ok(Some((tag, length + 1)))
    }

    /// Reads what has arrived, at least one byte. Cancelling it loses nothing.
    pub(super) async fn fill(&mut self) -> Result<(), ReplicationError> {
        let missing = self.next_length()?.map_or(0, |(_, length)| length.saturating_sub(self.buffer.len()));
        if self.buffer.capacity() > READ_BYTES_KEPT && missing + self.buffer.len() < READ_BYTES {
            let mut smaller = BytesMut::with_capacity(READ_BYTES);
            smaller.extend_from_slice(&self.buffer);
            self.buffer = smaller;
        }
        let spare = self.buffer.capacity() - self.buffer.len();
        if spare < missing || spare < READ_BYTES / 4 {
            self.buffer.reserve(missing.max(READ_BYTES - READ_BYTES / 4));
        }
        match self.transport.read_buf(&mut self.buffer).await? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection").into()),
            _ => Ok(()),
        }
    }
}

pub(super) fn parse(mut frame: BytesMut) -> Result<Message, ReplicationError> {
    match Message::parse(&mut frame) {
        Ok(Some(message)) => Ok(message),
        Ok(None) => Err(ReplicationError::Protocol("a message shorter than it claims".into())),
        Err(error) => Err(ReplicationError::Protocol(error.to_string())),
    }
}
