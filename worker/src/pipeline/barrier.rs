//! Barriers: where the stream meets one that somebody registered, the sink is committed. Then it is opened as a snapshot and
//! applying goes on; or, at a hold, applying waits until the tables are exchanged or it is known that they are not.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::time::sleep;

use super::apply::Applier;
use crate::failure::Failure;
use crate::sink::{BarrierId, BarrierKind, HoldEnd};

const LOOK_FOR_OUTCOME_EVERY: Duration = Duration::from_millis(5);

impl Applier<'_> {
    /// The source transaction that carried these messages is settled, and nothing after it is.
    pub(super) async fn meet_barriers(&mut self, messages: &[Bytes]) -> Result<(), Failure> {
        for message in messages {
            let Some(id) = self.ends.barriers.own(message) else { continue };
            match self.ends.writer.registered(&id).await? {
                None => {
                    tracing::debug!(nonce = %id.nonce, "a barrier that nobody registered for this lineage is ignored");
                }
                Some(BarrierKind::Comparison | BarrierKind::Revisions) => self.open_at(&id).await?,
                Some(BarrierKind::Hold) => self.hold_at(&id).await?,
            }
        }
        Ok(())
    }

    async fn open_at(&mut self, id: &BarrierId) -> Result<(), Failure> {
        let began = Instant::now();
        let opening = self.ends.barriers.open();
        self.arrive_at(id).await?;
        let checkpoint = self.checkpoint();
        self.ends.barriers.arrive(id.clone(), checkpoint, opening).await;
        let pause = began.elapsed();
        self.ends.metrics.barrier_seconds.observe(pause.as_secs_f64());
        tracing::info!(nonce = %id.nonce, lsn = %checkpoint.position.commit_lsn, ms = pause.as_secs_f64() * 1e3, "met a barrier");
        Ok(())
    }

    /// Everything before the barrier is committed, and with it that the shard has come to it.
    async fn arrive_at(&mut self, id: &BarrierId) -> Result<(), Failure> {
        self.ends.writer.note_arrival(id).await?;
        self.is_writing = true;
        self.commit().await?;
        self.ends.heartbeat_due.set();
        Ok(())
    }

    /// Nothing is applied until the hold has an outcome. One that nobody gives gets one here: whoever sets it first is right,
    /// so the tables are not exchanged afterwards.
    async fn hold_at(&mut self, id: &BarrierId) -> Result<(), Failure> {
        let began = Instant::now();
        self.arrive_at(id).await?;
        let end = loop {
            match self.ends.writer.hold_end(id).await? {
                Some(end) => break end,
                None => sleep(LOOK_FOR_OUTCOME_EVERY).await,
            }
        };
        let ms = began.elapsed().as_secs_f64() * 1e3;
        match end {
            HoldEnd::Promoted => {
                tracing::info!(nonce = %id.nonce, ms, "held while tables were exchanged");
                self.tables_are_exchanged = true;
            }
            HoldEnd::Aborted => tracing::info!(nonce = %id.nonce, ms, "held, and no table was exchanged"),
        }
        Ok(())
    }
}
