//! Dead ends: what a person decided is carried out here, in place of step 7.

use penstock_crds::report::{NoticeReason, Reason};

use super::Context;
use super::start::{Fenced, Resumed, Source};
use crate::change::{Checkpoint, Lsn, Position, SourceIdentity};
use crate::checkpoint::{Beginning, Volume};
use crate::failure::Failure;
use crate::sink::Decision;
use crate::source::{self, Durability, SlotState};

/// How a run begins.
pub(super) enum Start {
    /// As slot, volume and sink agree.
    Agreed(Beginning),
    /// As a person decided, because they do not.
    Decided {
        decision: Decision,
        /// The slot can be read on, from where it stands.
        is_slot_usable: bool,
    },
}

/// What the sink's position is to be an address in from now on.
pub(super) fn log_of(fenced: &Fenced) -> SourceIdentity {
    SourceIdentity {
        system_id: fenced.identity.system_id.clone(),
        timeline: fenced.identity.timeline,
        slot: fenced.slot.as_str().to_owned(),
    }
}

/// Takes what slot, volume and sink agree on, or what a person decided; a dead end that nobody decided about is noted.
pub(super) async fn decide(
    fenced: &mut Fenced,
    slot: Option<&SlotState>,
    agreed: Result<Beginning, Failure>,
    source_end: Lsn,
) -> Result<Start, Failure> {
    let log = log_of(fenced);
    let decision = fenced.sink.decision(&log).await?;
    // A source that was restored writes on, and has as much log as was read before soon. The slot tells it from the one that
    // was there before: nobody but the shard moves it.
    let confirmed = slot.and_then(|slot| slot.confirmed_flush);
    let lost = fenced.sink.lost_log(&log).await?.filter(|(_, end)| confirmed.is_none_or(|at| at <= *end));
    // The stream looks for a mark that was not found, so this source may be the right one by now.
    let is_looked_for = |end: Lsn| fenced.started.heartbeat.is_some_and(|mark| mark.commit_lsn == end);
    match (agreed, decision) {
        (Ok(Beginning::Resume { .. }), None)
            if lost.as_ref().is_some_and(|(_, end)| !is_looked_for(*end)) =>
        {
            Err(Failure::new(Reason::SourceChanged, lost.map(|(message, _)| message).unwrap_or_default()))
        }
        (Ok(Beginning::Resume { .. }), Some(Decision::AcceptLoss)) if lost.is_some() => {
            Ok(Start::Decided { decision: Decision::AcceptLoss, is_slot_usable: false })
        }
        (Ok(beginning), None | Some(Decision::AcceptLoss)) => Ok(Start::Agreed(beginning)),
        (Ok(_), Some(Decision::BeginAnew)) => {
            Ok(Start::Decided { decision: Decision::BeginAnew, is_slot_usable: false })
        }
        (Err(failure), Some(decision)) if failure.reason.is_dead_end() => {
            let is_sink_behind = slot.zip(fenced.started.checkpoint).is_some_and(|(slot, sink)| {
                slot.verify(&fenced.slot, &fenced.identity.database).is_ok()
                    && slot.confirmed_flush.is_some_and(|confirmed| confirmed > sink.end_lsn)
            });
            let is_same_log = fenced.started.source.timeline == fenced.identity.timeline;
            Ok(Start::Decided { decision, is_slot_usable: is_sink_behind && is_same_log })
        }
        (Err(failure), _) => {
            if failure.reason.is_dead_end() {
                fenced.sink.note_dead_end(&failure, &log, Some(source_end)).await?;
            }
            Err(failure)
        }
    }
}

/// The volume is forgotten first and the sink moves last: a run that dies in between meets the same dead end, with
/// the same decision.
pub(super) async fn carry_out(
    context: Context<'_>,
    source: &Source,
    fenced: &mut Fenced,
    volume: &mut Volume,
    (decision, is_slot_usable): (Decision, bool),
) -> Result<Resumed, Failure> {
    let log = log_of(fenced);
    // It stands in a log that counts no more, at an address that the new slot may be short of.
    fenced.started.heartbeat = None;
    tokio::task::block_in_place(|| volume.forget())?;
    let before = fenced.started.checkpoint;
    let standing = match decision {
        Decision::AcceptLoss if is_slot_usable => {
            source::slot_state(&source.session, &fenced.slot).await?.and_then(|slot| slot.confirmed_flush)
        }
        Decision::AcceptLoss | Decision::BeginAnew => None,
    };
    let (end_lsn, exported) = if let Some(confirmed) = standing {
        (confirmed, None)
    } else {
        let held = fenced.sink.hold_fence().await?;
        source::drop_slot(&source.session, &fenced.slot).await?;
        held.release().await?;
        let endpoint = &context.settings.pipeline.source;
        let exported = source::create_slot(endpoint, &fenced.slot, Durability::Permanent).await?;
        (exported.consistent_point, Some(exported))
    };
    let sequence = before.map_or(0, |before| before.sequence);
    // What the sink holds it holds: of a slot that is kept, everything comes after it.
    let position =
        before.filter(|_| standing.is_some()).map_or_else(Position::default, |before| before.position);
    let checkpoint = Checkpoint { position, end_lsn, sequence };
    let (by, decisions) =
        fenced.sink.begin_as_decided(decision, &checkpoint, &log, standing.is_none()).await?;
    context.status.decided(decisions);
    let from = before.map_or_else(|| "its beginning".to_owned(), |before| before.end_lsn.to_string());
    let (reason, message) = match decision {
        Decision::BeginAnew => (
            NoticeReason::BegunAnew,
            format!("All tables are copied again, from a new slot that begins at {end_lsn} ({by})"),
        ),
        Decision::AcceptLoss => (
            NoticeReason::LossAccepted,
            format!(
                "Changes that the source committed between {from} and {end_lsn} are not in the sink ({by})"
            ),
        ),
    };
    context.status.notice(reason, message);
    let exported = exported.filter(|_| decision == Decision::BeginAnew);
    Ok(Resumed { checkpoint, exported })
}
