//! Removes what a pipeline keeps at the source, when it is deleted.

use super::error::SourceError;
use super::publication::{PublicationName, drop_publication};
use super::slot::{SlotName, drop_slot, short_uid};
use crate::postgres::Endpoint;

/// Drops the slots of all shards and, if it is managed, the publication. What is gone already is no error.
pub async fn clean_up(endpoint: &Endpoint, uid: &str, is_managed: bool) -> Result<(), SourceError> {
    let session = endpoint
        .connect("penstock clean-up")
        .await
        .map_err(|error| SourceError::connect(endpoint, &error))?;
    let prefix = format!("penstock_{}_", short_uid(uid));
    let rows = session
        .query(
            "SELECT slot_name::text FROM pg_catalog.pg_replication_slots \
             WHERE pg_catalog.starts_with(slot_name::text, $1) AND slot_type = 'logical' \
               AND database = pg_catalog.current_database()",
            &[&prefix],
        )
        .await
        .map_err(|error| SourceError::sql(&error, "looking for the pipeline's replication slots"))?;
    for row in rows {
        let name: String = row.get(0);
        let slot: SlotName =
            name.parse().map_err(|_| SourceError::Protocol(format!("a slot named {name}")))?;
        drop_slot(&session, &slot).await?;
        tracing::info!(%slot, "replication slot dropped");
    }
    if is_managed {
        drop_publication(&session, &PublicationName::of_pipeline(uid)).await?;
    }
    session.close().await;
    Ok(())
}
