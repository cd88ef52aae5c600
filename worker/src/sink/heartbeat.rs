//! The last mark of a shard in the source's log, beside its checkpoint.

use postgres_types::PgLsn;
use tokio_postgres::{Error, Row};
use uuid::Uuid;

use super::writer::Writer;
use crate::change::{Heartbeat, Lsn};
use crate::failure::Failure;

/// Reads columns `heartbeat_lsn`, `heartbeat_xid` and `heartbeat_token` (as text).
pub(super) fn read(row: &Row) -> Result<Option<Heartbeat>, Error> {
    let lsn: Option<PgLsn> = row.try_get("heartbeat_lsn")?;
    let xid: Option<i64> = row.try_get("heartbeat_xid")?;
    let token: Option<String> = row.try_get("heartbeat_token")?;
    let token = token.and_then(|token| token.parse().ok());
    let (Some(lsn), Some(xid), Some(token)) = (lsn, xid, token) else { return Ok(None) };
    let xid = u32::try_from(xid).unwrap_or_default();
    Ok(Some(Heartbeat { commit_lsn: Lsn(lsn.into()), xid, token }))
}

impl Writer {
    /// The token of a mark of this shard.
    pub fn own_token(&self, content: &[u8]) -> Option<Uuid> {
        let shard = u16::try_from(self.shard()).ok()?;
        Heartbeat::token(content, self.key(), shard)
    }

    /// Notes a mark that the stream has met, in the open transaction, which settles everything before it.
    ///
    /// # Errors
    /// As `write`.
    pub async fn note_heartbeat(&mut self, heartbeat: &Heartbeat) -> Result<(), Failure> {
        let sql = "UPDATE penstock.checkpoint SET heartbeat_lsn = $3, heartbeat_xid = $4, \
                       heartbeat_token = $5::pg_catalog.text::pg_catalog.uuid WHERE uid = $1 AND shard = $2";
        let Heartbeat { commit_lsn, xid, token } = heartbeat;
        let (uid, shard, token) = (self.key().to_owned(), self.shard(), token.to_string());
        let (lsn, xid) = (PgLsn::from(commit_lsn.0), i64::from(*xid));
        self.execute_in_transaction(
            sql,
            &[&uid, &shard, &lsn, &xid, &token],
            "noting a mark of the source's log",
        )
        .await
        .map(drop)
    }
}
