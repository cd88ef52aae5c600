//! The one vocabulary that passes between stages: positions, relations, rows, changes. Plain data, no I/O.

mod checkpoint;
mod column_type;
mod heartbeat;
mod lsn;
mod published_as;
mod relation;
mod row;
mod shape;
mod steps;
pub mod table;
pub mod travel;

pub use checkpoint::{Checkpoint, LogIdentity, SourceIdentity, TimelineSwitch};
pub use column_type::{ColumnType, Definition, MadeType, STABLE_OIDS_END, TypeKind};
pub use heartbeat::{HEARTBEAT_PREFIX, Heartbeat};
pub use lsn::{InvalidLsn, Lsn, Position};
pub use published_as::PublishedAs;
pub use relation::{Relation, RelationColumn, RelationId, ReplicaIdentity};
pub use row::{Change, OldRow, Row, Value};
pub use shape::{PartColumn, PresentTable, ShapeColumn, ShapeLabel, ShapePart, TableShape};
pub use steps::{Steps, Treatment};
