//! A publication as the catalogue shows it, and what it leaves out.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Client;

use super::error::SourceError;
use super::publication::{PublicationName, table_list, unsuitable};
use crate::change::PublishedAs;
use crate::change::table::{SourceTable, TableName};

/// A publication as the catalogue shows it.
#[expect(clippy::struct_excessive_bools, reason = "independent facts of the catalogue")]
pub(super) struct Published {
    /// Tables that it publishes, in order.
    pub(super) tables: BTreeSet<TableName>,
    /// By which entry each of them is published.
    entries: BTreeMap<TableName, PublishedAs>,
    pub(super) has_all_options: bool,
    via_root: bool,
    missing_operations: Vec<&'static str>,
    publishes_generated: bool,
    /// Tables with a row filter or a column list.
    narrowed: Vec<TableName>,
    /// FOR ALL TABLES, whole schemas, or narrowed tables: not what ours is made of.
    pub(super) has_other_selection: bool,
}

/// The tables that are published, each with its own entry or that of the nearest table that it is a partition of, and
/// else the same of its schema, with the transaction that last put it there. Schemas came with 15.
fn listed(has_schemas: bool) -> String {
    let of_schema = if has_schemas {
        "SELECT s.oid, d.xmin::text::int8 AS since, up.level \
         FROM pg_catalog.pg_publication_namespace AS s JOIN pg_catalog.pg_depend AS d ON d.objid = up.id \
           AND d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objsubid = 0 AND d.refobjid = s.pnnspid \
           AND d.refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass WHERE s.pnpubid = $2"
    } else {
        "SELECT 0::oid AS oid, 0::int8 AS since, up.level WHERE false"
    };
    format!(
        "SELECT p.schemaname::text, p.tablename::text, own.oid, own.since \
         FROM pg_catalog.pg_publication_tables AS p \
         JOIN pg_catalog.pg_namespace AS n ON n.nspname = p.schemaname \
         JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = p.tablename \
         LEFT JOIN LATERAL ( \
           SELECT entry.oid, entry.since FROM ( \
             SELECT c.oid AS id, 1::int8 AS level UNION SELECT relid::oid, level FROM \
               pg_catalog.pg_partition_ancestors(c.oid) WITH ORDINALITY AS ancestor (relid, level)) AS up \
           CROSS JOIN LATERAL ( \
             SELECT r.oid, 0::int8 AS since, up.level - 1000 AS level FROM pg_catalog.pg_publication_rel AS r \
             WHERE r.prpubid = $2 AND r.prrelid = up.id \
             UNION ALL {of_schema}) AS entry \
           ORDER BY entry.level LIMIT 1) AS own ON true \
         WHERE p.pubname = $1::text::name"
    )
}

/// One that has no entry is published with all others.
fn published_as(row: &tokio_postgres::Row, publication: u32) -> PublishedAs {
    let (entry, since): (Option<u32>, Option<i64>) = (row.get(2), row.get(3));
    let since = since.and_then(|since| u32::try_from(since).ok()).unwrap_or_default();
    PublishedAs::new(entry.unwrap_or(publication), since)
}

impl Published {
    pub(super) async fn read(client: &Client, name: &PublicationName) -> Result<Option<Self>, SourceError> {
        let failed = |error: tokio_postgres::Error| SourceError::sql(&error, "reading the publication");
        // Row filters, column lists and schemas came with 15, pubgencols with 18: as JSON, a row has those
        // columns that there are.
        let row = client
            .query_opt(
                "SELECT p.oid, p.puballtables, p.pubviaroot, p.pubinsert, p.pubupdate, p.pubdelete, \
                   p.pubtruncate, coalesce(pg_catalog.to_json(p)->>'pubgencols', 'n') \
                     NOT IN ('n', 'false'), \
                   pg_catalog.to_regclass('pg_catalog.pg_publication_namespace') IS NOT NULL \
                 FROM pg_catalog.pg_publication AS p WHERE p.pubname = $1::text::name",
                &[&name.as_str()],
            )
            .await
            .map_err(failed)?;
        let Some(row) = row else { return Ok(None) };
        let id: u32 = row.get(0);
        let has_schemas: bool = row.get(8);
        let listed = client.query(&listed(has_schemas), &[&name.as_str(), &id]).await.map_err(failed)?;
        let named = client
            .query(
                "SELECT n.nspname::text, c.relname::text, \
                   pg_catalog.to_json(r)->>'prqual' IS NOT NULL OR pg_catalog.to_json(r)->>'prattrs' IS NOT NULL \
                 FROM pg_catalog.pg_publication_rel AS r JOIN pg_catalog.pg_class AS c ON c.oid = r.prrelid \
                 JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace WHERE r.prpubid = $1",
                &[&id],
            )
            .await
            .map_err(failed)?;
        let table =
            |row: &tokio_postgres::Row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        let tables: BTreeSet<TableName> = listed.iter().map(table).collect();
        let entries = listed.iter().map(|row| (table(row), published_as(row, id))).collect();
        let one_by_one: BTreeSet<TableName> = named.iter().map(table).collect();
        let narrowed: Vec<TableName> = named.iter().filter(|row| row.get(2)).map(table).collect();
        let operations = [("insert", 3), ("update", 4), ("delete", 5), ("truncate", 6)];
        let missing_operations: Vec<&str> = operations
            .into_iter()
            .filter(|(_, column)| !row.get::<_, bool>(*column))
            .map(|(operation, _)| operation)
            .collect();
        let (via_root, publishes_generated): (bool, bool) = (row.get(2), row.get(7));
        Ok(Some(Self {
            has_other_selection: row.get(1) || !narrowed.is_empty() || tables != one_by_one,
            has_all_options: missing_operations.is_empty() && via_root && !publishes_generated,
            tables,
            entries,
            via_root,
            missing_operations,
            publishes_generated,
            narrowed,
        }))
    }

    /// Whether every change of the table is published.
    pub(super) fn carries(&self, table: &SourceTable) -> bool {
        self.missing_operations.is_empty()
            && (self.via_root || !table.is_partitioned)
            && self.tables.contains(&table.name)
            && !self.narrowed.contains(&table.name)
    }

    /// By which entry the table is published, if it is.
    pub(super) fn entry(&self, table: &TableName) -> Option<PublishedAs> {
        self.entries.get(table).copied()
    }

    /// Whether everything of these tables is published.
    pub(super) fn check(&self, name: &PublicationName, tables: &[SourceTable]) -> Result<(), SourceError> {
        let alter = |what: &str| format!("ALTER PUBLICATION {} {what}", name.quoted());
        if !self.missing_operations.is_empty() {
            let problem = format!("does not publish {}", self.missing_operations.join(", "));
            let set = alter("SET (publish = 'insert, update, delete, truncate')");
            return Err(unsuitable(name, &problem, &set));
        }
        if let Some(table) = tables.iter().find(|table| table.is_partitioned && !self.via_root) {
            let problem = format!("publishes partitions of {} one by one", table.name);
            return Err(unsuitable(name, &problem, &alter("SET (publish_via_partition_root = true)")));
        }
        if self.publishes_generated {
            let set = alter("SET (publish_generated_columns = none)");
            return Err(unsuitable(name, "publishes generated columns, which the sink computes", &set));
        }
        let missing: Vec<SourceTable> =
            tables.iter().filter(|table| !self.tables.contains(&table.name)).cloned().collect();
        if !missing.is_empty() {
            let names: Vec<String> = missing.iter().map(|table| table.name.to_string()).collect();
            let add = alter(&format!("ADD TABLE {}", table_list(&missing)));
            return Err(unsuitable(name, &format!("lacks {}", names.join(", ")), &add));
        }
        let is_ours = |narrowed: &&TableName| tables.iter().any(|table| table.name == **narrowed);
        if let Some(table) = self.narrowed.iter().find(is_ours) {
            let sql = table.quoted();
            let again =
                format!("{}; {}", alter(&format!("DROP TABLE {sql}")), alter(&format!("ADD TABLE {sql}")));
            return Err(unsuitable(name, &format!("has a row filter or a column list on {table}"), &again));
        }
        Ok(())
    }
}
