//! Data directories by copy: `initdb` runs once per version, every server starts from a copy of what it made.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::account::Account;
use super::{Version, identity};

/// Part of the template's name: change it together with the options.
const INITDB_OPTIONS_REVISION: u32 = 1;
const INITDB_OPTIONS: [&str; 7] = [
    "--username=postgres",
    "--auth=trust",
    "--encoding=UTF8",
    "--locale=C",
    "--no-sync",
    "--no-instructions",
    "-D",
];

/// Makes a fresh data directory at `data`, with a system identifier of its own.
pub(super) fn copy_to(data: &Path, version: Version, account: Account) -> Result<()> {
    let template = find_or_make(version, account)?;
    copy_folder(&template, data)?;
    identity::renew(data).with_context(|| format!("cannot give {} an identity of its own", data.display()))
}

fn find_or_make(version: Version, account: Account) -> Result<PathBuf> {
    let bin = version.installed()?;
    let exact = run(Command::new(bin.join("postgres")).arg("--version"))?;
    let exact = exact.split_whitespace().nth(2).unwrap_or("unknown");
    let owner = match account {
        Account::Own => "own".to_owned(),
        Account::Other { uid, .. } => uid.to_string(),
    };
    let folder = cache_folder()?.join("postgres-templates");
    let template = folder.join(format!("{exact}-{owner}-{INITDB_OPTIONS_REVISION}"));
    if template.join("PG_VERSION").exists() {
        return Ok(template);
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    make(&bin.join("initdb"), &template, account)?;
    Ok(template)
}

/// Makes the template beside its place and renames it, so that parallel tests see all of it or nothing; the
/// slower one throws its own away. `initdb` writes where its account may go, which the cache need not be.
fn make(initdb: &Path, template: &Path, account: Account) -> Result<()> {
    let workshop = tempfile::Builder::new().prefix("penstock-initdb-").tempdir()?;
    account.own(workshop.path())?;
    let fresh = workshop.path().join("data");
    run(account.run(Command::new(initdb).args(INITDB_OPTIONS).arg(&fresh).current_dir(workshop.path())))?;

    let parent = template.parent().context("the template has no parent folder")?;
    let staging = tempfile::Builder::new().prefix(".staging-").tempdir_in(parent)?;
    let staged = staging.path().join("data");
    copy_folder(&fresh, &staged)?;
    match fs::rename(&staged, template) {
        Err(_) if template.join("PG_VERSION").exists() => Ok(()),
        renamed => renamed.with_context(|| format!("cannot make {}", template.display())),
    }
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp").args(["-a", "--reflink=auto", "--sparse=always", "-T"]).arg(from).arg(to))?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o700))?;
    Ok(())
}

fn cache_folder() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("PENSTOCK_CACHE") {
        return Ok(folder.into());
    }
    if let Some(folder) = std::env::var_os("XDG_CACHE_HOME") {
        return Ok(PathBuf::from(folder).join("penstock"));
    }
    let home =
        std::env::home_dir().context("set HOME or PENSTOCK_CACHE: there is no folder for templates")?;
    Ok(home.join(".cache/penstock"))
}

/// Runs the command to its end and returns what it wrote.
fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}
