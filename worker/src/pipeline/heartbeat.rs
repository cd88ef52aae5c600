//! Heartbeats: after the position moved, by changes, a barrier or copied rows, the watch writes a mark into the source's log; where
//! the stream meets it, it is noted in the sink; and the next run looks whether the source still has it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use penstock_crds::report::Reason;

use super::Context;
use super::apply::Applier;
use super::decided::log_of;
use super::start::Fenced;
use crate::change::{Heartbeat, Lsn, Position};
use crate::decode::{self, Recognised, Recognition};
use crate::failure::{ACCEPT_LOSS, BEGIN_ANEW, Failure};
use crate::source::{Frame, Reader};

/// Where the stream begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadFrom {
    pub(super) start: Lsn,
    /// The mark that must come first.
    pub(super) mark: Option<Heartbeat>,
}

impl ReadFrom {
    /// The source sends a mark again that the slot has not confirmed. One that it has is in this log, and so is all that
    /// the slot confirmed: what comes behind that is read again, for in the log of an image it may be something else. So it
    /// is where there is no mark yet, because the stream has brought nothing.
    pub(super) fn new(end: Lsn, confirmed: Option<Lsn>, mark: Option<Heartbeat>) -> Self {
        match (confirmed, mark) {
            (Some(confirmed), Some(mark)) if confirmed <= mark.commit_lsn => {
                Self { start: mark.commit_lsn, mark: Some(mark) }
            }
            (Some(confirmed), _) => Self { start: confirmed.min(end), mark: None },
            (None, _) => Self { start: end, mark: None },
        }
    }
}

/// Whether a mark is due: the stream says so, the watch writes it. A source where nothing happens gets none.
#[derive(Clone, Debug, Default)]
pub(super) struct Due(Arc<AtomicBool>);

impl Due {
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(super) fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// The first frames, until they show that the log is the one that was read before; `None`: the worker is to stop.
///
/// # Errors
/// `SourceChanged`, noted as a dead end: it is another one. As the reader.
pub(super) async fn recognise(
    context: Context<'_>,
    fenced: &mut Fenced,
    reader: &mut Reader,
    mark: Option<Heartbeat>,
) -> Result<Option<Vec<Frame>>, Failure> {
    let mut recognition = Recognition::of(mark);
    let mut frames = Vec::new();
    loop {
        let Some(frame) = context.stop.run_until_cancelled(reader.next()).await else { return Ok(None) };
        let frame = frame?;
        let recognised = match &frame {
            Frame::Data { payload, .. } => recognition.take(&decode::decode(payload.clone())?),
            Frame::Keepalive { wal_end } => recognition.nothing_until(*wal_end),
        };
        frames.push(frame);
        match (recognised, mark) {
            (Recognised::NotYet, _) => {}
            (Recognised::Other, Some(mark)) => {
                let failure = another_history(mark.commit_lsn);
                // A slot that is past the mark is none of an image from before it.
                fenced.sink.note_dead_end(&failure, &log_of(fenced), Some(mark.commit_lsn)).await?;
                return Err(failure);
            }
            (Recognised::Same | Recognised::Other, _) => return Ok(Some(frames)),
        }
    }
}

fn another_history(at: Lsn) -> Failure {
    let message = format!(
        "The source's log does not have the mark that was read at {at} before: the source was restored to an older state and written \
         since (a disk image), so the sink holds changes that it does not have, and may lack others. Point \
         source.postgres.connection at the server that has them. {BEGIN_ANEW} {ACCEPT_LOSS}"
    );
    Failure::new(Reason::SourceChanged, message)
}

impl Applier<'_> {
    /// The stream has met marks; from here on the next run looks for that of this shard.
    pub(super) async fn note_heartbeats(
        &mut self,
        messages: &[Bytes],
        Position { commit_lsn, xid, .. }: Position,
    ) -> Result<(), Failure> {
        let Some(token) = messages.iter().find_map(|content| self.ends.writer.own_token(content)) else {
            return Ok(());
        };
        self.ends.writer.note_heartbeat(&Heartbeat { commit_lsn, xid, token }).await?;
        self.is_writing = true;
        self.commit().await
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn reading_begins_at_the_mark_unless_the_slot_is_past_it() {
        let mark = Heartbeat { commit_lsn: Lsn(200), xid: 1, token: Uuid::nil() };
        let from = |confirmed: u64, mark| {
            let from = ReadFrom::new(Lsn(300), Some(Lsn(confirmed)), mark);
            (from.start.0, from.mark.is_some())
        };
        assert_eq!(from(100, Some(mark)), (200, true));
        assert_eq!(from(200, Some(mark)), (200, true));
        assert_eq!(from(208, Some(mark)), (208, false));
        assert_eq!(from(300, Some(mark)), (300, false));
        assert_eq!(from(100, None), (100, false));
    }
}
