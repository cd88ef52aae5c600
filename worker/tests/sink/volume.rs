//! The checkpoint on the volume, beside the one in the sink.

use std::fs;
use std::path::Path;
use std::process::Command;

use penstock_crds::report::{NoticeReason, Reason};
use penstock_worker::change::{Checkpoint, Lsn};
use penstock_worker::checkpoint::{Beginning, Identity, Known, KnownSource, Record, Volume, reconcile};
use tempfile::TempDir;

use crate::support::*;

fn identity() -> Identity {
    Identity { uid: "uid-a".into(), shard: 0 }
}

fn record(checkpoint: Checkpoint) -> Record {
    Record { revision: "r1".into(), epoch: 1, checkpoint, source: source() }
}

fn open(folder: &Path) -> Volume {
    Volume::open(folder, &identity()).unwrap()
}

#[test]
fn record_outlives_the_process() {
    let folder = TempDir::new().unwrap();
    let mut volume = open(folder.path());
    let id = volume.id();
    assert_eq!(volume.record().unwrap(), None);
    volume.write(&record(after(1))).unwrap();
    volume.advance(&after(2)).unwrap();
    drop(volume);
    let volume = open(folder.path());
    assert_eq!(volume.record().unwrap(), Some(record(after(2))));
    assert_eq!(volume.id(), id);
    assert_eq!(volume.set_aside(), None);
}

#[test]
fn largest_numbers_survive() {
    let folder = TempDir::new().unwrap();
    let mut checkpoint = after(i64::MAX >> 8);
    checkpoint.end_lsn = Lsn(u64::MAX);
    checkpoint.position.commit_lsn = Lsn(u64::MAX - 1);
    checkpoint.position.xid = u32::MAX;
    checkpoint.position.ordinal = u64::MAX;
    checkpoint.sequence = i64::MAX;
    open(folder.path()).write(&record(checkpoint)).unwrap();
    assert_eq!(open(folder.path()).record().unwrap(), Some(record(checkpoint)));
}

#[test]
fn advance_without_a_record_is_refused() {
    let folder = TempDir::new().unwrap();
    assert_failed(open(folder.path()).advance(&after(1)), Reason::VolumeFailed);
}

#[test]
fn volume_of_another_shard_is_refused() {
    let folder = TempDir::new().unwrap();
    drop(open(folder.path()));
    for other in [Identity { shard: 1, ..identity() }, Identity { uid: "uid-b".into(), ..identity() }] {
        let message = assert_failed(Volume::open(folder.path(), &other), Reason::VolumeForeign);
        assert!(message.contains("shard 0 of the pipeline with UID uid-a"), "{message}");
    }
}

#[test]
fn two_workers_cannot_use_one_volume() {
    let folder = TempDir::new().unwrap();
    let first = open(folder.path());
    let message = assert_failed(Volume::open(folder.path(), &identity()), Reason::VolumeFailed);
    assert!(message.contains("another process"), "{message}");
    drop(first);
    open(folder.path());
}

#[test]
fn damaged_checkpoint_is_set_aside_and_made_anew() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("checkpoint.sqlite");
    for number in 1..=2 {
        let mut volume = open(folder.path());
        volume.write(&record(after(1))).unwrap();
        drop(volume);
        let mut bytes = fs::read(&file).unwrap();
        let half = bytes.len() / 2;
        // First a torn file, then one that is no database at all.
        let damaged = if number == 1 { &mut bytes[half..] } else { &mut bytes[..] };
        damaged.fill(b'x');
        fs::write(&file, &bytes).unwrap();

        let volume = open(folder.path());
        assert_eq!(volume.record().unwrap(), None);
        let aside = folder.path().join(format!("checkpoint.sqlite.corrupt-{number}"));
        assert_eq!(volume.set_aside(), Some(aside.as_path()));
        assert_eq!(fs::read(aside).unwrap(), bytes, "kept for whoever looks into it");
    }
}

#[test]
fn checkpoint_with_a_changed_byte_is_not_believed() {
    let folder = TempDir::new().unwrap();
    open(folder.path()).write(&record(after(1))).unwrap();
    let file = folder.path().join("checkpoint.sqlite");
    let mut bytes = fs::read(&file).unwrap();
    // SQLite itself finds nothing wrong with another digit.
    let lsn = after(1).end_lsn.to_string();
    let at = bytes.windows(lsn.len()).position(|window| window == lsn.as_bytes()).unwrap();
    bytes[at + lsn.len() - 1] = b'9';
    fs::write(&file, bytes).unwrap();
    let volume = open(folder.path());
    assert_eq!(volume.record().unwrap(), None);
    assert!(volume.set_aside().is_some());
}

#[test]
fn folder_that_cannot_be_written_is_said() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("a file");
    fs::write(&file, "").unwrap();
    assert_failed(Volume::open(&file.join("folder"), &identity()), Reason::VolumeFailed);
}

const FULL_VOLUME: &str = "PENSTOCK_TEST_FULL_VOLUME";

/// Runs itself in a mount namespace of its own, with a tiny file system.
#[test]
fn full_volume_is_said() {
    if let Some(folder) = std::env::var_os(FULL_VOLUME) {
        return fill_volume(Path::new(&folder));
    }
    let folder = TempDir::new().unwrap();
    let test = std::env::current_exe().unwrap();
    let script = "mount -t tmpfs -o size=256k tmpfs \"$0\" && exec \"$1\" --exact volume::full_volume_is_said --nocapture";
    let status = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", script])
        .arg(folder.path())
        .arg(test)
        .env(FULL_VOLUME, folder.path())
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}

fn fill_volume(folder: &Path) {
    // Full before the first byte of the checkpoint.
    let ballast = folder.join("ballast");
    fs::write(&ballast, vec![0; 1 << 20]).unwrap_err();
    let message = assert_failed(Volume::open(folder, &identity()), Reason::VolumeFull);
    assert!(message.contains("spec.worker.storage.size"), "{message}");

    // Full while it runs: what was written last stays, and it goes on once there is space.
    fs::remove_file(&ballast).unwrap();
    let mut volume = open(folder);
    volume.write(&record(after(0))).unwrap();
    fs::write(&ballast, vec![0; 1 << 20]).unwrap_err();
    let (last, failure) = (1..10_000)
        .find_map(|sequence| volume.advance(&after(sequence)).err().map(|failure| (sequence - 1, failure)))
        .expect("the volume never became full");
    assert_eq!(failure.reason, Reason::VolumeFull, "{failure}");
    assert_eq!(volume.record().unwrap(), Some(record(after(last))));
    drop(volume);
    fs::remove_file(&ballast).unwrap();
    let mut volume = open(folder);
    assert_eq!(volume.record().unwrap(), Some(record(after(last))));
    volume.advance(&after(last + 1)).unwrap();
}

/// What a worker does at start, as far as volume and sink are concerned.
async fn begin(database: &Database, folder: &Path, slot: Lsn) -> (Beginning, Volume) {
    let volume = open(folder);
    let (_, started) =
        database.start(penstock_worker::sink::Owner { volume_id: volume.id(), ..owner() }).await;
    let known = Known {
        slot: Some(slot),
        volume: volume.record().unwrap(),
        sink: started.checkpoint,
        is_new_revision: started.moved_from_revision.is_some(),
        source: KnownSource { identity: started.source.clone(), end: Lsn(u64::MAX), switches: Vec::new() },
        sink_source: started.source,
        sink_holds: Lsn(0),
        slot_is_synced: false,
    };
    (reconcile(&known).unwrap(), volume)
}

fn resumed(beginning: Beginning) -> (Checkpoint, Option<NoticeReason>) {
    match beginning {
        Beginning::Resume { checkpoint, notice } => (checkpoint, notice.map(|notice| notice.reason)),
        Beginning::First { .. } => panic!("began anew"),
    }
}

#[tokio::test]
async fn crash_between_sink_and_volume_repeats_nothing() {
    let database = Database::with("CREATE TABLE t (id bigint, note text)").await;
    let folder = TempDir::new().unwrap();
    let relation = relation(penstock_worker::change::ReplicaIdentity::Full, &[("id", INT8), ("note", TEXT)]);
    let (_sink, mut writer) = database.writer(&relation).await;
    let mut volume = open(folder.path());
    writer.write(vec![insert([note(1, "one")])]).await.unwrap();
    writer.commit(&after(1)).await.unwrap();
    volume.write(&record(after(1))).unwrap();
    writer.write(vec![insert([note(2, "two")])]).await.unwrap();
    writer.commit(&after(2)).await.unwrap();
    // Killed here: the volume does not hear of it, nor the source.
    drop((writer, volume));

    let (beginning, _volume) = begin(&database, folder.path(), after(1).end_lsn).await;
    assert_eq!(resumed(beginning), (after(2), None));
    assert_eq!(database.lines("SELECT * FROM t ORDER BY id").await, ["1|one", "2|two"]);
}

#[tokio::test]
async fn lost_volume_is_rebuilt_from_the_sink() {
    let database = Database::new().await;
    let folder = TempDir::new().unwrap();
    let (sink, _) = database.start(owner()).await;
    sink.writer(0).await.unwrap().commit(&after(3)).await.unwrap();
    let (beginning, mut volume) = begin(&database, folder.path(), after(2).end_lsn).await;
    assert_eq!(resumed(beginning), (after(3), Some(NoticeReason::VolumeRebuilt)));
    volume.write(&record(after(3))).unwrap();
    drop(volume);
    let (beginning, volume) = begin(&database, folder.path(), after(3).end_lsn).await;
    assert_eq!(resumed(beginning), (after(3), None));
    assert_eq!(database.value("SELECT volume_id FROM penstock.checkpoint").await, volume.id().to_string());
}
