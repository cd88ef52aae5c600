//! Which server this is.

use tokio_postgres::Client;

use super::error::SourceError;
use super::slot::SlotName;
use crate::change::{Lsn, TimelineSwitch};
use crate::postgres::Endpoint;

/// Which server, history and database positions belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceIdentity {
    /// System identifier: made by initdb, shared by physical copies.
    pub system_id: String,
    /// Timeline: grows at each promotion.
    pub timeline: u32,
    /// Database name.
    pub database: String,
    /// `server_version_num`, such as 150008.
    pub server_version: u32,
}

impl SourceIdentity {
    /// Asks a primary who it is.
    pub(super) async fn read(client: &Client) -> Result<Self, SourceError> {
        let row = client
            .query_one(
                "SELECT (SELECT system_identifier FROM pg_catalog.pg_control_system())::text, \
                 pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8), \
                 pg_catalog.current_database()::text, pg_catalog.current_setting('server_version_num')",
                &[],
            )
            .await
            .map_err(|error| SourceError::sql(&error, "asking which server it is"))?;
        let number = |text: &str, radix| {
            u32::from_str_radix(text, radix)
                .map_err(|_| SourceError::Protocol(format!("`{text}` where a number should be")))
        };
        Ok(Self {
            system_id: row.get(0),
            timeline: number(row.get(1), 16)?,
            database: row.get(2),
            server_version: number(row.get(3), 10)?,
        })
    }
}

/// The source's log, as a slot sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalPosition {
    /// Where it ends now. The distance to the last durable position is the lag in bytes.
    pub end: Lsn,
    /// Bytes of it that are kept for the slot.
    pub retained_bytes: u64,
}

/// Looks where the source's log ends and how much of it the slot keeps.
pub async fn wal_position(client: &Client, slot: &SlotName) -> Result<WalPosition, SourceError> {
    let row = client
        .query_one(
            "SELECT pg_catalog.pg_current_wal_flush_lsn()::text, \
               coalesce((SELECT pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_flush_lsn(), s.restart_lsn)::int8 \
                 FROM pg_catalog.pg_replication_slots AS s WHERE s.slot_name = $1::text::name), 0)",
            &[&slot.as_str()],
        )
        .await
        .map_err(|error| SourceError::sql(&error, "asking where its log ends"))?;
    let retained_bytes = u64::try_from(row.get::<_, i64>(1)).unwrap_or_default();
    Ok(WalPosition { end: parse_lsn(row.get(0))?, retained_bytes })
}

/// Where each timeline that a server's present one goes on from ended, oldest first.
pub async fn timeline_switches(
    endpoint: &Endpoint,
    timeline: u32,
) -> Result<Vec<TimelineSwitch>, SourceError> {
    if timeline == 1 {
        return Ok(Vec::new());
    }
    let mut connection = endpoint
        .connect_replication("penstock timelines")
        .await
        .map_err(|error| SourceError::connect(endpoint, &error))?;
    let rows = connection
        .query(&format!("TIMELINE_HISTORY {timeline}"))
        .await
        .map_err(|error| SourceError::replication(error, "reading the history of its timelines"))?;
    let content =
        rows.into_iter().next().and_then(|row| row.into_iter().nth(1).flatten()).unwrap_or_default();
    parse_history(&content)
}

/// Lines of a history file: timeline, where it ended, why; comments begin with `#`.
fn parse_history(content: &str) -> Result<Vec<TimelineSwitch>, SourceError> {
    let lines = content.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        let timeline = words.next().and_then(|word| word.parse().ok());
        let at = words.next().map(parse_lsn).transpose()?;
        match (timeline, at) {
            (Some(timeline), Some(at)) => Ok(TimelineSwitch { timeline, at }),
            _ => Err(SourceError::Protocol(format!("`{line}` in the history of its timelines"))),
        }
    };
    lines.map(parse).collect()
}

pub(super) fn parse_lsn(text: &str) -> Result<Lsn, SourceError> {
    text.parse().map_err(|error: crate::change::InvalidLsn| SourceError::Protocol(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_files_are_read_and_nonsense_is_not() {
        let text = "1\t0/16B3748\tno recovery target specified\n\n2\t1/A0\tbefore 2000-01-01 00:00:00+00\n# a comment\n";
        let switches = parse_history(text).unwrap();
        let expected = [(1, 0x016B_3748), (2, 0x1_0000_00A0)];
        assert_eq!(switches, expected.map(|(timeline, at)| TimelineSwitch { timeline, at: Lsn(at) }));
        assert!(parse_history("one 0/0").is_err() && parse_history("1").is_err());
    }
}
