//! The reader of the stream: a task that owns the socket, and the channel to its consumer.
//!
//! **Memory.** Frames wait in a channel that is bounded by bytes. What the reader holds at any time is at most
//! `capacity_bytes`, one group on its way in (256 KiB or one larger frame), and the read buffer (1 MiB or one
//! larger frame). While the channel is full nothing is read from the socket, so the source waits; status updates
//! go on.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::error::SourceError;
use super::stream::{Stream, StreamRequest, open, stream_error, stream_notice};
use crate::change::Lsn;
use crate::failpoint::{Point, reach};
use crate::postgres::{Endpoint, StreamMessage};

/// Frames are handed over in groups of about this size.
const GROUP_BYTES: usize = 256 * 1024;
/// A good-bye that takes longer is cut off.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A piece of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A message of pgoutput.
    Data {
        /// Where in the log it comes from.
        wal_start: Lsn,
        /// End of the log at the server.
        wal_end: Lsn,
        /// The message.
        payload: Bytes,
    },
    /// Every transaction that committed before `wal_end` has been sent. Once their changes are settled,
    /// acknowledging it lets the source drop log that holds nothing of ours; and a source that is being shut
    /// down waits for that.
    Keepalive {
        /// Up to where the server has read its log.
        wal_end: Lsn,
    },
}

impl Frame {
    fn size(&self) -> usize {
        size_of::<Self>()
            + match self {
                Self::Data { payload, .. } => payload.len(),
                Self::Keepalive { .. } => 0,
            }
    }
}

/// A stream that is being read. Dropping it cuts the connection.
#[derive(Debug)]
pub struct Reader {
    groups: mpsc::UnboundedReceiver<Result<Group, SourceError>>,
    frames: std::vec::IntoIter<Frame>,
    /// The room of the group that `frames` comes from.
    room: Option<OwnedSemaphorePermit>,
    ended: Option<SourceError>,
    acknowledged: watch::Sender<Lsn>,
    task: AbortOnDropHandle<()>,
}

/// Frames and the room they take in the channel.
#[derive(Debug)]
struct Group {
    frames: Vec<Frame>,
    room: OwnedSemaphorePermit,
}

/// Starts to read. The first frame comes at once, even from a source where nothing happens. Errors, those of the connection included, come out of [`Reader::next`].
pub fn spawn_reader(endpoint: Endpoint, request: StreamRequest) -> Reader {
    let (sender, groups) = mpsc::unbounded_channel();
    let (acknowledged, acknowledgements) = watch::channel(request.start);
    let task = tokio::spawn(async move {
        if let Err(error) = run(&endpoint, &request, acknowledgements, &sender).await {
            // The consumer may be gone; then nobody needs the error.
            let _nobody_listens = sender.send(Err(error));
        }
    });
    Reader {
        groups,
        frames: Vec::new().into_iter(),
        room: None,
        ended: None,
        acknowledged,
        task: AbortOnDropHandle::new(task),
    }
}

impl Reader {
    /// The next frame. After an error it returns that error again. Cancelling it loses nothing.
    pub async fn next(&mut self) -> Result<Frame, SourceError> {
        loop {
            if let Some(frame) = self.frames.next() {
                return Ok(frame);
            }
            self.room = None;
            if let Some(error) = &self.ended {
                return Err(error.clone());
            }
            match self.groups.recv().await {
                Some(Ok(group)) => {
                    self.frames = group.frames.into_iter();
                    self.room = Some(group.room);
                }
                Some(Err(error)) => self.ended = Some(error),
                None => self.ended = Some(SourceError::lost(&"the reader has stopped", "reading changes")),
            }
        }
    }

    /// Says that everything up to `lsn` is durable; the source is told at once and keeps nothing before it. An
    /// older address than the last is ignored.
    pub fn acknowledge(&self, lsn: Lsn) {
        self.acknowledged.send_if_modified(|last| {
            let is_later = lsn > *last;
            *last = lsn.max(*last);
            is_later
        });
    }

    /// Sends the last acknowledgement and closes the connection, so that the slot is free.
    pub async fn close(self) {
        let Self { groups, acknowledged, task, .. } = self;
        drop((groups, acknowledged));
        let _cut_off_if_late = timeout(CLOSE_TIMEOUT, task).await;
    }
}

async fn run(
    endpoint: &Endpoint,
    request: &StreamRequest,
    mut acknowledged: watch::Receiver<Lsn>,
    sender: &mpsc::UnboundedSender<Result<Group, SourceError>>,
) -> Result<(), SourceError> {
    let Stream { mut copy, patience } = open(endpoint, request).await?;
    let failed = |error| stream_error(error, request);
    let capacity = request.capacity_bytes.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
    let room = Arc::new(Semaphore::new(capacity));
    let mut status_due = interval(patience.status_interval);
    status_due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut waiting = Vec::new();
    let mut heard = Instant::now();
    loop {
        let mut is_reply_due = false;
        if waiting.is_empty() {
            let mut size = 0;
            while size < GROUP_BYTES
                && let Some(message) = copy.pop().map_err(failed)?
            {
                if let Some(frame) = into_frame(message, request, &mut is_reply_due)? {
                    size += frame.size();
                    waiting.push(frame);
                }
            }
        }
        if is_reply_due {
            let flushed = *acknowledged.borrow_and_update();
            copy.send_status(flushed).await.map_err(failed)?;
        }
        tokio::select! {
            biased;
            changed = acknowledged.changed() => {
                let flushed = *acknowledged.borrow_and_update();
                if changed.is_err() {
                    return copy.finish(flushed).await.map_err(failed);
                }
                copy.send_status(flushed).await.map_err(failed)?;
                reach(Point::AfterAcknowledge)?;
            }
            _ = status_due.tick() => {
                let flushed = *acknowledged.borrow_and_update();
                copy.ping(flushed).await.map_err(failed)?;
            }
            room = make_room(&room, capacity, &waiting) => {
                let frames = std::mem::take(&mut waiting);
                heard = Instant::now();
                if sender.send(Ok(Group { frames, room })).is_err() {
                    return Ok(());
                }
            }
            filled = timeout_at(heard + patience.silence, copy.fill()), if waiting.is_empty() => {
                filled.map_err(|_| silent(patience.silence))?.map_err(failed)?;
                heard = Instant::now();
            }
        }
    }
}

fn silent(silence: Duration) -> SourceError {
    let problem = format!("nothing came for {} s, although answers were asked for", silence.as_secs());
    SourceError::lost(&problem, "reading changes")
}

fn into_frame(
    message: StreamMessage,
    request: &StreamRequest,
    is_reply_due: &mut bool,
) -> Result<Option<Frame>, SourceError> {
    match message {
        StreamMessage::Data { wal_start, wal_end, payload } => {
            Ok(Some(Frame::Data { wal_start, wal_end, payload }))
        }
        StreamMessage::Notice(notice) => stream_notice(&notice, request).map(|()| None),
        StreamMessage::Keepalive { wal_end, reply_requested } => {
            *is_reply_due |= reply_requested;
            Ok(Some(Frame::Keepalive { wal_end }))
        }
    }
}

/// Waits for room for the frames; forever when there are none. A group that is larger than the whole channel
/// takes all of it.
async fn make_room(room: &Arc<Semaphore>, capacity: usize, frames: &[Frame]) -> OwnedSemaphorePermit {
    if frames.is_empty() {
        return pending().await;
    }
    let size = frames.iter().map(Frame::size).sum::<usize>().min(capacity);
    match Arc::clone(room).acquire_many_owned(u32::try_from(size).unwrap_or(u32::MAX)).await {
        Ok(permit) => permit,
        // The semaphore is never closed.
        Err(_) => pending().await,
    }
}
