//! The beginning of a run: take the fence from whoever has it, and read where the sink stands.

use penstock_crds::report::{Decisions, Reason};
use penstock_crds::spec::SessionReplicationRole;
use postgres_types::PgLsn;
use tokio_postgres::{Row, Transaction};

use super::barrier_registry::FORGET_BARRIERS;
use super::error::{failed, fenced};
use super::layout::{Layout, Role};
use super::owner::{Owner, TableMap};
use super::run::Run;
use super::session::{self, Purpose};
use super::tables::FirstCopy;
use super::{Sink, dead_end, heartbeat, lineages, schema};
use crate::change::{Checkpoint, Heartbeat, LogIdentity, Lsn, Position, SourceIdentity};
use crate::failpoint::{Point, reach};
use crate::failure::Failure;
use crate::postgres::{Endpoint, Session};

/// What the fence gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// Fencing number of this run.
    pub epoch: i64,
    /// Where the sink stands; `None` until the first load began.
    pub checkpoint: Option<Checkpoint>,
    /// The revision that had the shard before, if it was another one.
    pub moved_from_revision: Option<String>,
    /// UID that the slot and a managed publication are named after: the pipeline's own, or that of the pipeline
    /// whose state it adopted.
    pub names_uid: String,
    /// The slot that belongs to the state.
    pub slot: String,
    /// The log that its position is an address in.
    pub source: LogIdentity,
    /// The last mark that was read of it.
    pub heartbeat: Option<Heartbeat>,
    /// What the lineage is to its pipeline.
    pub role: Role,
    /// What was decided about dead ends of the shard and carried out.
    pub decisions: Decisions,
}

/// The server that is written to.
struct SinkIdentity {
    system_id: String,
    timeline: i64,
    server_version: u32,
}

/// Makes the schema if needed, takes the fence, and ends what is left of earlier runs. Called at every start and
/// every reconnect. `source` is what positions will be relative to; its slot is only used if the shard has no state.
///
/// # Errors
/// `Superseded` (a newer revision, or an adopter, has the shard), `SourceChanged`, `SinkPrivilegeMissing`,
/// `SinkUnreachable` (also a standby), `ManifestInvalid` (nothing to adopt; this worker is too old).
pub async fn start(
    endpoint: Endpoint,
    owner: Owner,
    tables: TableMap,
    source: &SourceIdentity,
) -> Result<(Sink, Started), Failure> {
    let mut session = session::open(&endpoint, &owner.application_name_of_shard(), Purpose::Control).await?;
    let identity = identify(&session).await?;
    schema::install(&mut session).await?;
    end_sessions_of_older_runs(&session, &owner).await?;
    let (run, layout, started) = take_fence(&mut session, &owner, &identity, source).await?;
    let tables = tables.laid_out(layout);
    let rename = "SELECT pg_catalog.set_config('application_name', $1, false)";
    session
        .query_one(rename, &[&owner.application_name(run.epoch)])
        .await
        .map_err(|error| failed(&error, "naming the session"))?;
    session
        .execute(FORGET_BARRIERS, &[])
        .await
        .map_err(|error| failed(&error, "removing barriers that nobody waits for"))?;
    let first_copy = FirstCopy::Copied;
    let server_version = identity.server_version;
    let changes = super::shapes::Allowed::default();
    let session_role = SessionReplicationRole::Origin;
    let sink =
        Sink { endpoint, owner, tables, first_copy, changes, run, session, session_role, server_version };
    Ok((sink, started))
}

async fn identify(session: &Session) -> Result<SinkIdentity, Failure> {
    let doing = "reading the sink's identity";
    let sql = "SELECT pg_catalog.pg_is_in_recovery()";
    let is_standby: bool = session
        .query_one(sql, &[])
        .await
        .and_then(|row| row.try_get(0))
        .map_err(|error| failed(&error, doing))?;
    if is_standby {
        let message = "The sink is a standby and cannot be written to. Point sink.postgres.connection at the primary, or wait until \
                       this server is promoted.";
        return Err(Failure::new(Reason::SinkUnreachable, message));
    }
    let sql = "SELECT system_identifier::pg_catalog.text, \
               ('x' || pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8)) \
                   ::pg_catalog.bit(32)::pg_catalog.int8, \
               pg_catalog.current_setting('server_version_num')::pg_catalog.oid \
               FROM pg_catalog.pg_control_system()";
    let row = session.query_one(sql, &[]).await.map_err(|error| failed(&error, doing))?;
    let read = || {
        Ok(SinkIdentity {
            system_id: row.try_get(0)?,
            timeline: row.try_get(1)?,
            server_version: row.try_get(2)?,
        })
    };
    read().map_err(|error| failed(&error, doing))
}

/// A session of an older run may hold locks although its worker is frozen or gone. It could not commit any more;
/// ending it only saves the wait. Only sessions of runs that the fence has passed are ended, and only those of
/// the worker's own role.
async fn end_sessions_of_older_runs(session: &Session, owner: &Owner) -> Result<(), Failure> {
    let sql = "SELECT pg_catalog.count(pg_catalog.pg_terminate_backend(activity.pid)) \
               FROM pg_catalog.pg_stat_activity AS activity, penstock.checkpoint AS checkpoint \
               WHERE checkpoint.uid = $1 AND checkpoint.shard = $2 \
                 AND ($3::pg_catalog.int8 IS NULL OR checkpoint.revision_number IS NULL OR checkpoint.revision_number <= $3) \
                 AND activity.datname = pg_catalog.current_database() AND activity.usename = current_user \
                 AND activity.pid <> pg_catalog.pg_backend_pid() \
                 AND CASE WHEN activity.application_name ~ ('^' || $4 || '/[0-9]{1,18}$') \
                     THEN pg_catalog.split_part(activity.application_name, '/', 4)::pg_catalog.int8 <= checkpoint.epoch \
                     ELSE false END";
    let shard = i32::from(owner.shard);
    session
        .query_one(sql, &[owner.key(), &shard, &owner.revision_number, &owner.application_name_of_shard()])
        .await
        .map_err(|error| failed(&error, "ending the sessions of an older run"))
        .map(drop)
}

async fn take_fence(
    session: &mut Session,
    owner: &Owner,
    sink: &SinkIdentity,
    source: &SourceIdentity,
) -> Result<(Run, Layout, Started), Failure> {
    let doing = "taking the fence";
    let transaction = session.transaction().await.map_err(|error| failed(&error, doing))?;
    refuse_if_adopted(&transaction, owner).await?;
    let mut found = lock_row(&transaction, owner).await?;
    if found.is_none() {
        make_row(&transaction, owner, sink, source).await?;
        found = lock_row(&transaction, owner).await?;
    }
    let row = found.ok_or_else(|| fenced("the state of the pipeline was removed while this run began"))?;
    // The row is locked: nobody exchanges tables from here on.
    let role = lineages::enter(&transaction, &owner.lineage).await?;
    if role == Role::Previous && row.revision != owner.revision {
        return Err(lineages::kept_for_the_way_back(owner.lineage.key(), &row.revision, &owner.revision));
    }
    row.check(owner, sink)?;
    if let Err(failure) = row.recognise(source) {
        let shard = (owner.key(), i32::from(owner.shard));
        let decided = dead_end::decided(&transaction, shard, source).await;
        if decided.map_err(|error| failed(&error, doing))?.is_none() {
            dead_end::note(&transaction, shard, &failure, source, None)
                .await
                .map_err(|error| failed(&error, doing))?;
            transaction.commit().await.map_err(|error| failed(&error, doing))?;
            return Err(failure);
        }
    }
    let read = async {
        let layout = Layout::read(&transaction, &owner.lineage, role).await?;
        let (run, started) = bump(&transaction, owner, (source, sink), (&row, role)).await?;
        Ok((run, layout, started))
    };
    let started = read.await.map_err(|error: tokio_postgres::Error| failed(&error, doing))?;
    reach(Point::BeforeEpochBump)?;
    transaction.commit().await.map_err(|error| failed(&error, doing))?;
    reach(Point::AfterEpochBump)?;
    Ok(started)
}

/// The checkpoint row before this run took it.
struct Before {
    revision: String,
    revision_number: Option<i64>,
    source_system_id: String,
    source_timeline: i64,
    has_position: bool,
    sink_system_id: String,
    sink_timeline: i64,
}

impl Before {
    fn read(row: &Row) -> Result<Self, tokio_postgres::Error> {
        Ok(Self {
            revision: row.try_get(0)?,
            revision_number: row.try_get(1)?,
            source_system_id: row.try_get(2)?,
            source_timeline: row.try_get(3)?,
            sink_system_id: row.try_get(4)?,
            sink_timeline: row.try_get(5)?,
            has_position: row.try_get(6)?,
        })
    }

    fn check(&self, owner: &Owner, sink: &SinkIdentity) -> Result<(), Failure> {
        if let (Some(theirs), Some(ours)) = (self.revision_number, owner.revision_number)
            && theirs > ours
        {
            let message = format!(
                "Revision {} (number {theirs}) of the pipeline has shard {}; revision {} (number {ours}) is older and stops.",
                self.revision, owner.shard, owner.revision
            );
            return Err(Failure::new(Reason::Superseded, message));
        }
        // Rows and checkpoint move together, so another server that holds both is as good as the first one, as far
        // as it goes. Commits that it lost show when the slot is compared.
        if self.sink_system_id != sink.system_id || self.sink_timeline != sink.timeline {
            tracing::warn!(
                system_id = sink.system_id,
                timeline = sink.timeline,
                "the sink is another server or on another timeline than before (was {}, {}); going on if it lost no commit",
                self.sink_system_id,
                self.sink_timeline
            );
        }
        Ok(())
    }

    /// Another system is refused before the fence is taken: the run that has it may be the one with the right source.
    /// Another timeline may be a promoted standby, about which slot and volume have a word to say.
    fn recognise(&self, source: &SourceIdentity) -> Result<(), Failure> {
        if !self.has_position || self.source_system_id == source.system_id {
            return Ok(());
        }
        let log = |system_id: &str, timeline| LogIdentity { system_id: system_id.to_owned(), timeline };
        let before = log(&self.source_system_id, u32::try_from(self.source_timeline).unwrap_or_default());
        Err(Failure::source_is_another(&log(&source.system_id, source.timeline), &before))
    }
}

async fn refuse_if_adopted(transaction: &Transaction<'_>, owner: &Owner) -> Result<(), Failure> {
    let sql = "SELECT adopted_by FROM penstock.adoption WHERE uid = $1";
    let adopter: Option<String> = transaction
        .query_opt(sql, &[owner.key()])
        .await
        .and_then(|row| row.map(|row| row.try_get(0)).transpose())
        .map_err(|error| failed(&error, "looking whether the state was adopted"))?;
    match adopter {
        None => Ok(()),
        Some(adopter) => Err(Failure::new(
            Reason::Superseded,
            format!(
                "The pipeline with UID {adopter} adopted the state of this one ({}); this one stops.",
                owner.key()
            ),
        )),
    }
}

/// Waits for transactions that hold the fence, then holds it: what is read next cannot change before the bump.
async fn lock_row(transaction: &Transaction<'_>, owner: &Owner) -> Result<Option<Before>, Failure> {
    let sql = "SELECT revision, revision_number, source_system_id, source_timeline, sink_system_id, sink_timeline, \
                   end_lsn IS NOT NULL \
               FROM penstock.checkpoint WHERE uid = $1 AND shard = $2 FOR NO KEY UPDATE";
    transaction
        .query_opt(sql, &[owner.key(), &i32::from(owner.shard)])
        .await
        .and_then(|row| row.as_ref().map(Before::read).transpose())
        .map_err(|error| failed(&error, "waiting for the fence"))
}

/// The first run of the shard: its row is made, or taken over from the pipeline to adopt.
async fn make_row(
    transaction: &Transaction<'_>,
    owner: &Owner,
    sink: &SinkIdentity,
    source: &SourceIdentity,
) -> Result<(), Failure> {
    let doing = "making the checkpoint";
    if let Some(old) = &owner.adopt
        && owner.lineage.begun_by().is_none()
        && adopt(transaction, owner, old).await?
    {
        return Ok(());
    }
    let sql = "INSERT INTO penstock.checkpoint (uid, shard, namespace, name, revision, revision_number, names_uid, epoch, \
                   source_system_id, source_timeline, slot, sink_system_id, sink_timeline, volume_id, shards) \
               VALUES ($1, $2, $3, $4, $5, $6, \
                   COALESCE((SELECT names_uid FROM penstock.checkpoint WHERE uid = $1 LIMIT 1), $1), 0, $7, $8, $9, $10, $11, $12::pg_catalog.text::pg_catalog.uuid, $13) \
               ON CONFLICT (uid, shard) DO NOTHING";
    transaction
        .execute(
            sql,
            &[
                owner.key(),
                &i32::from(owner.shard),
                &owner.namespace,
                &owner.name,
                &owner.revision,
                &owner.revision_number,
                &source.system_id,
                &i64::from(source.timeline),
                &source.slot,
                &sink.system_id,
                &sink.timeline,
                &owner.volume_id.to_string(),
                &i32::from(owner.shards),
            ],
        )
        .await
        .map_err(|error| failed(&error, doing))
        .map(drop)
}

/// Moves the state of a deleted pipeline to this one; the first shard moves what is not of one shard. `false`:
/// other shards were adopted before, and this one had none.
async fn adopt(transaction: &Transaction<'_>, owner: &Owner, old: &str) -> Result<bool, Failure> {
    let doing = "adopting the state of a deleted pipeline";
    let error = |error: tokio_postgres::Error| failed(&error, doing);
    refuse_other_shards(transaction, owner, old).await?;
    lineages::adopt(transaction, owner.key(), old).await?;
    // Its numbers of revisions mean nothing here.
    let take =
        "UPDATE penstock.checkpoint SET uid = $1, revision_number = NULL WHERE uid = $2 AND shard = $3";
    let taken =
        transaction.execute(take, &[owner.key(), &old, &i32::from(owner.shard)]).await.map_err(error)?;
    let note = "INSERT INTO penstock.adoption (uid, adopted_by) SELECT $2, $1 \
                WHERE $3 OR EXISTS (SELECT FROM penstock.checkpoint WHERE uid = $2) ON CONFLICT (uid) DO NOTHING";
    transaction.execute(note, &[owner.key(), &old, &(taken > 0)]).await.map_err(error)?;
    let noted = "SELECT FROM penstock.adoption WHERE uid = $2 AND adopted_by = $1";
    if transaction.query_opt(noted, &[owner.key(), &old]).await.map_err(error)?.is_none() {
        let message = format!(
            "The annotation penstock.dev/adopt names the UID {old}, but the sink holds no state of that pipeline, or another \
             pipeline adopted it. Correct the UID (SELECT uid, namespace, name FROM penstock.checkpoint shows what there is) or remove the annotation."
        );
        return Err(Failure::new(Reason::ManifestInvalid, message));
    }
    for table in ["table_state", "assignment", "ownership", "accepted_loss", "resnapshot"] {
        let sql = format!("UPDATE penstock.{table} SET uid = $1 WHERE uid = $2");
        transaction.execute(&sql, &[owner.key(), &old]).await.map_err(error)?;
    }
    let rename = "UPDATE penstock.ownership SET namespace = $2, name = $3 WHERE uid = $1";
    transaction.execute(rename, &[owner.key(), &owner.namespace, &owner.name]).await.map_err(error)?;
    Ok(taken > 0)
}

/// A table belongs to the shard that it was assigned to, and its position is that shard's.
async fn refuse_other_shards(transaction: &Transaction<'_>, owner: &Owner, old: &str) -> Result<(), Failure> {
    let sql = "SELECT shards FROM penstock.checkpoint WHERE uid = $1 AND shards <> $2 LIMIT 1";
    let found = transaction
        .query_opt(sql, &[&old, &i32::from(owner.shards)])
        .await
        .and_then(|row| row.map(|row| row.try_get::<_, i32>(0)).transpose())
        .map_err(|error| failed(&error, "counting the shards of a deleted pipeline"))?;
    let Some(shards) = found else { return Ok(()) };
    let message = format!(
        "The pipeline with UID {old} has {shards} shards, and this one {}; its state can be adopted only with the same number. \
         Set worker.shards to {shards} in a new CdcPipeline, or remove the annotation penstock.dev/adopt.",
        owner.shards
    );
    Err(Failure::new(Reason::ManifestInvalid, message))
}

async fn bump(
    transaction: &Transaction<'_>,
    owner: &Owner,
    (source, sink): (&SourceIdentity, &SinkIdentity),
    (before, role): (&Before, Role),
) -> Result<(Run, Started), tokio_postgres::Error> {
    let shard = i32::from(owner.shard);
    let sql = "UPDATE penstock.checkpoint SET epoch = epoch + 1, run_id = pg_catalog.gen_random_uuid(), namespace = $3, name = $4, revision = $5, \
                   revision_number = COALESCE($6, revision_number), sink_system_id = $7, sink_timeline = $8, \
                   volume_id = $9::pg_catalog.text::pg_catalog.uuid, updated_at = pg_catalog.now(), \
                   source_system_id = CASE WHEN end_lsn IS NULL THEN $10 ELSE source_system_id END, \
                   source_timeline = CASE WHEN end_lsn IS NULL THEN $11 ELSE source_timeline END \
               WHERE uid = $1 AND shard = $2 \
               RETURNING epoch, layout, names_uid, slot, sequence, commit_lsn, xid, ordinal, end_lsn, \
                   run_id::pg_catalog.text, source_system_id, source_timeline, \
                   heartbeat_lsn, heartbeat_xid, heartbeat_token::pg_catalog.text";
    let row = transaction
        .query_one(
            sql,
            &[
                owner.key(),
                &shard,
                &owner.namespace,
                &owner.name,
                &owner.revision,
                &owner.revision_number,
                &sink.system_id,
                &sink.timeline,
                &owner.volume_id.to_string(),
                &source.system_id,
                &i64::from(source.timeline),
            ],
        )
        .await?;
    let timeline: i64 = row.try_get(11)?;
    let source =
        LogIdentity { system_id: row.try_get(10)?, timeline: u32::try_from(timeline).unwrap_or_default() };
    let run = Run {
        lineage: owner.lineage.clone(),
        shard,
        epoch: row.try_get(0)?,
        id: row.try_get(9)?,
        layout: row.try_get(1)?,
    };
    let started = Started {
        epoch: run.epoch,
        checkpoint: read_checkpoint(&row)?,
        moved_from_revision: Some(before.revision.clone()).filter(|revision| *revision != owner.revision),
        names_uid: row.try_get(2)?,
        slot: row.try_get(3)?,
        source,
        heartbeat: heartbeat::read(&row)?,
        role,
        decisions: dead_end::carried_out(transaction, (owner.key(), shard)).await?,
    };
    Ok((run, started))
}

fn read_checkpoint(row: &Row) -> Result<Option<Checkpoint>, tokio_postgres::Error> {
    let lsn = |lsn: PgLsn| Lsn(lsn.into());
    let parts: (Option<PgLsn>, Option<i64>, Option<i64>, Option<PgLsn>) =
        (row.try_get(5)?, row.try_get(6)?, row.try_get(7)?, row.try_get(8)?);
    let (Some(commit_lsn), Some(xid), Some(ordinal), Some(end_lsn)) = parts else { return Ok(None) };
    let position = Position {
        commit_lsn: lsn(commit_lsn),
        xid: u32::try_from(xid).unwrap_or_default(),
        ordinal: ordinal.cast_unsigned(),
    };
    Ok(Some(Checkpoint { position, end_lsn: lsn(end_lsn), sequence: row.try_get(4)? }))
}
