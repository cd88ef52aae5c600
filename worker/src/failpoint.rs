//! Failpoints: places between two steps of which one must not be taken for the other, where a test kills, holds or
//! fails the worker from outside. Without the cargo feature `failpoints`, and so in every image, [`reach`] is empty.
//!
//! The environment variable `FAILPOINTS` says what happens where, in the words of the crate `fail`:
//!
//! ```text
//! FAILPOINTS='BeforeSinkCommit=2*off->1*return(abort);AfterVolumeFsync=return(pause:/tmp/go-on)'
//! ```
//!
//! `2*off` passes the first two times. `abort` ends the process as SIGKILL does, nothing is unwound; `pause:FILE`
//! waits until the file is there; `error` fails the step.

use crate::failure::Failure;

macro_rules! points {
    ($($(#[$doc:meta])+ $name:ident,)+) => {
        /// A place where the worker can be killed, held or failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Point {
            $($(#[$doc])+ $name,)+
        }

        impl Point {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)+];
        }
    };
}

points! {
    /// The fence is locked, and its epoch raised in a transaction that is still open.
    BeforeEpochBump,
    /// Older runs of the shard cannot commit any more; this one has not done anything yet.
    AfterEpochBump,
    /// Tables are given to shards, or forgotten, in a transaction that is still open.
    BeforeAssigned,
    /// The sink knows whose each table is: comes before the publication is changed, and again after it.
    AfterAssigned,
    /// The publication is changed in a transaction that is still open.
    BeforePublication,
    /// The source publishes what the manifest names; the sink does not know of new tables.
    AfterPublication,
    /// The entries of the publication are noted in a transaction that is still open.
    BeforePublishedNoted,
    /// The sink knows by which entries of the publication its tables are followed.
    AfterPublishedNoted,
    /// The sink table is claimed, made and noted in a transaction that is still open.
    BeforeTableMade,
    /// The sink table is there and noted as one that is being copied.
    AfterTableMade,
    /// The source keeps no log for the shard, or for the copy of added tables.
    BeforeSlot,
    /// The slot is there, and the sink does not know of it.
    AfterSlot,
    /// The first checkpoint is written in a transaction that is still open.
    BeforeFirstCheckpoint,
    /// The sink knows where the slot begins.
    AfterFirstCheckpoint,
    /// The sink table is emptied for its copy in a transaction that is still open.
    BeforeTableEmptied,
    /// The sink table is empty.
    AfterTableEmptied,
    /// The rows of a chunk are sent and noted in a transaction that is still open.
    BeforeChunkCommit,
    /// A chunk is in the sink.
    AfterChunkCommit,
    /// All rows of a table are copied, and noted so in a transaction that is still open.
    BeforeTableReady,
    /// A table is noted as ready.
    AfterTableReady,
    /// The snapshot of a range is taken, and none of its rows read.
    BeforeRangeRead,
    /// The rows of a range are read, and its watermark is not in the source's log.
    BeforeWatermark,
    /// The watermark is in the source's log.
    AfterWatermark,
    /// The rows of a range are sent, and not noted, in a transaction that is still open.
    BeforeRangeNoted,
    /// A range is noted in a transaction that is still open.
    AfterRangeNoted,
    /// The columns of a sink table are about to be changed, in the transaction that carries the first changes of the new
    /// shape.
    BeforeDdl,
    /// They are changed in a transaction that is still open.
    AfterDdl,
    /// A sink transaction is open, and an operation of it not sent.
    BeforeSinkStatement,
    /// The sink has carried out an operation in a transaction that is still open.
    AfterSinkStatement,
    /// The checkpoint is moved in a transaction that is still open.
    BeforeSinkCommit,
    /// The sink has committed; the volume is behind.
    AfterSinkCommit,
    /// The volume has not been touched.
    BeforeVolumeWrite,
    /// The volume's transaction is written and not committed: nothing of it is on the disk.
    BeforeVolumeFsync,
    /// The checkpoint is on the disk.
    AfterVolumeFsync,
    /// Sink and volume have it; the source keeps its log.
    BeforeAcknowledge,
    /// The source was told that it may let go of its log.
    AfterAcknowledge,
    /// Two lineages were compared, and no shard stands still for the exchange of their tables.
    BeforeHold,
    /// Every shard stands still, and the tables are not exchanged.
    AtHold,
}

/// Does what `FAILPOINTS` says about this place.
///
/// # Errors
/// `FAILPOINTS` says `error`.
#[inline]
pub fn reach(point: Point) -> Result<(), Failure> {
    #[cfg(feature = "failpoints")]
    return armed::reach(point);
    #[cfg(not(feature = "failpoints"))]
    {
        let _ = point;
        Ok(())
    }
}

/// Reads `FAILPOINTS`, if this build knows it; in force while the value lives.
pub fn arm() -> Armed {
    Armed {
        #[cfg(feature = "failpoints")]
        _scenario: fail::FailScenario::setup(),
    }
}

/// What [`arm`] read is in force.
pub struct Armed {
    #[cfg(feature = "failpoints")]
    _scenario: fail::FailScenario<'static>,
}

#[cfg(feature = "failpoints")]
mod armed {
    use std::path::Path;
    use std::time::Duration;

    use penstock_crds::report::Reason;

    use super::Point;
    use crate::failure::Failure;

    const POLL: Duration = Duration::from_millis(10);

    pub(super) fn reach(point: Point) -> Result<(), Failure> {
        let name = format!("{point:?}");
        tracing::debug!(failpoint = name, "failpoint");
        fail::fail_point!(&name, |action| act(&name, &action.unwrap_or_default()));
        Ok(())
    }

    fn act(name: &str, action: &str) -> Result<(), Failure> {
        tracing::info!(failpoint = name, action, "failpoint acts");
        match action.split_once(':') {
            None if action == "abort" => std::process::abort(),
            Some(("pause", file)) => tokio::task::block_in_place(|| {
                while !Path::new(file).exists() {
                    std::thread::sleep(POLL);
                }
                Ok(())
            }),
            None | Some(_) => {
                Err(Failure::new(Reason::SinkUnreachable, format!("The failpoint {name} says: {action}.")))
            }
        }
    }
}
