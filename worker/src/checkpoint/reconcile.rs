//! Where a run begins, from what slot, volume and sink say. Pure.

use penstock_crds::report::{NoticeReason, Reason};

use super::volume::Record;
use crate::change::{Checkpoint, LogIdentity, Lsn, TimelineSwitch};
use crate::failure::{ACCEPT_LOSS, BEGIN_ANEW, Failure};

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
    /// The source as it is.
    pub source: KnownSource,
    /// What the sink's position is an address in.
    pub sink_source: LogIdentity,
    /// The latest commit of which the sink holds something: of a change, or of a copied table.
    pub sink_holds: Lsn,
    /// The slot came to this server from another one that it stood by for.
    pub slot_is_synced: bool,
}

/// The source as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownSource {
    /// Whose log it is.
    pub identity: LogIdentity,
    /// Where the log ends.
    pub end: Lsn,
    /// Where its earlier timelines ended, oldest first.
    pub switches: Vec<TimelineSwitch>,
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
/// thrown away what comes next. `SourceChanged`: it is another server, or one that lacks what was read before.
pub fn reconcile(known: &Known) -> Result<Beginning, Failure> {
    let ours = |record: &&Record| {
        let LogIdentity { system_id, timeline } = &known.source.identity;
        record.source.system_id == *system_id && record.source.timeline == *timeline
    };
    // What a volume says of another log says nothing of this one.
    let volume = known.volume.as_ref().filter(ours);
    let sink = known.sink.map(|sink| on_this_log(known, sink)).transpose()?;
    let was_read = [sink.map(|sink| sink.end_lsn), volume.map(|volume| volume.checkpoint.end_lsn)];
    if let Some(read) = was_read.into_iter().flatten().max().filter(|read| *read > known.source.end) {
        return Err(source_lost_its_log(known.source.end, read));
    }
    match (known.slot, sink, &known.volume) {
        (slot, None, None) => Ok(Beginning::First { slot_is_left_over: slot.is_some() }),
        (_, None, Some(record)) => Err(sink_is_empty(record)),
        (None, Some(sink), _) => Err(slot_is_missing(&sink, is_promoted(known))),
        (Some(slot), Some(sink), _) if slot > sink.end_lsn => Err(match volume {
            // The volume has whatever the source is told before it is told.
            Some(volume) if volume.checkpoint.end_lsn < slot => slot_is_another(slot, volume, &sink),
            Some(_) | None => sink_lost_commits(slot, &sink),
        }),
        (Some(_), Some(_), _) if is_promoted(known) && !known.slot_is_synced => {
            Err(slot_is_not_synced(known))
        }
        (Some(_), Some(sink), _) => Ok(Beginning::Resume {
            checkpoint: sink,
            notice: if is_promoted(known) {
                Some(followed(known, &sink))
            } else {
                notice(&sink, known.volume.as_ref(), volume, known.is_new_revision)
            },
        }),
    }
}

/// The source is a standby that was promoted, or goes on from one.
fn is_promoted(known: &Known) -> bool {
    known.source.identity.timeline != known.sink_source.timeline
}

/// The sink's checkpoint as an address in the log that the source has now.
fn on_this_log(known: &Known, sink: Checkpoint) -> Result<Checkpoint, Failure> {
    let (now, before) = (&known.source.identity, &known.sink_source);
    if now.system_id != before.system_id {
        return Err(Failure::source_is_another(now, before));
    }
    if !is_promoted(known) {
        return Ok(sink);
    }
    let switch = known.source.switches.iter().find(|switch| switch.timeline == before.timeline);
    let Some(switch) = switch else { return Err(Failure::source_is_another(now, before)) };
    if known.sink_holds >= switch.at {
        return Err(source_lost_commits(now, switch, known.sink_holds));
    }
    // Past what the sink holds there was nothing for it, so nothing is left out between the two.
    Ok(Checkpoint { end_lsn: sink.end_lsn.min(switch.at), ..sink })
}

fn followed(known: &Known, sink: &Checkpoint) -> NoticeAtStart {
    NoticeAtStart {
        reason: NoticeReason::SourceFailedOver,
        message: format!(
            "The source is a promoted standby (timeline {}, before {}). Its slot was synced, and it has everything that the sink \
             has: it goes on from {}, and nothing is lost.",
            known.source.identity.timeline, known.sink_source.timeline, sink.end_lsn
        ),
    }
}

/// A volume that is behind is a run that was killed between commit and fsync: nothing to tell.
fn notice(
    sink: &Checkpoint,
    any: Option<&Record>,
    of_this_log: Option<&Record>,
    is_new_revision: bool,
) -> Option<NoticeAtStart> {
    if any.is_none() {
        return (!is_new_revision).then(|| NoticeAtStart {
            reason: NoticeReason::VolumeRebuilt,
            message: format!(
                "The worker's volume held no checkpoint; it was rebuilt from the sink's, at {} (sequence {}). Nothing is lost.",
                sink.end_lsn, sink.sequence
            ),
        });
    }
    let on_volume = of_this_log?.checkpoint;
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

fn sink_is_empty(record: &Record) -> Failure {
    let message = format!(
        "The sink holds no checkpoint of this shard, but the worker's volume says that it stood at {} (sequence {}): the sink lost \
         commits, or is another database. Point sink.postgres.connection at the database that was written before, or restore it. {BEGIN_ANEW}",
        record.checkpoint.end_lsn, record.checkpoint.sequence
    );
    Failure::new(Reason::SinkLostCommits, message)
}

fn source_lost_commits(now: &LogIdentity, switch: &TimelineSwitch, held: Lsn) -> Failure {
    let message = format!(
        "The source is a standby that was promoted at {} (timeline {}), but the sink holds changes up to {held}: the old primary had \
         not sent them to it, so the source lost them and the sink did not. {BEGIN_ANEW} {ACCEPT_LOSS} Setting \
         synchronized_standby_slots on the primary prevents it (PostgreSQL 17 and later).",
        switch.at, now.timeline
    );
    Failure::new(Reason::SourceChanged, message)
}

fn slot_is_not_synced(known: &Known) -> Failure {
    let message = format!(
        "The source goes on from timeline {} on timeline {}, and its replication slot was not synced from the old primary: what it \
         would send may lack changes. {BEGIN_ANEW} {ACCEPT_LOSS}",
        known.sink_source.timeline, known.source.identity.timeline
    );
    Failure::new(Reason::SourceChanged, message)
}

/// Same system and timeline, but older: a disk image. The server would say nothing, and leave out whatever it commits
/// at addresses that were read before.
fn source_lost_its_log(end: Lsn, read: Lsn) -> Failure {
    let message = format!(
        "The source's log ends at {end}, but it was read up to {read} before: the source was restored to an older state, so the \
         sink holds changes that it does not have. Point source.postgres.connection at the server that has them. {BEGIN_ANEW} {ACCEPT_LOSS}"
    );
    Failure::new(Reason::SourceChanged, message)
}

fn slot_is_missing(sink: &Checkpoint, is_promoted: bool) -> Failure {
    let why = if is_promoted {
        " The source is a promoted standby, and the slot was not synced to it: servers before PostgreSQL 17 cannot, later ones need \
         sync_replication_slots on the standby."
    } else {
        ""
    };
    let message = format!(
        "The replication slot is gone from the source, but the sink stands at {}: changes since then may be lost.{why} {BEGIN_ANEW} {ACCEPT_LOSS}",
        sink.end_lsn
    );
    Failure::new(Reason::SlotMissing, message)
}

fn slot_is_another(slot: Lsn, volume: &Record, sink: &Checkpoint) -> Failure {
    let message = format!(
        "The replication slot stands at {slot}, but the worker never told the source more than {}: somebody made it anew or moved \
         it, so changes after {} may be lost. Or sink and volume were both restored to an older state: then restore the sink to a later \
         one, and nothing is lost. {BEGIN_ANEW} {ACCEPT_LOSS}",
        volume.checkpoint.end_lsn, sink.end_lsn
    );
    Failure::new(Reason::SlotMissing, message)
}

fn sink_lost_commits(slot: Lsn, sink: &Checkpoint) -> Failure {
    let message = format!(
        "The source was told that everything up to {slot} is safe, but the sink stands at {}: it was restored to an older state, or \
         failed over to a server that lacks commits; or, where the worker's volume is new, the slot was made anew. Restore the sink \
         to a later state, if it is the sink. {BEGIN_ANEW} {ACCEPT_LOSS}",
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
        let known =
            Known { slot: slot.map(Lsn), volume: volume.map(record), sink: sink.map(at), ..resumable() };
        reconcile(&known).map_err(|failure| failure.reason)
    }

    fn resumable() -> Known {
        Known {
            slot: Some(Lsn(300)),
            volume: Some(record(300)),
            sink: Some(at(300)),
            is_new_revision: false,
            source: KnownSource { identity: log(1), end: Lsn(1000), switches: Vec::new() },
            sink_source: log(1),
            sink_holds: Lsn(290),
            slot_is_synced: false,
        }
    }

    fn log(timeline: u32) -> LogIdentity {
        LogIdentity { system_id: "7".into(), timeline }
    }

    /// A standby that was promoted at a place, with a slot that was synced.
    fn promoted(at: u64) -> Known {
        let switches = vec![TimelineSwitch { timeline: 1, at: Lsn(at) }];
        let source = KnownSource { identity: log(2), end: Lsn(1000), switches };
        Known { source, slot: Some(Lsn(200)), slot_is_synced: true, ..resumable() }
    }

    fn reason(known: &Known) -> Result<(), Reason> {
        reconcile(known).map(drop).map_err(|failure| failure.reason)
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
        for volume in [None, Some(201), Some(300)] {
            assert_eq!(reconciled(Some(201), volume, Some(200)), Err(Reason::SinkLostCommits), "{volume:?}");
        }
    }

    #[test]
    fn slot_ahead_of_what_it_was_told_was_moved_or_made_anew() {
        for volume in [100, 200] {
            assert_eq!(reconciled(Some(201), Some(volume), Some(200)), Err(Reason::SlotMissing), "{volume}");
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
        let ends_at = |end| {
            let source = KnownSource { end: Lsn(end), ..resumable().source };
            Known { source, ..resumable() }
        };
        assert_eq!(reason(&ends_at(300)), Ok(()));
        assert_eq!(reason(&ends_at(299)), Err(Reason::SourceChanged));
        let sink_is_behind = Known { slot: Some(Lsn(100)), sink: Some(at(200)), ..ends_at(299) };
        assert_eq!(reason(&sink_is_behind), Err(Reason::SourceChanged), "the volume remembers");
    }

    #[test]
    fn another_system_is_another_source() {
        let sink_source = LogIdentity { system_id: "8".into(), timeline: 1 };
        assert_eq!(reason(&Known { sink_source, ..resumable() }), Err(Reason::SourceChanged));
    }

    #[test]
    fn promoted_standby_is_followed_with_a_synced_slot_and_everything_that_the_sink_holds() {
        for (switch, from) in [(300, 300), (400, 300), (291, 291)] {
            let Beginning::Resume { checkpoint, notice } = reconcile(&promoted(switch)).unwrap() else {
                panic!("not resumed at {switch}")
            };
            assert_eq!((checkpoint.end_lsn, checkpoint.sequence), (Lsn(from), 300), "{switch}");
            assert_eq!(notice.unwrap().reason, NoticeReason::SourceFailedOver);
        }
    }

    #[test]
    fn promoted_standby_that_lacks_what_the_sink_holds_is_refused() {
        assert_eq!(reason(&promoted(290)), Err(Reason::SourceChanged));
        assert_eq!(reason(&promoted(100)), Err(Reason::SourceChanged));
        let unrelated = KnownSource { switches: Vec::new(), ..promoted(400).source };
        assert_eq!(reason(&Known { source: unrelated, ..promoted(400) }), Err(Reason::SourceChanged));
    }

    #[test]
    fn promoted_standby_without_a_synced_slot_is_refused() {
        let unsynced = Known { slot_is_synced: false, ..promoted(400) };
        assert_eq!(reason(&unsynced), Err(Reason::SourceChanged));
        assert_eq!(reason(&Known { slot: None, ..promoted(400) }), Err(Reason::SlotMissing));
    }

    #[test]
    fn volume_of_another_log_is_no_witness() {
        let mut volume = record(900);
        volume.source.timeline = 1;
        let known = Known { volume: Some(volume), ..promoted(400) };
        assert_eq!(reason(&known), Ok(()));
    }
}
