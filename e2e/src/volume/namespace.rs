//! A mount namespace that lives as long as one thread of this process: what is mounted in it nobody else sees, and the
//! kernel takes it away when the process ends, however it ends.

use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Why nothing can be mounted here.
pub(super) const NEEDS: &str =
    "the tests of volume faults cannot run here: they mount, which takes root, /dev/fuse and loop devices";

type Task = Box<dyn FnOnce() + Send>;

/// Ends when dropped.
#[derive(Debug)]
pub(super) struct Namespace {
    tasks: Option<mpsc::Sender<Task>>,
    thread: Option<JoinHandle<()>>,
}

impl Namespace {
    pub(super) fn new() -> Result<Self> {
        let (tasks, queue) = mpsc::channel::<Task>();
        let (answer, made) = mpsc::channel();
        let thread = thread::Builder::new().name("volume".into()).spawn(move || {
            // A thread may leave the namespace of its process; what it starts, threads and processes, is where it is.
            let left = unshare(CloneFlags::CLONE_NEWNS).and_then(|()| {
                let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
                mount::<str, str, str, str>(None, "/", None, private, None)
            });
            let is_alone = left.is_ok();
            let _ = answer.send(left);
            if is_alone {
                for task in queue {
                    task();
                }
            }
        })?;
        made.recv()?.context(NEEDS)?;
        Ok(Self { tasks: Some(tasks), thread: Some(thread) })
    }

    /// Does something inside, and waits for it. A process that is started there is inside, too.
    pub(super) fn run<T: Send + 'static>(&self, task: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let (answer, done) = mpsc::channel();
        let task = Box::new(move || drop(answer.send(task())));
        self.tasks.as_ref().context("it has ended")?.send(task).ok().context("its thread has ended")?;
        done.recv().context("what was to be done in the namespace panicked")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.tasks = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
