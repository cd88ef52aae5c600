//! The source stage: checks a PostgreSQL source, keeps its slot and publication, copies the rows that are there
//! and reads the changes that follow. It yields bytes and positions; it does not look into rows.

mod assignment;
mod catalogue;
mod chunk;
mod clean_up;
mod constant_default;
mod copy;
mod drift;
mod error;
mod export;
mod horizon;
mod identity;
mod log_window;
mod preflight;
mod publication;
mod published;
mod ranges;
mod raw;
mod reader;
mod shape;
mod slot;
mod stream;
mod types;

pub use assignment::assign_shards;
pub use chunk::{Chunk, KeyText};
pub use clean_up::clean_up;
pub use copy::{ChunkReader, TableCopy};
pub use drift::{Drift, Followed, drift, new_tables};
pub use error::SourceError;
pub use export::{Durability, ExportedSnapshot, carry_to_standbys, create_slot};
pub use identity::{SourceIdentity, WalPosition, timeline_switches, wal_position};
pub use log_window::{LogWindow, emit};
pub use preflight::{Inspection, check_room, preflight};
pub use publication::{PublicationName, carried_tables, drop_publication, ensure_publication};
pub use ranges::{RangeAnswer, RangeReader, RangeRequest, WATERMARK_PREFIX, read_key, spawn_range_reader};
pub use reader::{Frame, Reader, spawn_reader};
pub use shape::{Shapes, announce_table, present_table, refresh_entries, shapes};
pub use slot::{
    InvalidSlotName, SlotName, SlotState, drop_slot, end_stale_sessions, end_stale_walsender, slot_state,
};
pub use stream::StreamRequest;
