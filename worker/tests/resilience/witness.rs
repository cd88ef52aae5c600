//! An independent count of the source's changes: by a slot of its own, of another plugin, that nothing acknowledges.

use anyhow::Result;

use crate::common::Rig;

/// A slot of its own that saw every change since it was made.
pub(crate) struct Witness {
    slot: String,
    /// Up to here so many changes were counted.
    counted: (String, i64),
}

impl Witness {
    pub(crate) async fn start(rig: &Rig) -> Result<Self> {
        let slot = format!("witness_{}", rig.database.replace('-', "_"));
        rig.on_source(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'test_decoding')"))
            .await?;
        Ok(Self { slot, counted: ("0/0".to_owned(), 0) })
    }

    /// Changes of rows since it was made. What is counted is not read again, so nobody may be writing now: a transaction that is open
    /// would be counted by halves.
    pub(crate) async fn changes(&mut self, rig: &Rig) -> Result<i64> {
        let until = rig.source_value("SELECT pg_current_wal_lsn()").await?;
        let changes = self.counted.1 + self.changes_after(rig, &self.counted.0).await?;
        // After a crash the slot may stand further back; it is the position that counts.
        rig.on_source(&format!("SELECT pg_replication_slot_advance('{}', '{until}')", self.slot)).await?;
        self.counted = (until, changes);
        Ok(changes)
    }

    /// Changes of rows in transactions that committed after a position.
    pub(crate) async fn changes_after(&self, rig: &Rig, lsn: &str) -> Result<i64> {
        // The last row of a transaction is its commit.
        let sql = format!(
            "SELECT coalesce(sum(changes), 0) FROM (
                 SELECT count(*) FILTER (WHERE data LIKE 'table public.%') AS changes, max(lsn) AS committed
                 FROM pg_logical_slot_peek_changes('{}', NULL, NULL, 'skip-empty-xacts', '1') GROUP BY xid::text) AS seen
             WHERE committed > '{lsn}'",
            self.slot
        );
        Ok(rig.source_value(&sql).await?.parse()?)
    }
}
