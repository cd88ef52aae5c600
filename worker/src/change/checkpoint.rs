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
