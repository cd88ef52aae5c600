//! The order of things while changes are applied: sink commit, volume fsync, acknowledge.
//!
//! Frames come in, whole source transactions go out. A batch is committed at the first of its bounds, always
//! between two source transactions; one that is larger than the byte bound is written to the sink as it arrives
//! and committed at its end.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::followed::{
    Concern, FollowedTables, Progress, incremental_table, key_is_gone, truncated_with_rows, unreadable_key,
};
use super::heartbeat::Due;
use super::ranges::Ranges;
use super::shapes::{Fit, ShapeKeeper};
use super::transaction::Transaction;
use crate::batch::{Batch, Limits};
use crate::change::table::TableName;
use crate::change::{Change, Checkpoint, Lsn, Position, Relation, RelationId};
use crate::checkpoint::Volume;
use crate::decode::{self, Assembler, Event};
use crate::failpoint::{Point, reach};
use crate::failure::Failure;
use crate::incremental::{InvalidKey, Verdict};
use crate::serve::Metrics;
use crate::sink::{Barriers, CopiedRange, Writer};
use crate::source::{Frame, Reader};
use crate::status::Status;
use penstock_crds::report::Reason;

/// A batch is written at the latest when this many times its byte bound went into it.
const TAKEN_TO_KEPT_MAX: usize = 4;

/// Applies frames; owns everything that a commit touches.
pub(super) struct Applier<'a> {
    pub(super) ends: Ends<'a>,
    assembler: Assembler,
    /// Empty between frames; kept for its room.
    events: Vec<Event>,
    batch: Batch,
    pub(super) tables: FollowedTables,
    pub(super) relations: HashMap<RelationId, Described>,
    max_delay: Duration,
    idle_advance: Duration,
    max_rows: u64,
    /// Bytes of changes that went into the batch since it was written, coalesced ones included.
    taken_bytes: usize,
    max_taken_bytes: usize,
    /// Changes of this shard read so far; becomes durable with the checkpoint.
    sequence: i64,
    /// What the sink holds.
    durable: Settled,
    /// The end of what was read before this run, which the sink stands at. A little of it is read again.
    read_before: Lsn,
    /// What is read and not yet committed.
    pending: Option<Pending>,
    /// Inside a source transaction: its commit position, known from BEGIN.
    pub(super) transaction: Option<Transaction>,
    /// A sink transaction is open.
    pub(super) is_writing: bool,
    last_commit: Instant,
    pub(super) ranges: Ranges,
    /// Ranges whose rows are in the open sink transaction.
    pub(super) copied: Vec<CopiedRange>,
    pub(super) shapes: ShapeKeeper,
    /// Nothing can be written any more as it was: the attempt ends.
    pub(super) tables_are_exchanged: bool,
}

pub(super) struct Described {
    relation: Arc<Relation>,
    /// As the writer matched it with the sink table; `None` until its first change that is applied. Shapes from before
    /// the table was copied need not fit.
    pub(super) fit: Option<Fit>,
}

#[derive(Clone, Copy)]
struct Settled {
    position: Position,
    /// End of what this run has read: what the source is told. Where that is read for the second time, the sink's is ahead.
    end_lsn: Lsn,
}

struct Pending {
    settled: Settled,
    transactions: u64,
    changes: u64,
    commit_micros: Option<i64>,
    since: Instant,
}

/// When a batch is written: the manifest's bounds, and for one without changes the worker's own.
pub(super) struct Bounds {
    pub(super) max_rows: u32,
    pub(super) max_bytes: u32,
    pub(super) max_delay: Duration,
    pub(super) idle_advance: Duration,
}

/// What the changes come from and go to.
pub(super) struct Ends<'a> {
    pub(super) reader: Reader,
    pub(super) writer: Writer,
    pub(super) barriers: Barriers,
    pub(super) heartbeat_due: Due,
    pub(super) volume: &'a mut Volume,
    pub(super) status: &'a Status,
    pub(super) metrics: &'a Metrics,
}

impl<'a> Applier<'a> {
    /// Goes on from a checkpoint; the stream begins at `start`, at it or a little before.
    pub(super) fn new(
        ends: Ends<'a>,
        (checkpoint, start): (Checkpoint, Lsn),
        tables: FollowedTables,
        ranges: Ranges,
        shapes: ShapeKeeper,
        bounds: &Bounds,
    ) -> Self {
        Self {
            ends,
            assembler: Assembler::new(checkpoint.position),
            events: Vec::new(),
            batch: Batch::new(Limits {
                max_rows: bounds.max_rows as usize,
                max_bytes: bounds.max_bytes as usize,
            }),
            tables,
            relations: HashMap::new(),
            max_delay: bounds.max_delay,
            idle_advance: bounds.idle_advance,
            max_rows: u64::from(bounds.max_rows),
            taken_bytes: 0,
            max_taken_bytes: TAKEN_TO_KEPT_MAX.saturating_mul(bounds.max_bytes as usize),
            sequence: checkpoint.sequence,
            durable: Settled { position: checkpoint.position, end_lsn: start },
            read_before: checkpoint.end_lsn,
            pending: None,
            transaction: None,
            is_writing: false,
            last_commit: Instant::now(),
            ranges,
            copied: Vec::new(),
            shapes,
            tables_are_exchanged: false,
        }
    }

    /// Tells the source the last position and lets go of the slot.
    pub(super) async fn close(self) {
        self.ends.reader.close().await;
    }

    /// When [`Self::commit`] is due, if nothing else comes.
    pub(super) fn commit_due(&self) -> Option<Instant> {
        if self.transaction.is_some() {
            return None;
        }
        self.pending.as_ref().map(|pending| {
            if pending.changes > 0 {
                pending.since + self.max_delay
            } else {
                self.last_commit + self.idle_advance
            }
        })
    }

    /// Whether a stop would cut no source transaction in two.
    pub(super) fn is_between_transactions(&self) -> bool {
        self.transaction.is_none()
    }

    /// Whether a sink transaction waits for the rest of a source transaction.
    pub(super) fn is_writing(&self) -> bool {
        self.is_writing
    }

    /// Takes one frame of the stream.
    pub(super) async fn take(&mut self, frame: Frame) -> Result<(), Failure> {
        match frame {
            Frame::Data { payload, .. } => {
                let mut events = std::mem::take(&mut self.events);
                self.assembler.accept(decode::decode(payload)?, &mut events)?;
                for event in events.drain(..) {
                    self.handle(event).await?;
                }
                self.events = events;
                Ok(())
            }
            Frame::Keepalive { wal_end } => {
                if self.transaction.is_none() {
                    self.nothing_until(wal_end);
                }
                Ok(())
            }
        }
    }

    async fn handle(&mut self, event: Event) -> Result<(), Failure> {
        match event {
            Event::Begin { commit_lsn, xid, commit_time } => {
                self.transaction = Some(Transaction::begin(commit_lsn, xid, commit_time));
                Ok(())
            }
            Event::Relation(relation) => self.describe(relation).await,
            Event::Change { change, .. } => self.change(change).await,
            Event::Commit { position, end_lsn, .. } => self.settle(position, end_lsn).await,
            Event::Message(message) => {
                if let Some(transaction) = &mut self.transaction {
                    transaction.hear(message);
                }
                Ok(())
            }
        }
    }

    /// The source describes a table before its first change and after every change of its shape.
    async fn describe(&mut self, relation: Arc<Relation>) -> Result<(), Failure> {
        if !self.tables.contains_key(&relation.id) {
            return self.refuse_namesake(&relation).await;
        }
        if let Some(table) = self.tables.get_mut(&relation.id)
            && let Progress::Incremental(table) = &mut table.progress
        {
            table.describe(&relation).map_err(|error| key_is_gone(&relation, error))?;
        }
        self.adopt_shape(relation).await
    }

    /// What is batched by another shape is written first.
    pub(super) async fn adopt_shape(&mut self, relation: Arc<Relation>) -> Result<(), Failure> {
        if self.relations.get(&relation.id).is_some_and(|known| known.relation == relation) {
            return Ok(());
        }
        self.write_batch().await?;
        self.relations.insert(relation.id, Described { relation, fit: None });
        Ok(())
    }

    /// Matches the tables of a change that is to be applied with the sink's.
    async fn prepare(&mut self, relations: &[RelationId]) -> Result<(), Failure> {
        for id in relations {
            let Some(described) = self.relations.get(id) else {
                let message = format!("the source sent a change of relation {} before describing it", id.0);
                return Err(Failure::new(Reason::ProtocolViolation, message));
            };
            if described.fit.is_some() {
                continue;
            }
            let relation = Arc::clone(&described.relation);
            let relation = self.under_its_name(relation).await?;
            let fit = self.fit(&relation).await?;
            self.relations.insert(*id, Described { relation, fit: Some(fit) });
        }
        Ok(())
    }

    async fn change(&mut self, change: Change) -> Result<(), Failure> {
        let Some(transaction) = &mut self.transaction else {
            return Err(Failure::new(
                Reason::ProtocolViolation,
                "the source sent a change outside a transaction",
            ));
        };
        let (commit, xid) = (transaction.commit_lsn, transaction.xid);
        let concern = self.concern(change, commit, xid).await?;
        if matches!(concern, Concern::None) {
            return Ok(());
        }
        if let Some(transaction) = &mut self.transaction {
            transaction.changes += 1;
        }
        self.sequence += 1;
        self.ends.metrics.changes.inc();
        let Concern::Applied(change) = concern else { return Ok(()) };
        self.push(change).await
    }

    /// Into the batch, and the batch into the sink when it is full.
    pub(super) async fn push(&mut self, change: Change) -> Result<(), Failure> {
        self.prepare(change.relations()).await?;
        let described = change.relations().first().and_then(|relation| self.relations.get(relation));
        let Some(Described { relation, fit: Some(Fit { traits, plan }) }) = described else {
            return Err(Failure::new(Reason::ProtocolViolation, "the source sent a change of no table"));
        };
        let change = match plan {
            None => change,
            Some(plan) => plan
                .apply(change)
                .map_err(|error| error.of(&TableName::new(&relation.schema, &relation.name)))?,
        };
        self.taken_bytes += change.size();
        self.batch.push(traits, change)?;
        // Coalescing keeps few rows of many, but a row that is kept holds the buffer it came in.
        let is_full = self.batch.is_full() || self.taken_bytes >= self.max_taken_bytes;
        if is_full { self.write_batch().await } else { Ok(()) }
    }

    /// What of a change concerns this shard.
    async fn concern(&mut self, change: Change, commit: Lsn, xid: u32) -> Result<Concern, Failure> {
        let is_due = |tables: &FollowedTables, relation: &RelationId| {
            tables.get(relation).is_some_and(|table| table.progress.counts_from(commit))
        };
        if !change.relations().iter().any(|relation| self.tables.contains_key(relation)) {
            return Ok(Concern::None);
        }
        if !change.relations().iter().any(|relation| is_due(&self.tables, relation)) {
            return Ok(Concern::Counted);
        }
        if let Change::Truncate { relations, cascade, restart_identity } = change {
            let relations: Vec<_> =
                relations.into_iter().filter(|relation| is_due(&self.tables, relation)).collect();
            let relations: Vec<_> = relations
                .into_iter()
                .filter(|relation| truncated_with_rows(&mut self.tables, *relation))
                .collect();
            if relations.is_empty() {
                return Ok(Concern::Counted);
            }
            return Ok(Concern::Applied(Change::Truncate { relations, cascade, restart_identity }));
        }
        let relation = change.relations().first().copied();
        let table = relation.and_then(|relation| incremental_table(&mut self.tables, relation));
        let Some(table) = table else { return Ok(Concern::Applied(change)) };
        match table.take(xid, change).map_err(unreadable_key)? {
            Verdict::Apply(change) => Ok(Concern::Applied(change)),
            Verdict::Leave => Ok(Concern::Counted),
            Verdict::CopyAgain => Err(self.copy_again(relation).await),
        }
    }

    async fn copy_again(&mut self, relation: Option<RelationId>) -> Failure {
        let Some(table) = relation.and_then(|relation| self.tables.get(&relation)) else {
            return unreadable_key(InvalidKey::Missing);
        };
        let message = format!(
            "A row of {} got another key while the table was copied, and its large values were not sent again; the table is \
             copied again.",
            table.name
        );
        match self.ends.writer.copy_again(&table.name).await {
            Ok(()) => Failure::new(Reason::TableRewritten, message),
            Err(failure) => failure,
        }
    }

    /// A source transaction is complete.
    async fn settle(&mut self, position: Position, end_lsn: Lsn) -> Result<(), Failure> {
        let Some(transaction) = self.transaction.take() else {
            return Err(Failure::new(Reason::ProtocolViolation, "the source sent COMMIT without BEGIN"));
        };
        // A transaction that holds nothing of this shard is only log that was read: were the position moved past it, rows
        // of this shard that a restored disk image commits there would be taken for read.
        let read = position;
        let position = if transaction.is_own(&self.ends.writer, &self.ends.barriers) {
            position
        } else {
            self.settled().position
        };
        let settled = Settled { position, end_lsn };
        let pending = self.pending.get_or_insert_with(|| Pending::new(settled));
        pending.settled = settled;
        if transaction.changes == 0 {
            self.meet(&transaction.watermarks).await?;
            self.land(read, &transaction.watermarks).await?;
            self.note_heartbeats(&transaction.heartbeats, read).await?;
            return self.meet_barriers(&transaction.barriers).await;
        }
        if pending.changes == 0 {
            pending.since = Instant::now();
        }
        pending.transactions += 1;
        pending.changes += transaction.changes;
        let commit_micros = transaction.commit_time.unix_micros();
        pending.commit_micros = Some(commit_micros);
        let is_due = self.is_writing || pending.changes >= self.max_rows || self.max_delay.is_zero();
        self.ends.status.pending(commit_micros);
        if is_due {
            self.commit().await?;
        }
        self.meet_barriers(&transaction.barriers).await
    }

    /// Everything up to here is settled with the next commit.
    pub(super) fn pass(&mut self, position: Position) {
        let settled = Settled { position, ..self.settled() };
        self.pending.get_or_insert_with(|| Pending::new(settled)).settled = settled;
    }

    /// What is read up to here, committed or not.
    fn settled(&self) -> Settled {
        self.pending.as_ref().map_or(self.durable, |pending| pending.settled)
    }

    /// What the sink holds, as far as it is committed.
    pub(super) fn checkpoint(&self) -> Checkpoint {
        self.checkpoint_of(self.durable)
    }

    fn checkpoint_of(&self, Settled { position, end_lsn }: Settled) -> Checkpoint {
        Checkpoint { position, end_lsn: end_lsn.max(self.read_before), sequence: self.sequence }
    }

    /// The source has nothing more for this shard up to `end`.
    fn nothing_until(&mut self, end: Lsn) {
        let Settled { position, end_lsn: known } = self.settled();
        if end <= known {
            return;
        }
        let settled = Settled { position, end_lsn: end };
        self.pending.get_or_insert_with(|| Pending::new(settled)).settled = settled;
        if self.pending.as_ref().is_some_and(|pending| pending.changes == 0) {
            self.ends.status.nothing_until(end.max(self.read_before));
        }
    }

    pub(super) async fn write_batch(&mut self) -> Result<(), Failure> {
        if self.batch.is_empty() {
            return Ok(());
        }
        if !self.is_writing {
            self.ends.writer.begin().await?;
            self.is_writing = true;
        }
        self.taken_bytes = 0;
        let operations = self.batch.take();
        self.ends.writer.write(operations).await
    }

    /// Commits what is pending: sink, then volume, then the source hears of it. Must not be called inside a
    /// source transaction.
    pub(super) async fn commit(&mut self) -> Result<(), Failure> {
        let pending = match self.pending.take() {
            Some(pending) => pending,
            // Something was noted where the sink stands.
            None if self.is_writing => Pending::new(self.durable),
            None => return Ok(()),
        };
        let began = Instant::now();
        self.write_batch().await?;
        if !self.is_writing {
            self.ends.writer.begin().await?;
        }
        for range in &self.copied {
            self.ends.writer.note_range(range).await?;
        }
        let checkpoint = self.checkpoint_of(pending.settled);
        self.ends.writer.commit(&checkpoint).await?;
        self.is_writing = false;
        tokio::task::block_in_place(|| self.ends.volume.advance(&checkpoint))?;
        reach(Point::BeforeAcknowledge)?;
        self.ends.reader.acknowledge(pending.settled.end_lsn);
        self.durable = pending.settled;
        self.tell_copied();
        self.last_commit = Instant::now();
        let end_lsn = checkpoint.end_lsn;
        self.ends.status.durable(self.sequence, end_lsn, pending.commit_micros);
        if pending.changes > 0 {
            self.ends.heartbeat_due.set();
        }
        self.ends.metrics.sink_commits.inc();
        self.ends.metrics.transactions.inc_by(pending.transactions);
        self.ends.metrics.batch_seconds.observe(began.elapsed().as_secs_f64());
        tracing::debug!(lsn = %end_lsn, sequence = self.sequence, changes = pending.changes, "checkpoint");
        Ok(())
    }
}

impl Pending {
    fn new(settled: Settled) -> Self {
        Self { settled, transactions: 0, changes: 0, commit_micros: None, since: Instant::now() }
    }
}
