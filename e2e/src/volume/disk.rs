//! An ext4 file system in an image file. What the file holds is what the disk was asked to keep: power is lost by going on
//! with a copy of it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use nix::mount::{MntFlags, umount2};
use rand::rngs::StdRng;

use super::fault::mixed;
use super::namespace::NEEDS;

/// Room for a journal, and for a log of SQLite's that nobody empties.
const BYTES: u64 = 16 * 1024 * 1024;
/// Two looks at an image that nobody writes to are equal; the kernel may be about to write its journal.
const LOOKS_MAX: u32 = 100;
const NAME: &str = "image";

/// What a disk does with what it has not been asked to keep yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// A disk that keeps its word: whatever was synced is there, in order.
    Ordered,
    /// A disk that does not: of what was written since [`super::Volume::mark`] some sectors are there.
    Torn,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survival {
    /// The file system was mounted again.
    Mounted,
    /// It could not be, and was made anew: the volume is empty.
    MadeAnew,
}

#[derive(Debug)]
pub(super) struct Disk {
    folder: PathBuf,
    /// Has no name once it is mounted: nothing is left of it when this process is killed, and the file system of before a
    /// loss of power, which may still be writing, has its own.
    image: File,
    marked: Option<Vec<u8>>,
}

/// All of it is done in the namespace of the volume.
impl Disk {
    /// `folder` is empty, and keeps the images.
    pub(super) fn make(folder: &Path) -> Result<Self> {
        fs::create_dir(folder.join("mounted"))?;
        let image = format(&folder.join(NAME))?;
        let disk = Self { folder: folder.to_owned(), image, marked: None };
        disk.mount()?.then_some(disk).context(NEEDS)
    }

    /// Where the files are.
    pub(super) fn files(&self) -> PathBuf {
        self.folder.join("mounted/files")
    }

    /// Syncs, and remembers what the disk holds. Nothing must be written meanwhile.
    pub(super) fn mark(&mut self) -> Result<()> {
        nix::unistd::syncfs(File::open(self.files())?)?;
        self.marked = Some(self.still_image()?);
        Ok(())
    }

    /// Nothing uses the files.
    pub(super) fn lose_power(&mut self, loss: Loss, random: &mut StdRng) -> Result<Survival> {
        let mut kept = self.still_image()?;
        if loss == Loss::Torn {
            let marked = self.marked.as_ref().context("no state to fall back to was marked")?;
            kept = mixed(marked, &kept, random);
        }
        self.unmount()?;
        let path = self.folder.join(NAME);
        self.image = write_sparse(&path, &kept)?;
        // What a node does with a disk before it mounts it; one that keeps its word needs no more than its journal.
        if (loss == Loss::Ordered || repair(&path)?) && self.mount()? {
            return Ok(Survival::Mounted);
        }
        ensure!(loss == Loss::Torn, "a file system whose disk kept its word was not mounted again");
        self.image = format(&path)?;
        ensure!(self.mount()?, "a new file system was not mounted");
        Ok(Survival::MadeAnew)
    }

    /// Lazily: the files may be in use.
    pub(super) fn unmount(&self) -> Result<()> {
        umount2(&self.folder.join("mounted"), MntFlags::MNT_DETACH).context("unmounting the volume's disk")
    }

    /// Whether the kernel takes it.
    fn mount(&self) -> Result<bool> {
        let mut command = Command::new("mount");
        command
            .args(["-t", "ext4", "-o", "loop"])
            .arg(self.folder.join(NAME))
            .arg(self.folder.join("mounted"));
        if !command.output().context("running mount")?.status.success() {
            return Ok(false);
        }
        fs::remove_file(self.folder.join(NAME))?;
        if fs::create_dir_all(self.files()).is_ok() && fs::read_dir(self.files()).is_ok() {
            return Ok(true);
        }
        self.unmount()?;
        Ok(false)
    }

    /// All of it as it is at one moment.
    fn still_image(&self) -> Result<Vec<u8>> {
        let look = || -> Result<Vec<u8>> {
            let mut bytes = vec![0; usize::try_from(BYTES)?];
            self.image.read_exact_at(&mut bytes, 0)?;
            Ok(bytes)
        };
        let mut before = look()?;
        for _ in 0..LOOKS_MAX {
            let now = look()?;
            if now == before {
                return Ok(now);
            }
            before = now;
        }
        bail!("the image does not come to rest")
    }
}

fn format(image: &Path) -> Result<File> {
    File::create(image)?.set_len(BYTES)?;
    let mut command = Command::new("mkfs.ext4");
    command.args(["-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0"]).arg(image);
    ensure!(command.status().context("running mkfs.ext4")?.success(), "mkfs.ext4 failed");
    Ok(File::open(image)?)
}

/// Whether there is a file system again.
fn repair(image: &Path) -> Result<bool> {
    let mut command = Command::new("e2fsck");
    let output = command.args(["-f", "-y"]).arg(image).output().context("running e2fsck")?;
    // 1 and 2 say that it has mended something.
    Ok(output.status.code().is_some_and(|code| code < 4))
}

/// Holes stay holes.
fn write_sparse(path: &Path, bytes: &[u8]) -> Result<File> {
    const BLOCK_BYTES: usize = 4096;
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    file.set_len(bytes.len() as u64)?;
    for (number, block) in bytes.chunks(BLOCK_BYTES).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            file.write_all_at(block, (number * BLOCK_BYTES) as u64)?;
        }
    }
    Ok(file)
}
