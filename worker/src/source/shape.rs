//! What the catalogue says about the columns of tables, and which of it a rewrite of their rows changes.
//!
//! Whoever holds ACCESS SHARE on a table sees it as every transaction did whose COMMIT comes before, and no ALTER TABLE
//! that changes columns can commit meanwhile. So a message that is written under the lock marks the place in the log at
//! which the catalogue was like that.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use penstock_crds::report::Reason;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::catalogue::{describe, tables_of};
use super::error::SourceError;
use super::ranges::WATERMARK_PREFIX;
use crate::change::table::TableName;
use crate::change::{PartColumn, PresentTable, RelationId, ShapeColumn, ShapeLabel, ShapePart, TableShape};
use crate::failure::Failure;

/// By table.
pub type Shapes = BTreeMap<RelationId, TableShape>;

/// One row per column of each table and of each of its partitions.
const SHAPES: &str = "
SELECT root.id, class.oid, class.relfilenode, class.relkind = 'r', class.relnatts, a.attnum, a.attname::text, a.atttypid, a.atttypmod,
       a.attnotnull, a.attgenerated <> '', coalesce(d.oid, 0::oid), a.xmin::text::int8,
       CASE WHEN a.atthasmissing THEN pg_catalog.array_to_string(a.attmissingval, '') END, class.reltoastrelid,
       ARRAY(SELECT r.oid FROM pg_catalog.pg_publication_rel AS r WHERE r.prrelid = class.oid ORDER BY r.oid)
FROM pg_catalog.unnest($1::oid[]) AS root (id)
CROSS JOIN LATERAL (SELECT root.id UNION SELECT relid FROM pg_catalog.pg_partition_tree(root.id)) AS tree (id)
JOIN pg_catalog.pg_class AS class ON class.oid = tree.id
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = class.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_catalog.pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
ORDER BY root.id, class.oid, a.attnum";

/// One row per label of each enum type that the columns of each table are made of. No server brings one along.
const LABELS: &str = "
WITH RECURSIVE part (root, id) AS (
    SELECT a.attrelid, a.atttypid FROM pg_catalog.pg_attribute AS a
    WHERE a.attrelid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped AND a.atttypid >= 16384
  UNION
    SELECT part.root, next.id FROM part JOIN pg_catalog.pg_type AS t ON t.oid = part.id
    CROSS JOIN LATERAL (
        SELECT t.typbasetype AS id UNION ALL SELECT t.typelem
        UNION ALL SELECT r.rngsubtype FROM pg_catalog.pg_range AS r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)
        UNION ALL SELECT a.atttypid FROM pg_catalog.pg_attribute AS a
            WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) AS next
    WHERE next.id >= 16384)
SELECT part.root, label.oid, label.enumtypid, label.enumlabel::text
FROM part JOIN pg_catalog.pg_enum AS label ON label.enumtypid = part.id ORDER BY part.root, label.oid";

/// The shapes of tables, all at one moment. One that is gone is left out.
pub async fn shapes(client: &Client, ids: &[RelationId]) -> Result<Shapes, SourceError> {
    let ids: Vec<u32> = ids.iter().map(|id| id.0).collect();
    let rows = client
        .query(SHAPES, &[&ids])
        .await
        .map_err(|error| SourceError::sql(&error, "reading the columns of its tables"))?;
    let mut shapes = Shapes::new();
    for row in rows {
        let (root, id): (u32, u32) = (row.get(0), row.get(1));
        let shape = shapes.entry(RelationId(root)).or_default();
        let (number, name): (i16, String) = (row.get(5), row.get(6));
        let default: u32 = row.get(11);
        if id == root {
            shape.last_number = row.get(4);
            shape.columns.push(ShapeColumn {
                number,
                name: name.clone(),
                type_oid: row.get(7),
                type_modifier: row.get(8),
                is_not_null: row.get(9),
                is_generated: row.get(10),
                default,
            });
        }
        if !row.get::<_, bool>(3) {
            continue;
        }
        let version = u32::try_from(row.get::<_, i64>(12)).unwrap_or_default();
        let column = PartColumn { number, name, version, default, missing: row.get(13) };
        match shape.parts.last_mut().filter(|part| part.id == id) {
            Some(part) => part.columns.push(column),
            None => shape.parts.push(ShapePart {
                id,
                file: row.get(2),
                toast: row.get(14),
                entries: row.get(15),
                columns: vec![column],
            }),
        }
    }
    let failed = |error: tokio_postgres::Error| SourceError::sql(&error, "reading the labels of its types");
    for row in client.query(LABELS, &[&ids]).await.map_err(failed)? {
        if let Some(shape) = shapes.get_mut(&RelationId(row.get(0))) {
            shape.labels.push(ShapeLabel { id: row.get(1), type_oid: row.get(2), label: row.get(3) });
        }
    }
    Ok(shapes)
}

/// Notes how the tables and their partitions are published by now.
pub async fn refresh_entries(client: &Client, shapes: &mut Shapes) -> Result<(), SourceError> {
    let parts = shapes.values().flat_map(|shape| &shape.parts);
    let ids: Vec<u32> = parts.map(|part| part.id).collect();
    let rows = client
        .query(
            "SELECT prrelid, pg_catalog.array_agg(oid ORDER BY oid) FROM pg_catalog.pg_publication_rel \
             WHERE prrelid = ANY ($1) GROUP BY prrelid",
            &[&ids],
        )
        .await
        .map_err(|error| SourceError::sql(&error, "reading how its tables are published"))?;
    let mut entries: HashMap<u32, Vec<u32>> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    for part in shapes.values_mut().flat_map(|shape| &mut shape.parts) {
        part.entries = entries.remove(&part.id).unwrap_or_default();
    }
    Ok(())
}

/// The table as it is now. Waits for an ALTER TABLE that is under way, as long as `patience`.
pub async fn present_table(
    client: &Client,
    id: RelationId,
    patience: Duration,
) -> Result<PresentTable, SourceError> {
    begin(client, id, patience).await?;
    let read = read(client, id).await;
    let ended = end(client, "COMMIT").await;
    let present = read?;
    ended.map(|()| present)
}

/// The same, and a message with `content` into the log while nothing can change. `tell` gets the table before.
pub async fn announce_table(
    client: &Client,
    id: RelationId,
    patience: Duration,
    content: &str,
    tell: impl FnOnce(PresentTable),
) -> Result<(), SourceError> {
    begin(client, id, patience).await?;
    let announced = async {
        tell(read(client, id).await?);
        let sql = "SELECT pg_catalog.pg_logical_emit_message(true, $1, $2)";
        client
            .query_one(sql, &[&WATERMARK_PREFIX, &content])
            .await
            .map_err(|error| SourceError::sql(&error, "marking a place in its log"))
    };
    match announced.await {
        Ok(_) => end(client, "COMMIT").await,
        Err(error) => {
            end(client, "ROLLBACK").await?;
            Err(error)
        }
    }
}

async fn begin(client: &Client, id: RelationId, patience: Duration) -> Result<(), SourceError> {
    let sql = format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL search_path = ''; SET LOCAL lock_timeout = {}",
        patience.as_millis()
    );
    end(client, &sql).await?;
    let locked = lock(client, id).await;
    if locked.is_err() {
        end(client, "ROLLBACK").await?;
    }
    locked
}

async fn lock(client: &Client, id: RelationId) -> Result<(), SourceError> {
    let sql = "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class AS c \
               JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = $1";
    let found = client
        .query_opt(sql, &[&id.0])
        .await
        .map_err(|error| SourceError::sql(&error, "looking for a table"))?;
    let Some(row) = found else { return Err(changed("A source table was dropped")) };
    let name = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
    let lock = format!("LOCK TABLE {} IN ACCESS SHARE MODE", name.quoted());
    client.batch_execute(&lock).await.map_err(|error| match error.code() {
        Some(code) if *code == SqlState::LOCK_NOT_AVAILABLE => {
            changed(&format!("The source table {name} is locked by somebody who changes it"))
        }
        Some(code) if *code == SqlState::UNDEFINED_TABLE => {
            changed(&format!("The source table {name} was dropped or renamed"))
        }
        Some(_) | None => SourceError::sql(&error, &format!("locking {name} to read its columns")),
    })
}

fn changed(what: &str) -> SourceError {
    let message = format!("{what} while changes were read; the tables are looked at again.");
    SourceError::Database(Failure::new(Reason::TablesChanged, message))
}

async fn end(client: &Client, sql: &str) -> Result<(), SourceError> {
    client.batch_execute(sql).await.map_err(|error| SourceError::sql(&error, "reading its catalogue"))
}

async fn read(client: &Client, id: RelationId) -> Result<PresentTable, SourceError> {
    let shape = shapes(client, &[id]).await?.remove(&id);
    let found = tables_of(client, &[id.0]).await?;
    let table = describe(client, &found).await?.into_iter().find(|table| table.id == id);
    match (table, shape) {
        (Some(table), Some(shape)) => Ok(PresentTable { table, shape }),
        (_, None) | (None, _) => Err(changed("A source table was dropped")),
    }
}
