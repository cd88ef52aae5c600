//! The conditions of a pipeline and the stable words for why they are what they are.

use std::fmt;

use crate::report::Reason;

/// The conditions of a pipeline. The first three are kstatus's: `Reconciling` and `Stalled` are true when
/// something is unusual.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConditionType {
    /// Every change is being applied as it arrives, by workers of the spec as it is now.
    Ready,
    /// The operator or the workers are on the way to what the spec says.
    Reconciling,
    /// A person is needed; the message says what for.
    Stalled,
    /// Every worker reaches the source.
    SourceReachable,
    /// Every worker reaches the sink.
    SinkReachable,
    /// The rows that were there before are copied, all tables.
    SnapshotComplete,
    /// Every row of the sink was as the source's when they were compared last, with the spec as it is now.
    SourceMatches,
    /// Every row of the canary was as the stable revision's when they were compared last. There while a canary is.
    CanaryMatching,
    /// The tables can be given back to the revision that was promoted over. There while that one is.
    RollbackAvailable,
}

impl fmt::Display for ConditionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Why a condition is what it is: a word of a worker, or of the operator itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConditionReason {
    /// A worker said so.
    Worker(Reason),
    /// The operator found it.
    Operator(OperatorReason),
}

impl fmt::Display for ConditionReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Worker(reason) => fmt::Debug::fmt(reason, f),
            Self::Operator(reason) => fmt::Debug::fmt(reason, f),
        }
    }
}

impl From<Reason> for ConditionReason {
    fn from(reason: Reason) -> Self {
        Self::Worker(reason)
    }
}

impl From<OperatorReason> for ConditionReason {
    fn from(reason: OperatorReason) -> Self {
        Self::Operator(reason)
    }
}

/// What the operator finds by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OperatorReason {
    /// Changes are applied as they arrive.
    Streaming,
    /// Existing rows are copied.
    Snapshotting,
    /// Workers are being made or are starting.
    Starting,
    /// The old revision stops before the new one starts.
    Replacing,
    /// `spec.paused` stopped the workers.
    Paused,
    /// The object is being deleted.
    Deleting,
    /// What deletion leaves in the databases is removed.
    CleaningUp,
    /// The clean-up Job meets an error; it tries again.
    CleanUpFailed,
    /// Nothing is left to do.
    Settled,
    /// Nothing waits for a person.
    NotStalled,
    /// All databases of this end answer.
    Reachable,
    /// A database of this end does not answer.
    Unreachable,
    /// No worker has said anything yet, or none says it now.
    NoReport,
    /// A worker that runs does not answer the operator.
    WorkerUnreachable,
    /// All tables are copied.
    AllTablesCopied,
    /// Some tables are not copied yet.
    TablesMissing,
    /// An object that the pipeline needs exists and belongs to somebody else.
    NameTaken,
    /// Two different specs have the same revision name.
    RevisionClash,
    /// A stored revision cannot be read.
    RevisionUnreadable,
    /// The API server refuses an object that the pipeline needs.
    ApiRefused,
    /// Kubernetes makes no pod for a worker or for the clean-up.
    PodsRefused,
    /// The operator cannot see what there is.
    ObservationFailed,
    /// No node takes a worker's pod.
    PodUnschedulable,
    /// The worker's image cannot be pulled.
    ImagePullFailed,
    /// The worker ends again and again.
    WorkerCrashing,
    /// The worker's container cannot be made.
    ContainerFailed,
    /// The comparison found every row the same.
    Equal,
    /// The comparison found rows that differ.
    Different,
    /// Nobody has compared sink and source yet.
    NeverCompared,
    /// They are being compared.
    Comparing,
    /// They could not be compared.
    ComparisonFailed,
    /// The last comparison was of the spec as it was before, or of a sink about which something was decided since.
    ComparisonOutdated,
    /// A canary is tried beside the stable revision.
    CanaryRunning,
    /// The canary waits for the annotation that promotes it.
    WaitsForPromotion,
    /// What the spec means was tried and rejected, or rolled back.
    RevisionRejected,
    /// What is beside the stable revision is removed.
    Removing,
    /// The revision that was promoted over follows the source.
    PreviousFollows,
    /// It does not, or does not say so.
    PreviousUnreachable,
}
