//! The replication slot: its name, its state, its end.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;
use tracing::info;

use super::error::SourceError;
use super::identity::parse_lsn;
use crate::change::Lsn;

/// How long a terminated walsender may take to let go of its slot.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);
const RELEASE_POLL: Duration = Duration::from_millis(100);

/// Name of a replication slot: 1 to 63 of `a-z0-9_`, so it needs no quotes anywhere.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SlotName(String);

/// Text that no slot can be named.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a slot name: use 1 to 63 lowercase letters, digits and underscores")]
pub struct InvalidSlotName(String);

impl SlotName {
    /// The slot of a pipeline's shard: `penstock_<first 8 hex digits of SHA-256(UID)>_<shard>`.
    pub fn of_shard(uid: &str, shard: u16) -> Self {
        Self(format!("penstock_{}_{shard}", short_uid(uid)))
    }

    /// The temporary slot that gives a shard a snapshot after the first load.
    pub fn of_later_copy(uid: &str, shard: u16) -> Self {
        Self(format!("penstock_{}_{shard}_copy", short_uid(uid)))
    }

    /// The temporary slot that gives a comparison a snapshot and what follows it; several may be under way at once.
    pub fn of_comparison(uid: &str, nonce: u32) -> Self {
        Self(format!("penstock_{}_compare_{nonce:08x}", short_uid(uid)))
    }

    /// As PostgreSQL stores it. Connections that read or make the slot carry it as `application_name`, which is
    /// how a restarted worker recognises the connection of its dead predecessor.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The first 8 hex digits of SHA-256 of a pipeline's UID.
pub(super) fn short_uid(uid: &str) -> String {
    hex::encode(&Sha256::digest(uid.as_bytes())[..4])
}

impl fmt::Display for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SlotName {
    type Err = InvalidSlotName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if (1..=63).contains(&text.len()) && text.bytes().all(is_plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidSlotName(text.to_owned()))
        }
    }
}

/// A slot as `pg_replication_slots` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotState {
    /// Everything before is acknowledged and never sent again. `None`: the slot's creation never finished.
    pub confirmed_flush: Option<Lsn>,
    /// Oldest log that it keeps. `None` once the server has removed it.
    pub restart_lsn: Option<Lsn>,
    /// Process that reads it now.
    pub active_pid: Option<i32>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Why it cannot be read any more, if so.
    pub invalidation: Option<String>,
    /// Output plugin.
    pub plugin: Option<String>,
    /// Database it belongs to.
    pub database: Option<String>,
    /// Whether it decodes at PREPARE TRANSACTION; ours never does.
    pub two_phase: bool,
    /// Whether standbys are to have it as well. `None`: the server knows no such slots (before 17).
    pub failover: Option<bool>,
    /// It was made here as the copy of a primary's, while this server was a standby.
    pub is_synced: bool,
}

impl SlotState {
    /// Whether the stream can be read from it, in this database.
    pub fn verify(&self, slot: &SlotName, database: &str) -> Result<(), SourceError> {
        let invalidated = |problem: String| SourceError::SlotInvalidated { slot: slot.clone(), problem };
        if let Some(reason) = &self.invalidation {
            return Err(invalidated(format!("the source invalidated it ({reason})")));
        }
        if self.confirmed_flush.is_none() {
            return Err(invalidated("its creation never finished".into()));
        }
        if self.plugin.as_deref() != Some("pgoutput") || self.two_phase {
            return Err(invalidated(
                "it was not made by this pipeline (another plugin, or two-phase)".into(),
            ));
        }
        match self.database.as_deref() {
            Some(other) if other != database => Err(invalidated(format!("it belongs to database {other}"))),
            Some(_) => Ok(()),
            None => Err(invalidated("it is a physical slot".into())),
        }
    }
}

/// Looks the slot up; `None` when there is none of that name.
pub async fn slot_state(client: &Client, slot: &SlotName) -> Result<Option<SlotState>, SourceError> {
    // Columns that say why a slot was invalidated came with 16 (conflicting) and 17 (invalidation_reason), those of
    // failover with 17; a row as JSON has those that there are.
    let row = client
        .query_opt(
            "SELECT s.confirmed_flush_lsn::text, s.restart_lsn::text, s.active_pid, s.wal_status, \
             pg_catalog.to_json(s)->>'invalidation_reason', pg_catalog.to_json(s)->>'conflicting', \
             s.plugin::text, s.database::text, s.two_phase, \
             (pg_catalog.to_json(s)->>'failover')::bool, coalesce((pg_catalog.to_json(s)->>'synced')::bool, false) \
             FROM pg_catalog.pg_replication_slots AS s WHERE s.slot_name = $1::text::name",
            &[&slot.as_str()],
        )
        .await
        .map_err(|error| SourceError::sql(&error, "looking at its replication slots"))?;
    let Some(row) = row else { return Ok(None) };
    let lsn = |column: usize| row.get::<_, Option<&str>>(column).map(parse_lsn).transpose();
    let wal_status: Option<String> = row.get(3);
    let is_conflicting = row.get::<_, Option<&str>>(5) == Some("true");
    let invalidation = row
        .get::<_, Option<String>>(4)
        .or_else(|| is_conflicting.then(|| "conflict with recovery".to_owned()))
        .or_else(|| (wal_status.as_deref() == Some("lost")).then(|| "its log was removed".to_owned()));
    Ok(Some(SlotState {
        confirmed_flush: lsn(0)?,
        restart_lsn: lsn(1)?,
        active_pid: row.get(2),
        wal_status,
        invalidation,
        plugin: row.get(6),
        database: row.get(7),
        two_phase: row.get(8),
        failover: row.get(9),
        is_synced: row.get(10),
    }))
}

/// Ends what a dead predecessor left: every connection of our own role that carries one of the names. The
/// server would notice only when TCP gives up, and until then keeps temporary slots, snapshots and table locks.
pub async fn end_stale_sessions(client: &Client, names: &[&SlotName]) -> Result<(), SourceError> {
    let names: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
    let sql = "SELECT pg_catalog.count(pg_catalog.pg_terminate_backend(a.pid)) FROM pg_catalog.pg_stat_activity AS a \
               WHERE a.usename = current_user AND a.application_name = ANY ($1) AND a.pid <> pg_catalog.pg_backend_pid() \
                 AND a.datname = pg_catalog.current_database()";
    let deadline = Instant::now() + RELEASE_TIMEOUT;
    loop {
        let ended: i64 = client
            .query_one(sql, &[&names])
            .await
            .and_then(|row| row.try_get(0))
            .map_err(|error| SourceError::sql(&error, "ending old connections of the shard"))?;
        // One that does not go is told of by whatever needs what it holds.
        if ended == 0 || Instant::now() > deadline {
            return Ok(());
        }
        info!(connections = ended, "ended the connections of an earlier run");
        sleep(RELEASE_POLL).await;
    }
}

/// Ends the connection of a dead predecessor that still holds our slot, and waits until the slot is free. A
/// connection that is not ours (another `application_name`) is left alone: `SlotInUse`.
pub async fn end_stale_walsender(client: &Client, slot: &SlotName) -> Result<(), SourceError> {
    let deadline = Instant::now() + RELEASE_TIMEOUT;
    loop {
        let Some(holder) = holder(client, slot).await? else { return Ok(()) };
        if holder.application_name.as_deref() != Some(slot.as_str()) || Instant::now() > deadline {
            return Err(SourceError::SlotInUse { slot: slot.clone(), by: holder.to_string() });
        }
        info!(%slot, pid = holder.pid, "ending the connection that still holds the slot");
        client
            .execute("SELECT pg_catalog.pg_terminate_backend($1)", &[&holder.pid])
            .await
            .map_err(|error| SourceError::sql(&error, "ending an old connection of the slot"))?;
        sleep(RELEASE_POLL).await;
    }
}

struct Holder {
    pid: i32,
    application_name: Option<String>,
    user: Option<String>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_unknown = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".into());
        let (name, user) = (or_unknown(&self.application_name), or_unknown(&self.user));
        write!(f, "process {}, application {name}, role {user}", self.pid)
    }
}

async fn holder(client: &Client, slot: &SlotName) -> Result<Option<Holder>, SourceError> {
    let row = client
        .query_opt(
            "SELECT s.active_pid, a.application_name, a.usename::text FROM pg_catalog.pg_replication_slots AS s \
             LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = s.active_pid \
             WHERE s.slot_name = $1::text::name AND s.active_pid IS NOT NULL",
            &[&slot.as_str()],
        )
        .await
        .map_err(|error| SourceError::sql(&error, "looking who reads the slot"))?;
    Ok(row.map(|row| Holder { pid: row.get(0), application_name: row.get(1), user: row.get(2) }))
}

/// Removes the slot if it is there; a connection of ours that still reads it is ended first.
pub async fn drop_slot(client: &Client, slot: &SlotName) -> Result<(), SourceError> {
    end_stale_walsender(client, slot).await?;
    let dropped = client
        .execute(
            "SELECT pg_catalog.pg_drop_replication_slot(s.slot_name) FROM pg_catalog.pg_replication_slots AS s \
             WHERE s.slot_name = $1::text::name",
            &[&slot.as_str()],
        )
        .await;
    match dropped {
        Ok(_) => Ok(()),
        // Somebody dropped it between the look and the drop.
        Err(error) if error.code() == Some(&tokio_postgres::error::SqlState::UNDEFINED_OBJECT) => Ok(()),
        Err(error) => Err(SourceError::sql(&error, "dropping its replication slot")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_shards_fit_and_differ() {
        let first = SlotName::of_shard("0a1b", 0);
        assert_ne!(first, SlotName::of_shard("0a1b", 1));
        assert_ne!(first, SlotName::of_shard("0a1c", 0));
        for name in
            [first, SlotName::of_later_copy("0a1b", u16::MAX), SlotName::of_comparison("0a1b", u32::MAX)]
        {
            assert_eq!(name.as_str().parse(), Ok(name.clone()));
        }
    }

    #[test]
    fn what_postgresql_would_refuse_or_quote_is_no_slot_name() {
        let long = "x".repeat(64);
        for bad in ["", "Upper", "a-b", "a b", "a'b", "ä", long.as_str()] {
            assert!(bad.parse::<SlotName>().is_err(), "{bad}");
        }
    }
}
