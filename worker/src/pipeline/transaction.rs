//! The source transaction that is being read.

use bytes::Bytes;

use crate::change::{HEARTBEAT_PREFIX, Lsn};
use crate::decode::{LogicalMessage, PgTimestamp};
use crate::sink::{BARRIER_PREFIX, Barriers, Writer};
use crate::source::WATERMARK_PREFIX;

pub(super) struct Transaction {
    pub(super) commit_lsn: Lsn,
    pub(super) xid: u32,
    pub(super) commit_time: PgTimestamp,
    /// Changes of this shard so far.
    pub(super) changes: u64,
    /// What messages with our prefix say.
    pub(super) watermarks: Vec<Bytes>,
    /// What messages about barriers say.
    pub(super) barriers: Vec<Bytes>,
    /// What messages that mark the log say.
    pub(super) heartbeats: Vec<Bytes>,
}

impl Transaction {
    pub(super) fn begin(commit_lsn: Lsn, xid: u32, commit_time: PgTimestamp) -> Self {
        let (watermarks, barriers, heartbeats) = (Vec::new(), Vec::new(), Vec::new());
        Self { commit_lsn, xid, commit_time, changes: 0, watermarks, barriers, heartbeats }
    }

    /// Keeps what is said to workers; what is not transactional has no place among the commits.
    pub(super) fn hear(&mut self, message: LogicalMessage) {
        if !message.transactional {
            return;
        }
        match message.prefix.as_str() {
            WATERMARK_PREFIX => self.watermarks.push(message.content),
            BARRIER_PREFIX => self.barriers.push(message.content),
            HEARTBEAT_PREFIX => self.heartbeats.push(message.content),
            _ => {}
        }
    }

    /// Whether it changes what this shard follows, or says something to it.
    pub(super) fn is_own(&self, writer: &Writer, barriers: &Barriers) -> bool {
        self.changes > 0
            || self.heartbeats.iter().any(|content| writer.own_token(content).is_some())
            || self.barriers.iter().any(|content| barriers.own(content).is_some())
    }
}
