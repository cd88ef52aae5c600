//! The account that a server runs as. PostgreSQL refuses to run as root, so root steps down.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

/// The account that a server runs as.
#[derive(Clone, Copy, Debug)]
pub(super) enum Account {
    /// Ours: we are not root.
    Own,
    /// `postgres` where it exists, else `nobody`: we are root.
    Other {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    },
}

impl Account {
    /// Finds out.
    pub(super) fn find() -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self::Own);
        }
        let accounts = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
        ["postgres", "nobody"]
            .into_iter()
            .find_map(|name| find_ids(&accounts, name))
            .map(|(uid, gid)| Self::Other { uid, gid })
            .context("PostgreSQL does not run as root, and there is neither an account postgres nor nobody")
    }

    /// Makes the command run as this account.
    pub(super) fn run(self, command: &mut Command) -> &mut Command {
        match self {
            Self::Own => command,
            Self::Other { uid, gid } => command.uid(uid).gid(gid),
        }
    }

    /// Gives the file or folder to this account (not what is in it).
    pub(super) fn own(self, path: &Path) -> Result<()> {
        match self {
            Self::Own => Ok(()),
            Self::Other { uid, gid } => chown(path, Some(uid), Some(gid))
                .with_context(|| format!("cannot give {} to the user {uid}", path.display())),
        }
    }
}

/// User and group id of a name in the text of `/etc/passwd`.
fn find_ids(accounts: &str, name: &str) -> Option<(u32, u32)> {
    let line = accounts.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut ids = line.split(':').skip(2);
    Some((ids.next()?.parse().ok()?, ids.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_the_whole_name() {
        let accounts = "postgresql:x:1:2::/:\npostgres:x:104:112:,,,:/var/lib/postgresql:/bin/bash\n";
        assert_eq!(find_ids(accounts, "postgres"), Some((104, 112)));
        assert_eq!(find_ids(accounts, "nobody"), None);
    }
}
