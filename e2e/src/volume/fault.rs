//! What the file layer does, switched from outside while it is mounted; and what a loss of power leaves.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use fuser::Errno;
use rand::RngExt as _;
use rand::rngs::StdRng;

/// What a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;

/// What happens to every operation of its kind from now on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FileFault {
    /// Nothing.
    #[default]
    None,
    /// Reads fail with EIO.
    Read,
    /// Writes fail with EIO, and nothing of them arrives.
    Write,
    /// fsync fails with EIO. What was written is there, and may be lost with the power.
    Sync,
    /// Writes, and new files, fail with ENOSPC.
    Full,
    /// A part of each write arrives, and then it fails with EIO.
    TornWrite {
        /// How much arrives.
        percent: u8,
    },
    /// A part of the next write arrives, and after that nothing; all of it is said to be well. So does a machine that
    /// loses power look to one who does not know it yet.
    PowerFailing {
        /// How much arrives.
        percent: u8,
    },
    /// fsync does nothing, and says that all is well.
    LyingSync,
}

/// What becomes of a write.
pub(super) enum Fate {
    Arrives,
    /// So many bytes arrive, and this is the answer.
    Part(usize, Result<(), Errno>),
    Fails(Errno),
}

/// The layer asks it, the test sets it.
#[derive(Debug, Default)]
pub(super) struct Switch {
    fault: Mutex<FileFault>,
    acted: AtomicU64,
}

impl Switch {
    /// Counts from nothing again.
    pub(super) fn set(&self, fault: FileFault) {
        let mut now = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        *now = fault;
        self.acted.store(0, Ordering::Relaxed);
    }

    /// How many operations the fault was done to.
    pub(super) fn acted(&self) -> u64 {
        self.acted.load(Ordering::Relaxed)
    }

    pub(super) fn read(&self) -> Result<(), Errno> {
        match self.now() {
            FileFault::Read => self.fail(Errno::EIO),
            FileFault::None
            | FileFault::Write
            | FileFault::Sync
            | FileFault::Full
            | FileFault::TornWrite { .. }
            | FileFault::PowerFailing { .. }
            | FileFault::LyingSync => Ok(()),
        }
    }

    pub(super) fn write(&self, bytes: usize) -> Fate {
        let part = |percent: u8| bytes * usize::from(percent) / 100;
        let fate = match self.now() {
            FileFault::None | FileFault::Read | FileFault::Sync | FileFault::LyingSync => {
                return Fate::Arrives;
            }
            FileFault::Write => Fate::Fails(Errno::EIO),
            FileFault::Full => Fate::Fails(Errno::ENOSPC),
            FileFault::TornWrite { percent } => Fate::Part(part(percent), Err(Errno::EIO)),
            FileFault::PowerFailing { percent } if self.acted() == 0 => Fate::Part(part(percent), Ok(())),
            FileFault::PowerFailing { .. } => Fate::Part(0, Ok(())),
        };
        self.acted.fetch_add(1, Ordering::Relaxed);
        fate
    }

    /// Whether the change of names or sizes arrives.
    pub(super) fn change(&self) -> Result<bool, Errno> {
        match self.now() {
            FileFault::None | FileFault::Read | FileFault::Sync | FileFault::LyingSync => Ok(true),
            FileFault::Full => self.fail(Errno::ENOSPC),
            FileFault::Write | FileFault::TornWrite { .. } => self.fail(Errno::EIO),
            // A new name that is not there could not be read again; it is lost with what is in it.
            FileFault::PowerFailing { .. } => Ok(self.acted() == 0),
        }
    }

    /// Whether fsync reaches the folder.
    pub(super) fn sync(&self) -> Result<bool, Errno> {
        match self.now() {
            FileFault::Sync => self.fail(Errno::EIO),
            FileFault::LyingSync | FileFault::PowerFailing { .. } => {
                self.acted.fetch_add(1, Ordering::Relaxed);
                Ok(false)
            }
            FileFault::None
            | FileFault::Read
            | FileFault::Write
            | FileFault::Full
            | FileFault::TornWrite { .. } => Ok(true),
        }
    }

    fn now(&self) -> FileFault {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail<T>(&self, errno: Errno) -> Result<T, Errno> {
        self.acted.fetch_add(1, Ordering::Relaxed);
        Err(errno)
    }
}

/// The files of a folder as they were.
pub(super) type Content = BTreeMap<OsString, Vec<u8>>;

pub(super) fn content(folder: &Path) -> Result<Content> {
    fs::read_dir(folder)?
        .map(|entry| {
            entry.and_then(|entry| Ok((entry.file_name(), fs::read(entry.path())?))).map_err(Into::into)
        })
        .collect()
}

/// Leaves in the folder what a disk may hold that was asked for `before`, and then for what is there now.
pub(super) fn lose_a_part(folder: &Path, before: &Content, random: &mut StdRng) -> Result<()> {
    let now = content(folder)?;
    let names: std::collections::BTreeSet<_> = before.keys().chain(now.keys()).collect();
    for name in names {
        match (before.get(name), now.get(name)) {
            (None, Some(_)) if random.random() => fs::remove_file(folder.join(name))?,
            (Some(old), None) if random.random() => fs::write(folder.join(name), old)?,
            (old, Some(new)) => {
                fs::write(folder.join(name), mixed(old.map_or(&[], Vec::as_slice), new, random))?;
            }
            (_, None) => {}
        }
    }
    Ok(())
}

/// Each sector as it was or as it is; so is the length.
pub(super) fn mixed(old: &[u8], new: &[u8], random: &mut StdRng) -> Vec<u8> {
    let length = if random.random() { new.len() } else { old.len() };
    let mut mixed = vec![0; length];
    // From all to nothing: half of everything would be one kind of damage only.
    let share: f64 = random.random();
    for (number, sector) in mixed.chunks_mut(SECTOR_BYTES).enumerate() {
        let from = if random.random_bool(share) { new } else { old };
        let kept = from.get(number * SECTOR_BYTES..).unwrap_or_default();
        let bytes = kept.len().min(sector.len());
        sector[..bytes].copy_from_slice(&kept[..bytes]);
    }
    mixed
}
