//! Which pipeline writes a sink table. Every table has one owner.

use penstock_crds::report::Reason;
use tokio_postgres::{Error, GenericClient};

use super::owner::Owner;
use crate::change::table::TableName;
use crate::failure::Failure;

/// What is known of a sink table before it is claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// Nobody wrote it yet, or somebody who let go of it.
    Free,
    /// This pipeline wrote it, from the same source table or one that it no longer copies.
    Ours,
    /// This pipeline writes another source table into it.
    OtherSource(TableName),
    /// Another pipeline writes it.
    Theirs {
        /// UID of that pipeline.
        uid: String,
        /// Its namespace and name.
        pipeline: String,
    },
}

/// Reads who owns the table. The caller holds the lock on everything that makes objects.
pub(super) async fn read(
    client: &impl GenericClient,
    owner: &Owner,
    source: &TableName,
    sink: &TableName,
) -> Result<Claim, Error> {
    let sql = "SELECT uid, namespace || '/' || name, source_schema, source_table, is_released \
               FROM penstock.ownership WHERE sink_schema = $1 AND sink_table = $2 FOR UPDATE";
    let Some(row) = client.query_opt(sql, &[&sink.schema, &sink.name]).await? else { return Ok(Claim::Free) };
    let uid: String = row.try_get(0)?;
    let from = TableName::new(row.try_get::<_, String>(2)?, row.try_get::<_, String>(3)?);
    let is_released: bool = row.try_get(4)?;
    Ok(if uid == *owner.key() {
        if is_released || from == *source { Claim::Ours } else { Claim::OtherSource(from) }
    } else if is_released {
        Claim::Free
    } else {
        Claim::Theirs { uid, pipeline: row.try_get(1)? }
    })
}

impl Claim {
    /// The failure, when the table cannot be claimed.
    pub(super) fn refuse(&self, source: &TableName, sink: &TableName) -> Result<(), Failure> {
        let message = match self {
            Self::Free | Self::Ours => return Ok(()),
            Self::OtherSource(other) => format!(
                "The source tables {other} and {source} would both be written into the sink table {sink}. Give their schemas \
                 different names in sink.postgres.schemaMap, or take one of them out of source.postgres.tables."
            ),
            Self::Theirs { uid, pipeline } => format!(
                "The sink table {sink} is written by the pipeline {pipeline} (UID {uid}). Write into another schema with \
                 sink.postgres.schemaMap; or, if that pipeline is deleted, take its state over with the annotation \
                 penstock.dev/adopt: {uid}, or remove its state with penstock-worker clean-up."
            ),
        };
        Err(Failure::new(Reason::SinkTableOwned, message))
    }
}

/// Claims a table that [`read`] found free or ours.
pub(super) async fn claim(
    client: &impl GenericClient,
    owner: &Owner,
    source: &TableName,
    sink: &TableName,
) -> Result<(), Error> {
    let sql = "INSERT INTO penstock.ownership (sink_schema, sink_table, uid, namespace, name, source_schema, source_table) \
               VALUES ($1, $2, $3, $4, $5, $6, $7) \
               ON CONFLICT (sink_schema, sink_table) DO UPDATE SET uid = excluded.uid, namespace = excluded.namespace, \
                   name = excluded.name, source_schema = excluded.source_schema, source_table = excluded.source_table, \
                   is_released = false, claimed_at = excluded.claimed_at";
    client
        .execute(
            sql,
            &[
                &sink.schema,
                &sink.name,
                owner.key(),
                &owner.namespace,
                &owner.name,
                &source.schema,
                &source.name,
            ],
        )
        .await
        .map(drop)
}

/// Lets go of whatever this pipeline wrote the source table into, except for `keep`.
pub(super) async fn release(
    client: &impl GenericClient,
    owner: &Owner,
    source: &TableName,
    keep: Option<&TableName>,
) -> Result<(), Error> {
    let sql = "UPDATE penstock.ownership SET is_released = true \
               WHERE uid = $1 AND source_schema = $2 AND source_table = $3 AND NOT is_released \
                 AND (sink_schema, sink_table) IS DISTINCT FROM ($4::pg_catalog.text, $5::pg_catalog.text)";
    let (keep_schema, keep_name) = (keep.map(|table| &table.schema), keep.map(|table| &table.name));
    client
        .execute(sql, &[owner.key(), &source.schema, &source.name, &keep_schema, &keep_name])
        .await
        .map(drop)
}
