//! What the worker knows about itself, in one place: `pipeline.rs` writes it, the HTTP servers and the
//! progress bar read it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use penstock_crds::report::{
    Decisions, Lag, LineageRole, Notice, NoticeReason, Problem, Reachability, Report, SnapshotProgress,
    WorkerPhase,
};

use crate::change::Lsn;
use crate::failure::Failure;
use crate::postgres::End;

/// Notices kept for the operator; older ones have long become Events.
const NOTICES_MAX: usize = 16;

/// Shared, cheap to clone.
#[derive(Clone, Debug)]
pub struct Status {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    report: Report,
    stream: StreamProgress,
    next_notice: u32,
}

/// Where the stream stands, for lag.
#[derive(Clone, Copy, Debug, Default)]
struct StreamProgress {
    /// End of what was read and is either durable or nothing for this shard.
    settled: Lsn,
    /// End of the source's write-ahead log when it was last asked, and when that was.
    source_end: Option<(Lsn, Instant)>,
    /// Commit time of the oldest change that is read but not durable, microseconds since 1970.
    oldest_pending_micros: Option<i64>,
    /// Commit time of the last durable change, microseconds since 1970.
    last_durable_micros: Option<i64>,
}

impl Status {
    /// A worker that has not tried anything yet.
    pub fn new(uid: String, revision: String, shard: u16) -> Self {
        let report = Report {
            uid,
            revision,
            shard,
            role: None,
            epoch: None,
            phase: WorkerPhase::Starting,
            sequence: 0,
            position: None,
            lag: None,
            slot: None,
            publication: None,
            source: Reachability::Unknown,
            sink: Reachability::Unknown,
            snapshot: None,
            problem: None,
            resnapshot: None,
            decisions: None,
            notices: Vec::new(),
        };
        Self {
            inner: Arc::new(Mutex::new(Inner { report, stream: StreamProgress::default(), next_notice: 1 })),
        }
    }

    /// The report as of `now_micros` (microseconds since 1970).
    pub fn report(&self, now_micros: i64) -> Report {
        let inner = self.lock();
        let mut report = inner.report.clone();
        report.lag = if report.phase == WorkerPhase::Streaming { inner.stream.lag(now_micros) } else { None };
        report
    }

    /// What the worker is doing.
    pub fn phase(&self) -> WorkerPhase {
        self.lock().report.phase
    }

    /// Enters a phase. Entering one in which work goes on ends the problem.
    pub fn enter(&self, phase: WorkerPhase) {
        let mut inner = self.lock();
        inner.report.phase = phase;
        if matches!(phase, WorkerPhase::Streaming | WorkerPhase::Snapshotting) {
            inner.report.problem = None;
        }
    }

    /// An attempt failed: the phase is `Retrying` or `Halted`, by the failure's policy. A database that did not let
    /// us in counts as unreachable. What was decided is not known any more: a commit whose answer was lost may have been of it.
    pub fn failed(&self, failure: &Failure, phase: WorkerPhase) {
        let mut inner = self.lock();
        inner.report.phase = phase;
        inner.report.problem = Some(Problem { reason: failure.reason, message: failure.message.clone() });
        inner.report.decisions = None;
        inner.report.role = None;
        inner.stream = StreamProgress::default();
        for end in [End::Source, End::Sink] {
            let is_away =
                [end.unreachable(), end.authentication_failed(), end.tls_failed()].contains(&failure.reason);
            if is_away {
                inner.reached(end, Reachability::Unreachable);
            }
        }
    }

    /// The sink gave this run its fencing number, and said what its lineage is to the pipeline.
    pub fn fenced(&self, epoch: i64, role: Option<LineageRole>) {
        let mut inner = self.lock();
        inner.report.epoch = Some(epoch);
        inner.report.role = role;
    }

    /// The names that this pipeline has in the source.
    pub fn reads(&self, slot: &str, publication: &str) {
        let mut inner = self.lock();
        inner.report.slot = Some(slot.to_owned());
        inner.report.publication = Some(publication.to_owned());
    }

    /// What the sink knows of decisions about dead ends of this shard.
    pub fn decided(&self, decisions: Decisions) {
        self.lock().report.decisions = Some(decisions);
    }

    /// A database answered.
    pub fn reached(&self, end: End) {
        self.lock().reached(end, Reachability::Reachable);
    }

    /// How far the first load is.
    pub fn snapshot(&self, update: impl FnOnce(&mut SnapshotProgress)) {
        let mut inner = self.lock();
        let none = SnapshotProgress { tables: 0, tables_copied: 0, rows_copied: 0, rows_estimated: 0 };
        update(inner.report.snapshot.get_or_insert(none));
    }

    /// A checkpoint is durable in the sink and on the volume.
    pub fn durable(&self, sequence: i64, end: Lsn, commit_micros: Option<i64>) {
        let mut inner = self.lock();
        inner.report.sequence = sequence;
        inner.report.position = Some(end.to_string());
        inner.stream.settled = end;
        inner.stream.oldest_pending_micros = None;
        inner.stream.last_durable_micros = commit_micros.or(inner.stream.last_durable_micros);
    }

    /// A transaction was read that is not durable yet.
    pub fn pending(&self, commit_micros: i64) {
        self.lock().stream.oldest_pending_micros.get_or_insert(commit_micros);
    }

    /// Everything up to `end` was read and there is nothing to do about it.
    pub fn nothing_until(&self, end: Lsn) {
        let mut inner = self.lock();
        inner.stream.settled = inner.stream.settled.max(end);
    }

    /// The source's write-ahead log ends here.
    pub fn source_ends_at(&self, end: Lsn) {
        self.lock().stream.source_end = Some((end, Instant::now()));
    }

    /// A directive to copy tables again is settled.
    pub fn resnapshot_settled(&self, token: String) {
        self.lock().report.resnapshot = Some(token);
    }

    /// Something a person should hear of once.
    pub fn notice(&self, reason: NoticeReason, message: impl Into<String>) {
        let mut inner = self.lock();
        let notice = Notice { id: inner.next_notice, reason, message: message.into() };
        tracing::info!(reason = ?notice.reason, "{}", notice.message);
        inner.next_notice += 1;
        inner.report.notices.push(notice);
        if inner.report.notices.len() > NOTICES_MAX {
            inner.report.notices.remove(0);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn reached(&mut self, end: End, reachability: Reachability) {
        match end {
            End::Source => self.report.source = reachability,
            End::Sink => self.report.sink = reachability,
        }
    }
}

impl StreamProgress {
    fn lag(&self, now_micros: i64) -> Option<Lag> {
        let (source_end, _) = self.source_end?;
        let bytes = source_end.0.saturating_sub(self.settled.0);
        let waiting_since = match (self.oldest_pending_micros, bytes) {
            (Some(oldest), _) => Some(oldest),
            (None, 0) => None,
            (None, _) => self.last_durable_micros,
        };
        #[expect(clippy::cast_precision_loss, reason = "seconds for people")]
        let seconds = waiting_since.map_or(0.0, |since| (now_micros - since).max(0) as f64 / 1e6);
        Some(Lag { bytes, seconds })
    }
}

/// Microseconds since 1970.
pub fn now_micros() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}

#[cfg(test)]
mod tests {
    use super::*;
    use penstock_crds::report::Reason;

    fn streaming() -> Status {
        let status = Status::new("uid".into(), "r1".into(), 0);
        status.enter(WorkerPhase::Streaming);
        status
    }

    #[test]
    fn lag_is_unknown_until_the_source_was_asked() {
        assert_eq!(streaming().report(0).lag, None);
    }

    #[test]
    fn lag_is_zero_when_everything_is_durable() {
        let status = streaming();
        status.durable(7, Lsn(100), Some(1_000_000));
        status.source_ends_at(Lsn(100));
        assert_eq!(status.report(90_000_000).lag, Some(Lag { bytes: 0, seconds: 0.0 }));
    }

    #[test]
    fn lag_counts_from_the_oldest_pending_change() {
        let status = streaming();
        status.source_ends_at(Lsn(150));
        status.durable(7, Lsn(100), Some(1_000_000));
        status.pending(2_000_000);
        status.pending(3_000_000);
        assert_eq!(status.report(5_000_000).lag, Some(Lag { bytes: 50, seconds: 3.0 }));
    }

    #[test]
    fn a_problem_lasts_until_work_goes_on() {
        let status = streaming();
        status.failed(&Failure::new(Reason::SinkUnreachable, "refused"), WorkerPhase::Retrying);
        status.enter(WorkerPhase::Starting);
        assert!(status.report(0).problem.is_some());
        status.enter(WorkerPhase::Streaming);
        assert!(status.report(0).problem.is_none());
    }
}
