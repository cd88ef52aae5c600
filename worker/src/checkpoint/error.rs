//! What errors of the volume mean.

use std::io;
use std::path::Path;

use penstock_crds::report::Reason;
use rusqlite::ErrorCode;

use crate::failure::Failure;

/// An error of a file operation; `doing` completes "… failed while".
pub(super) fn io_failed(error: &io::Error, path: &Path, doing: &str) -> Failure {
    if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        return full(path, doing);
    }
    volume_failed(path, doing, &error.to_string())
}

/// An error of SQLite.
pub(super) fn sqlite_failed(error: &rusqlite::Error, path: &Path, doing: &str) -> Failure {
    if error.sqlite_error_code() == Some(ErrorCode::DiskFull) {
        return full(path, doing);
    }
    volume_failed(path, doing, &error.to_string())
}

/// Whether the file is not what SQLite wrote.
pub(super) fn is_corrupt(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// The volume cannot be used.
pub(super) fn volume_failed(path: &Path, doing: &str, why: &str) -> Failure {
    let message = format!(
        "The checkpoint {} on the worker's volume cannot be used: {why} (while {doing}). Check the volume; nothing is lost \
         if it is replaced by an empty one: the checkpoint is in the sink too.",
        path.display()
    );
    Failure::new(Reason::VolumeFailed, message)
}

fn full(path: &Path, doing: &str) -> Failure {
    let message = format!(
        "The worker's volume is full: the checkpoint {} cannot be written (while {doing}). Free space on it or enlarge it \
         (spec.worker.storage.size); the worker goes on by itself.",
        path.display()
    );
    Failure::new(Reason::VolumeFull, message)
}
