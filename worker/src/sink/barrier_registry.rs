//! Barriers as whoever wants one sees them: registered in the sink first, then met by every shard.
//!
//! A barrier is a message in the source's log. Commit order is the same for every slot, so "all commits before it" is
//! the same set for every shard, whenever the shard comes by.

use std::collections::BTreeMap;
use std::time::Duration;

use penstock_crds::report::Reason;
use postgres_types::PgLsn;
use tokio::time::interval;
use tokio_postgres::{Error, Row};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::error::failed;
use super::schema::has_table;
use super::session::{self, Purpose};
use crate::change::Lsn;
use crate::failure::Failure;
use crate::postgres::{Endpoint, Session};

/// Prefix of the messages.
pub const BARRIER_PREFIX: &str = "penstock-barrier";
/// Past it without a word nobody waits for the shards any more.
const LEASE_SECONDS: i32 = 30;
const RENEW_EVERY: Duration = Duration::from_secs(10);

/// Which barrier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BarrierId {
    /// UID of the pipeline.
    pub uid: String,
    /// Random: nobody can guess it before the message is in the log.
    pub nonce: Uuid,
}

impl BarrierId {
    /// What the message says.
    pub fn content(&self) -> String {
        format!("{} {}", self.nonce, self.uid)
    }

    /// What a message says, if it is about a barrier.
    pub fn read(content: &[u8]) -> Option<Self> {
        let (nonce, uid) = std::str::from_utf8(content).ok()?.split_once(' ')?;
        Some(Self { uid: uid.to_owned(), nonce: nonce.parse().ok()? })
    }
}

/// The pipeline as the sink knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkFacts {
    /// How many shards it has.
    pub shards: u16,
    /// UID that its slots and its publication are named after.
    pub names_uid: String,
    /// System identifier of its source.
    pub source_system_id: String,
}

/// What a shard says of a barrier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Its sink, as it is at the barrier, is open.
    Held {
        /// For `SET TRANSACTION SNAPSHOT`.
        snapshot: String,
        /// Address of the barrier's COMMIT record.
        commit_lsn: Lsn,
        /// What the checkpoint in the snapshot must say.
        sequence: i64,
        /// The run that wrote it.
        epoch: i64,
    },
    /// The snapshot could not be opened.
    Void(String),
}

/// A barrier that is registered. The shards wait as long as it lives.
#[derive(Debug)]
pub struct Registration {
    /// Which.
    pub id: BarrierId,
    /// The pipeline's state in the sink.
    pub facts: SinkFacts,
    session: Session,
    renewal: AbortOnDropHandle<()>,
}

/// Registers a barrier for a comparison, and removes those that nobody waits for.
///
/// # Errors
/// `ManifestInvalid`: the sink holds no state of the pipeline. The sink does not answer or refuses.
pub async fn register(endpoint: &Endpoint, uid: &str) -> Result<Registration, Failure> {
    let session = session::open(endpoint, "penstock barrier", Purpose::Control).await?;
    let id = BarrierId { uid: uid.to_owned(), nonce: Uuid::new_v4() };
    let doing = "registering a barrier";
    let facts = read_facts(&session, uid).await.map_err(|error| failed(&error, doing))?.ok_or_else(|| {
        let message = "The sink holds no state of the pipeline: no worker has run it yet, or the manifest is another pipeline's.";
        Failure::new(Reason::ManifestInvalid, message)
    })?;
    let write = async {
        session.execute("DELETE FROM penstock.barrier WHERE expires_at < pg_catalog.now()", &[]).await?;
        let sql = format!(
            "INSERT INTO penstock.barrier (uid, nonce, kind, expires_at) \
             VALUES ($1, $2::pg_catalog.text::pg_catalog.uuid, 'comparison', pg_catalog.now() + '{LEASE_SECONDS} s'::pg_catalog.interval)"
        );
        session.execute(&sql, &[&id.uid, &id.nonce.to_string()]).await
    };
    write.await.map_err(|error: Error| failed(&error, doing))?;
    let renewal = AbortOnDropHandle::new(tokio::spawn(renew(endpoint.clone(), id.clone())));
    Ok(Registration { id, facts, session, renewal })
}

async fn read_facts(session: &Session, uid: &str) -> Result<Option<SinkFacts>, Error> {
    if !has_table(&session.client, "version").await? {
        return Ok(None);
    }
    let sql = "SELECT shards, names_uid, source_system_id FROM penstock.checkpoint WHERE uid = $1 ORDER BY shard LIMIT 1";
    let Some(row) = session.query_opt(sql, &[&uid]).await? else { return Ok(None) };
    let shards: i32 = row.try_get(0)?;
    let (names_uid, source_system_id) = (row.try_get(1)?, row.try_get(2)?);
    Ok(Some(SinkFacts { shards: u16::try_from(shards).unwrap_or_default(), names_uid, source_system_id }))
}

/// Says again and again that somebody waits. What fails here shows when the lease is over.
async fn renew(endpoint: Endpoint, id: BarrierId) {
    let mut due = interval(RENEW_EVERY);
    due.tick().await;
    let mut session = None;
    loop {
        due.tick().await;
        if session.as_ref().is_none_or(|session: &Session| session.is_closed()) {
            session = session::open(&endpoint, "penstock barrier", Purpose::Control).await.ok();
        }
        let Some(session) = &session else { continue };
        let sql = format!(
            "UPDATE penstock.barrier SET expires_at = pg_catalog.now() + '{LEASE_SECONDS} s'::pg_catalog.interval \
             WHERE uid = $1 AND nonce = $2::pg_catalog.text::pg_catalog.uuid"
        );
        if let Err(error) = session.execute(&sql, &[&id.uid, &id.nonce.to_string()]).await {
            tracing::debug!(%error, "the barrier could not be renewed");
        }
    }
}

impl Registration {
    /// The shards that have met the barrier.
    ///
    /// # Errors
    /// The sink does not answer.
    pub async fn arrivals(&self) -> Result<BTreeMap<u16, Arrival>, Failure> {
        // One that came to the barrier and said no more may still open its snapshot, until another run took the shard.
        let sql = "SELECT arrival.shard, snapshot, reason, arrival.commit_lsn, arrival.sequence, arrival.epoch \
                   FROM penstock.barrier_arrival AS arrival JOIN penstock.checkpoint AS checkpoint USING (uid, shard) \
                   WHERE uid = $1 AND nonce = $2::pg_catalog.text::pg_catalog.uuid \
                     AND (state <> 'opening' OR arrival.epoch < checkpoint.epoch)";
        let read = async {
            let rows = self.session.query(sql, &[&self.id.uid, &self.id.nonce.to_string()]).await?;
            rows.iter().map(arrival).collect::<Result<_, Error>>()
        };
        read.await.map_err(|error| failed(&error, "looking which shards have met the barrier"))
    }

    /// Ends the barrier: the shards let their snapshots go. Those that others have taken over stay.
    ///
    /// # Errors
    /// The sink does not answer. The barrier then ends by itself within half a minute.
    pub async fn end(self) -> Result<(), Failure> {
        drop(self.renewal);
        let sql =
            "DELETE FROM penstock.barrier WHERE uid = $1 AND nonce = $2::pg_catalog.text::pg_catalog.uuid";
        self.session
            .execute(sql, &[&self.id.uid, &self.id.nonce.to_string()])
            .await
            .map_err(|error| failed(&error, "ending a barrier"))?;
        self.session.close().await;
        Ok(())
    }
}

fn arrival(row: &Row) -> Result<(u16, Arrival), Error> {
    let (shard, snapshot, reason): (i32, Option<String>, Option<String>) =
        (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let arrival = match snapshot {
        Some(snapshot) => Arrival::Held {
            snapshot,
            commit_lsn: Lsn(row.try_get::<_, PgLsn>(3)?.into()),
            sequence: row.try_get(4)?,
            epoch: row.try_get(5)?,
        },
        None => Arrival::Void(reason.unwrap_or_else(|| "its worker ended at the barrier".into())),
    };
    Ok((u16::try_from(shard).unwrap_or(u16::MAX), arrival))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_barrier_is_read_as_it_is_written_and_nothing_else_is_one() {
        let id = BarrierId { uid: "a uid with spaces".into(), nonce: Uuid::from_u128(7) };
        assert_eq!(BarrierId::read(id.content().as_bytes()), Some(id));
        for bad in ["", " ", "uid", "not-a-nonce uid", "\u{fffd}"] {
            assert_eq!(BarrierId::read(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(BarrierId::read(b"\xff \xff"), None);
    }
}
