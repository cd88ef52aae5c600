//! Barriers: where the stream meets one that somebody registered, the sink is committed and opened as a snapshot, and
//! applying goes on.

use std::time::Instant;

use bytes::Bytes;

use super::apply::Applier;
use crate::failure::Failure;

impl Applier<'_> {
    /// The source transaction that carried these messages is settled, and nothing after it is.
    pub(super) async fn meet_barriers(&mut self, messages: &[Bytes]) -> Result<(), Failure> {
        for message in messages {
            let Some(id) = self.ends.barriers.own(message) else { continue };
            if !self.ends.writer.is_registered(&id).await? {
                tracing::warn!(nonce = %id.nonce, "a barrier that nobody registered is ignored");
                continue;
            }
            let began = Instant::now();
            let opening = self.ends.barriers.open();
            self.ends.writer.note_arrival(&id).await?;
            self.is_writing = true;
            self.commit().await?;
            self.ends.heartbeat_due.set();
            let checkpoint = self.checkpoint();
            self.ends.barriers.arrive(id.clone(), checkpoint, opening).await;
            let pause = began.elapsed();
            self.ends.metrics.barrier_seconds.observe(pause.as_secs_f64());
            tracing::info!(nonce = %id.nonce, lsn = %checkpoint.position.commit_lsn, ms = pause.as_secs_f64() * 1e3, "met a barrier");
        }
        Ok(())
    }
}
