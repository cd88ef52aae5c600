//! What follows a snapshot in the log, read from the temporary slot that came with it: values as text, as the source's
//! own output functions write them.

use std::collections::VecDeque;

use bytes::Bytes;
use tokio_postgres::Client;

use super::copy::open_session;
use super::error::SourceError;
use super::export::ExportedSnapshot;
use super::publication::PublicationName;
use crate::change::Lsn;
use crate::change::table::quote_literal;
use crate::postgres::{CopyBoth, Endpoint, ReplicationError, Session, StreamMessage};

const DOING: &str = "reading what followed the snapshot";

impl ExportedSnapshot {
    /// Sessions at the snapshot, in transactions that read only. They stand on their own: this value may be dropped
    /// afterwards.
    pub async fn open_sessions(
        &self,
        endpoint: &Endpoint,
        count: usize,
    ) -> Result<Vec<Session>, SourceError> {
        let open = (0..count.max(1)).map(|_| open_session(endpoint, &self.slot, &self.snapshot_name));
        futures::future::try_join_all(open).await
    }

    /// What the publication says of the log from the snapshot on. Nothing is acknowledged, so the slot goes when the
    /// value is dropped.
    pub async fn follow(self, publication: &PublicationName) -> Result<LogWindow, SourceError> {
        let sql = format!(
            "START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '1', publication_names {}, binary 'false', messages 'true')",
            self.slot,
            quote_literal(&publication.quoted())
        );
        let failed = |error| SourceError::replication(error, DOING);
        let copy = self.exporter.start_copy_both(&sql).await.map_err(failed)?;
        Ok(LogWindow { copy, waiting: VecDeque::new(), start: self.consistent_point })
    }
}

/// The log from a snapshot on.
#[derive(Debug)]
pub struct LogWindow {
    copy: CopyBoth,
    waiting: VecDeque<Bytes>,
    start: Lsn,
}

impl LogWindow {
    /// The next message of `pgoutput`.
    pub async fn next(&mut self) -> Result<Bytes, SourceError> {
        let failed = |error: ReplicationError| SourceError::replication(error, DOING);
        loop {
            if let Some(payload) = self.waiting.pop_front() {
                return Ok(payload);
            }
            let mut is_reply_due = false;
            while let Some(message) = self.copy.pop().map_err(failed)? {
                match message {
                    StreamMessage::Data { payload, .. } => {
                        self.waiting.push_back(payload);
                        break;
                    }
                    StreamMessage::Keepalive { reply_requested, .. } => is_reply_due |= reply_requested,
                    StreamMessage::Notice(notice) if notice.code == "55000" => {
                        return Err(SourceError::server(&notice, DOING));
                    }
                    StreamMessage::Notice(notice) => tracing::warn!(%notice, "the source warns"),
                }
            }
            if is_reply_due {
                self.copy.send_status(self.start).await.map_err(failed)?;
            }
            if self.waiting.is_empty() {
                self.copy.fill().await.map_err(failed)?;
            }
        }
    }
}

/// Writes a message into the log, in a transaction of its own that is flushed when this returns: an idle source would
/// leave another one unsent for seconds. Standbys are not waited for; the stream does not wait for them either.
pub async fn emit(client: &Client, prefix: &str, content: &str) -> Result<(), SourceError> {
    let failed = |error: tokio_postgres::Error| SourceError::sql(&error, "writing a message into the log");
    client.batch_execute("SET synchronous_commit = local").await.map_err(failed)?;
    let sql = "SELECT pg_catalog.pg_logical_emit_message(true, $1, $2::text)";
    client.execute(sql, &[&prefix, &content]).await.map_err(failed).map(drop)
}
