//! One run of a shard, as the fence knows it.

use tokio_postgres::{Error, GenericClient};

use crate::failure::Failure;
use crate::lineage::Lineage;

use super::error::fenced;

/// One run of a shard, as the fence knows it. Everything that is written carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) lineage: Lineage,
    pub(super) shard: i32,
    pub(super) epoch: i64,
    /// Random: epochs come again in a sink that was restored to an older state, runs do not.
    pub(super) id: String,
    pub(super) layout: i64,
}

impl Run {
    /// What its state is kept under.
    pub(super) fn key(&self) -> &String {
        self.lineage.key()
    }

    /// Holds the fence until the transaction ends, beside other sessions of this run: the next run of the shard
    /// waits for them to end before it begins. `false`: it has begun.
    pub(super) async fn hold_shared(&self, client: &impl GenericClient) -> Result<bool, Error> {
        self.is_found(client, " FOR SHARE").await
    }

    /// Whether this run still owns the shard, without holding it.
    pub(super) async fn is_current(&self, client: &impl GenericClient) -> Result<bool, Error> {
        self.is_found(client, "").await
    }

    async fn is_found(&self, client: &impl GenericClient, lock: &str) -> Result<bool, Error> {
        let Self { lineage, shard, epoch, id, layout } = self;
        let sql = format!(
            "SELECT FROM penstock.checkpoint WHERE uid = $1 AND shard = $2 AND epoch = $3 AND layout = $5 \
             AND run_id = $4::pg_catalog.text::pg_catalog.uuid{lock}"
        );
        Ok(client.query_opt(&sql, &[lineage.key(), shard, epoch, id, layout]).await?.is_some())
    }

    /// The failure when it does not hold.
    pub(super) fn lost(&self) -> Failure {
        fenced(&format!("this run has epoch {}", self.epoch))
    }
}
