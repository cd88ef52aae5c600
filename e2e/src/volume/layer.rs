//! A file system in user space over one real folder without subfolders: it passes everything on, unless it is told to
//! fail. Nothing is cached by the kernel, so that each read and write comes here. Locks are the kernel's own.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::fault::{Fate, Switch};

/// The kernel asks again each time.
const AT_ONCE: Duration = Duration::ZERO;

pub(super) struct Layer {
    folder: PathBuf,
    switch: Arc<Switch>,
    known: Mutex<Known>,
}

/// What the kernel was told of.
#[derive(Default)]
struct Known {
    last: u64,
    names: BTreeMap<u64, OsString>,
    open: BTreeMap<u64, Arc<File>>,
}

impl Known {
    fn next(&mut self) -> u64 {
        self.last = self.last.max(INodeNo::ROOT.0) + 1;
        self.last
    }

    fn number_of(&mut self, name: &OsStr) -> u64 {
        let found = self.names.iter().find(|(_, known)| *known == name).map(|(number, _)| *number);
        found.unwrap_or_else(|| {
            let number = self.next();
            self.names.insert(number, name.to_owned());
            number
        })
    }

    fn forget(&mut self, name: &OsStr) {
        self.names.retain(|_, known| known != name);
    }

    fn opened(&mut self, file: File) -> FileHandle {
        let handle = self.next();
        self.open.insert(handle, Arc::new(file));
        FileHandle(handle)
    }
}

impl Layer {
    pub(super) fn new(folder: &Path, switch: Arc<Switch>) -> Self {
        Self { folder: folder.to_owned(), switch, known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, inode: INodeNo) -> Result<PathBuf, Errno> {
        if inode == INodeNo::ROOT {
            return Ok(self.folder.clone());
        }
        self.known().names.get(&inode.0).map(|name| self.folder.join(name)).ok_or(Errno::ENOENT)
    }

    fn file(&self, handle: FileHandle) -> Result<Arc<File>, Errno> {
        self.known().open.get(&handle.0).cloned().ok_or(Errno::EBADF)
    }

    fn attributes(&self, inode: INodeNo, handle: Option<FileHandle>) -> Result<FileAttr, Errno> {
        let found = match handle.and_then(|handle| self.file(handle).ok()) {
            Some(file) => file.metadata()?,
            None => fs::symlink_metadata(self.path(inode)?)?,
        };
        attributes(inode, &found)
    }

    fn entry(&self, name: &OsStr) -> Result<FileAttr, Errno> {
        let found = fs::symlink_metadata(self.folder.join(name))?;
        attributes(INodeNo(self.known().number_of(name)), &found)
    }

    fn resize(&self, inode: INodeNo, handle: Option<FileHandle>, bytes: u64) -> Result<(), Errno> {
        if !self.switch.change()? {
            return Ok(());
        }
        let file = match handle {
            Some(handle) => self.file(handle)?,
            None => Arc::new(File::options().write(true).open(self.path(inode)?)?),
        };
        Ok(file.set_len(bytes)?)
    }

    fn create_file(&self, name: &OsStr) -> Result<(FileAttr, FileHandle), Errno> {
        self.switch.change()?;
        let path = self.folder.join(name);
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        let attributes = self.entry(name)?;
        Ok((attributes, self.known().opened(file)))
    }

    fn read_at(&self, handle: FileHandle, offset: u64, bytes: u32) -> Result<Vec<u8>, Errno> {
        self.switch.read()?;
        let file = self.file(handle)?;
        let mut buffer = vec![0; bytes as usize];
        let mut filled = 0;
        loop {
            let read = file.read_at(&mut buffer[filled..], offset + filled as u64)?;
            filled += read;
            if read == 0 || filled == buffer.len() {
                buffer.truncate(filled);
                return Ok(buffer);
            }
        }
    }

    fn write_at(&self, handle: FileHandle, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let file = self.file(handle)?;
        match self.switch.write(data.len()) {
            Fate::Arrives => Ok(file.write_all_at(data, offset)?),
            Fate::Part(bytes, answer) => {
                file.write_all_at(&data[..bytes], offset)?;
                answer
            }
            Fate::Fails(errno) => Err(errno),
        }
    }

    fn sync(&self, handle: FileHandle) -> Result<(), Errno> {
        if self.switch.sync()? {
            self.file(handle)?.sync_all()?;
        }
        Ok(())
    }

    fn remove(&self, name: &OsStr) -> Result<(), Errno> {
        if self.switch.change()? {
            fs::remove_file(self.folder.join(name))?;
            self.known().forget(name);
        }
        Ok(())
    }

    fn move_file(&self, from: &OsStr, to: &OsStr) -> Result<(), Errno> {
        if self.switch.change()? {
            fs::rename(self.folder.join(from), self.folder.join(to))?;
            let mut known = self.known();
            known.forget(to);
            let number = known.number_of(from);
            known.names.insert(number, to.to_owned());
        }
        Ok(())
    }
}

fn attributes(inode: INodeNo, found: &Metadata) -> Result<FileAttr, Errno> {
    let time = |found: std::io::Result<SystemTime>| found.unwrap_or(SystemTime::UNIX_EPOCH);
    Ok(FileAttr {
        ino: inode,
        size: found.len(),
        blocks: found.blocks(),
        atime: time(found.accessed()),
        mtime: time(found.modified()),
        ctime: time(found.modified()),
        crtime: SystemTime::UNIX_EPOCH,
        kind: FileType::from_std(found.file_type()).ok_or(Errno::EIO)?,
        perm: u16::try_from(found.permissions().mode() & 0o7777).unwrap_or(0o600),
        nlink: 1,
        uid: found.uid(),
        gid: found.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    })
}

/// Says how an operation without an answer of its own went.
fn finish(done: Result<(), Errno>, reply: ReplyEmpty) {
    match done {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

#[allow(clippy::too_many_arguments, reason = "the trait's own")]
impl Filesystem for Layer {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.entry(name) {
            Ok(found) => reply.entry(&AT_ONCE, &found, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(inode, handle) {
            Ok(found) => reply.attr(&AT_ONCE, &found),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let resized = size.map_or(Ok(()), |bytes| self.resize(inode, handle, bytes));
        match resized.and_then(|()| self.attributes(inode, handle)) {
            Ok(found) => reply.attr(&AT_ONCE, &found),
            Err(errno) => reply.error(errno),
        }
    }

    fn unlink(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        finish(self.remove(name), reply);
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        from: &OsStr,
        _: INodeNo,
        to: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        finish(self.move_file(from, to), reply);
    }

    fn open(&self, _: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let writes = flags.acc_mode() != fuser::OpenAccMode::O_RDONLY;
        let opened =
            self.path(inode).and_then(|path| Ok(File::options().read(true).write(writes).open(path)?));
        match opened {
            Ok(file) => reply.opened(self.known().opened(file), FopenFlags::FOPEN_DIRECT_IO),
            Err(errno) => reply.error(errno),
        }
    }

    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        match self.create_file(name) {
            Ok((attributes, handle)) => {
                reply.created(&AT_ONCE, &attributes, Generation(0), handle, FopenFlags::FOPEN_DIRECT_IO);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        bytes: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.read_at(handle, offset, bytes) {
            Ok(data) => reply.data(&data),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.write_at(handle, offset, data) {
            Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX)),
            Err(errno) => reply.error(errno),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.known().open.remove(&handle.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        finish(self.sync(handle), reply);
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match File::open(&self.folder) {
            Ok(folder) => reply.opened(self.known().opened(folder), FopenFlags::empty()),
            Err(error) => reply.error(error.into()),
        }
    }

    fn readdir(&self, _: &Request, _: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return reply.error(Errno::EIO) };
        for (number, entry) in
            (1..).zip(entries.flatten()).skip(usize::try_from(offset).unwrap_or(usize::MAX))
        {
            let name = entry.file_name();
            let inode = INodeNo(self.known().number_of(&name));
            if reply.add(inode, number, FileType::RegularFile, &name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.known().open.remove(&handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        finish(self.sync(handle), reply);
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        match nix::sys::statvfs::statvfs(&self.folder) {
            Ok(found) => reply.statfs(
                found.blocks(),
                found.blocks_free(),
                found.blocks_available(),
                found.files(),
                found.files_free(),
                u32::try_from(found.block_size()).unwrap_or(4096),
                255,
                u32::try_from(found.fragment_size()).unwrap_or(4096),
            ),
            Err(errno) => reply.error(Errno::from_i32(errno as i32)),
        }
    }
}
