//! Holding the fence while something is done outside the sink that only the shard's present run may do.

use tokio_postgres::Transaction;

use super::Sink;
use super::error::failed;
use super::state::fenced_transaction;
use crate::failure::Failure;

const DOING: &str = "holding the fence";

/// The fence, held: the shard's next run waits. The sink takes it back after a minute without a word.
pub struct HeldFence<'a>(Transaction<'a>);

impl Sink {
    /// Holds the fence until the value is released or dropped.
    ///
    /// # Errors
    /// `Fenced`: the next run has begun.
    pub async fn hold_fence(&mut self) -> Result<HeldFence<'_>, Failure> {
        Ok(HeldFence(fenced_transaction(&mut self.session, &self.run, DOING).await?))
    }
}

impl HeldFence<'_> {
    /// Lets the next run begin.
    ///
    /// # Errors
    /// `SinkUnreachable`: the fence may have been lost meanwhile.
    pub async fn release(self) -> Result<(), Failure> {
        self.0.commit().await.map_err(|error| failed(&error, DOING))
    }
}
