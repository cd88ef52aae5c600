//! A volume that fails on purpose. It needs root, `/dev/fuse` and loop devices, and leaves nothing mounted, not even when
//! this process is killed.
//!
//! ```text
//!  worker ── read, write, fsync ──> layer (FUSE): fails when told to
//!                                     └──> ext4 on a loop device ──> image file: what the disk holds
//! ```

mod disk;
mod fault;
mod layer;
mod namespace;

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use fuser::BackgroundSession;
use nix::mount::{MntFlags, umount2};
use rand::rngs::StdRng;
use tempfile::TempDir;

use self::disk::Disk;
pub use self::disk::{Loss, Survival};
pub use self::fault::FileFault;
use self::fault::{Content, Switch};
use self::layer::Layer;
use self::namespace::{NEEDS, Namespace};

/// Mounted in a namespace of its own; ends when dropped. Whatever uses it runs inside ([`Volume::run`]) and ends first.
#[derive(Debug)]
pub struct Volume {
    at: PathBuf,
    switch: Arc<Switch>,
    before_lies: Option<Content>,
    /// `None` only while it changes hands.
    mounted: Option<(Disk, BackgroundSession)>,
    namespace: Namespace,
    _folder: TempDir,
}

impl Volume {
    /// An empty volume at a folder, which is made where it is not there.
    ///
    /// # Errors
    /// Also where nothing can be mounted: with one sentence that says what it needs.
    pub fn mount(at: &Path) -> Result<Self> {
        std::fs::create_dir_all(at)?;
        let folder = TempDir::new()?;
        let namespace = Namespace::new()?;
        let switch = Arc::new(Switch::default());
        let (place, images, asked) = (at.to_owned(), folder.path().to_owned(), switch.clone());
        let mounted = namespace.run(move || {
            let disk = Disk::make(&images).context(NEEDS)?;
            let session = mount_layer(&disk, &place, asked)?;
            anyhow::Ok((disk, session))
        })??;
        let (at, mounted) = (at.to_owned(), Some(mounted));
        Ok(Self { at, switch, before_lies: None, mounted, namespace, _folder: folder })
    }

    /// Does something where the volume is to be seen, and waits for it. A process that is started there sees it, too;
    /// its parent is a thread that lives as long as the volume.
    pub fn run<T: Send + 'static>(&self, task: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        self.namespace.run(task)
    }

    /// Where it is to be seen.
    pub fn at(&self) -> &Path {
        &self.at
    }

    /// What the layer does from now on.
    pub fn set(&mut self, fault: FileFault) -> Result<()> {
        self.set_after(0, fault)
    }

    /// What the layer does after so many more operations of the kind that the fault is about.
    pub fn set_after(&mut self, operations: u64, fault: FileFault) -> Result<()> {
        if fault == FileFault::LyingSync {
            self.before_lies = Some(self.content()?.into_iter().collect());
        }
        self.switch.set(fault, operations);
        Ok(())
    }

    /// How many operations the fault that is set was done to.
    pub fn acted(&self) -> u64 {
        self.switch.acted()
    }

    /// The files as they are below the layer.
    pub fn content(&self) -> Result<Vec<(OsString, Vec<u8>)>> {
        let folder = self.disk()?.files();
        Ok(self.run(move || fault::content(&folder))??.into_iter().collect())
    }

    /// Syncs the disk, and remembers what it holds, for [`Loss::Torn`]. Nothing may write meanwhile.
    pub fn mark(&mut self) -> Result<()> {
        self.change(|mut disk, session| {
            disk.mark()?;
            Ok(((disk, session), ()))
        })
    }

    /// Ends the time of [`FileFault::LyingSync`]: a part of what was written in it is lost. Nothing uses the volume.
    pub fn lose_what_was_not_synced(&mut self, random: &mut StdRng) -> Result<()> {
        let (folder, before) = (self.disk()?.files(), self.before_lies.take().context("nobody lied")?);
        let mut own = rand::SeedableRng::from_rng(random);
        self.run(move || fault::lose_a_part(&folder, &before, &mut own))??;
        self.set(FileFault::None)
    }

    /// The power goes and comes back. Nothing uses the volume.
    pub fn lose_power(&mut self, loss: Loss, random: &mut StdRng) -> Result<Survival> {
        let mut own: StdRng = rand::SeedableRng::from_rng(random);
        let (place, switch) = (self.at.clone(), self.switch.clone());
        self.switch.set(FileFault::None, 0);
        self.change(move |mut disk, session| {
            unmount_layer(&place, session)?;
            let survival = disk.lose_power(loss, &mut own)?;
            let session = mount_layer(&disk, &place, switch)?;
            Ok(((disk, session), survival))
        })
    }

    fn disk(&self) -> Result<&Disk> {
        self.mounted.as_ref().map(|(disk, _)| disk).context("it broke before")
    }

    fn change<T: Send + 'static>(
        &mut self,
        task: impl FnOnce(Disk, BackgroundSession) -> Result<((Disk, BackgroundSession), T)> + Send + 'static,
    ) -> Result<T> {
        let (disk, session) = self.mounted.take().context("it broke before")?;
        let (mounted, outcome) = self.namespace.run(move || task(disk, session))??;
        self.mounted = Some(mounted);
        Ok(outcome)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let Some((disk, session)) = self.mounted.take() else { return };
        let place = self.at.clone();
        // What is still mounted after this goes with the namespace.
        drop(self.namespace.run(move || {
            drop(unmount_layer(&place, session));
            drop(disk.unmount());
        }));
    }
}

fn mount_layer(disk: &Disk, at: &Path, switch: Arc<Switch>) -> Result<BackgroundSession> {
    let layer = Layer::new(&disk.files(), switch);
    fuser::spawn_mount(layer, at, &fuser::Config::default()).context(NEEDS)
}

/// Lazily: a process that was killed may not be quite gone.
fn unmount_layer(at: &Path, session: BackgroundSession) -> Result<()> {
    umount2(at, MntFlags::MNT_DETACH).context("unmounting the file layer")?;
    drop(session);
    Ok(())
}
