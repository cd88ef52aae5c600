//! Which shard has which table, and how it is published: `penstock.assignment`. Shard 0 writes it for all.

use std::collections::BTreeMap;

use tokio_postgres::{Error, Transaction};

use super::error::failed;
use super::state::fenced_transaction;
use super::{Sink, ownership};
use crate::change::PublishedAs;
use crate::change::table::TableName;
use crate::failpoint::{Point, reach};
use crate::failure::Failure;

impl Sink {
    /// Which shard has which table, as written by shard 0; empty before.
    pub async fn assignment(&self) -> Result<BTreeMap<TableName, u16>, Failure> {
        let sql = "SELECT source_schema, source_table, shard FROM penstock.assignment WHERE uid = $1";
        let read = async {
            let rows = self.session.query(sql, &[self.owner.key()]).await?;
            rows.iter()
                .map(|row| {
                    let shard: i32 = row.try_get(2)?;
                    let name = TableName::new(row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?);
                    Ok((name, u16::try_from(shard).unwrap_or(u16::MAX)))
                })
                .collect::<Result<_, Error>>()
        };
        read.await.map_err(|error: Error| failed(&error, "reading the assignment of tables to shards"))
    }

    /// Writes the assignment; shard 0 alone does. A table keeps the shard it has. Tables that are not named any
    /// more lose shard and state, and their sink tables are free for another pipeline. A shard that gets or loses a table
    /// loses the fence, and finds it when it begins anew.
    pub async fn assign(&mut self, wanted: &BTreeMap<TableName, u16>) -> Result<(), Failure> {
        let doing = "assigning tables to shards";
        let Self { session, run, owner, .. } = self;
        let transaction = fenced_transaction(session, run, doing).await?;
        let write = async {
            let mut changed = Vec::new();
            for (table, shard) in wanted {
                let sql = "INSERT INTO penstock.assignment (uid, source_schema, source_table, shard) \
                           VALUES ($1, $2, $3, $4) ON CONFLICT (uid, source_schema, source_table) DO NOTHING";
                let shard = i32::from(*shard);
                let added =
                    transaction.execute(sql, &[owner.key(), &table.schema, &table.name, &shard]).await?;
                if added > 0 && shard != run.shard {
                    changed.push(shard);
                }
            }
            let of_others = "SELECT source_schema, source_table, shard FROM penstock.assignment WHERE uid = $1 AND shard <> $2";
            for row in transaction.query(of_others, &[owner.key(), &run.shard]).await? {
                let name = TableName::new(row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?);
                if !wanted.contains_key(&name) {
                    changed.push(row.try_get(2)?);
                }
            }
            take_fence_from(&transaction, owner.key(), &changed).await?;
            for table in known_tables(&transaction, owner.key()).await? {
                if !wanted.contains_key(&table) {
                    forget(&transaction, owner.key(), &table).await?;
                    ownership::release(&transaction, owner, &table, None).await?;
                }
            }
            Ok(())
        };
        write.await.map_err(|error: Error| failed(&error, doing))?;
        reach(Point::BeforeAssigned)?;
        transaction.commit().await.map_err(|error| failed(&error, doing))?;
        reach(Point::AfterAssigned)
    }

    /// The entries of the publication by which tables were followed, as noted last.
    pub async fn carried(&self) -> Result<BTreeMap<TableName, PublishedAs>, Failure> {
        let sql = "SELECT source_schema, source_table, published_as FROM penstock.assignment \
                   WHERE uid = $1 AND published_as IS NOT NULL";
        let read = async {
            let rows = self.session.query(sql, &[self.owner.key()]).await?;
            rows.iter()
                .map(|row| {
                    let entry: i64 = row.try_get(2)?;
                    let name = TableName::new(row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?);
                    Ok((name, PublishedAs::noted(entry)))
                })
                .collect::<Result<_, Error>>()
        };
        read.await.map_err(|error: Error| failed(&error, "reading how tables are published"))
    }

    /// Notes the entries of the publication by which tables are followed; shard 0 alone does.
    pub async fn note_carried(&mut self, carried: &BTreeMap<TableName, PublishedAs>) -> Result<(), Failure> {
        let doing = "noting how tables are published";
        let transaction = fenced_transaction(&mut self.session, &self.run, doing).await?;
        let schemas: Vec<&str> = carried.keys().map(|table| table.schema.as_str()).collect();
        let names: Vec<&str> = carried.keys().map(|table| table.name.as_str()).collect();
        let entries: Vec<i64> = carried.values().map(|entry| entry.to_note()).collect();
        let sql = "UPDATE penstock.assignment SET published_as = now.entry \
                   FROM ROWS FROM (pg_catalog.unnest($2::pg_catalog.text[]), pg_catalog.unnest($3::pg_catalog.text[]), \
                       pg_catalog.unnest($4::pg_catalog.int8[])) AS now (schema, name, entry) \
                   WHERE uid = $1 AND (source_schema, source_table) = (now.schema, now.name) \
                     AND published_as IS DISTINCT FROM now.entry";
        let noted = transaction.execute(sql, &[self.owner.key(), &schemas, &names, &entries]).await;
        noted.map_err(|error| failed(&error, doing))?;
        reach(Point::BeforePublishedNoted)?;
        transaction.commit().await.map_err(|error| failed(&error, doing))?;
        reach(Point::AfterPublishedNoted)
    }
}

/// The present runs of these shards commit nothing any more, and begin anew.
pub(super) async fn take_fence_from(
    transaction: &Transaction<'_>,
    uid: &String,
    shards: &[i32],
) -> Result<(), Error> {
    let sql = "UPDATE penstock.checkpoint SET epoch = epoch + 1 WHERE uid = $1 AND shard = ANY ($2)";
    if shards.is_empty() { Ok(()) } else { transaction.execute(sql, &[uid, &shards]).await.map(drop) }
}

async fn known_tables(transaction: &Transaction<'_>, uid: &String) -> Result<Vec<TableName>, Error> {
    let sql = "SELECT source_schema, source_table FROM penstock.assignment WHERE uid = $1 \
               UNION SELECT source_schema, source_table FROM penstock.table_state WHERE uid = $1";
    let rows = transaction.query(sql, &[uid]).await?;
    rows.iter()
        .map(|row| Ok(TableName::new(row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?)))
        .collect()
}

async fn forget(transaction: &Transaction<'_>, uid: &String, table: &TableName) -> Result<(), Error> {
    for list in ["assignment", "table_state"] {
        let sql = format!(
            "DELETE FROM penstock.{list} WHERE uid = $1 AND source_schema = $2 AND source_table = $3"
        );
        transaction.execute(&sql, &[uid, &table.schema, &table.name]).await?;
    }
    Ok(())
}
