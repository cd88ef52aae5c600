//! Which server this is.

use tokio_postgres::Client;

use super::error::SourceError;
use super::slot::SlotName;
use crate::change::Lsn;

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

pub(super) fn parse_lsn(text: &str) -> Result<Lsn, SourceError> {
    text.parse().map_err(|error: crate::change::InvalidLsn| SourceError::Protocol(error.to_string()))
}
