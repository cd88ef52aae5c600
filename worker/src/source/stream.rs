//! `START_REPLICATION`: the checks before it, its options, and what its errors mean.

use std::time::Duration;

use tracing::warn;

use super::error::SourceError;
use super::identity::{SourceIdentity, parse_lsn};
use super::publication::PublicationName;
use super::slot::SlotName;
use crate::change::Lsn;
use crate::change::table::{quote_identifier, quote_literal};
use crate::change::travel::Format;
use crate::postgres::{CopyBoth, Endpoint, ReplicationConnection, ReplicationError, ServerError, TextRow};

/// Longest time without a status update.
const STATUS_INTERVAL_MAX: Duration = Duration::from_secs(10);
const STATUS_INTERVAL_MIN: Duration = Duration::from_millis(50);
/// A server that never gives up on us (`wal_sender_timeout` is 0) is given up after this long.
const SILENCE_MAX: Duration = Duration::from_mins(10);
/// Two status intervals: one answer may be late.
const SILENCE_MIN: Duration = Duration::from_secs(20);

/// What is to be read.
#[derive(Clone, Debug)]
pub struct StreamRequest {
    /// The slot.
    pub slot: SlotName,
    /// What it publishes.
    pub publication: PublicationName,
    /// Transactions that commit before it are not sent.
    pub start: Lsn,
    /// The server that `start` belongs to; another one is refused.
    pub identity: SourceIdentity,
    /// Format of the values, where their types have both.
    pub format: Format,
    /// Bytes that may wait for the consumer.
    pub capacity_bytes: usize,
}

/// A running stream.
pub(super) struct Stream {
    pub(super) copy: CopyBoth,
    pub(super) patience: Patience,
}

/// How long either side waits for the other, from the server's `wal_sender_timeout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Patience {
    /// How often the server must hear of us: three times per timeout. It answers each time.
    pub(super) status_interval: Duration,
    /// A server from which nothing came for so long, answers included, is gone or frozen.
    pub(super) silence: Duration,
}

impl Patience {
    fn new(wal_sender_timeout: Duration) -> Self {
        if wal_sender_timeout.is_zero() {
            return Self { status_interval: STATUS_INTERVAL_MAX, silence: SILENCE_MAX };
        }
        Self {
            status_interval: (wal_sender_timeout / 3).clamp(STATUS_INTERVAL_MIN, STATUS_INTERVAL_MAX),
            silence: wal_sender_timeout.max(SILENCE_MIN),
        }
    }
}

pub(super) async fn open(endpoint: &Endpoint, request: &StreamRequest) -> Result<Stream, SourceError> {
    let mut connection = endpoint
        .connect_replication(request.slot.as_str())
        .await
        .map_err(|error| SourceError::connect(endpoint, &error))?;
    check_identity(&mut connection, &request.identity).await?;
    let patience = check_slot(&mut connection, request).await?;
    let copy = connection
        .start_copy_both(&start_statement(request))
        .await
        .map_err(|error| start_error(error, request))?;
    Ok(Stream { copy, patience })
}

/// Version 1 of the protocol has all that is needed: later ones add streaming of transactions in progress and
/// two-phase commit, both of which stay off.
fn start_statement(request: &StreamRequest) -> String {
    let publications = quote_literal(&quote_identifier(request.publication.as_str()));
    let is_binary = request.format == Format::Binary;
    format!(
        "START_REPLICATION SLOT {} LOGICAL {} (proto_version '1', publication_names {publications}, \
         binary '{is_binary}', messages 'true')",
        request.slot, request.start
    )
}

/// The host name may lead to another server than a moment ago.
async fn check_identity(
    connection: &mut ReplicationConnection,
    expected: &SourceIdentity,
) -> Result<(), SourceError> {
    let row = single_row(connection, "IDENTIFY_SYSTEM").await?;
    let column = |place: usize| row.get(place).cloned().flatten().unwrap_or_default();
    if column(0) != expected.system_id {
        return Err(SourceError::Changed(format!(
            "its system identifier is {}, and the checkpoint's is {}",
            column(0),
            expected.system_id
        )));
    }
    if column(1) != expected.timeline.to_string() {
        return Err(SourceError::Changed(format!(
            "it is on timeline {}, and the checkpoint's is {}",
            column(1),
            expected.timeline
        )));
    }
    Ok(())
}

/// Asked to start before the slot's position, the server would begin at the slot's and say nothing.
async fn check_slot(
    connection: &mut ReplicationConnection,
    request: &StreamRequest,
) -> Result<Patience, SourceError> {
    let sql = format!(
        "SELECT s.confirmed_flush_lsn, t.setting FROM pg_catalog.pg_settings AS t \
         LEFT JOIN pg_catalog.pg_replication_slots AS s ON s.slot_name = {} \
         WHERE t.name = 'wal_sender_timeout'",
        quote_literal(request.slot.as_str())
    );
    let row = single_row(connection, &sql).await?;
    if let Some(Some(confirmed)) = row.first() {
        let confirmed = parse_lsn(confirmed)?;
        if confirmed > request.start {
            return Err(SourceError::SlotAhead {
                slot: request.slot.clone(),
                confirmed,
                start: request.start,
            });
        }
    }
    let timeout_ms = row.get(1).and_then(|text| text.as_deref()?.parse::<u64>().ok()).unwrap_or_default();
    Ok(Patience::new(Duration::from_millis(timeout_ms)))
}

async fn single_row(connection: &mut ReplicationConnection, sql: &str) -> Result<TextRow, SourceError> {
    let rows = connection
        .query(sql)
        .await
        .map_err(|error| SourceError::replication(error, "preparing the stream"))?;
    rows.into_iter().next().ok_or_else(|| SourceError::Protocol("no row where one should be".into()))
}

fn start_error(error: ReplicationError, request: &StreamRequest) -> SourceError {
    let ReplicationError::Server(error) = error else {
        return SourceError::replication(error, "starting the stream");
    };
    let slot = request.slot.clone();
    let ServerError { code, message, .. } = &error;
    match code.as_str() {
        "55006" => SourceError::SlotInUse { slot, by: message.clone() },
        "42704" => SourceError::SlotMissing(slot),
        // Invalidated, or its log is removed.
        "55000" | "58P01" => SourceError::SlotInvalidated { slot, problem: error.to_string() },
        _ => SourceError::server(&error, "starting the stream"),
    }
}

/// Up to version 17 a publication that is dropped under the stream ends it with an error. From 18 on it is a
/// warning with this SQLSTATE, and changes are left out silently: it must end the stream as well.
pub(super) fn stream_notice(notice: &ServerError, request: &StreamRequest) -> Result<(), SourceError> {
    if notice.code == "55000" {
        return Err(publication_gone(notice, request));
    }
    warn!(slot = %request.slot, %notice, "the source warns");
    Ok(())
}

fn publication_gone(error: &ServerError, request: &StreamRequest) -> SourceError {
    SourceError::PublicationUnsuitable {
        publication: request.publication.clone(),
        problem: format!("was dropped while changes were read, so some are lost ({error})"),
        statement: "CREATE PUBLICATION as before, if it is your own; then penstock-worker begin-anew, which \
                    copies all tables again from a new slot"
            .into(),
    }
}

/// What an error in the running stream means.
pub(super) fn stream_error(error: ReplicationError, request: &StreamRequest) -> SourceError {
    let ReplicationError::Server(error) = error else {
        return SourceError::replication(error, "reading changes");
    };
    match error.code.as_str() {
        "42704" => publication_gone(&error, request),
        "55000" | "58P01" => {
            SourceError::SlotInvalidated { slot: request.slot.clone(), problem: error.to_string() }
        }
        _ => SourceError::server(&error, "reading changes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_hears_of_us_often_enough_and_is_not_given_up_before_it_would_give_us_up() {
        for timeout_ms in [1_000, 10_000, 60_000, 300_000] {
            let timeout = Duration::from_millis(timeout_ms);
            let Patience { status_interval, silence } = Patience::new(timeout);
            assert!(status_interval * 2 < timeout && status_interval * 2 <= silence, "{timeout_ms} ms");
            assert!(silence >= timeout, "{timeout_ms} ms");
        }
        assert_eq!(Patience::new(Duration::ZERO).silence, SILENCE_MAX);
    }

    #[test]
    fn names_are_quoted_where_the_server_reads_a_list_inside_a_literal() {
        let request = StreamRequest {
            slot: SlotName::of_shard("u", 1),
            publication: PublicationName::given("it's \"mine\""),
            start: Lsn(0x10),
            identity: SourceIdentity {
                system_id: "1".into(),
                timeline: 1,
                database: "d".into(),
                server_version: 150_000,
            },
            format: Format::Text,
            capacity_bytes: 1,
        };
        let sql = start_statement(&request);
        assert!(sql.contains(r#"publication_names '"it''s ""mine"""'"#), "{sql}");
        assert!(sql.contains(" LOGICAL 0/10 (") && sql.contains("binary 'false'"), "{sql}");
    }
}
