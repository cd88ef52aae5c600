//! The checkpoint's file on a disk that fails, or stops, at each of the operations that it does, one after the other.

use std::path::Path;
use std::time::{Duration, Instant};

use penstock_crds::report::Reason;
use penstock_e2e::volume::{FileFault, Loss, Volume as Mounted};
use penstock_worker::change::{Checkpoint, Lsn, Position, SourceIdentity};
use penstock_worker::checkpoint::{Identity, Record, Volume};
use penstock_worker::failure::Failure;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tempfile::TempDir;

/// A life does fewer operations of one kind than that.
const OPERATIONS_MAX: u64 = 400;
/// How often a worker moves its checkpoint in a life.
const STEPS: u64 = 3;
/// How often what is random is tried.
const ROUNDS: u64 = 150;

fn record(step: u64) -> Record {
    let position = Position { commit_lsn: Lsn(step * 100), xid: 700, ordinal: step };
    let checkpoint = Checkpoint { position, end_lsn: Lsn(step * 100 + 8), sequence: step.cast_signed() };
    let source = SourceIdentity { system_id: "7".into(), timeline: 1, slot: "penstock_0".into() };
    Record { revision: "r1".into(), epoch: 1, checkpoint, source }
}

fn step(found: &Record) -> u64 {
    found.checkpoint.position.ordinal
}

/// A process that another test is about to start holds every file of this one for a moment, and so the lock.
fn open(folder: &Path) -> Result<Volume, Failure> {
    let identity = Identity { uid: "uid-a".into(), shard: 0 };
    let began = Instant::now();
    loop {
        match Volume::open(folder, &identity) {
            Err(failure)
                if failure.message.contains("another process has it")
                    && began.elapsed() < Duration::from_secs(20) =>
            {
                std::thread::sleep(Duration::from_millis(1));
            }
            opened => return opened,
        }
    }
}

/// What one run of a worker does to its volume: opens it, and moves the checkpoint; what was durable when it ended.
fn live(folder: &Path, from: u64) -> (u64, Result<(), Failure>) {
    let mut durable = from;
    let mut run = || {
        let mut volume = open(folder)?;
        volume.record()?;
        volume.write(&record(from + 1))?;
        durable += 1;
        for step in from + 2..=from + STEPS {
            volume.advance(&record(step).checkpoint)?;
            durable = step;
        }
        Ok(())
    };
    let ended = run();
    (durable, ended)
}

struct Stage {
    mounted: Mounted,
    _folder: TempDir,
}

impl Stage {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        Self { mounted: Mounted::mount(&folder.path().join("volume")).unwrap(), _folder: folder }
    }

    fn live(&self, from: u64) -> (u64, Result<(), Failure>) {
        let at = self.mounted.at().to_owned();
        self.mounted.run(move || live(&at, from)).unwrap()
    }

    /// What the next run finds, and whether it set something aside; no fault is set.
    fn find(&self) -> (Option<Record>, bool) {
        let at = self.mounted.at().to_owned();
        let found = self.mounted.run(move || {
            let volume = open(&at)?;
            Ok::<_, Failure>((volume.record()?, volume.set_aside().is_some()))
        });
        found.unwrap().unwrap()
    }
}

/// Fails at each operation in turn, until a whole life does not come to it.
fn fails_everywhere(fault: FileFault, reason: Reason) {
    let mut stage = Stage::new();
    let (mut durable, ended) = stage.live(0);
    ended.unwrap();
    for operations in 0..OPERATIONS_MAX {
        stage.mounted.set_after(operations, fault).unwrap();
        let (now_durable, ended) = stage.live(durable);
        let acted = stage.mounted.acted();
        stage.mounted.set(FileFault::None).unwrap();
        let (found, is_set_aside) = stage.find();
        let found = found.map(|record| step(&record));
        assert!(!is_set_aside, "{fault:?} after {operations}: a sound checkpoint was set aside");
        assert!(
            found.is_some_and(|found| (now_durable..=now_durable + 1).contains(&found)),
            "{fault:?} after {operations}: {now_durable} was durable, {found:?} is there"
        );
        if let Err(failure) = ended {
            assert_eq!(failure.reason, reason, "{fault:?} after {operations}: {failure}");
            assert!(acted > 0, "{fault:?} after {operations}: nothing failed, and yet: {failure}");
        }
        if acted == 0 {
            assert!(operations > 0, "{fault:?}: this proves nothing");
            return;
        }
        durable = found.unwrap_or_default();
    }
    panic!("{fault:?}: still failing after {OPERATIONS_MAX} operations");
}

#[test]
fn a_disk_that_cannot_read_is_said_and_what_it_holds_is_kept() {
    fails_everywhere(FileFault::Read, Reason::VolumeFailed);
}

#[test]
fn a_disk_that_cannot_write_is_said_and_what_it_holds_is_kept() {
    fails_everywhere(FileFault::Write, Reason::VolumeFailed);
}

#[test]
fn a_disk_that_cannot_sync_is_said_and_what_it_holds_is_kept() {
    fails_everywhere(FileFault::Sync, Reason::VolumeFailed);
}

#[test]
fn a_disk_that_is_full_is_said_and_what_it_holds_is_kept() {
    fails_everywhere(FileFault::Full, Reason::VolumeFull);
}

#[test]
fn a_disk_that_writes_a_part_is_said_and_what_it_holds_is_kept() {
    for percent in [1, 50, 99] {
        fails_everywhere(FileFault::TornWrite { percent }, Reason::VolumeFailed);
    }
}

/// All before a moment is there, one write in part, and nothing after it: also when the checkpoint is being made.
#[test]
fn what_was_durable_is_there_wherever_the_power_fails() {
    for percent in [0, 30, 100] {
        for is_new in [true, false] {
            power_fails_everywhere(percent, is_new);
        }
    }
}

fn power_fails_everywhere(percent: u8, is_new: bool) {
    let mut reached = 0;
    for operations in 0..OPERATIONS_MAX {
        let folder = TempDir::new().unwrap();
        let mut mounted = Mounted::mount(&folder.path().join("volume")).unwrap();
        let at = mounted.at().to_owned();
        let from = if is_new {
            0
        } else {
            mounted
                .run({
                    let at = at.clone();
                    move || live(&at, 0)
                })
                .unwrap()
                .0
        };
        mounted.set_after(operations, FileFault::PowerFailing { percent }).unwrap();
        let _ = mounted.run(move || live(&at, from)).unwrap();
        let acted = mounted.acted();
        mounted.set(FileFault::None).unwrap();
        let stage = Stage { mounted, _folder: folder };
        let (found, is_set_aside) = stage.find();
        let found = found.map_or(0, |record| step(&record));
        assert!(!is_set_aside, "power failed after {operations} ({percent} %): it was set aside");
        assert!((from..=from + STEPS).contains(&found), "{operations}: {found}");
        assert!(found >= reached, "{operations}: {found} after {reached}, which one operation less has left");
        reached = found;
        if acted == 0 {
            return;
        }
    }
    panic!("still failing after {OPERATIONS_MAX} operations");
}

/// In process, as the worker's own threads: what was said to be durable is there.
#[test]
fn a_disk_that_keeps_its_word_has_what_was_durable_when_the_power_failed() {
    let mut random = seeded();
    let mut stage = Stage::new();
    let mut durable = 0;
    for round in 0..ROUNDS / 5 {
        durable = stage.live(durable).0;
        stage.mounted.lose_power(Loss::Ordered, &mut random).unwrap();
        let (found, is_set_aside) = stage.find();
        assert!(!is_set_aside, "round {round}");
        assert_eq!(found.map(|record| step(&record)), Some(durable), "round {round}");
    }
}

/// What is found is a checkpoint that was written, or none; and it is found at once.
#[test]
fn a_disk_that_lies_leaves_a_checkpoint_that_was_written_or_none() {
    let mut random = seeded();
    let mut stage = Stage::new();
    let (mut last, mut set_aside, mut behind) = (0, 0, 0);
    for round in 0..ROUNDS {
        if random.random_range(0..10) == 0 {
            stage = Stage::new();
            last = 0;
        } else if random.random() {
            last = stage.live(last).0;
        }
        stage.mounted.set(FileFault::LyingSync).unwrap();
        let (written, ended) = stage.live(last);
        ended.unwrap();
        stage.mounted.lose_what_was_not_synced(&mut random).unwrap();
        let (found, is_set_aside) = stage.find();
        if let Some(found) = &found {
            assert_eq!(*found, record(step(found)), "round {round}: this was never written");
            assert!(step(found) <= written, "round {round}");
        }
        set_aside += u32::from(is_set_aside);
        behind += u32::from(found.is_none_or(|found| step(&found) < written));
        last = written;
    }
    println!("{ROUNDS} rounds: {set_aside} times set aside, {behind} times behind");
    assert!(behind > 0, "nothing was ever lost, this proves nothing");
}

fn seeded() -> StdRng {
    let seed: u64 = rand::rng().random();
    println!("seed {seed}");
    StdRng::seed_from_u64(seed)
}
