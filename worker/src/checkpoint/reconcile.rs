//! Where a run begins, from what slot, volume and sink say. Pure.

use penstock_crds::report::{NoticeReason, Reason};

use super::volume::Record;
use crate::change::{Checkpoint, Lsn};
use crate::failure::Failure;

/// What the three say. All of them are read after the fence was taken, so nothing moves any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// `confirmed_flush_lsn` of the slot: what was acknowledged. `None`: there is no slot.
    pub slot: Option<Lsn>,
    /// What the volume says. `None`: it is new, or was set aside.
    pub volume: Option<Record>,
    /// What the sink says. `None`: the first load has not begun.
    pub sink: Option<Checkpoint>,
    /// The shard was run by another revision before, with a volume of its own.
    pub is_new_revision: bool,
    /// Where the source's log ends.
    pub source_end: Lsn,
}

/// Where a run begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// Nothing is settled. Next: the slot is made and the tables are copied.
    First {
        /// A start that ended before its first checkpoint left the slot behind. Nothing was acknowledged for any
        /// row: it is dropped and made anew, with a snapshot.
        slot_is_left_over: bool,
    },
    /// Next: the changes after the checkpoint.
    Resume {
        /// What the sink holds.
        checkpoint: Checkpoint,
        /// What a person should hear of.
        notice: Option<NoticeAtStart>,
    },
}

/// What a person should hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoticeAtStart {
    /// Stable word.
    pub reason: NoticeReason,
    /// What happened.
    pub message: String,
}

/// Decides where a run begins. The sink is right: its checkpoint moves with its rows. Slot and volume only tell
/// whether it lost some.
///
/// # Errors
/// `SinkLostCommits`: what was acknowledged, or settled, is not in the sink any more. `SlotMissing`: the source has
/// thrown away what comes next. `SourceChanged`: the source's log ends before what was read from it.
pub fn reconcile(known: &Known) -> Result<Beginning, Failure> {
    let was_read =
        [known.sink.map(|sink| sink.end_lsn), known.volume.as_ref().map(|volume| volume.checkpoint.end_lsn)];
    if let Some(read) = was_read.into_iter().flatten().max().filter(|read| *read > known.source_end) {
        return Err(source_lost_its_log(known.source_end, read));
    }
    match (known.slot, &known.sink, &known.volume) {
        (slot, None, None) => Ok(Beginning::First { slot_is_left_over: slot.is_some() }),
        (_, None, Some(record)) => Err(sink_is_empty(record)),
        (None, Some(sink), _) => Err(slot_is_missing(sink)),
        (Some(slot), Some(sink), _) if slot > sink.end_lsn => Err(sink_lost_commits(slot, sink)),
        (Some(_), Some(sink), volume) => Ok(Beginning::Resume {
            checkpoint: *sink,
            notice: notice(sink, volume.as_ref(), known.is_new_revision),
        }),
    }
}

/// A volume that is behind is a run that was killed between commit and fsync: nothing to tell.
fn notice(sink: &Checkpoint, volume: Option<&Record>, is_new_revision: bool) -> Option<NoticeAtStart> {
    let Some(record) = volume else {
        return (!is_new_revision).then(|| NoticeAtStart {
            reason: NoticeReason::VolumeRebuilt,
            message: format!(
                "The worker's volume held no checkpoint; it was rebuilt from the sink's, at {} (sequence {}). Nothing is lost.",
                sink.end_lsn, sink.sequence
            ),
        });
    };
    let on_volume = record.checkpoint;
    let is_ahead = (on_volume.end_lsn, on_volume.sequence) > (sink.end_lsn, sink.sequence);
    is_ahead.then(|| NoticeAtStart {
        reason: NoticeReason::VolumeAheadOfSink,
        message: format!(
            "The worker's volume says {} (sequence {}), the sink only {} (sequence {}): the sink lost its last commits. The source \
             still has them; it goes on from the sink, and nothing is lost.",
            on_volume.end_lsn, on_volume.sequence, sink.end_lsn, sink.sequence
        ),
    })
}

const START_OVER: &str = "To copy the tables again: delete the CdcPipeline with deletionPolicy Delete (or run penstock-worker \
                          clean-up), empty the sink tables, and create it anew.";

fn sink_is_empty(record: &Record) -> Failure {
    let message = format!(
        "The sink holds no checkpoint of this shard, but the worker's volume says that it stood at {} (sequence {}): the sink lost \
         commits, or is another database. Point sink.postgres.connection at the database that was written before, or restore it. {START_OVER}",
        record.checkpoint.end_lsn, record.checkpoint.sequence
    );
    Failure::new(Reason::SinkLostCommits, message)
}

/// Same system and timeline, but older: a disk image. The server would say nothing, and leave out whatever it commits
/// at addresses that were read before.
fn source_lost_its_log(end: Lsn, read: Lsn) -> Failure {
    let message = format!(
        "The source's log ends at {end}, but it was read up to {read} before: the source was restored to an older state, so the \
         sink holds changes that it does not have. Point source.postgres.connection at the server that has them. {START_OVER}"
    );
    Failure::new(Reason::SourceChanged, message)
}

fn slot_is_missing(sink: &Checkpoint) -> Failure {
    let message = format!(
        "The replication slot is gone from the source, but the sink stands at {}: changes since then may be lost. {START_OVER}",
        sink.end_lsn
    );
    Failure::new(Reason::SlotMissing, message)
}

fn sink_lost_commits(slot: Lsn, sink: &Checkpoint) -> Failure {
    let message = format!(
        "The source was told that everything up to {slot} is safe, but the sink stands at {}: it was restored to an older state, or \
         failed over to a server that lacks commits. Restore the sink to a later state. {START_OVER}",
        sink.end_lsn
    );
    Failure::new(Reason::SinkLostCommits, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Position, SourceIdentity};

    fn at(end: u64) -> Checkpoint {
        let position = Position { commit_lsn: Lsn(end - 8), xid: 700, ordinal: 1 };
        Checkpoint { position, end_lsn: Lsn(end), sequence: i64::try_from(end).unwrap() }
    }

    fn record(end: u64) -> Record {
        let source = SourceIdentity { system_id: "7".into(), timeline: 1, slot: "penstock_0".into() };
        Record { revision: "r1".into(), epoch: 1, checkpoint: at(end), source }
    }

    fn reconciled(slot: Option<u64>, volume: Option<u64>, sink: Option<u64>) -> Result<Beginning, Reason> {
        let known = Known {
            slot: slot.map(Lsn),
            volume: volume.map(record),
            sink: sink.map(at),
            is_new_revision: false,
            source_end: Lsn(1000),
        };
        reconcile(&known).map_err(|failure| failure.reason)
    }

    fn resumable() -> Known {
        Known {
            slot: Some(Lsn(300)),
            volume: Some(record(300)),
            sink: Some(at(300)),
            is_new_revision: false,
            source_end: Lsn(1000),
        }
    }

    fn resumed(beginning: &Beginning) -> (u64, Option<NoticeReason>) {
        match beginning {
            Beginning::Resume { checkpoint, notice } => {
                assert_eq!(*checkpoint, at(checkpoint.end_lsn.0), "the sink's whole checkpoint");
                (checkpoint.end_lsn.0, notice.as_ref().map(|notice| notice.reason))
            }
            Beginning::First { .. } => panic!("not resumed"),
        }
    }

    #[test]
    fn nothing_known_is_a_first_start() {
        assert_eq!(reconciled(None, None, None), Ok(Beginning::First { slot_is_left_over: false }));
    }

    #[test]
    fn slot_without_any_checkpoint_is_left_over_from_a_first_start() {
        assert_eq!(reconciled(Some(100), None, None), Ok(Beginning::First { slot_is_left_over: true }));
    }

    #[test]
    fn going_on_is_always_from_the_sink() {
        use NoticeReason::{VolumeAheadOfSink, VolumeRebuilt};
        for (slot, volume, sink, notice) in [
            (100, Some(100), 100, None),
            (100, Some(200), 300, None),
            (100, Some(300), 300, None),
            (300, Some(100), 300, None),
            (100, Some(100), 300, None),
            (100, None, 300, Some(VolumeRebuilt)),
            (300, None, 300, Some(VolumeRebuilt)),
            (100, Some(300), 200, Some(VolumeAheadOfSink)),
            (200, Some(300), 200, Some(VolumeAheadOfSink)),
        ] {
            let beginning = reconciled(Some(slot), volume, Some(sink)).unwrap();
            assert_eq!(resumed(&beginning), (sink, notice), "slot {slot}, volume {volume:?}, sink {sink}");
        }
    }

    #[test]
    fn volume_with_more_changes_at_the_same_place_is_ahead() {
        let mut volume = record(300);
        volume.checkpoint.sequence += 1;
        let known = Known { volume: Some(volume), ..resumable() };
        assert_eq!(resumed(&reconcile(&known).unwrap()), (300, Some(NoticeReason::VolumeAheadOfSink)));
    }

    #[test]
    fn new_revision_begins_with_an_empty_volume_and_tells_nobody() {
        let known = Known { slot: Some(Lsn(100)), volume: None, is_new_revision: true, ..resumable() };
        assert_eq!(resumed(&reconcile(&known).unwrap()), (300, None));
    }

    #[test]
    fn slot_ahead_of_the_sink_means_that_commits_are_lost() {
        for volume in [None, Some(100), Some(200), Some(300)] {
            assert_eq!(reconciled(Some(201), volume, Some(200)), Err(Reason::SinkLostCommits), "{volume:?}");
        }
    }

    #[test]
    fn volume_that_knows_more_than_an_empty_sink_means_that_commits_are_lost() {
        for slot in [None, Some(100), Some(300)] {
            assert_eq!(reconciled(slot, Some(200), None), Err(Reason::SinkLostCommits), "{slot:?}");
        }
    }

    #[test]
    fn checkpoint_without_a_slot_stalls() {
        for volume in [None, Some(100), Some(200), Some(300)] {
            assert_eq!(reconciled(None, volume, Some(200)), Err(Reason::SlotMissing), "{volume:?}");
        }
    }

    #[test]
    fn source_whose_log_ends_before_what_was_read_is_another_source() {
        let reason = |known: &Known| reconcile(known).map(drop).map_err(|failure| failure.reason);
        let ends_at = |end| Known { source_end: Lsn(end), ..resumable() };
        assert_eq!(reason(&ends_at(300)), Ok(()));
        assert_eq!(reason(&ends_at(299)), Err(Reason::SourceChanged));
        let sink_is_behind = Known { slot: Some(Lsn(100)), sink: Some(at(200)), ..ends_at(299) };
        assert_eq!(reason(&sink_is_behind), Err(Reason::SourceChanged), "the volume remembers");
    }
}
