//! Dead ends, what a person decided about them, and what came of it: `penstock.dead_end`, `penstock.accepted_loss`.

use penstock_crds::report::Decisions;
use postgres_types::PgLsn;
use tokio_postgres::{Error, Row, Transaction};

use super::Sink;
use super::error::failed;
use super::schema::has_table;
use super::session::{self, Purpose};
use super::state::fenced_transaction;
use crate::change::{Checkpoint, Lsn, SourceIdentity};
use crate::failpoint::{Point, reach};
use crate::failure::Failure;
use crate::postgres::Endpoint;

/// Where a pipeline goes on that cannot go on by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// From a new slot, with all tables copied again.
    BeginAnew,
    /// From the slot as it is, or a new one; nothing is copied.
    AcceptLoss,
}

impl Decision {
    fn as_str(self) -> &'static str {
        match self {
            Self::BeginAnew => "begin-anew",
            Self::AcceptLoss => "accept-loss",
        }
    }

    fn read(word: &str) -> Self {
        if word == Self::AcceptLoss.as_str() { Self::AcceptLoss } else { Self::BeginAnew }
    }
}

/// A shard that cannot go on by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadEnd {
    /// Shard, from 0.
    pub shard: i32,
    /// Stable word for it.
    pub reason: String,
    /// What happened.
    pub message: String,
    /// The source is not the server that the sink's position belongs to.
    pub is_other_system: bool,
    /// The sink holds no position.
    pub is_sink_empty: bool,
}

const DOING: &str = "noting that a person is needed";

/// The rest of what a row means: it counts as long as the shard stands where it stood, before the same source.
const IS_HERE: &str = "EXISTS (SELECT FROM penstock.checkpoint AS checkpoint \
     WHERE (checkpoint.uid, checkpoint.shard) = (dead_end.uid, dead_end.shard) \
       AND checkpoint.end_lsn IS NOT DISTINCT FROM dead_end.end_lsn)";

/// Notes a dead end before the source as it is; a decision about it is kept as long as the shard stands where it did.
pub(super) async fn note(
    transaction: &Transaction<'_>,
    (uid, shard): (&String, i32),
    failure: &Failure,
    source: &SourceIdentity,
    source_end: Option<Lsn>,
) -> Result<(), Error> {
    let is_same = "(dead_end.end_lsn, dead_end.source_system_id, dead_end.source_timeline) \
                   IS NOT DISTINCT FROM (excluded.end_lsn, excluded.source_system_id, excluded.source_timeline)";
    let kept = |column: &str| format!("{column} = CASE WHEN {is_same} THEN dead_end.{column} END");
    let decision = ["decision", "why", "decided_by", "decided_at"].map(kept).join(", ");
    let sql = format!(
        "INSERT INTO penstock.dead_end (uid, shard, reason, message, end_lsn, source_system_id, source_timeline, source_end) \
         SELECT uid, shard, $3, $4, end_lsn, $5, $6, $7 FROM penstock.checkpoint WHERE uid = $1 AND shard = $2 \
         ON CONFLICT (uid, shard) DO UPDATE SET {decision}, reason = excluded.reason, message = excluded.message, \
             end_lsn = excluded.end_lsn, source_system_id = excluded.source_system_id, \
             source_timeline = excluded.source_timeline, \
             source_end = CASE WHEN {is_same} THEN LEAST(dead_end.source_end, excluded.source_end) ELSE excluded.source_end END, \
             noted_at = excluded.noted_at"
    );
    let reason = format!("{:?}", failure.reason);
    let timeline = i64::from(source.timeline);
    transaction
        .execute(
            &sql,
            &[
                uid,
                &shard,
                &reason,
                &failure.message,
                &source.system_id,
                &timeline,
                &source_end.map(|end| PgLsn::from(end.0)),
            ],
        )
        .await
        .map(drop)
}

/// What was decided about the place where the shard stands before that source.
pub(super) async fn decided(
    client: &impl tokio_postgres::GenericClient,
    (uid, shard): (&String, i32),
    source: &SourceIdentity,
) -> Result<Option<Decision>, Error> {
    let sql = format!(
        "SELECT decision FROM penstock.dead_end WHERE uid = $1 AND shard = $2 AND decision IS NOT NULL \
           AND source_system_id = $3 AND source_timeline = $4 AND {IS_HERE}"
    );
    let row = client.query_opt(&sql, &[uid, &shard, &source.system_id, &i64::from(source.timeline)]).await?;
    row.map(|row| row.try_get(0).map(|word: &str| Decision::read(word))).transpose()
}

/// What was decided about the shard and carried out, ever.
pub(super) async fn carried_out(
    client: &impl tokio_postgres::GenericClient,
    (uid, shard): (&String, i32),
) -> Result<Decisions, Error> {
    let sql = "SELECT pg_catalog.count(*), \
                   COALESCE((EXTRACT(epoch FROM pg_catalog.max(carried_out_at)) * 1000000)::pg_catalog.int8, 0) \
               FROM penstock.accepted_loss WHERE uid = $1 AND shard = $2";
    let row = client.query_one(sql, &[uid, &shard]).await?;
    Ok(Decisions { count: row.try_get(0)?, last_micros: row.try_get(1)? })
}

impl Sink {
    /// What a person decided about the place where the shard stands, if anything.
    pub async fn decision(&self, source: &SourceIdentity) -> Result<Option<Decision>, Failure> {
        decided(&*self.session, (self.owner.key(), self.run.shard), source)
            .await
            .map_err(|error| failed(&error, "looking what was decided"))
    }

    /// That this source was found to lack what was read before, and where its log ended then. Its log grows, and does not
    /// lack anything then that could be seen.
    pub async fn lost_log(&self, source: &SourceIdentity) -> Result<Option<(String, Lsn)>, Failure> {
        let sql = format!(
            "SELECT message, source_end FROM penstock.dead_end WHERE uid = $1 AND shard = $2 AND reason = 'SourceChanged' \
               AND source_end IS NOT NULL AND source_system_id = $3 AND source_timeline = $4 AND {IS_HERE}"
        );
        let timeline = i64::from(source.timeline);
        let read = async {
            let row = self
                .session
                .query_opt(&sql, &[self.owner.key(), &self.run.shard, &source.system_id, &timeline])
                .await?;
            let read = |row: Row| Ok((row.try_get(0)?, Lsn(row.try_get::<_, PgLsn>(1)?.into())));
            row.map(read).transpose()
        };
        read.await.map_err(|error: Error| failed(&error, "looking what was found before"))
    }

    /// Notes that the shard cannot go on by itself, so that a person can decide about it; and where the source's log ends.
    pub async fn note_dead_end(
        &mut self,
        failure: &Failure,
        source: &SourceIdentity,
        source_end: Option<Lsn>,
    ) -> Result<(), Failure> {
        let transaction = fenced_transaction(&mut self.session, &self.run, DOING).await?;
        let noted = note(&transaction, (self.owner.key(), self.run.shard), failure, source, source_end).await;
        noted.map_err(|error| failed(&error, DOING))?;
        transaction.commit().await.map_err(|error| failed(&error, DOING))
    }

    /// The shard goes on: what was a dead end is none.
    pub async fn no_dead_end(&mut self) -> Result<(), Failure> {
        let doing = "noting that nobody is needed";
        let transaction = fenced_transaction(&mut self.session, &self.run, doing).await?;
        let sql = "DELETE FROM penstock.dead_end WHERE uid = $1 AND shard = $2 AND decision IS NULL";
        let forgotten = transaction.execute(sql, &[self.owner.key(), &self.run.shard]).await;
        forgotten.map_err(|error| failed(&error, doing))?;
        transaction.commit().await.map_err(|error| failed(&error, doing))
    }

    /// The latest commit of which the sink may hold something: of a change, or of what a table was copied with.
    pub async fn holds(&self) -> Result<Lsn, Failure> {
        let sql = "SELECT GREATEST(checkpoint.commit_lsn, \
                       (SELECT checkpoint.end_lsn - 1::pg_catalog.numeric WHERE EXISTS ( \
                            SELECT FROM penstock.copied_chunk AS chunk JOIN penstock.assignment AS assignment USING (uid, source_schema, source_table) \
                            WHERE chunk.uid = $1 AND assignment.shard = $2)), \
                       (SELECT max(state.ready_lsn) - 1::pg_catalog.numeric FROM penstock.table_state AS state \
                        JOIN penstock.assignment AS assignment USING (uid, source_schema, source_table) \
                        WHERE state.uid = $1 AND assignment.shard = $2)) \
                   FROM penstock.checkpoint AS checkpoint WHERE uid = $1 AND shard = $2";
        let read = async {
            let row = self.session.query_one(sql, &[self.owner.key(), &self.run.shard]).await?;
            let lsn: Option<PgLsn> = row.try_get(0)?;
            Ok(lsn.map_or(Lsn(0), |lsn| Lsn(lsn.into())))
        };
        read.await.map_err(|error: Error| failed(&error, "reading what the sink holds"))
    }

    /// The source goes on as a promoted standby: from here the position is an address in its log.
    pub async fn follow_source(
        &mut self,
        checkpoint: &Checkpoint,
        source: &SourceIdentity,
    ) -> Result<(), Failure> {
        let doing = "noting that the source was promoted";
        let transaction = fenced_transaction(&mut self.session, &self.run, doing).await?;
        let sql = "UPDATE penstock.checkpoint SET end_lsn = $3, source_timeline = $4, updated_at = pg_catalog.clock_timestamp() \
                   WHERE uid = $1 AND shard = $2";
        let (end, timeline) = (PgLsn::from(checkpoint.end_lsn.0), i64::from(source.timeline));
        let moved = transaction.execute(sql, &[self.owner.key(), &self.run.shard, &end, &timeline]).await;
        moved.map_err(|error| failed(&error, doing))?;
        transaction.commit().await.map_err(|error| failed(&error, doing))
    }

    /// Carries a decision out: the shard stands at the checkpoint from now on, before that source. What was copied
    /// before is worth nothing if it begins anew, and taken for whole from the slot's beginning on if the loss was
    /// accepted. Says who decided it, and why; and what was carried out with it.
    pub async fn begin_as_decided(
        &mut self,
        decision: Decision,
        checkpoint: &Checkpoint,
        source: &SourceIdentity,
        is_new_slot: bool,
    ) -> Result<(String, Decisions), Failure> {
        let doing = "carrying out what was decided";
        let transaction = fenced_transaction(&mut self.session, &self.run, doing).await?;
        let owner = (self.owner.key(), self.run.shard);
        let begin = async {
            let end = PgLsn::from(checkpoint.end_lsn.0);
            let sql = match (decision, is_new_slot) {
                (Decision::BeginAnew, _) => Some(
                    "SET state = 'copying', ready_lsn = NULL, copied_by = NULL, copied_to = NULL, chunks_copied = 0, rows_copied = 0",
                ),
                (Decision::AcceptLoss, true) => {
                    Some("SET ready_lsn = CASE WHEN state.state = 'ready' THEN $3::pg_catalog.pg_lsn END")
                }
                (Decision::AcceptLoss, false) => None,
            };
            if let Some(set) = sql {
                set_states(&transaction, set, owner, end).await?;
            }
            let by = record(&transaction, owner, decision, end).await?;
            stand(&transaction, owner, checkpoint, source).await?;
            Ok((by, carried_out(&transaction, owner).await?))
        };
        let carried_out = begin.await.map_err(|error: Error| failed(&error, doing))?;
        reach(Point::BeforeFirstCheckpoint)?;
        transaction.commit().await.map_err(|error| failed(&error, doing))?;
        reach(Point::AfterFirstCheckpoint)?;
        Ok(carried_out)
    }
}

async fn set_states(
    transaction: &Transaction<'_>,
    set: &str,
    (uid, shard): (&String, i32),
    end: PgLsn,
) -> Result<(), Error> {
    let sql = format!(
        "UPDATE penstock.table_state AS state {set}, updated_at = CASE WHEN $3::pg_catalog.pg_lsn IS NOT NULL THEN pg_catalog.now() END \
         FROM penstock.assignment AS assignment WHERE state.uid = $1 AND assignment.uid = $1 AND assignment.shard = $2 \
           AND (state.source_schema, state.source_table) = (assignment.source_schema, assignment.source_table)"
    );
    transaction.execute(&sql, &[uid, &shard, &end]).await.map(drop)
}

/// From the dead end to what is kept for good.
async fn record(
    transaction: &Transaction<'_>,
    (uid, shard): (&String, i32),
    decision: Decision,
    to: PgLsn,
) -> Result<String, Error> {
    let sql = "INSERT INTO penstock.accepted_loss (uid, shard, namespace, name, reason, message, decision, why, decided_by, \
                   decided_at, from_lsn, to_lsn) \
               SELECT uid, shard, namespace, name, dead_end.reason, dead_end.message, $3, why, decided_by, decided_at, \
                   checkpoint.end_lsn, $4 \
               FROM penstock.dead_end AS dead_end JOIN penstock.checkpoint AS checkpoint USING (uid, shard) \
               WHERE uid = $1 AND shard = $2 RETURNING why, decided_by";
    let row = transaction.query_one(sql, &[uid, &shard, &decision.as_str(), &to]).await?;
    let (why, by): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    transaction
        .execute("DELETE FROM penstock.dead_end WHERE uid = $1 AND shard = $2", &[uid, &shard])
        .await?;
    Ok(format!("decided by {by}: {why}"))
}

async fn stand(
    transaction: &Transaction<'_>,
    (uid, shard): (&String, i32),
    checkpoint: &Checkpoint,
    source: &SourceIdentity,
) -> Result<(), Error> {
    let sql = "UPDATE penstock.checkpoint SET sequence = $3, commit_lsn = $4, xid = $5, ordinal = $6, end_lsn = $7, \
                   source_system_id = $8, source_timeline = $9, \
                   heartbeat_lsn = NULL, heartbeat_xid = NULL, heartbeat_token = NULL, updated_at = pg_catalog.clock_timestamp() \
               WHERE uid = $1 AND shard = $2";
    let Checkpoint { position, end_lsn, sequence } = checkpoint;
    let (commit_lsn, end) = (PgLsn::from(position.commit_lsn.0), PgLsn::from(end_lsn.0));
    let (xid, ordinal) = (i64::from(position.xid), position.ordinal.cast_signed());
    let timeline = i64::from(source.timeline);
    transaction
        .execute(
            sql,
            &[uid, &shard, sequence, &commit_lsn, &xid, &ordinal, &end, &source.system_id, &timeline],
        )
        .await
        .map(drop)
}

/// Writes down what was decided about every shard of a pipeline that stands at a dead end; `refuse` says why it
/// cannot be. Returns them; none: there is nothing to decide.
pub async fn decide(
    endpoint: &Endpoint,
    uid: &str,
    decision: Decision,
    (why, by): (&str, &str),
    refuse: impl Fn(&DeadEnd) -> Result<(), Failure>,
) -> Result<Vec<DeadEnd>, Failure> {
    let mut session = session::open(endpoint, "penstock decide", Purpose::Control).await?;
    let doing = "writing down what was decided";
    if !has_table(&session.client, "version").await.map_err(|error| failed(&error, doing))? {
        return Ok(Vec::new());
    }
    let transaction = session.transaction().await.map_err(|error| failed(&error, doing))?;
    let found = dead_ends(&transaction, uid).await.map_err(|error| failed(&error, doing))?;
    found.iter().try_for_each(refuse)?;
    let write = async {
        for dead_end in &found {
            let sql = "UPDATE penstock.dead_end SET decision = $3, why = $4, decided_at = pg_catalog.now(), \
                           decided_by = $5 || ' (role ' || current_user || ')' WHERE uid = $1 AND shard = $2";
            transaction.execute(sql, &[&uid, &dead_end.shard, &decision.as_str(), &why, &by]).await?;
        }
        transaction.commit().await
    };
    write.await.map_err(|error| failed(&error, doing))?;
    Ok(found)
}

async fn dead_ends(transaction: &Transaction<'_>, uid: &str) -> Result<Vec<DeadEnd>, Error> {
    // As every transaction of a worker does, the fence first.
    let lock = "SELECT FROM penstock.checkpoint WHERE uid = $1 ORDER BY shard FOR NO KEY UPDATE";
    transaction.query(lock, &[&uid]).await?;
    let sql = format!(
        "SELECT shard, reason, message, source_system_id <> \
             (SELECT source_system_id FROM penstock.checkpoint AS c WHERE (c.uid, c.shard) = (dead_end.uid, dead_end.shard)), \
             end_lsn IS NULL \
         FROM penstock.dead_end WHERE uid = $1 AND {IS_HERE} ORDER BY shard"
    );
    let read = |row: &Row| {
        Ok(DeadEnd {
            shard: row.try_get(0)?,
            reason: row.try_get(1)?,
            message: row.try_get(2)?,
            is_other_system: row.try_get(3)?,
            is_sink_empty: row.try_get(4)?,
        })
    };
    transaction.query(&sql, &[&uid]).await?.iter().map(read).collect()
}
