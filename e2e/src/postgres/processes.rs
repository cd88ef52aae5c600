//! The processes of one server. They are known by their working directory (the postmaster and all its children
//! stay in the data directory), so nobody else's process is ever touched, not even after a pid was reused.

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

/// How long an ordered end may take before it is forced.
const IMMEDIATE_SHUTDOWN_MAX: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);

/// Every process that works in the folder.
pub(super) fn find(data: &Path) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let pid = entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw)?;
            let works_here = fs::read_link(entry.path().join("cwd")).ok()? == data;
            works_here.then_some(pid)
        })
        .collect()
}

/// Sends a signal to every process in the folder.
pub(super) fn signal_all(data: &Path, signal: Signal) {
    for pid in find(data) {
        // It may have ended meanwhile.
        let _ = kill_process(pid, signal);
    }
}

/// Sends SIGKILL to every process in the folder until none is left.
pub(super) fn kill_all(data: &Path) {
    loop {
        if find(data).is_empty() {
            return;
        }
        signal_all(data, Signal::KILL);
        std::thread::sleep(POLL);
    }
}

/// Ends the postmaster: immediate shutdown, by force if that takes long.
pub(super) fn end(postmaster: &mut Child) {
    if let Some(pid) = Pid::from_raw(postmaster.id().cast_signed())
        && matches!(postmaster.try_wait(), Ok(None))
    {
        let _ = kill_process(pid, Signal::QUIT);
        let deadline = Instant::now() + IMMEDIATE_SHUTDOWN_MAX;
        while matches!(postmaster.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
    }
    let _ = postmaster.kill();
    let _ = postmaster.wait();
}

/// A killed postmaster leaves its shared memory segment behind; `postmaster.pid` names it in its 7th line.
pub(super) fn remove_shared_memory(data: &Path) {
    let Ok(lock_file) = fs::read_to_string(data.join("postmaster.pid")) else { return };
    if let Some(id) = lock_file.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)) {
        let _ = Command::new("ipcrm").args(["-m", id]).stderr(Stdio::null()).status();
    }
}

/// Ends the server when its owner is gone without having ended it.
///
/// A shell waits on a pipe that only the owner holds open: SIGKILL of the owner closes it, too.
#[derive(Debug)]
pub(super) struct Watchdog {
    shell: Child,
    pipe: Option<ChildStdin>,
}

const WATCHDOG: &str = r#"
trap '' INT TERM HUP
data=$1 folder=$2
read -r word
[ "$word" = ended ] && exit 0
in_folder() {
  for link in /proc/[0-9]*/cwd; do
    if [ "$(readlink "$link" 2>/dev/null)" = "$data" ]; then link=${link#/proc/}; echo "${link%/cwd}"; fi
  done
}
postmaster=$(head -n 1 "$data/postmaster.pid" 2>/dev/null)
for pid in $(in_folder); do [ "$pid" = "$postmaster" ] && kill -QUIT "$pid"; done
for attempt in 1 2 3 4 5 6 7 8 9 10; do [ -z "$(in_folder)" ] && break; sleep 0.3; done
while pids=$(in_folder); [ -n "$pids" ]; do kill -KILL $pids 2>/dev/null; sleep 0.1; done
segment=$(sed -n '7s/^ *[0-9]* *//p' "$data/postmaster.pid" 2>/dev/null)
[ -n "$segment" ] && ipcrm -m "$segment" 2>/dev/null
rm -rf "$folder"
"#;

impl Watchdog {
    /// Watches over the server in `data`; `folder` is removed with it.
    pub(super) fn start(data: &Path, folder: &Path) -> Result<Self> {
        let mut shell = Command::new("sh")
            .args(["-c", WATCHDOG, "penstock-watchdog"])
            .args([data, folder])
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start the watchdog's shell")?;
        let pipe = shell.stdin.take();
        Ok(Self { shell, pipe })
    }
}

impl Drop for Watchdog {
    /// The owner has ended the server itself.
    fn drop(&mut self) {
        if let Some(mut pipe) = self.pipe.take() {
            let _ = pipe.write_all(b"ended\n");
        }
        let _ = self.shell.wait();
    }
}
