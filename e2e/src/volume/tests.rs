use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rand::SeedableRng as _;
use tempfile::TempDir;

use super::*;

struct Stage {
    volume: Volume,
    at: PathBuf,
    _folder: TempDir,
}

fn stage() -> Stage {
    let folder = TempDir::new().unwrap();
    let at = folder.path().join("volume");
    Stage { volume: Volume::mount(&at).unwrap(), at, _folder: folder }
}

impl Stage {
    fn write(&self, text: &'static str) -> std::io::Result<()> {
        let file = self.at.join("file");
        self.volume.run(move || File::create(file)?.write_all(text.as_bytes())).unwrap()
    }

    fn sync(&self) -> std::io::Result<()> {
        let file = self.at.join("file");
        self.volume.run(move || File::open(file)?.sync_all()).unwrap()
    }

    fn read(&self) -> std::io::Result<String> {
        let file = self.at.join("file");
        self.volume.run(move || fs::read_to_string(file)).unwrap()
    }
}

fn failed(done: std::io::Result<impl std::fmt::Debug>) -> Option<i32> {
    done.unwrap_err().raw_os_error()
}

fn random() -> StdRng {
    StdRng::seed_from_u64(7)
}

#[test]
fn what_is_written_is_read_and_nobody_outside_sees_it() {
    let stage = stage();
    stage.write("hello").unwrap();
    stage.sync().unwrap();
    assert_eq!(stage.read().unwrap(), "hello");
    assert_eq!(fs::read_dir(&stage.at).unwrap().count(), 0);
    let (from, to) = (stage.at.join("file"), stage.at.join("other"));
    let at = stage.at.clone();
    let names = stage.volume.run(move || {
        fs::rename(from, &to)?;
        let names: Vec<_> = fs::read_dir(at)?.flatten().map(|entry| entry.file_name()).collect();
        fs::remove_file(to)?;
        std::io::Result::Ok(names)
    });
    assert_eq!(names.unwrap().unwrap(), ["other"]);
    assert_eq!(stage.read().unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn each_fault_fails_what_it_says_and_passes_when_it_is_gone() {
    const EIO: Option<i32> = Some(5);
    let mut stage = stage();
    stage.write("before").unwrap();
    stage.volume.set(FileFault::Read).unwrap();
    assert_eq!(failed(stage.read()), EIO);
    stage.volume.set(FileFault::Sync).unwrap();
    assert_eq!(failed(stage.sync()), EIO);
    assert_eq!(stage.volume.acted(), 1);
    stage.volume.set(FileFault::Write).unwrap();
    assert_eq!(failed(stage.write("after")), EIO);
    stage.volume.set(FileFault::None).unwrap();
    assert_eq!(stage.read().unwrap(), "before");
    stage.volume.set(FileFault::Full).unwrap();
    assert_eq!(failed(stage.write("after")), Some(28));
    stage.volume.set(FileFault::None).unwrap();
    stage.write("after").unwrap();
    stage.sync().unwrap();
    assert_eq!(stage.read().unwrap(), "after");
}

#[test]
fn a_torn_write_arrives_in_part() {
    let mut stage = stage();
    stage.write("").unwrap();
    let file = stage.at.join("file");
    let write = || {
        let file = file.clone();
        stage.volume.run(move || File::options().append(true).open(file)?.write_all(b"abcd")).unwrap()
    };
    stage.volume.switch.set(FileFault::TornWrite { percent: 50 }, 0);
    assert_eq!(failed(write()), Some(5));
    stage.volume.switch.set(FileFault::PowerFailing { percent: 25 }, 0);
    write().unwrap();
    write().unwrap();
    stage.volume.set(FileFault::None).unwrap();
    assert_eq!(stage.read().unwrap(), "aba");
}

#[test]
fn power_takes_what_was_not_synced_and_nothing_else() {
    let mut stage = stage();
    stage.write("kept").unwrap();
    stage.sync().unwrap();
    let file = stage.at.join("new");
    stage.volume.run(move || fs::write(file, "lost")).unwrap().unwrap();
    assert_eq!(stage.volume.lose_power(Loss::Ordered, &mut random()).unwrap(), Survival::Mounted);
    assert_eq!(stage.read().unwrap(), "kept");
    let names: Vec<_> = stage.volume.content().unwrap().into_iter().map(|(name, _)| name).collect();
    assert!(names.len() == 1 || stage.volume.content().unwrap()[1].1.is_empty(), "{names:?}");
}

#[test]
fn a_torn_disk_comes_back_in_some_way() {
    let mut stage = stage();
    for seed in 0..8 {
        stage.write("one").unwrap();
        stage.volume.mark().unwrap();
        stage.write("two").unwrap();
        stage.sync().unwrap();
        stage.volume.lose_power(Loss::Torn, &mut StdRng::seed_from_u64(seed)).unwrap();
        if let Ok(text) = stage.read() {
            assert!(text.chars().all(|letter| "onetw\0".contains(letter)), "{text:?}");
        }
    }
    stage.write("again").unwrap();
    assert_eq!(stage.read().unwrap(), "again");
}

#[test]
fn a_sync_that_lied_keeps_a_part() {
    let mut stage = stage();
    stage.write("old").unwrap();
    stage.volume.set(FileFault::LyingSync).unwrap();
    stage.write("new").unwrap();
    stage.sync().unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..40 {
        stage.volume.set(FileFault::None).unwrap();
        stage.write("old").unwrap();
        stage.volume.set(FileFault::LyingSync).unwrap();
        stage.write("new").unwrap();
        stage.volume.lose_what_was_not_synced(&mut StdRng::seed_from_u64(seed)).unwrap();
        seen.insert(stage.read().unwrap());
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["new", "old"]);
}

#[test]
fn nothing_stays_mounted() {
    let stage = stage();
    let namespace = stage.volume.run(|| fs::read_link("/proc/thread-self/ns/mnt")).unwrap().unwrap();
    stage.write("something").unwrap();
    assert!(is_inhabited(&namespace));
    drop(stage);
    let began = Instant::now();
    while is_inhabited(&namespace) {
        assert!(began.elapsed() < Duration::from_secs(20), "a thread stayed where the volume is mounted");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What is mounted in a namespace goes when nobody is in it any more.
fn is_inhabited(namespace: &Path) -> bool {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    tasks
        .map(|task| fs::read_link(task.path().join("ns/mnt")))
        .any(|found| found.is_ok_and(|found| found == namespace))
}
