//! Removes a pipeline's state from the sink. The copied tables stay.

use tokio_postgres::{Error, Transaction};

use super::error::failed;
use super::schema::{DDL_LOCK, has_table};
use super::session::{self, Purpose};
use crate::failure::Failure;
use crate::postgres::{Endpoint, Session};

const TABLES: [&str; 13] = [
    "barrier_arrival",
    "barrier",
    "checkpoint",
    "copied_chunk",
    "table_state",
    "assignment",
    "ownership",
    "adoption",
    "dead_end",
    "accepted_loss",
    "resnapshot",
    "layout",
    "lineage",
];

/// The UID that the pipeline's slots and publication are named after: its own, or that of the pipeline whose state
/// it adopted. `None`: the sink holds no state of it. To be asked before [`clean_up`], which forgets it.
pub async fn names_uid(endpoint: &Endpoint, uid: &str) -> Result<Option<String>, Failure> {
    let session = session::open(endpoint, "penstock clean-up", Purpose::Control).await?;
    let read = async {
        if !has_table(&session.client, "version").await? {
            return Ok(None);
        }
        let sql = "SELECT names_uid FROM penstock.checkpoint WHERE uid = $1 ORDER BY shard LIMIT 1";
        session.query_opt(sql, &[&uid]).await?.map(|row| row.try_get(0)).transpose()
    };
    read.await.map_err(|error: Error| failed(&error, "reading the pipeline's state in the sink"))
}

/// Removes a lineage's state, and the schema `penstock` when no state of any pipeline is left in it. The tables that readers
/// know stay; those that it has beside them go. Safe to repeat. A worker that still runs finds no fence any more and writes
/// nothing.
pub async fn clean_up(endpoint: &Endpoint, key: &str) -> Result<(), Failure> {
    let mut session = session::open(endpoint, "penstock clean-up", Purpose::Control).await?;
    remove(&mut session, key)
        .await
        .map_err(|error| failed(&error, "removing the pipeline's state from the sink"))
}

/// Tables that the lineage made in schemas of its own, and those schemas when nothing else is in them.
async fn drop_tables_beside(transaction: &Transaction<'_>, key: &str) -> Result<(), Error> {
    let tables = "SELECT pg_catalog.format('DROP TABLE %I.%I', schema.nspname, class.relname) \
                  FROM penstock.table_state AS state JOIN penstock.layout AS layout \
                    ON (layout.key, layout.schema) = (state.uid, state.sink_schema) AND layout.schema <> layout.live_schema \
                  JOIN pg_catalog.pg_class AS class ON class.oid::pg_catalog.int8 = state.sink_oid AND class.relname = state.sink_table \
                  JOIN pg_catalog.pg_namespace AS schema ON schema.oid = class.relnamespace AND schema.nspname = state.sink_schema \
                  WHERE state.uid = $1 ORDER BY 1";
    let schemas = "SELECT pg_catalog.format('DROP SCHEMA %I', schema.nspname) FROM penstock.layout AS layout \
                   JOIN pg_catalog.pg_namespace AS schema ON schema.nspname = layout.schema \
                   WHERE layout.key = $1 AND layout.schema <> layout.live_schema AND NOT EXISTS ( \
                       SELECT FROM pg_catalog.pg_depend WHERE refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass \
                         AND refobjid = schema.oid) ORDER BY 1";
    for look in [tables, schemas] {
        for row in transaction.query(look, &[&key]).await? {
            transaction.batch_execute(row.try_get(0)?).await?;
        }
    }
    Ok(())
}

async fn remove(session: &mut Session, uid: &str) -> Result<(), Error> {
    let transaction = session.transaction().await?;
    transaction.batch_execute(DDL_LOCK).await?;
    if !has_table(&transaction, "version").await? {
        return Ok(());
    }
    if has_table(&transaction, "layout").await? {
        drop_tables_beside(&transaction, uid).await?;
    }
    for table in TABLES {
        // A schema of before has fewer.
        if !has_table(&transaction, table).await? {
            continue;
        }
        let owner = match table {
            "adoption" => "adopted_by",
            "layout" | "lineage" => "key",
            _ => "uid",
        };
        transaction.execute(&format!("DELETE FROM penstock.{table} WHERE {owner} = $1"), &[&uid]).await?;
    }
    if is_empty(&transaction).await? {
        // Nobody can add a row between the look and the removal.
        transaction.batch_execute("LOCK TABLE penstock.checkpoint IN ACCESS EXCLUSIVE MODE").await?;
        if is_empty(&transaction).await? {
            drop_schema(&transaction).await?;
        }
    }
    transaction.commit().await
}

async fn is_empty(transaction: &Transaction<'_>) -> Result<bool, Error> {
    for table in TABLES {
        let look = format!("SELECT EXISTS (SELECT FROM penstock.{table})");
        if has_table(transaction, table).await? && transaction.query_one(&look, &[]).await?.try_get(0)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Only what is ours: a schema with something else in it stays.
async fn drop_schema(transaction: &Transaction<'_>) -> Result<(), Error> {
    for table in TABLES.into_iter().chain(["version"]) {
        transaction.batch_execute(&format!("DROP TABLE IF EXISTS penstock.{table}")).await?;
    }
    let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_depend \
                              WHERE refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass \
                                AND refobjid = 'penstock'::pg_catalog.regnamespace) \
               OR NOT pg_catalog.pg_has_role((SELECT nspowner FROM pg_catalog.pg_namespace WHERE nspname = 'penstock'), 'USAGE')";
    let must_stay: bool = transaction.query_one(sql, &[]).await?.try_get(0)?;
    if must_stay { Ok(()) } else { transaction.batch_execute("DROP SCHEMA penstock").await }
}
