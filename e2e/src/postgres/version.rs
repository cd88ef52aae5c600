//! Which PostgreSQL, and where its programs are.

use std::fmt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

const INSTALL_SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/bin/install-postgres");

/// A major version that Penstock supports as source and sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// PostgreSQL 14.
    V14,
    /// PostgreSQL 15.
    V15,
    /// PostgreSQL 16.
    V16,
    /// PostgreSQL 17.
    V17,
    /// PostgreSQL 18.
    V18,
}

impl Version {
    /// Every supported version, oldest first.
    pub const ALL: [Self; 5] = [Self::V14, Self::V15, Self::V16, Self::V17, Self::V18];

    /// The major version's number.
    pub const fn major(self) -> u32 {
        match self {
            Self::V14 => 14,
            Self::V15 => 15,
            Self::V16 => 16,
            Self::V17 => 17,
            Self::V18 => 18,
        }
    }

    /// Folder of the server's programs. Installs the version when it is missing (`e2e/bin/install-postgres`),
    /// which may take a minute.
    pub fn installed(self) -> Result<PathBuf> {
        static FOLDERS: [OnceLock<PathBuf>; Version::ALL.len()] =
            [const { OnceLock::new() }; Version::ALL.len()];
        let known = &FOLDERS[self as usize];
        if let Some(folder) = known.get() {
            return Ok(folder.clone());
        }
        let output = Command::new(INSTALL_SCRIPT)
            .arg(self.major().to_string())
            .output()
            .with_context(|| format!("cannot run {INSTALL_SCRIPT}"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!(
                "PostgreSQL {self} cannot be installed; try `{INSTALL_SCRIPT} {self}` by hand. It said: {said}"
            );
        }
        let folder = PathBuf::from(String::from_utf8(output.stdout)?.trim_end());
        Ok(known.get_or_init(|| folder).clone())
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.major())
    }
}
