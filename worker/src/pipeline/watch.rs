//! Looks at the source every few seconds while the stream runs: where its log ends, how much of it the slot keeps,
//! and whether the tables are still those that were inspected.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use penstock_crds::report::{NoticeReason, Reason};
use penstock_crds::source::PostgresSource;
use penstock_crds::table_pattern::TablePattern;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::Context;
use super::heartbeat::Due;
use super::shapes::Announced;
use super::start::{Fenced, patterns};
use crate::change::table::{SourceTable, TableName};
use crate::change::{HEARTBEAT_PREFIX, Heartbeat, PresentTable, RelationId, TableShape};
use crate::failure::Failure;
use crate::postgres::{End, Endpoint, Session};
use crate::serve::Metrics;
use crate::settings::Pipeline;
use crate::source::{self, Drift, Followed, PublicationName, Shapes, SlotName, SourceError};
use crate::status::Status;
use crate::transform::Transforms;

const LOOK_EVERY: Duration = Duration::from_secs(3);
/// The tables change seldom, and listing many of them takes a while.
const LOOK_AT_TABLES_EVERY: Duration = Duration::from_secs(10);
/// How long changes are applied while nobody can look.
const BLIND_MAX: Duration = Duration::from_mins(1);
/// Tables that are announced before the log and the others are looked at again, and how long that may take.
const ANNOUNCED_MAX: usize = 32;
const ANNOUNCE_FOR: Duration = LOOK_EVERY;
/// Whoever comes after the watch in the queue for a lock waits as long.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Watches until the handle is dropped. What ends the watch, ends the attempt: the next one looks at the tables anew.
pub(super) fn watch_source(
    context: Context<'_>,
    fenced: &Fenced,
    followed: Followed,
    announcer: Announcer,
    heartbeat_due: Due,
) -> Result<AbortOnDropHandle<Ended>, Failure> {
    let settings = context.settings;
    let watch = Watch {
        endpoint: settings.pipeline.source.clone(),
        slot: fenced.slot.clone(),
        publication: fenced.publication.clone(),
        uid: settings.pipeline.lineage.key().clone(),
        shard: settings.shard,
        heartbeat_due,
        followed,
        announcer,
        patterns: patterns(context)?,
        spec: settings.pipeline.manifest.spec.source.postgres.clone(),
        pipeline: settings.pipeline.clone(),
        status: context.status.clone(),
        metrics: context.metrics.clone(),
        tables_looked_at: None,
        refused: None,
    };
    Ok(AbortOnDropHandle::new(tokio::spawn(watch.run())))
}

/// Why the watch is over.
pub(super) struct Ended {
    pub(super) failure: Failure,
    /// Tables that have to be copied again.
    pub(super) lost: Vec<TableName>,
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self { failure, lost: Vec::new() }
    }
}

struct Watch {
    endpoint: Endpoint,
    slot: SlotName,
    publication: PublicationName,
    uid: String,
    shard: u16,
    heartbeat_due: Due,
    /// Those of this shard; for shard 0, which keeps the publication, those of all.
    followed: Followed,
    announcer: Announcer,
    patterns: Vec<TablePattern>,
    spec: PostgresSource,
    pipeline: Pipeline,
    status: Status,
    metrics: Metrics,
    /// When; `None`: not yet in this run.
    tables_looked_at: Option<Instant>,
    /// Why a new table cannot be copied, as it was told.
    refused: Option<String>,
}

/// Tells the stream about tables whose columns are not as they were.
pub(super) struct Announcer {
    /// As the sink's rows are, or as they were announced since.
    known: HashMap<RelationId, TableShape>,
    transforms: Arc<Transforms>,
    announce: mpsc::UnboundedSender<Announced>,
    /// The last one that had its turn.
    last: RelationId,
}

impl Announcer {
    pub(super) fn new(
        known: HashMap<RelationId, TableShape>,
        transforms: Arc<Transforms>,
        announce: mpsc::UnboundedSender<Announced>,
    ) -> Self {
        Self { known, transforms, announce, last: RelationId(0) }
    }

    /// Whether all of them had their turn.
    async fn look(&mut self, session: &Session) -> Result<bool, SourceError> {
        let ids: Vec<RelationId> = self.known.keys().copied().collect();
        let mut now = source::shapes(session, &ids).await?;
        self.transforms.veil_all(&mut now);
        let changed = self.changed(&now);
        let began = Instant::now();
        for (turn, id) in changed.iter().copied().enumerate() {
            if turn == ANNOUNCED_MAX || began.elapsed() >= ANNOUNCE_FOR {
                return Ok(false);
            }
            self.last = id;
            let content = Uuid::new_v4().to_string();
            let mut told = None;
            let tell = |mut present: PresentTable| {
                self.transforms.veil(id, &mut present.shape);
                told = Some(present.shape.clone());
                let _nobody_listens = self.announce.send(Announced { content: content.clone(), present });
            };
            match source::announce_table(session, id, LOCK_PATIENCE, &content, tell).await {
                Ok(()) => self.known.extend(told.map(|shape| (id, shape))),
                Err(error) if session.client.is_closed() => return Err(error),
                // Somebody alters it right now, or its rows cannot be carried any more: the stream will tell.
                Err(error) => tracing::debug!("a table that was altered could not be looked at: {error}"),
            }
        }
        Ok(true)
    }

    /// Tables that are not as they are known, first those after the last one that had its turn: some that cannot be announced
    /// do not keep the others waiting.
    fn changed(&self, now: &Shapes) -> Vec<RelationId> {
        let is_other = |(id, shape): &(&RelationId, &TableShape)| self.known.get(id) != Some(*shape);
        let changed = now.iter().filter(is_other).map(|(id, _)| *id);
        let (before, after): (Vec<_>, Vec<_>) = changed.partition(|id| *id <= self.last);
        after.into_iter().chain(before).collect()
    }
}

/// How a look ends that finds what it should.
enum Look {
    /// To be looked with again.
    Usual(Session),
    /// The attempt is over.
    Changed(Ended),
}

impl Watch {
    async fn run(mut self) -> Ended {
        let mut session = None;
        let mut looked = Instant::now();
        loop {
            session = match self.look(session).await {
                Ok(Look::Usual(session)) => {
                    looked = Instant::now();
                    Some(session)
                }
                Ok(Look::Changed(ended)) => return ended,
                // Tables that change unseen are worth an attempt that says why nobody can look.
                Err(failure) if looked.elapsed() >= BLIND_MAX => return failure.into(),
                Err(error) => {
                    tracing::debug!("the source could not be looked at: {error}");
                    None
                }
            };
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn look(&mut self, session: Option<Session>) -> Result<Look, Failure> {
        let session = match session {
            Some(session) => session,
            None => self
                .endpoint
                .connect("penstock watch")
                .await
                .map_err(|error| error.failure(End::Source, &self.endpoint.connection))?,
        };
        let now = source::wal_position(&session, &self.slot).await?;
        self.status.source_ends_at(now.end);
        self.status.reached(End::Source);
        self.metrics.retained_wal.set(i64::try_from(now.retained_bytes).unwrap_or(i64::MAX));
        self.mark_the_log(&session).await;
        if self.tables_looked_at.is_some_and(|at| at.elapsed() < LOOK_AT_TABLES_EVERY) {
            return Ok(Look::Usual(session));
        }
        let began = Instant::now();
        if let Some(Drift { what, lost }) = self.what_changed(&session).await? {
            let message = format!("While changes were read, {what}; the tables are looked at again.");
            let failure = Failure::new(Reason::TablesChanged, message);
            return Ok(Look::Changed(Ended { failure, lost }));
        }
        let is_all_announced = self.announcer.look(&session).await?;
        // A look that failed does not count: nobody would notice that all of them do.
        self.tables_looked_at = Some(began).filter(|_| is_all_announced);
        Ok(Look::Usual(session))
    }

    /// A mark that is not written leaves a restored source unrecognised for a little longer, and is no reason to stop.
    async fn mark_the_log(&self, session: &Session) {
        if !self.heartbeat_due.take() {
            return;
        }
        let content = Heartbeat::content(&self.uid, self.shard, Uuid::new_v4());
        if let Err(error) = source::emit(session, HEARTBEAT_PREFIX, &content).await {
            tracing::warn!(
                "the source's log could not be marked, so a restored one may not be recognised: {error}"
            );
            self.heartbeat_due.set();
        }
    }

    async fn transforms_fit(&self, tables: &[SourceTable]) -> Result<(), String> {
        let keys = self.pipeline.mask_keys().await.map_err(|failure| failure.message)?;
        let entries = &self.pipeline.transforms;
        Transforms::new(entries, &keys, tables, &BTreeMap::new()).map(drop).map_err(|error| error.to_string())
    }

    async fn what_changed(&mut self, session: &Session) -> Result<Option<Drift>, SourceError> {
        if let Some(drift) = source::drift(session, &self.publication, &self.followed).await? {
            return Ok(Some(drift));
        }
        if self.shard != 0 {
            return Ok(None);
        }
        let new = source::new_tables(session, &self.patterns, &self.followed).await?;
        let Some(first) = new.first() else { return Ok(None) };
        // What would stop the pipeline at its next start need not stop it now.
        let suitable = match source::preflight(session, &self.spec, &self.patterns).await {
            Ok(inspection) => self.transforms_fit(&inspection.tables).await,
            Err(error) => Err(error.to_string()),
        };
        match suitable {
            Ok(()) => Ok(Some(Drift { what: format!("the table {first} was made"), lost: Vec::new() })),
            Err(why) => {
                let message = format!("New tables match source.postgres.tables ({first} …), and: {why}");
                if self.refused.as_ref() != Some(&message) {
                    self.status.notice(NoticeReason::NewTableUnsuitable, message.clone());
                    self.refused = Some(message);
                }
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_changed_table_has_its_turn_though_some_cannot_be_announced() {
        let shape = |last_number| TableShape { last_number, ..TableShape::default() };
        let ids = (1..=5).map(RelationId);
        let (announce, _listening) = mpsc::unbounded_channel();
        let mut announcer =
            Announcer::new(ids.clone().map(|id| (id, shape(1))).collect(), Arc::default(), announce);
        announcer.known.insert(RelationId(2), shape(2));
        let now: Shapes = ids.map(|id| (id, shape(2))).collect();
        let turns = |announcer: &Announcer| announcer.changed(&now).iter().map(|id| id.0).collect::<Vec<_>>();
        assert_eq!(turns(&announcer), [1, 3, 4, 5]);
        announcer.last = RelationId(3);
        assert_eq!(turns(&announcer), [4, 5, 1, 3]);
        announcer.last = RelationId(9);
        assert_eq!(turns(&announcer), [1, 3, 4, 5]);
    }
}
