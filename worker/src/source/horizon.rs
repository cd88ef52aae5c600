//! Waiting until all transactions that there are by now have ended.

use tokio_postgres::{Client, Error};

use crate::change::table::quote_literal;

/// An id above that of every transaction that has one by now: once none below it runs, all of them have ended.
///
/// It is one that was given just now, to a transaction of our own that wrote nothing. The upper end of a snapshot is none: it
/// follows the last transaction that *ended*, and the ids of those that run may lie beyond it.
#[derive(Clone, Debug)]
pub(super) struct Horizon(String);

/// What is known of the transactions before a horizon.
#[derive(Clone, Debug)]
pub(super) struct Look {
    /// All of them have ended.
    pub(super) is_over: bool,
    /// The snapshot that was looked at, as the server writes it.
    pub(super) snapshot: String,
    /// The oldest that has not ended, prepared or not, as it was just before the snapshot or just after.
    pub(super) oldest: String,
}

impl Horizon {
    pub(super) async fn now(client: &Client) -> Result<Self, Error> {
        let sql = "SELECT pg_catalog.pg_current_xact_id()::text";
        Ok(Self(client.query_one(sql, &[]).await?.try_get(0)?))
    }

    /// Prepared transactions count: they have an id, and what they wrote is invisible until they are committed.
    pub(super) async fn look(&self, client: &Client) -> Result<Look, Error> {
        let sql = format!(
            "SELECT pg_catalog.pg_snapshot_xmin(s) >= {}::xid8, s::text, coalesce(( \
               SELECT running.who FROM ( \
                 SELECT a.backend_xid AS xid, pg_catalog.format('process %s, application %s, since %s', \
                   a.pid, a.application_name, a.xact_start) AS who \
                 FROM pg_catalog.pg_stat_activity AS a WHERE a.backend_xid IS NOT NULL \
                 UNION ALL SELECT p.transaction, pg_catalog.format('the prepared transaction %L, since %s', p.gid, p.prepared) \
                 FROM pg_catalog.pg_prepared_xacts AS p) AS running \
               ORDER BY pg_catalog.age(running.xid) DESC LIMIT 1), 'not known') \
             FROM pg_catalog.pg_current_snapshot() AS s",
            quote_literal(&self.0)
        );
        let row = client.query_one(&sql, &[]).await?;
        Ok(Look { is_over: row.try_get(0)?, snapshot: row.try_get(1)?, oldest: row.try_get(2)? })
    }
}
