//! What torture does to a pipeline, and how often.

use rand::RngExt as _;
use rand::rngs::StdRng;

/// What is done to the pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// SIGKILL of the worker; another one is started on its volume.
    WorkerKilled,
    /// SIGKILL of the worker, and its volume is gone with it.
    VolumeLost,
    /// The worker is stopped, another one is started in its place on an empty volume, then the first one wakes up.
    WorkerStoppedAndReplaced,
    /// SIGKILL of every process of the sink.
    SinkKilled,
    /// SIGKILL of every process of the source.
    SourceKilled,
    /// Connections to the sink are reset.
    SinkCut,
    /// Connections to the source are reset.
    SourceCut,
    /// Nothing passes between worker and sink for a while.
    SinkStalled,
    /// Nothing passes between worker and source for a while.
    SourceStalled,
    /// What the worker says reaches the sink, and no answer comes back; then the connections are reset.
    SinkAnswersLost,
    /// The same for the source.
    SourceAnswersLost,
    /// The worker's volume is full for a while.
    VolumeFull,
    /// Reads of the volume fail for a while. A worker reads it when it begins again, so connections to the sink are reset.
    VolumeUnreadable,
    /// Writes to the volume fail for a while.
    VolumeUnwritable,
    /// fsync of the volume fails for a while.
    VolumeUnsynced,
    /// The stock is copied again from its beginning.
    StockCopiedAgain,
    /// The stock gets a column.
    ColumnAdded,
    /// A write reaches the volume in part; then it fails, or nothing arrives any more. Then the worker is killed.
    VolumeTorn,
    /// SIGKILL of the worker, and its disk loses what it was not asked to keep; or, as disks that lie, more than that.
    PowerLost,
}

impl Fault {
    const ALL: [(u32, Self); 19] = [
        (25, Self::WorkerKilled),
        (5, Self::VolumeLost),
        (10, Self::WorkerStoppedAndReplaced),
        (8, Self::SinkKilled),
        (8, Self::SourceKilled),
        (10, Self::SinkCut),
        (7, Self::SourceCut),
        (7, Self::SinkStalled),
        (5, Self::SourceStalled),
        (10, Self::SinkAnswersLost),
        (5, Self::SourceAnswersLost),
        (5, Self::VolumeFull),
        (4, Self::VolumeUnreadable),
        (4, Self::VolumeUnwritable),
        (4, Self::VolumeUnsynced),
        (6, Self::StockCopiedAgain),
        (3, Self::ColumnAdded),
        (7, Self::VolumeTorn),
        (7, Self::PowerLost),
    ];

    pub(crate) fn random(random: &mut StdRng) -> Self {
        let mut ticket = random.random_range(0..Self::ALL.iter().map(|(weight, _)| weight).sum());
        for (weight, fault) in Self::ALL {
            if ticket < weight {
                return fault;
            }
            ticket -= weight;
        }
        Self::WorkerKilled
    }

    pub(crate) fn is_a_kill(self) -> bool {
        matches!(
            self,
            Self::WorkerKilled
                | Self::VolumeLost
                | Self::WorkerStoppedAndReplaced
                | Self::SinkKilled
                | Self::SourceKilled
                | Self::VolumeTorn
                | Self::PowerLost
        )
    }
}
