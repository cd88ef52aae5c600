//! The one vocabulary that passes between stages: positions, relations, rows, changes. Plain data, no I/O.

mod checkpoint;
mod lsn;
mod relation;
mod row;
pub mod table;

pub use checkpoint::{Checkpoint, SourceIdentity};
pub use lsn::{InvalidLsn, Lsn, Position};
pub use relation::{Relation, RelationColumn, RelationId, ReplicaIdentity};
pub use row::{Change, OldRow, Row, Value};
