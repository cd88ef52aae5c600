//! Barriers as a shard meets them: the sink, exactly as it is there, is opened as a snapshot for whoever compares,
//! and applying goes on.

use std::fmt::Display;
use std::time::Duration;

use postgres_types::PgLsn;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::barrier_registry::{BarrierId, BarrierKind};
use super::error::failed;
use super::run::Run;
use super::session::{self, Purpose};
use super::writer::Writer;
use crate::change::Checkpoint;
use crate::failure::Failure;
use crate::postgres::{Endpoint, Session};

/// Snapshots that one shard holds at a time.
const HELD_MAX: usize = 8;
/// How long applying waits for a snapshot at most.
const OPEN_PATIENCE: Duration = Duration::from_secs(5);
/// How often a shard looks whether its snapshot is still wanted.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A barrier that lives longer is given up.
const HOLD_MAX: Duration = Duration::from_hours(1);

/// A session that is being opened for a snapshot, beside whatever else is done.
pub(super) type Opening = AbortOnDropHandle<Result<Session, Failure>>;

/// Meets barriers for one run of a shard. Dropping it lets all snapshots go.
#[derive(Debug)]
pub struct Barriers {
    endpoint: Endpoint,
    application_name: String,
    run: Run,
    held: Vec<AbortOnDropHandle<()>>,
}

impl Barriers {
    pub(super) fn new(endpoint: Endpoint, application_name: String, run: Run) -> Self {
        Self { endpoint, application_name, run, held: Vec::new() }
    }

    /// The barrier that a message is about, if it is one of this lineage or of its pipeline.
    pub fn own(&self, content: &[u8]) -> Option<BarrierId> {
        let lineage = &self.run.lineage;
        BarrierId::read(content).filter(|id| id.uid == *lineage.key() || id.uid == lineage.uid())
    }

    /// Begins to connect: what comes before the snapshot need not wait for it.
    pub fn open(&self) -> Opening {
        let (endpoint, name) = (self.endpoint.clone(), self.application_name.clone());
        AbortOnDropHandle::new(tokio::spawn(
            async move { session::open(&endpoint, &name, Purpose::Hold).await },
        ))
    }

    /// Opens the snapshot; the sink stands at `checkpoint`, and nothing is written to it until this returns. What goes
    /// wrong makes the arrival void and is nobody else's trouble.
    pub async fn arrive(&mut self, id: BarrierId, checkpoint: Checkpoint, opening: Opening) {
        self.held.retain(|held| !held.is_finished());
        let opened = if self.held.len() < HELD_MAX {
            let at_once = timeout(OPEN_PATIENCE, snapshot(opening, &self.run, &checkpoint)).await;
            at_once.unwrap_or_else(|_| Err("the sink took too long to open a snapshot".into()))
        } else {
            Err(format!("the worker holds {HELD_MAX} snapshots already"))
        };
        let holder = Holder {
            endpoint: self.endpoint.clone(),
            application_name: self.application_name.clone(),
            run: self.run.clone(),
            id,
            checkpoint,
        };
        self.held.push(AbortOnDropHandle::new(tokio::spawn(holder.hold(opened))));
    }
}

/// The sink as it is now, in which the checkpoint must be exactly that of the barrier.
async fn snapshot(opening: Opening, run: &Run, checkpoint: &Checkpoint) -> Result<Session, String> {
    let session = opening.await.map_err(text)?.map_err(text)?;
    let begin = session.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY");
    let sql = "SELECT FROM penstock.checkpoint WHERE uid = $1 AND shard = $2 AND epoch = $3 AND sequence = $4 \
               AND commit_lsn = $5 AND end_lsn = $6 AND run_id = $7::pg_catalog.text::pg_catalog.uuid";
    let (commit, end) = (PgLsn::from(checkpoint.position.commit_lsn.0), PgLsn::from(checkpoint.end_lsn.0));
    let parameters: [&(dyn postgres_types::ToSql + Sync); 7] =
        [run.key(), &run.shard, &run.epoch, &checkpoint.sequence, &commit, &end, &run.id];
    // Both go out together.
    let found = async { session.query_opt(sql, &parameters).await };
    let (opened, found) = futures::future::join(begin, found).await;
    match opened.and(found).map_err(text)? {
        Some(_) => Ok(session),
        None => Err("the checkpoint in the sink is not at the barrier: another run took over".into()),
    }
}

fn text(error: impl Display) -> String {
    error.to_string()
}

/// Keeps a snapshot as long as somebody waits.
struct Holder {
    endpoint: Endpoint,
    application_name: String,
    run: Run,
    id: BarrierId,
    checkpoint: Checkpoint,
}

impl Holder {
    async fn hold(self, opened: Result<Session, String>) {
        let nonce = self.id.nonce;
        match timeout(HOLD_MAX, self.announce_and_keep(opened)).await {
            Ok(Ok(())) => tracing::info!(%nonce, "the snapshot at a barrier is not wanted any more"),
            Ok(Err(why)) => tracing::warn!(%nonce, "the snapshot at a barrier is lost: {why}"),
            Err(_) => tracing::warn!(%nonce, "the snapshot at a barrier was held too long and is let go"),
        }
    }

    async fn announce_and_keep(&self, opened: Result<Session, String>) -> Result<(), String> {
        let control = session::open(&self.endpoint, &self.application_name, Purpose::Control);
        let control = control.await.map_err(text)?;
        let held = match opened {
            Ok(session) => export(&session).await.map(|name| (session, name)),
            Err(why) => Err(why),
        };
        let (snapshot, reason) = match &held {
            Ok((_, name)) => (Some(name.as_str()), None),
            Err(why) => (None, Some(why.as_str())),
        };
        self.announce(&control, snapshot, reason).await.map_err(text)?;
        let (session, _) = held?;
        while self.is_wanted(&control).await.map_err(text)? {
            sleep(LOOK_EVERY).await;
            // The sink ends a transaction in which nothing comes for a minute: that of a frozen worker.
            session.batch_execute("SELECT 1").await.map_err(text)?;
        }
        session.close().await;
        control.close().await;
        Ok(())
    }

    /// What was noted with the commit at the barrier is told once.
    async fn announce(
        &self,
        control: &Session,
        snapshot: Option<&str>,
        reason: Option<&str>,
    ) -> Result<(), tokio_postgres::Error> {
        let sql = "UPDATE penstock.barrier_arrival \
                   SET state = CASE WHEN $4::pg_catalog.text IS NULL THEN 'void' ELSE 'held' END, snapshot = $4, reason = $5, \
                       sequence = $7, commit_lsn = $8 \
                   WHERE uid = $1 AND nonce = $2::pg_catalog.text::pg_catalog.uuid AND shard = $3 AND key = $9 AND epoch = $6 \
                     AND state = 'opening'";
        let commit = PgLsn::from(self.checkpoint.position.commit_lsn.0);
        let (uid, nonce) = (&self.id.uid, self.id.nonce.to_string());
        let parameters: [&(dyn postgres_types::ToSql + Sync); 9] = [
            uid,
            &nonce,
            &self.run.shard,
            &snapshot,
            &reason,
            &self.run.epoch,
            &self.checkpoint.sequence,
            &commit,
            self.run.key(),
        ];
        control.execute(sql, &parameters).await.map(drop)
    }

    /// `false` once the barrier ended or nobody renewed it; then it is removed.
    async fn is_wanted(&self, control: &Session) -> Result<bool, tokio_postgres::Error> {
        let nonce = self.id.nonce.to_string();
        let end = "DELETE FROM penstock.barrier WHERE uid = $1 AND nonce = $2::pg_catalog.text::pg_catalog.uuid \
                   AND expires_at < pg_catalog.clock_timestamp()";
        control.execute(end, &[&self.id.uid, &nonce]).await?;
        let look =
            "SELECT FROM penstock.barrier WHERE uid = $1 AND nonce = $2::pg_catalog.text::pg_catalog.uuid";
        Ok(control.query_opt(look, &[&self.id.uid, &nonce]).await?.is_some())
    }
}

async fn export(session: &Session) -> Result<String, String> {
    let row = session.query_one("SELECT pg_catalog.pg_export_snapshot()", &[]).await.map_err(text)?;
    row.try_get(0).map_err(text)
}

impl Writer {
    /// What somebody waits for at the barrier; `None`: nobody does, or not for this lineage. Any role may write messages into
    /// the source's log, so one that is not registered means nothing.
    ///
    /// # Errors
    /// As `write`.
    pub async fn registered(&mut self, id: &BarrierId) -> Result<Option<BarrierKind>, Failure> {
        let sql = "SELECT kind FROM penstock.barrier AS barrier \
                   WHERE uid = $1 AND nonce = $2::pg_catalog.text::pg_catalog.uuid AND expires_at > pg_catalog.clock_timestamp() \
                     AND (kind <> 'comparison' OR uid = $4) \
                     AND NOT EXISTS (SELECT FROM penstock.barrier_arrival AS arrival \
                                     WHERE (arrival.uid, arrival.nonce) = (barrier.uid, barrier.nonce) \
                                       AND arrival.key = $4 AND arrival.shard = $3)";
        let (key, shard) = (self.key().to_owned(), self.shard());
        let found = self.session.query_opt(sql, &[&id.uid, &id.nonce.to_string(), &shard, &key]).await;
        let kind = found.and_then(|row| row.map(|row| row.try_get::<_, String>(0)).transpose());
        let kind = kind.map_err(|error| failed(&error, "looking whether a barrier is registered"))?;
        Ok(kind.and_then(|word| BarrierKind::read(&word)))
    }

    /// Notes in the open transaction, or in one of its own, that the shard has come to the barrier. It is to be committed
    /// with everything before the barrier: whoever waits then knows a run that ended in between from one that is slow.
    ///
    /// # Errors
    /// As `write`.
    pub async fn note_arrival(&mut self, id: &BarrierId) -> Result<(), Failure> {
        // The barrier may have ended since; then nobody waits.
        let sql = "INSERT INTO penstock.barrier_arrival (uid, nonce, key, shard, state, epoch) \
                   SELECT uid, nonce, $5, $3, 'opening', $4 FROM penstock.barrier \
                   WHERE uid = $1 AND nonce = $2::pg_catalog.text::pg_catalog.uuid FOR KEY SHARE \
                   ON CONFLICT DO NOTHING";
        let (nonce, shard, epoch) = (id.nonce.to_string(), self.shard(), self.epoch());
        let key = self.key().to_owned();
        self.execute_in_transaction(
            sql,
            &[&id.uid, &nonce, &shard, &epoch, &key],
            "noting the arrival at a barrier",
        )
        .await
        .map(drop)
    }
}
