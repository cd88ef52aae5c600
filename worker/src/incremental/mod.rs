//! The incremental snapshot: a table is copied in ranges of its key while its changes are streamed, so that neither
//! waits for the other and a crash costs one range. Pure: what is read, and what is written, is the pipeline's.
//!
//! ```text
//!    stream ──────── Opening ─────── Opened(snapshot) ───────────── watermark ──────>
//!                    │ changes of keys that are not copied yet         │ the range lands:
//!                    │ are kept until the snapshot says which          │ its rows, then the
//!                    │ of them it holds                                │ changes it lacks
//! ```
//! **Why it is exact.** The rows of a range are read in a snapshot S, and then a message (the watermark) is written
//! into the source's log. Every transaction that S sees has its COMMIT before the watermark, so after it every change
//! is applied. Before it, a change is in the rows if S sees its transaction, and is applied on top of them if not.
//! The order of the log is not the order in which transactions become visible: one whose COMMIT the stream passed
//! long ago may be invisible still (it waits for a synchronous standby). The ids of all transactions whose changes were
//! left out are therefore kept until a snapshot sees them; a snapshot that does not is not used.

mod key;
mod order;
mod snapshot;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use key::{InvalidKey, Key, KeyColumn, key_of};
pub use order::KeyOrder;
pub use snapshot::{InvalidSnapshot, Snapshot};

use crate::change::{Change, OldRow, Relation, Row, Value};

/// Bytes of changes that one range may keep waiting; past it the range is read again.
const KEPT_BYTES_MAX: usize = 32 << 20;

/// Which keys are copied, and followed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Copied {
    /// None yet.
    #[default]
    Nothing,
    /// Those up to this one.
    UpTo(Key),
    /// All.
    Everything,
}

impl Copied {
    fn holds(&self, key: &Key) -> bool {
        match self {
            Self::Nothing => false,
            Self::UpTo(last) => key <= last,
            Self::Everything => true,
        }
    }
}

/// A table that is copied while it is followed.
#[derive(Debug)]
pub struct Table {
    key: Vec<KeyColumn>,
    /// Where the key's columns are in the rows of the stream; empty until the stream described the table.
    places: Vec<usize>,
    copied: Copied,
    range: Range,
    /// Transactions of which changes were left out, and that no snapshot was seen to see.
    left_out: BTreeSet<u32>,
    /// The last snapshot: what it sees, every later one sees.
    seen: Option<Arc<Snapshot>>,
    /// How the stream described the table since the range was opened, if it did.
    described: Option<Relation>,
    /// How its rows are.
    shape: Option<Relation>,
}

/// The range that is being read.
#[derive(Debug)]
enum Range {
    /// None is. Next: `Opening`.
    None,
    /// A snapshot is about to be taken. Next: `Open`, or `None` when it cannot be used.
    Opening(Kept),
    /// The rows are being read. Next: `None`, by the watermark.
    Open { snapshot: Arc<Snapshot>, kept: Kept },
}

/// Changes that wait for their range.
#[derive(Debug, Default)]
struct Kept {
    changes: Vec<(u32, Change)>,
    bytes: usize,
    /// Transactions of the changes, of those too that are not kept.
    xids: BTreeSet<u32>,
    /// Something happened that makes the rows useless.
    is_void: bool,
}

impl Kept {
    fn push(&mut self, xid: u32, change: Change) {
        self.xids.insert(xid);
        self.bytes += change.size();
        if self.bytes > KEPT_BYTES_MAX {
            self.void();
        }
        if !self.is_void {
            self.changes.push((xid, change));
        }
    }

    fn void(&mut self) {
        self.is_void = true;
        self.changes = Vec::new();
    }
}

/// What is to be done with a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Apply it, as far as it concerns keys that are copied.
    Apply(Change),
    /// Nothing now: it concerns keys that are not copied.
    Leave,
    /// A row that was not copied came to a key that is, without the values that did not change: nobody has them.
    CopyAgain,
}

/// A range whose rows are read.
#[derive(Debug)]
pub struct Read {
    /// How the rows' columns were at the snapshot.
    pub relation: Relation,
    /// In the order of the key.
    pub rows: Vec<Row>,
    /// The last key, or `None` when no row comes after these.
    pub last: Option<Key>,
}

/// The newer row, with the earlier one's values where it is unchanged.
fn merged(earlier: &Row, mut newer: Row) -> Row {
    for (newer, earlier) in newer.0.iter_mut().zip(&earlier.0) {
        if *newer == Value::Unchanged {
            *newer = earlier.clone();
        }
    }
    newer
}

/// Whether the old row has every value that the new one leaves out. What is left out is large, and never NULL; the old row of
/// a partition without FULL comes as a whole one if the partitioned table is FULL, with NULL in all columns but the key.
fn is_whole(old: &Row, new: &Row) -> bool {
    let mut pairs = new.0.iter().zip(&old.0);
    pairs.all(|(new, old)| *new != Value::Unchanged || !matches!(old, Value::Null | Value::Unchanged))
}

/// What a change becomes where only some keys are held.
fn within(change: Change, old_is_held: bool, new_is_held: bool) -> Verdict {
    match (change, old_is_held, new_is_held) {
        (change, true, true) => Verdict::Apply(change),
        (Change::Update { relation, old: Some(old), .. }, true, false) => {
            Verdict::Apply(Change::Delete { relation, old })
        }
        (Change::Update { relation, old: Some(OldRow::Full(old)), new }, false, true)
            if is_whole(&old, &new) =>
        {
            Verdict::Apply(Change::Insert { relation, new: merged(&old, new) })
        }
        (Change::Update { new, .. }, false, true) if new.0.contains(&Value::Unchanged) => Verdict::CopyAgain,
        (Change::Update { relation, new, .. }, false, true) => {
            Verdict::Apply(Change::Insert { relation, new })
        }
        // Only an UPDATE that sent its old row has two keys.
        (_, false | true, false) | (_, false, true) => Verdict::Leave,
    }
}

/// Changes the rows of a range as the source did; `false`: they are not what it changed.
fn perform(rows: &mut BTreeMap<Key, Row>, verdict: Verdict, old_key: &Key, new_key: Key) -> bool {
    match verdict {
        Verdict::Leave => true,
        Verdict::CopyAgain | Verdict::Apply(Change::Truncate { .. }) => false,
        Verdict::Apply(Change::Insert { new, .. }) => rows.insert(new_key, new).is_none(),
        Verdict::Apply(Change::Delete { .. }) => rows.remove(old_key).is_some(),
        Verdict::Apply(Change::Update { new, .. }) => match rows.remove(old_key) {
            Some(earlier) => rows.insert(new_key, merged(&earlier, new)).is_none(),
            None => false,
        },
    }
}

impl Table {
    /// A table of which so much is copied.
    pub fn new(key: Vec<KeyColumn>, copied: Copied) -> Self {
        Self {
            key,
            places: Vec::new(),
            copied,
            range: Range::None,
            left_out: BTreeSet::new(),
            seen: None,
            described: None,
            shape: None,
        }
    }

    /// Its key.
    pub fn key(&self) -> &[KeyColumn] {
        &self.key
    }

    /// Which keys are copied.
    pub fn copied(&self) -> &Copied {
        &self.copied
    }

    /// The stream describes the table's rows from here on.
    pub fn describe(&mut self, relation: &Relation) -> Result<(), InvalidKey> {
        if self.shape.as_ref().is_some_and(|shape| shape != relation) {
            // Rows of two shapes cannot be told apart once they wait together.
            self.void();
        }
        self.described = Some(relation.clone());
        self.set_shape(relation)
    }

    /// Rows have the columns of `relation` from here on, though the stream did not say so.
    pub fn set_shape(&mut self, relation: &Relation) -> Result<(), InvalidKey> {
        self.places = key::places(&self.key, relation)?;
        self.shape = Some(relation.clone());
        Ok(())
    }

    /// A change of a row. Of a transaction that the stream sent.
    pub fn take(&mut self, xid: u32, change: Change) -> Result<Verdict, InvalidKey> {
        let (old, new) = self.keys(&change)?;
        let (old_is_held, new_is_held) = (self.copied.holds(&old), self.copied.holds(&new));
        if old_is_held && new_is_held {
            return Ok(Verdict::Apply(change));
        }
        self.keep(xid, &change);
        Ok(within(change, old_is_held, new_is_held))
    }

    /// All rows were removed.
    pub fn truncated(&mut self) {
        self.void();
    }

    fn void(&mut self) {
        match &mut self.range {
            Range::None => {}
            Range::Opening(kept) | Range::Open { kept, .. } => kept.void(),
        }
    }

    /// A snapshot is about to be taken.
    pub fn opening(&mut self) {
        self.abandon();
        self.described = None;
        self.range = Range::Opening(Kept::default());
    }

    /// A snapshot was taken, for whatever table.
    pub fn seen(&mut self, snapshot: &Arc<Snapshot>) {
        self.left_out.retain(|xid| !snapshot.sees(*xid));
        if let Range::Opening(kept) = &mut self.range {
            kept.xids.retain(|xid| !snapshot.sees(*xid));
            kept.changes.retain(|(xid, _)| !snapshot.sees(*xid));
        }
        self.seen = Some(Arc::clone(snapshot));
    }

    /// The snapshot in which the range is read is this. `false`: the stream is ahead of it, so it cannot be used; another
    /// is to be taken.
    pub fn opened(&mut self, snapshot: &Arc<Snapshot>) -> bool {
        self.seen(snapshot);
        let mut kept = match std::mem::replace(&mut self.range, Range::None) {
            Range::Opening(kept) => kept,
            // It was opened a second time.
            range @ (Range::None | Range::Open { .. }) => {
                self.range = range;
                self.abandon();
                return false;
            }
        };
        if kept.is_void || !self.left_out.is_empty() {
            self.left_out.append(&mut kept.xids);
            return false;
        }
        self.range = Range::Open { snapshot: Arc::clone(snapshot), kept };
        true
    }

    /// Whether the rows that were read have the columns that the table has at the watermark. If not, the range is read
    /// again: the table was altered in between.
    pub fn has_columns_of(&self, read: &Read) -> bool {
        self.described.as_ref().is_none_or(|described| *described == read.relation)
    }

    /// The range that was opened is not brought into the sink.
    pub fn abandon(&mut self) {
        if let Range::Opening(mut kept) | Range::Open { mut kept, .. } =
            std::mem::replace(&mut self.range, Range::None)
        {
            self.left_out.append(&mut kept.xids);
        }
    }

    /// The stream reached the watermark: the rows of the range as they are there, or `None` when it has to be read
    /// again. No row comes twice or is changed after it is inserted, so that no other unique index sees what the
    /// source never showed.
    pub fn land(&mut self, read: Read) -> Result<Option<Vec<Row>>, InvalidKey> {
        let Range::Open { mut kept, .. } = std::mem::replace(&mut self.range, Range::None) else {
            return Ok(None);
        };
        self.left_out.append(&mut kept.xids);
        if kept.is_void {
            return Ok(None);
        }
        let copied = read.last.map_or(Copied::Everything, Copied::UpTo);
        let is_new = |key: &Key| copied.holds(key) && !self.copied.holds(key);
        let mut rows = BTreeMap::new();
        for row in read.rows {
            rows.insert(Key::of_row(&self.key, &self.places, &row)?, row);
        }
        for (_, change) in kept.changes {
            let (old, new) = self.keys(&change)?;
            let verdict = within(change, is_new(&old), is_new(&new));
            if !perform(&mut rows, verdict, &old, new) {
                return Ok(None);
            }
        }
        self.copied = copied;
        Ok(Some(rows.into_values().collect()))
    }

    /// The key before and after.
    fn keys(&self, change: &Change) -> Result<(Key, Key), InvalidKey> {
        let of = |row: &Row| Key::of_row(&self.key, &self.places, row);
        Ok(match change {
            Change::Insert { new: row, .. }
            | Change::Update { old: None, new: row, .. }
            | Change::Delete { old: OldRow::Key(row) | OldRow::Full(row), .. } => {
                let key = of(row)?;
                (key.clone(), key)
            }
            Change::Update { old: Some(OldRow::Key(old) | OldRow::Full(old)), new, .. } => {
                (of(old)?, Key::of_changed_row(&self.key, &self.places, old, new)?)
            }
            Change::Truncate { .. } => return Err(InvalidKey::Missing),
        })
    }

    fn keep(&mut self, xid: u32, change: &Change) {
        let is_seen = |snapshot: &Arc<Snapshot>| snapshot.sees(xid);
        match &mut self.range {
            Range::None if self.seen.as_ref().is_some_and(is_seen) => {}
            Range::None => {
                self.left_out.insert(xid);
            }
            Range::Open { snapshot, .. } if is_seen(snapshot) => {}
            Range::Opening(kept) | Range::Open { kept, .. } => kept.push(xid, change.clone()),
        }
    }
}
