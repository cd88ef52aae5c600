//! What the file layer does, switched from outside while it is mounted; and what a loss of power leaves.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

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
    /// Writes fail with ENOSPC. Files can be made and removed, as on most file systems that are full.
    Full,
    /// A part of each write arrives, and then it fails with EIO.
    TornWrite {
        /// How much arrives.
        percent: u8,
    },
    /// A part of the next write arrives, and after that nothing; all of it is said to be well. New files are there, and empty.
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
    now: Mutex<Now>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Now {
    fault: FileFault,
    /// So many operations are let by before it begins.
    lets_by: u64,
    acted: u64,
}

impl Switch {
    pub(super) fn set(&self, fault: FileFault, lets_by: u64) {
        *self.now() = Now { fault, lets_by, acted: 0 };
    }

    pub(super) fn acted(&self) -> u64 {
        self.now().acted
    }

    pub(super) fn read(&self) -> Result<(), Errno> {
        self.strike(|fault| fault == FileFault::Read).map_or(Ok(()), |_| Err(Errno::EIO))
    }

    pub(super) fn write(&self, bytes: usize) -> Fate {
        let part = |percent: u8| bytes * usize::from(percent) / 100;
        match self.strike(concerns_writes) {
            Some((FileFault::Full, _)) => Fate::Fails(Errno::ENOSPC),
            Some((FileFault::TornWrite { percent }, _)) => Fate::Part(part(percent), Err(Errno::EIO)),
            Some((FileFault::PowerFailing { percent }, 1)) => Fate::Part(part(percent), Ok(())),
            Some((FileFault::PowerFailing { .. }, _)) => Fate::Part(0, Ok(())),
            Some(_) => Fate::Fails(Errno::EIO),
            None => Fate::Arrives,
        }
    }

    /// Whether a change of names or sizes arrives.
    pub(super) fn change(&self) -> Result<bool, Errno> {
        match self.strike(|fault| fault != FileFault::Full && concerns_writes(fault)) {
            Some((FileFault::PowerFailing { .. }, _)) => Ok(false),
            Some(_) => Err(Errno::EIO),
            None => Ok(true),
        }
    }

    /// Whether fsync reaches the folder.
    pub(super) fn sync(&self) -> Result<bool, Errno> {
        let concerned =
            |fault| matches!(fault, FileFault::Sync | FileFault::LyingSync | FileFault::PowerFailing { .. });
        match self.strike(concerned) {
            Some((FileFault::Sync, _)) => Err(Errno::EIO),
            Some(_) => Ok(false),
            None => Ok(true),
        }
    }

    /// The fault that is done to this operation, and to how many it was done by now.
    fn strike(&self, concerned: impl FnOnce(FileFault) -> bool) -> Option<(FileFault, u64)> {
        let mut now = self.now();
        if !concerned(now.fault) {
            return None;
        }
        if now.lets_by > 0 {
            now.lets_by -= 1;
            return None;
        }
        now.acted += 1;
        Some((now.fault, now.acted))
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn concerns_writes(fault: FileFault) -> bool {
    matches!(
        fault,
        FileFault::Write | FileFault::Full | FileFault::TornWrite { .. } | FileFault::PowerFailing { .. }
    )
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
    let names: BTreeSet<_> = before.keys().chain(now.keys()).collect();
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
