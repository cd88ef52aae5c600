//! `GET /v1/report`: what a worker says about itself. The operator believes nothing else about the data.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// The answer to `GET /v1/report`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// UID of the pipeline.
    pub uid: String,
    /// Revision the worker runs.
    pub revision: String,
    /// Shard number, from 0.
    pub shard: u16,
    /// What its lineage is to the pipeline, by the word of the sink; absent until this attempt asked it.
    #[serde(default)]
    pub role: Option<LineageRole>,
    /// Fencing number of this run; absent until the sink gave one.
    pub epoch: Option<i64>,
    /// What the worker is doing.
    pub phase: WorkerPhase,
    /// Source changes read and settled since the pipeline began, without gap or repeat.
    pub sequence: i64,
    /// End of the last source transaction that is durable in the sink, as `0/16B3748`.
    pub position: Option<String>,
    /// How far the sink is behind; absent when unknown.
    pub lag: Option<Lag>,
    /// Replication slot that the worker reads; absent until the sink said whose names the pipeline keeps.
    pub slot: Option<String>,
    /// Publication that the worker reads, its own or a given one; absent as long as the slot.
    pub publication: Option<String>,
    /// Whether the source answers.
    pub source: Reachability,
    /// Whether the sink answers.
    pub sink: Reachability,
    /// The first load, as soon as it is known what there is to copy.
    pub snapshot: Option<SnapshotProgress>,
    /// What keeps the worker from going on.
    pub problem: Option<Problem>,
    /// Token of the last directive to copy tables again that is settled: carried out, or refused with a notice.
    #[serde(default)]
    pub resnapshot: Option<String>,
    /// What was decided about dead ends of the shard and carried out; absent until this attempt asked the sink, and from
    /// workers that do not know it yet.
    #[serde(default)]
    pub decisions: Option<Decisions>,
    /// Things a person should hear of once, newest last, at most 16. The operator turns each into an Event.
    pub notices: Vec<Notice>,
}

impl Report {
    /// Whether the rows of all tables of the shard are copied. A table that came later is copied while changes are
    /// streamed.
    pub fn has_all_rows(&self) -> bool {
        match self.snapshot {
            Some(snapshot) => snapshot.tables_copied == snapshot.tables,
            None => self.phase == WorkerPhase::Streaming,
        }
    }
}

/// What the tables of a worker are to its pipeline. The sink alone says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LineageRole {
    /// They are those that readers know. Set when the pipeline begins, and by promotion and rollback.
    Stable,
    /// They are beside those. Set when the canary begins, and by rollback. Next: `Stable`.
    Canary,
    /// They were those that readers know. Set by promotion. Next: `Stable` by rollback.
    Previous,
}

/// What was decided about dead ends of a shard and carried out. Where it is another value than before, something was
/// decided since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Decisions {
    /// How many decisions.
    pub count: i64,

    /// When the last of them was carried out, in microseconds since 1970; 0 without one. A sink that was restored comes
    /// to the same count again, but not at the same time.
    pub last_micros: i64,
}

/// What a worker is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum WorkerPhase {
    /// It connects and checks both ends. Next: `Snapshotting` or `Streaming`.
    Starting,
    /// It copies existing rows. Next: `Streaming`.
    Snapshotting,
    /// It applies changes as they arrive; rows of tables that came later may still be copied beside it.
    Streaming,
    /// An error that passes by itself; it tries again with backoff. Next: `Starting`.
    Retrying,
    /// A person is needed; it looks again every half minute. Next: `Starting`.
    Halted,
    /// It was asked to stop and finishes its batch.
    Stopping,
}

/// How far the sink is behind the source.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lag {
    /// Bytes of write-ahead log not yet durable in the sink.
    pub bytes: u64,
    /// Seconds since the oldest change not yet durable was committed; 0 when there is none.
    pub seconds: f64,
}

/// Whether a database answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reachability {
    /// Not tried yet.
    Unknown,
    /// It answered last time.
    Reachable,
    /// It did not.
    Unreachable,
}

/// Progress of the first load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotProgress {
    /// Tables of this shard.
    pub tables: u32,
    /// Tables whose rows are all copied.
    pub tables_copied: u32,
    /// Rows copied so far by this run.
    pub rows_copied: u64,
    /// Rows there are, as the source's statistics estimate them.
    pub rows_estimated: u64,
}

/// What keeps a worker from going on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// Stable word for it.
    pub reason: Reason,
    /// What was tried, on what, what went wrong, and what to do. Never holds a secret.
    pub message: String,
}

/// Something a person should hear of once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Notice {
    /// Unique within the epoch, growing.
    pub id: u32,
    /// Stable word for it.
    pub reason: NoticeReason,
    /// What happened.
    pub message: String,
}

/// Stable words of notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NoticeReason {
    /// The volume was empty and was rebuilt from the sink's checkpoint.
    VolumeRebuilt,
    /// The volume was ahead of the sink; nothing was lost; it went on from the sink.
    VolumeAheadOfSink,
    /// An unfinished table is copied again from its beginning.
    SnapshotRestarted,
    /// A table is not copied yet, because transactions that were running before have not ended.
    SnapshotWaits,
    /// All tables are copied.
    SnapshotCompleted,
    /// Tables are copied again because the annotation `penstock.dev/resnapshot` asks for it.
    ResnapshotTaken,
    /// What the annotation `penstock.dev/resnapshot` asks for cannot be done.
    ResnapshotRefused,
    /// The source is a promoted standby; nothing was lost; it goes on there.
    SourceFailedOver,
    /// A person had all tables copied again from a new slot.
    BegunAnew,
    /// A person let the pipeline go on without changes that were lost.
    LossAccepted,
    /// A new table matches a wildcard of `tables` and cannot be copied; the pipeline goes on without it.
    NewTableUnsuitable,
    /// The columns of a source table changed, and the sink table was changed with them.
    SchemaChangeApplied,
    /// The columns of a source table changed, and the sink table was left as it is.
    SchemaChangeIgnored,
}

/// What happens after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Policy {
    /// Passes by itself: tried again with backoff and jitter, forever, visibly.
    Retry,
    /// A person is needed: `Stalled`. Looked at again every half minute, so that it goes on by itself
    /// when the cause is gone.
    Halt,
}

/// Stable words for what keeps a pipeline from going on. The one table of errors: kind and policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// The source does not answer.
    SourceUnreachable,
    /// The source refuses the user name or password.
    SourceAuthenticationFailed,
    /// TLS with the source fails.
    SourceTlsFailed,
    /// The sink does not answer.
    SinkUnreachable,
    /// The sink refuses the user name or password.
    SinkAuthenticationFailed,
    /// TLS with the sink fails.
    SinkTlsFailed,
    /// A Secret, or one of its keys, is missing.
    CredentialsMissing,
    /// The source's version is not supported, or `wal_level` is not `logical`.
    SourceNotLogical,
    /// The source's role lacks a privilege.
    SourcePrivilegeMissing,
    /// The sink's role lacks a privilege.
    SinkPrivilegeMissing,
    /// The source has no free replication slot or WAL sender.
    NoFreeReplicationSlot,
    /// An entry of `tables` matches no table.
    TableMissing,
    /// A table has neither a primary key nor a usable replica identity.
    ReplicaIdentityMissing,
    /// A column's type cannot be carried without loss.
    UnsupportedColumnType,
    /// An entry of `transforms` does not fit the columns of a table.
    TransformUnsuitable,
    /// A transform cannot be done to a row.
    TransformFailed,
    /// The given publication is missing, lacks a table, or does not publish every operation.
    PublicationUnsuitable,
    /// The slot is gone although a checkpoint exists: changes may be lost.
    SlotMissing,
    /// The source invalidated the slot: changes are lost.
    SlotInvalidated,
    /// Another process reads the slot.
    SlotInUse,
    /// The source is another server or on another timeline than the checkpoint's.
    SourceChanged,
    /// A table was rewritten while it was copied; it is copied again.
    TableRewritten,
    /// The source's tables or the publication changed while changes were streamed; they are looked at again.
    TablesChanged,
    /// The sink table has another shape than the source table.
    SinkTableMismatch,
    /// The sink table holds rows that this pipeline did not write.
    SinkTableNotEmpty,
    /// The sink table belongs to another pipeline.
    SinkTableOwned,
    /// The slot is ahead of the sink: the sink lost commits (restored, or failed over).
    SinkLostCommits,
    /// The sink lacks a row that a change needs, or holds one that it should not.
    SinkDiverged,
    /// The sink refuses a row (constraint, trigger, type).
    SinkRejectedRow,
    /// The sink is out of disk, memory or connections.
    SinkOutOfResources,
    /// Another run of this shard took over; this one starts again.
    Fenced,
    /// Shard 0 has not written yet which tables are whose.
    WaitingForShardZero,
    /// A newer revision of the pipeline took over; this one stops for good.
    Superseded,
    /// The worker's volume is full.
    VolumeFull,
    /// The worker's volume cannot be read or written.
    VolumeFailed,
    /// The worker's volume belongs to another pipeline or shard.
    VolumeForeign,
    /// The manifest is not valid.
    ManifestInvalid,
    /// The source sent bytes that are not the protocol.
    ProtocolViolation,
}

impl Reason {
    /// Whether source and sink cannot be brought together by mending anything: a person decides.
    pub fn is_dead_end(self) -> bool {
        matches!(
            self,
            Self::SlotMissing | Self::SlotInvalidated | Self::SinkLostCommits | Self::SourceChanged
        )
    }

    /// What happens after an error of this kind.
    pub fn policy(self) -> Policy {
        match self {
            Self::SourceUnreachable
            | Self::SinkUnreachable
            | Self::SlotInUse
            | Self::TableRewritten
            | Self::TablesChanged
            | Self::SinkOutOfResources
            | Self::Fenced
            | Self::WaitingForShardZero => Policy::Retry,
            Self::SourceAuthenticationFailed
            | Self::SourceTlsFailed
            | Self::SinkAuthenticationFailed
            | Self::SinkTlsFailed
            | Self::CredentialsMissing
            | Self::SourceNotLogical
            | Self::SourcePrivilegeMissing
            | Self::SinkPrivilegeMissing
            | Self::NoFreeReplicationSlot
            | Self::TableMissing
            | Self::ReplicaIdentityMissing
            | Self::UnsupportedColumnType
            | Self::TransformUnsuitable
            | Self::TransformFailed
            | Self::PublicationUnsuitable
            | Self::SlotMissing
            | Self::SlotInvalidated
            | Self::SourceChanged
            | Self::SinkTableMismatch
            | Self::SinkTableNotEmpty
            | Self::SinkTableOwned
            | Self::SinkLostCommits
            | Self::SinkDiverged
            | Self::SinkRejectedRow
            | Self::Superseded
            | Self::VolumeFull
            | Self::VolumeFailed
            | Self::VolumeForeign
            | Self::ManifestInvalid
            | Self::ProtocolViolation => Policy::Halt,
        }
    }
}
