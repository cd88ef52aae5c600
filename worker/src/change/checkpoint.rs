//! What is settled, and what the positions in it are relative to.

use super::{Lsn, Position};

/// Everything of the source up to here is in the sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// After the last settled change.
    pub position: Position,
    /// End of the last settled transaction, or of the stretch of log known to hold nothing more for the shard.
    /// What the source is told, and where reading goes on.
    pub end_lsn: Lsn,
    /// Source changes read and settled, gap-free.
    pub sequence: i64,
}

/// The log that positions are addresses in. Positions of two identities cannot be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceIdentity {
    /// System identifier of the source's cluster, as `IDENTIFY_SYSTEM` says it.
    pub system_id: String,
    /// Its timeline.
    pub timeline: u32,
    /// The replication slot.
    pub slot: String,
}

/// Where a timeline ended and the next one began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimelineSwitch {
    /// The timeline that ended.
    pub timeline: u32,
    /// Where it did: what it has from there on is not in the next one.
    pub at: Lsn,
}

/// A log: positions of two of them cannot be compared, unless one goes on from the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogIdentity {
    /// System identifier.
    pub system_id: String,
    /// Timeline.
    pub timeline: u32,
}
