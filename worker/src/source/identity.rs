//! Which server this is.

use tokio_postgres::Client;

use super::error::SourceError;
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

/// Where the source's log ends now. The distance to the last acknowledged position is the lag in bytes.
pub async fn lag_now(client: &Client) -> Result<Lsn, SourceError> {
    let row = client
        .query_one("SELECT pg_catalog.pg_current_wal_lsn()::text", &[])
        .await
        .map_err(|error| SourceError::sql(&error, "asking where its log ends"))?;
    parse_lsn(row.get(0))
}

pub(super) fn parse_lsn(text: &str) -> Result<Lsn, SourceError> {
    text.parse().map_err(|error: crate::change::InvalidLsn| SourceError::Protocol(error.to_string()))
}
