//! `checkpoint.sqlite` on the worker's volume: who the volume belongs to, and where its shard stands.
//!
//! The journal is a WAL with `synchronous = FULL`: one fsync per step forward. A rollback journal takes three.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use penstock_crds::report::Reason;
use rusqlite::{Connection, OptionalExtension as _, Row, ToSql, params};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::error::{io_failed, is_corrupt, sqlite_failed, volume_failed};
use crate::change::{Checkpoint, Lsn, Position, SourceIdentity};
use crate::failpoint::{Point, reach};
use crate::failure::Failure;

const FILE: &str = "checkpoint.sqlite";
const LOCK_FILE: &str = "checkpoint.lock";
/// Version of the tables below, in SQLite's `user_version`.
const FORMAT: i32 = 1;

/// Whom the volume belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// UID of the pipeline.
    pub uid: String,
    /// Shard, from 0.
    pub shard: u16,
}

/// Where the shard stood when the volume was last written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The revision that wrote it.
    pub revision: String,
    /// Its epoch.
    pub epoch: i64,
    /// Where it stood.
    pub checkpoint: Checkpoint,
    /// What the position is relative to.
    pub source: SourceIdentity,
}

/// The worker's volume, locked for this process.
#[derive(Debug)]
pub struct Volume {
    path: PathBuf,
    connection: Connection,
    id: Uuid,
    set_aside: Option<PathBuf>,
    /// Held open: the kernel lets go of the lock when the process ends, however it ends.
    _lock: File,
}

impl Volume {
    /// Opens the checkpoint in `folder`, makes it the first time, and locks the volume. A file that is damaged is
    /// moved aside to `checkpoint.sqlite.corrupt-N` and made anew, empty: the sink knows better. Blocks on I/O.
    ///
    /// # Errors
    /// `VolumeForeign`, `VolumeFull`, `VolumeFailed` (also while another process has it).
    pub fn open(folder: &Path, identity: &Identity) -> Result<Self, Failure> {
        let path = folder.join(FILE);
        fs::create_dir_all(folder).map_err(|error| io_failed(&error, folder, "making the folder"))?;
        let lock = lock(folder)?;
        let (connection, set_aside) = match open_database(&path) {
            Ok(connection) => (connection, None),
            Err(error) if is_corrupt(&error) => open_damaged(&path)?,
            Err(error) => return Err(sqlite_failed(&error, &path, "opening it")),
        };
        refuse_newer_format(&connection, &path)?;
        let id = identify(&connection, &path, identity)?;
        Ok(Self { path, connection, id, set_aside, _lock: lock })
    }

    /// Identity of the volume, made with it.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Where a damaged checkpoint was moved to when this one was opened.
    pub fn set_aside(&self) -> Option<&Path> {
        self.set_aside.as_deref()
    }

    /// What the volume knows; `None` when it is new.
    pub fn record(&self) -> Result<Option<Record>, Failure> {
        let sql = "SELECT revision, epoch, sequence, commit_lsn, xid, ordinal, end_lsn, source_system_id, source_timeline, slot \
                   FROM record";
        self.connection
            .query_row(sql, [], read_record)
            .optional()
            .map_err(|error| sqlite_failed(&error, &self.path, "reading it"))
    }

    /// Replaces the record; durable when it returns. Blocks for one fsync.
    pub fn write(&mut self, record: &Record) -> Result<(), Failure> {
        let Record { revision, epoch, checkpoint, source } = record;
        let Checkpoint { position, end_lsn, sequence } = checkpoint;
        let sql = "INSERT INTO record (only, revision, epoch, sequence, commit_lsn, xid, ordinal, end_lsn, source_system_id, source_timeline, slot, seal) \
                   VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) \
                   ON CONFLICT (only) DO UPDATE SET revision = excluded.revision, epoch = excluded.epoch, sequence = excluded.sequence, \
                       commit_lsn = excluded.commit_lsn, xid = excluded.xid, ordinal = excluded.ordinal, end_lsn = excluded.end_lsn, \
                       source_system_id = excluded.source_system_id, source_timeline = excluded.source_timeline, slot = excluded.slot, seal = excluded.seal";
        let parameters = params![
            revision,
            epoch,
            sequence,
            position.commit_lsn.to_string(),
            position.xid,
            position.ordinal.cast_signed(),
            end_lsn.to_string(),
            source.system_id,
            source.timeline,
            source.slot,
            seal(checkpoint),
        ];
        self.execute(sql, parameters).map(drop)
    }

    /// Forgets the record, before another history begins; durable when it returns.
    pub fn forget(&mut self) -> Result<(), Failure> {
        self.execute("DELETE FROM record", &[]).map(drop)
    }

    /// Moves the checkpoint of the record that [`Volume::write`] wrote; durable when it returns.
    pub fn advance(&mut self, checkpoint: &Checkpoint) -> Result<(), Failure> {
        let Checkpoint { position, end_lsn, sequence } = checkpoint;
        let sql = "UPDATE record SET sequence = ?1, commit_lsn = ?2, xid = ?3, ordinal = ?4, end_lsn = ?5, seal = ?6";
        let parameters = params![
            sequence,
            position.commit_lsn.to_string(),
            position.xid,
            position.ordinal.cast_signed(),
            end_lsn.to_string(),
            seal(checkpoint),
        ];
        if self.execute(sql, parameters)? == 1 {
            Ok(())
        } else {
            Err(volume_failed(&self.path, "writing it", "it holds no record to move"))
        }
    }

    /// One statement in one transaction, whose commit is the fsync.
    fn execute(&mut self, sql: &str, parameters: &[&dyn ToSql]) -> Result<usize, Failure> {
        let failed = |error: rusqlite::Error| sqlite_failed(&error, &self.path, "writing it");
        reach(Point::BeforeVolumeWrite)?;
        let transaction = self.connection.transaction().map_err(failed)?;
        let touched = transaction
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute(parameters))
            .map_err(failed)?;
        reach(Point::BeforeVolumeFsync)?;
        transaction.commit().map_err(failed)?;
        reach(Point::AfterVolumeFsync)?;
        Ok(touched)
    }
}

/// One process per volume. The lock is on a file of its own, so that it outlives a checkpoint that is moved aside.
fn lock(folder: &Path) -> Result<File, Failure> {
    let path = folder.join(LOCK_FILE);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|error| io_failed(&error, &path, "opening the lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(volume_failed(
            &path,
            "locking it",
            "another process has it; only one worker may use a volume",
        )),
        Err(TryLockError::Error(error)) => Err(io_failed(&error, &path, "locking it")),
    }
}

/// SQLite's check calls a page damaged that it could not read. So damage is believed when all of it can be read, and it is
/// found a second time.
fn open_damaged(path: &Path) -> Result<(Connection, Option<PathBuf>), Failure> {
    for file in [path.to_owned(), with_suffix(path, "-wal")] {
        match fs::read(&file) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_failed(&error, &file, "reading it")),
        }
    }
    match open_database(path) {
        Ok(connection) => return Ok((connection, None)),
        Err(error) if is_corrupt(&error) => {}
        Err(error) => return Err(sqlite_failed(&error, path, "opening it again")),
    }
    let aside = move_aside(path)?;
    let anew = open_database(path).map_err(|error| sqlite_failed(&error, path, "making it anew"))?;
    Ok((anew, Some(aside)))
}

fn open_database(path: &Path) -> Result<Connection, rusqlite::Error> {
    let connection = Connection::open(path)?;
    // Exclusive: no shared memory beside the file, and no locking per statement.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    let verdict: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Err(rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT),
            Some(verdict),
        ));
    }
    connection.execute_batch(&format!(
        "BEGIN IMMEDIATE;
         CREATE TABLE IF NOT EXISTS identity (
             only INTEGER PRIMARY KEY CHECK (only = 1), uid TEXT NOT NULL, shard INTEGER NOT NULL, volume_id TEXT NOT NULL
         ) STRICT;
         CREATE TABLE IF NOT EXISTS record (
             only INTEGER PRIMARY KEY CHECK (only = 1), revision TEXT NOT NULL, epoch INTEGER NOT NULL, sequence INTEGER NOT NULL,
             commit_lsn TEXT NOT NULL, xid INTEGER NOT NULL, ordinal INTEGER NOT NULL, end_lsn TEXT NOT NULL,
             source_system_id TEXT NOT NULL, source_timeline INTEGER NOT NULL, slot TEXT NOT NULL, seal TEXT NOT NULL
         ) STRICT;
         PRAGMA user_version = {};
         COMMIT;",
        FORMAT.max(connection.pragma_query_value(None, "user_version", |row| row.get(0))?)
    ))?;
    check_seal(&connection)?;
    Ok(connection)
}

/// What is written beside a checkpoint: SQLite does not notice a byte that changed within a value.
fn seal(checkpoint: &Checkpoint) -> String {
    let Checkpoint { position: Position { commit_lsn, xid, ordinal }, end_lsn, sequence } = checkpoint;
    hex::encode(Sha256::digest(format!("{commit_lsn} {xid} {ordinal} {end_lsn} {sequence}")))
}

/// A checkpoint that is not the one that was written is as good as none.
fn check_seal(connection: &Connection) -> Result<(), rusqlite::Error> {
    let sql = "SELECT revision, epoch, sequence, commit_lsn, xid, ordinal, end_lsn, source_system_id, source_timeline, slot, seal \
               FROM record";
    let is_sealed = |row: &Row<'_>| {
        let sealed: String = row.get(10)?;
        Ok(read_record(row).is_ok_and(|record| seal(&record.checkpoint) == sealed))
    };
    if connection.query_row(sql, [], is_sealed).optional()?.unwrap_or(true) {
        return Ok(());
    }
    let corrupt = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    Err(rusqlite::Error::SqliteFailure(
        corrupt,
        Some("the checkpoint is not the one that was written".into()),
    ))
}

fn refuse_newer_format(connection: &Connection, path: &Path) -> Result<(), Failure> {
    let doing = "reading its version";
    let found: i32 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(|error| sqlite_failed(&error, path, doing))?;
    if found <= FORMAT {
        return Ok(());
    }
    Err(volume_failed(
        path,
        doing,
        &format!("a newer worker wrote it (version {found}, this one knows {FORMAT})"),
    ))
}

/// Makes the volume this shard's own the first time, and refuses one that is another's.
fn identify(connection: &Connection, path: &Path, identity: &Identity) -> Result<Uuid, Failure> {
    let failed = |error: rusqlite::Error| sqlite_failed(&error, path, "reading whom it belongs to");
    let read =
        |row: &Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, u16>(1)?, row.get::<_, String>(2)?));
    let found = connection
        .query_row("SELECT uid, shard, volume_id FROM identity", [], read)
        .optional()
        .map_err(failed)?;
    let Some((uid, shard, id)) = found else {
        let id = Uuid::new_v4();
        let sql = "INSERT INTO identity (only, uid, shard, volume_id) VALUES (1, ?1, ?2, ?3)";
        connection.execute(sql, params![identity.uid, identity.shard, id.to_string()]).map_err(failed)?;
        return Ok(id);
    };
    if uid != identity.uid || shard != identity.shard {
        let message = format!(
            "The volume with {} belongs to shard {shard} of the pipeline with UID {uid}; this worker is shard {} of {}. \
             Give this worker a volume of its own.",
            path.display(),
            identity.shard,
            identity.uid
        );
        return Err(Failure::new(Reason::VolumeForeign, message));
    }
    Uuid::parse_str(&id)
        .map_err(|_| volume_failed(path, "reading whom it belongs to", "its identity is not a UUID"))
}

fn read_record(row: &Row<'_>) -> Result<Record, rusqlite::Error> {
    let lsn = |column: usize| -> Result<Lsn, rusqlite::Error> {
        row.get::<_, String>(column)?.parse().map_err(|error| {
            rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
        })
    };
    let position =
        Position { commit_lsn: lsn(3)?, xid: row.get(4)?, ordinal: row.get::<_, i64>(5)?.cast_unsigned() };
    Ok(Record {
        revision: row.get(0)?,
        epoch: row.get(1)?,
        checkpoint: Checkpoint { position, end_lsn: lsn(6)?, sequence: row.get(2)? },
        source: SourceIdentity { system_id: row.get(7)?, timeline: row.get(8)?, slot: row.get(9)? },
    })
}

/// Moves the damaged file and its log to the first free `.corrupt-N`.
fn move_aside(path: &Path) -> Result<PathBuf, Failure> {
    let free = (1..u32::MAX)
        .map(|number| with_suffix(path, &format!(".corrupt-{number}")))
        .find(|aside| !aside.exists());
    let aside = free.unwrap_or_else(|| with_suffix(path, ".corrupt"));
    for suffix in ["", "-wal", "-shm"] {
        let (from, to) = (with_suffix(path, suffix), with_suffix(&aside, suffix));
        if from.exists() {
            fs::rename(&from, &to)
                .map_err(|error| io_failed(&error, &from, "moving the damaged file aside"))?;
        }
    }
    Ok(aside)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
