//! Barriers as whoever wants one sees them: registered in the sink first, then met by every shard.
//!
//! A barrier is a message in the source's log. Commit order is the same for every slot, so "all commits before it" is
//! the same set for every shard, whenever the shard comes by.

use std::collections::BTreeMap;
use std::time::Duration;

use penstock_crds::report::Reason;
use postgres_types::{PgLsn, ToSql};
use tokio::time::interval;
use tokio_postgres::{Error, Row};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::error::failed;
use super::lineages::{self, LineageFacts};
use super::schema::has_table;
use super::session::{self, Purpose};
use crate::change::Lsn;
use crate::failure::Failure;
use crate::postgres::{Endpoint, Session};

/// Prefix of the messages.
pub const BARRIER_PREFIX: &str = "penstock-barrier";
/// Removes barriers that nobody waits for. What became of an exchange is kept for longer than anybody may ask.
pub(super) const FORGET_BARRIERS: &str = "DELETE FROM penstock.barrier WHERE expires_at < pg_catalog.now() \
    AND (outcome IS DISTINCT FROM 'promoted' OR expires_at < pg_catalog.now() - '1 day'::pg_catalog.interval)";
/// Past it without a word nobody waits for the shards any more.
pub const LEASE: Duration = Duration::from_secs(30);
const RENEW_EVERY: Duration = Duration::from_secs(10);

/// Which barrier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BarrierId {
    /// UID of the pipeline, or key of the one lineage that is to meet it.
    pub uid: String,
    /// Random: nobody can guess it before the message is in the log.
    pub nonce: Uuid,
}

impl BarrierId {
    /// A new one.
    pub fn new(uid: impl Into<String>) -> Self {
        Self { uid: uid.into(), nonce: Uuid::new_v4() }
    }

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

/// What a barrier is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarrierKind {
    /// One lineage is compared with the source.
    Comparison,
    /// The lineages of a pipeline are compared with each other.
    Revisions,
    /// The lineages of a pipeline wait while their tables are exchanged.
    Hold,
}

impl BarrierKind {
    /// As the sink writes it.
    fn word(self) -> &'static str {
        match self {
            Self::Comparison => "comparison",
            Self::Revisions => "revisions",
            Self::Hold => "hold",
        }
    }

    pub(super) fn read(word: &str) -> Option<Self> {
        [Self::Comparison, Self::Revisions, Self::Hold].into_iter().find(|kind| kind.word() == word)
    }
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
    /// Who is to meet it: the one that is compared with the source, or the stable one.
    pub lineage: LineageFacts,
    /// The pipeline's other ones, which are to meet it, too.
    pub others: Vec<LineageFacts>,
    session: Session,
    renewal: Option<AbortOnDropHandle<()>>,
}

/// Registers a barrier, and removes those that nobody waits for. Its `uid` is the key of the lineage that is compared with the
/// source, or else the pipeline's UID. A hold ends by itself after `lease`; other barriers live as long as the registration.
///
/// # Errors
/// `ManifestInvalid`: the sink holds no state of it. The sink does not answer or refuses.
pub async fn register(
    endpoint: &Endpoint,
    id: BarrierId,
    kind: BarrierKind,
    lease: Duration,
) -> Result<Registration, Failure> {
    let session = session::open(endpoint, "penstock barrier", Purpose::Control).await?;
    let uid = id.uid.as_str();
    let failed = |error: Error| failed(&error, "registering a barrier");
    let mut lineages = Vec::new();
    if has_table(&session.client, "lineage").await.map_err(failed)? {
        lineages = lineages::read(&session.client, uid).await.map_err(failed)?;
    }
    if kind == BarrierKind::Comparison {
        lineages.retain(|lineage| lineage.key == uid);
    }
    let mut lineages = lineages.into_iter();
    let Some(lineage) = lineages.next() else {
        let message = "The sink holds no state of the pipeline: no worker has run it yet, or the manifest is another pipeline's.";
        return Err(Failure::new(Reason::ManifestInvalid, message));
    };
    let write = async {
        session.execute(FORGET_BARRIERS, &[]).await?;
        let sql = "INSERT INTO penstock.barrier (uid, nonce, kind, expires_at) \
                   VALUES ($1, $2::pg_catalog.text::pg_catalog.uuid, $3, pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $4))";
        session.execute(sql, &[&id.uid, &id.nonce.to_string(), &kind.word(), &lease.as_secs_f64()]).await
    };
    write.await.map_err(failed)?;
    let renewal = (kind != BarrierKind::Hold)
        .then(|| AbortOnDropHandle::new(tokio::spawn(renew(endpoint.clone(), id.clone()))));
    Ok(Registration { id, lineage, others: lineages.collect(), session, renewal })
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
        let sql = "UPDATE penstock.barrier SET expires_at = pg_catalog.now() + pg_catalog.make_interval(secs => $3) \
                   WHERE uid = $1 AND nonce = $2::pg_catalog.text::pg_catalog.uuid";
        if let Err(error) =
            session.execute(sql, &[&id.uid, &id.nonce.to_string(), &LEASE.as_secs_f64()]).await
        {
            tracing::debug!(%error, "the barrier could not be renewed");
        }
    }
}

impl Registration {
    /// The shards of a lineage that have met the barrier.
    ///
    /// # Errors
    /// The sink does not answer.
    pub async fn arrivals(&self, lineage: &LineageFacts) -> Result<BTreeMap<u16, Arrival>, Failure> {
        // One that came to the barrier and said no more may still open its snapshot, until another run took the shard.
        let sql = "SELECT arrival.shard, snapshot, reason, arrival.commit_lsn, arrival.sequence, arrival.epoch \
                   FROM penstock.barrier_arrival AS arrival JOIN penstock.checkpoint AS checkpoint \
                     ON (checkpoint.uid, checkpoint.shard) = (arrival.key, arrival.shard) \
                   WHERE arrival.uid = $1 AND nonce = $2::pg_catalog.text::pg_catalog.uuid AND arrival.key = $3 \
                     AND (state <> 'opening' OR arrival.epoch < checkpoint.epoch)";
        let read = async {
            let parameters: [&(dyn ToSql + Sync); 3] =
                [&self.id.uid, &self.id.nonce.to_string(), &lineage.key];
            let rows = self.session.query(sql, &parameters).await?;
            rows.iter().map(arrival).collect::<Result<_, Error>>()
        };
        read.await.map_err(|error| failed(&error, "looking which shards have met the barrier"))
    }

    /// A shard of these lineages that has not come, or of which another run has begun since.
    ///
    /// # Errors
    /// The sink does not answer.
    pub async fn first_missing(&self, keys: &[&str]) -> Result<Option<String>, Failure> {
        let sql = "SELECT pg_catalog.format('shard %s of %s', wanted_shard, wanted.key) \
                   FROM pg_catalog.unnest($3::pg_catalog.text[]) AS wanted (key) \
                   CROSS JOIN LATERAL (SELECT max(shards) AS count FROM penstock.checkpoint WHERE uid = wanted.key) AS shards \
                   CROSS JOIN LATERAL pg_catalog.generate_series(0, shards.count - 1) AS wanted_shard \
                   WHERE NOT EXISTS (SELECT FROM penstock.barrier_arrival AS a JOIN penstock.checkpoint AS c \
                       ON (c.uid, c.shard, c.epoch) = (a.key, a.shard, a.epoch) \
                       WHERE (a.uid, a.nonce) = ($1, $2::pg_catalog.text::pg_catalog.uuid) \
                         AND (a.key, a.shard) = (wanted.key, wanted_shard)) LIMIT 1";
        let nonce = self.id.nonce.to_string();
        let found = self.session.query_opt(sql, &[&self.id.uid, &nonce, &keys]).await;
        let missing = found.and_then(|row| row.map(|row| row.try_get(0)).transpose());
        missing.map_err(|error| failed(&error, "looking which shards have come to a hold"))
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
