//! One run of a shard, as the fence knows it.

use tokio_postgres::{Error, GenericClient};

use crate::failure::Failure;

use super::error::fenced;

/// One run of a shard, as the fence knows it. Everything that is written carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) uid: String,
    pub(super) shard: i32,
    pub(super) epoch: i64,
    pub(super) layout: i64,
}

impl Run {
    /// Holds the fence until the transaction ends, beside other sessions of this run: the next run of the shard
    /// waits for them to end before it begins. `false`: it has begun.
    pub(super) async fn hold_shared(&self, client: &impl GenericClient) -> Result<bool, Error> {
        let sql = "SELECT FROM penstock.checkpoint WHERE uid = $1 AND shard = $2 AND epoch = $3 AND layout = $4 FOR SHARE";
        let held = client.query_opt(sql, &[&self.uid, &self.shard, &self.epoch, &self.layout]).await?;
        Ok(held.is_some())
    }

    /// The failure when it does not hold.
    pub(super) fn lost(&self) -> Failure {
        fenced(&format!("this run has epoch {}", self.epoch))
    }

    /// Whether this run still owns the shard, without holding it.
    pub(super) async fn is_current(&self, client: &impl GenericClient) -> Result<bool, Error> {
        let sql =
            "SELECT FROM penstock.checkpoint WHERE uid = $1 AND shard = $2 AND epoch = $3 AND layout = $4";
        let found = client.query_opt(sql, &[&self.uid, &self.shard, &self.epoch, &self.layout]).await?;
        Ok(found.is_some())
    }
}
