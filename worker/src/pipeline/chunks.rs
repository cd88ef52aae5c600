//! The chunks of a first load that wait to be read, and how far each table is.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use crate::change::RelationId;
use crate::source::Chunk;

/// Hands out chunks in order. Ranges of a key are not read further ahead than there are readers: of those that are
/// copied when the worker dies, only the ones without a gap before them are kept.
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Notify,
    readers: u32,
}

struct State {
    waiting: VecDeque<Chunk>,
    tables: HashMap<RelationId, Table>,
}

#[derive(Default)]
struct Table {
    /// Chunks that are not copied yet.
    left: usize,
    /// Ranges of the key that are copied, none missing before them.
    in_row: u32,
    /// Ranges that are copied after a gap.
    ahead: BTreeSet<u32>,
}

impl Queue {
    pub(super) fn new(chunks: Vec<Chunk>, readers: u32) -> Self {
        let mut tables = HashMap::<_, Table>::new();
        for chunk in &chunks {
            tables.entry(chunk.table).or_default().left += 1;
        }
        let state = State { waiting: chunks.into(), tables };
        Self { state: Mutex::new(state), changed: Notify::new(), readers }
    }

    /// Whether a table has no chunks.
    pub(super) fn is_without(&self, table: RelationId) -> bool {
        !self.state.lock().unwrap_or_else(PoisonError::into_inner).tables.contains_key(&table)
    }

    /// The next chunk; waits while it would be too far ahead. `None`: all are handed out.
    pub(super) async fn next(&self) -> Option<Chunk> {
        loop {
            // Before the look, so that no change after it goes unnoticed.
            let changed = self.changed.notified();
            {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                let chunk = state.waiting.front()?;
                if state.is_near(chunk, self.readers) {
                    return state.waiting.pop_front();
                }
            }
            changed.await;
        }
    }

    /// The chunk is in the sink. `true`: it was the last of its table.
    pub(super) fn copied(&self, chunk: &Chunk) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(table) = state.tables.get_mut(&chunk.table) else { return false };
        table.left -= 1;
        if let Some(number) = chunk.number() {
            table.ahead.insert(number);
            while table.ahead.remove(&table.in_row) {
                table.in_row += 1;
            }
            self.changed.notify_waiters();
        }
        table.left == 0
    }
}

impl State {
    fn is_near(&self, chunk: &Chunk, readers: u32) -> bool {
        match (chunk.number(), self.tables.get(&chunk.table)) {
            (Some(number), Some(table)) => number < table.in_row + readers,
            (None, _) | (_, None) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn no_range_is_handed_out_further_ahead_of_a_gap_than_there_are_readers() {
        let big = RelationId(1);
        let mut chunks = Chunk::in_ranges(big, 5);
        chunks.extend(Chunk::in_pages(RelationId(2), 2));
        let queue = Queue::new(chunks, 2);
        let next = || queue.next().now_or_never();
        let [first, second] = [next().flatten().unwrap(), next().flatten().unwrap()];
        assert!(next().is_none(), "the third waits for the first");
        assert!(!queue.copied(&second));
        assert!(next().is_none(), "the first is missing still");
        assert!(!queue.copied(&first));
        let mut finished = Vec::new();
        while let Some(chunk) = next().flatten() {
            if queue.copied(&chunk) {
                finished.push(chunk.table);
            }
        }
        assert_eq!(finished, [big, RelationId(2)]);
        assert_eq!(next(), Some(None));
        assert!(queue.is_without(RelationId(3)) && !queue.is_without(big));
    }
}
