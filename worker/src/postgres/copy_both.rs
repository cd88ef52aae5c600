//! The replication stream: WAL data and keepalives in, standby status out.
//!
//! **Who keeps memory.** A message shorter than half a read buffer is copied into memory of its own, so that a
//! consumer that keeps one short row out of many pins that row and not the whole buffer. A longer one is split
//! off without a copy; it is most of what it pins.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use postgres_protocol::message::backend::Message;

use super::error::ServerError;
use super::replication::{ReplicationError, Wire, parse};
use crate::change::Lsn;

/// `CopyData` header, then kind, start, end, time.
const DATA_HEADER_BYTES: usize = 5 + 25;
/// `CopyData` header, then kind, end, time, whether a reply is wanted.
const KEEPALIVE_BYTES: usize = 5 + 18;
/// Messages from this length on are not copied.
const SPLIT_BYTES_MIN: usize = 128 * 1024;
/// `CopyDone` and `Terminate`: a letter and the length.
const COPY_DONE: [u8; 5] = [b'c', 0, 0, 0, 4];
const TERMINATE: [u8; 5] = [b'X', 0, 0, 0, 4];
/// Seconds between the Unix and the PostgreSQL epoch (2000-01-01).
const POSTGRES_EPOCH_SECONDS: u64 = 946_684_800;

/// A message of the replication stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamMessage {
    /// Output of the plugin (`XLogData`).
    Data {
        /// Where in the log it comes from.
        wal_start: Lsn,
        /// End of the log at the server.
        wal_end: Lsn,
        /// What the plugin wrote.
        payload: Bytes,
    },
    /// Everything up to `wal_end` has been sent.
    Keepalive {
        /// Up to where the server has read its log.
        wal_end: Lsn,
        /// The server wants a status update at once.
        reply_requested: bool,
    },
    /// The server warns of something, in the middle of the stream.
    Notice(ServerError),
}

/// A connection that streams. Reading is split into [`fill`](Self::fill), which waits and can be cancelled, and
/// [`pop`](Self::pop), which does not wait.
#[derive(Debug)]
pub struct CopyBoth {
    wire: Wire,
}

impl CopyBoth {
    pub(super) fn new(wire: Wire) -> Self {
        Self { wire }
    }

    /// Waits for more bytes. Cancelling it loses nothing.
    pub async fn fill(&mut self) -> Result<(), ReplicationError> {
        self.wire.fill().await
    }

    /// The next message that has arrived as a whole, or `None`.
    pub fn pop(&mut self) -> Result<Option<StreamMessage>, ReplicationError> {
        while let Some((tag, length)) = self.wire.whole_frame()? {
            match tag {
                b'd' => return take_message(&mut self.wire.buffer, length).map(Some),
                b'S' => self.wire.buffer.advance(length),
                b'c' | b'C' => return Err(ended()),
                _ => {
                    let message = parse(self.wire.buffer.split_to(length))?;
                    if let Message::NoticeResponse(body) = message {
                        return Ok(Some(StreamMessage::Notice(ServerError::read(body.fields()))));
                    }
                    if let Message::ErrorResponse(body) = message {
                        return Err(ServerError::read(body.fields()).into());
                    }
                    let problem = format!("message {:?} in the stream", char::from(tag));
                    return Err(ReplicationError::Protocol(problem));
                }
            }
        }
        Ok(None)
    }

    /// Tells the server that everything up to `flushed` is durable and never needed again.
    pub async fn send_status(&mut self, flushed: Lsn) -> Result<(), ReplicationError> {
        self.send(flushed, false).await
    }

    /// The same, and the server answers at once with a keepalive.
    pub async fn ping(&mut self, flushed: Lsn) -> Result<(), ReplicationError> {
        self.send(flushed, true).await
    }

    /// The last status, and the end of the stream: returns when the server has read both. A connection that is closed
    /// while something of the server's is unread takes what was sent last with it.
    pub async fn finish(mut self, flushed: Lsn) -> Result<(), ReplicationError> {
        self.send_status(flushed).await?;
        self.wire.send(&COPY_DONE).await?;
        loop {
            while let Some((tag, length)) = self.wire.whole_frame()? {
                if matches!(tag, b'c' | b'C' | b'E') {
                    return Ok(self.wire.send(&TERMINATE).await?);
                }
                self.wire.buffer.advance(length);
            }
            self.wire.fill().await?;
        }
    }

    async fn send(&mut self, flushed: Lsn, is_answer_wanted: bool) -> Result<(), ReplicationError> {
        let mut message = BytesMut::with_capacity(64);
        message.put_u8(b'd');
        message.put_u32(4 + 34);
        message.put_u8(b'r');
        // Written, flushed, applied: one truth, so that synchronous_standby_names never counts bytes that a
        // crash of the worker would lose.
        for _ in 0..3 {
            message.put_u64(flushed.0);
        }
        message.put_u64(microseconds_now());
        message.put_u8(u8::from(is_answer_wanted));
        Ok(self.wire.send(&message).await?)
    }
}

fn ended() -> ReplicationError {
    std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the server ended the stream").into()
}

fn microseconds_now() -> u64 {
    let since_unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let micros = u64::try_from(since_unix.as_micros()).unwrap_or(u64::MAX);
    micros.saturating_sub(POSTGRES_EPOCH_SECONDS * 1_000_000)
}

/// Takes a `CopyData` message of `length` bytes, header included, off the front of the buffer.
fn take_message(buffer: &mut BytesMut, length: usize) -> Result<StreamMessage, ReplicationError> {
    let short = || ReplicationError::Protocol(format!("a stream message of {length} bytes is too short"));
    let mut body = buffer.get(5..length).ok_or_else(short)?;
    let kind = body.try_get_u8().map_err(|_| short())?;
    match kind {
        b'w' if length >= DATA_HEADER_BYTES => {
            let (wal_start, wal_end) = (Lsn(body.get_u64()), Lsn(body.get_u64()));
            let payload = if length < SPLIT_BYTES_MIN {
                let payload = Bytes::copy_from_slice(&buffer[DATA_HEADER_BYTES..length]);
                buffer.advance(length);
                payload
            } else {
                let mut frame = buffer.split_to(length).freeze();
                frame.advance(DATA_HEADER_BYTES);
                frame
            };
            Ok(StreamMessage::Data { wal_start, wal_end, payload })
        }
        b'k' if length >= KEEPALIVE_BYTES => {
            let wal_end = Lsn(body.get_u64());
            let _sent_at = body.get_u64();
            let reply_requested = body.get_u8() != 0;
            buffer.advance(length);
            Ok(StreamMessage::Keepalive { wal_end, reply_requested })
        }
        b'w' | b'k' => Err(short()),
        other => Err(ReplicationError::Protocol(format!("stream message of kind {:?}", char::from(other)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(payload: &[u8]) -> BytesMut {
        let mut message = BytesMut::new();
        message.put_u8(b'd');
        message.put_u32(u32::try_from(4 + 25 + payload.len()).unwrap());
        message.put_u8(b'w');
        for word in [7_u64, 9, 0] {
            message.put_u64(word);
        }
        message.put_slice(payload);
        message
    }

    #[test]
    fn short_and_long_payloads_are_read_exactly_and_the_rest_stays() {
        for size in [0, 1, SPLIT_BYTES_MIN, 3 * SPLIT_BYTES_MIN] {
            let payload = vec![0xAB; size];
            let mut buffer = data(&payload);
            let length = buffer.len();
            buffer.put_slice(b"rest");
            let message = take_message(&mut buffer, length).unwrap();
            let expected =
                StreamMessage::Data { wal_start: Lsn(7), wal_end: Lsn(9), payload: payload.into() };
            assert_eq!(message, expected);
            assert_eq!(&buffer[..], b"rest");
        }
    }

    #[test]
    fn cut_messages_of_any_length_are_refused_without_panic() {
        let whole = data(b"payload");
        for kind in [b'w', b'k', b'x'] {
            for length in 5..30 {
                let mut buffer = whole.clone();
                buffer[5] = kind;
                let taken = take_message(&mut buffer, length);
                assert!(taken.is_err() || (kind == b'k' && length >= KEEPALIVE_BYTES), "{kind} {length}");
            }
        }
    }
}
