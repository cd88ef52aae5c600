//! The log between snapshot and barrier.

use std::collections::BTreeMap;

use super::changes::Changes;
use super::pairs::Pair;
use crate::change::{Lsn, Position, RelationId};
use crate::decode::{self, Assembler, Event};
use crate::failure::Failure;
use crate::sink::{BARRIER_PREFIX, BarrierId};
use crate::source::LogWindow;

/// Reads up to the COMMIT of the transaction that carries the barrier: what changed, and where that is.
pub(super) async fn read(
    mut log: LogWindow,
    barrier: &BarrierId,
    pairs: &BTreeMap<RelationId, Pair>,
) -> Result<(Changes, Lsn), Failure> {
    let content = barrier.content();
    let mut assembler = Assembler::new(Position::default());
    let (mut changes, mut events, mut is_met) = (Changes::default(), Vec::new(), false);
    loop {
        let payload = log.next().await?;
        assembler.accept(decode::decode(payload)?, &mut events)?;
        for event in events.drain(..) {
            match event {
                Event::Relation(relation) => {
                    if let Some(pair) = pairs.get(&relation.id) {
                        changes.describe(&relation, &pair.subject, &pair.streamed);
                    }
                }
                Event::Change { change, .. } => {
                    for relation in change.relations() {
                        let Some(pair) = pairs.get(relation) else { continue };
                        changes.apply(*relation, &pair.subject, &change);
                    }
                }
                Event::Message(message) => {
                    is_met |= message.transactional
                        && message.prefix == BARRIER_PREFIX
                        && message.content == content.as_bytes();
                }
                Event::Commit { position, .. } if is_met => return Ok((changes, position.commit_lsn)),
                Event::Begin { .. } | Event::Commit { .. } => {}
            }
        }
    }
}
