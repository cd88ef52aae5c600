//! Whether the sink holds what the source holds, asked of both in plain SQL.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Database, eventually};

/// Waits until every shard has passed what is the source's end of log now, then compares row count and content of
/// the tables.
///
/// # Errors
/// The sink does not catch up in time, or a table differs.
pub async fn ensure_equal_when_caught_up(source: &Database, sink: &Database, tables: &[&str]) -> Result<()> {
    source.execute("SELECT pg_logical_emit_message(true, 'test', 'a transaction to end with')").await?;
    let end = source.text("SELECT pg_current_wal_flush_lsn()").await?;
    let query = format!("SELECT min(end_lsn) >= '{end}'::pg_lsn FROM penstock.checkpoint");
    eventually("the sink has caught up", Duration::from_mins(2), || async {
        Ok((sink.text(&query).await? == "t").then_some(()))
    })
    .await?;
    for table in tables {
        let query = format!(
            "SELECT count(*) || ' rows, hash ' || coalesce(sum(hashtextextended(t::text, 7)), 0) FROM {table} t"
        );
        let (left, right) = (source.text(&query).await?, sink.text(&query).await?);
        ensure!(left == right, "{table}: source {left}, sink {right}");
    }
    Ok(())
}
