//! What became of a hold. The row of the barrier says it, and whoever writes it first is right: the one who exchanges the
//! tables, in the same transaction, or a shard that does not wait any longer.

use tokio_postgres::{Error, GenericClient};

use super::barrier_registry::BarrierId;
use super::error::failed;
use super::writer::Writer;
use crate::failure::Failure;

/// What became of a hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldEnd {
    /// The tables are exchanged.
    Promoted,
    /// They are not, and will not be at this hold.
    Aborted,
}

impl HoldEnd {
    fn read(word: &str) -> Self {
        if word == "promoted" { Self::Promoted } else { Self::Aborted }
    }
}

/// Ends a hold without an exchange, unless it has an outcome; says which it has. One that is gone was removed long after it
/// was over.
pub(super) async fn abort(client: &impl GenericClient, id: &BarrierId) -> Result<HoldEnd, Error> {
    let nonce = id.nonce.to_string();
    let give_up = "UPDATE penstock.barrier SET outcome = 'aborted' \
                   WHERE uid = $1 AND nonce = $2::pg_catalog.text::pg_catalog.uuid AND outcome IS NULL";
    client.execute(give_up, &[&id.uid, &nonce]).await?;
    let look = "SELECT outcome FROM penstock.barrier \
                WHERE uid = $1 AND nonce = $2::pg_catalog.text::pg_catalog.uuid AND outcome IS NOT NULL";
    let row = client.query_opt(look, &[&id.uid, &nonce]).await?;
    let word: Option<String> = row.map(|row| row.try_get(0)).transpose()?;
    Ok(word.map_or(HoldEnd::Aborted, |word| HoldEnd::read(&word)))
}

impl Writer {
    /// What became of a hold; `None`: nothing yet, and there is time.
    ///
    /// # Errors
    /// The sink does not answer.
    pub async fn hold_end(&mut self, id: &BarrierId) -> Result<Option<HoldEnd>, Failure> {
        let look = "SELECT outcome, expires_at > pg_catalog.clock_timestamp() FROM penstock.barrier \
                    WHERE uid = $1 AND nonce = $2::pg_catalog.text::pg_catalog.uuid";
        let read = async {
            let Some(row) = self.session.query_opt(look, &[&id.uid, &id.nonce.to_string()]).await? else {
                return Ok(Some(HoldEnd::Aborted));
            };
            let (outcome, has_time): (Option<String>, bool) = (row.try_get(0)?, row.try_get(1)?);
            match outcome {
                Some(word) => Ok(Some(HoldEnd::read(&word))),
                None if has_time => Ok(None),
                None => abort(&self.session.client, id).await.map(Some),
            }
        };
        read.await.map_err(|error: Error| failed(&error, "waiting at a hold"))
    }
}
