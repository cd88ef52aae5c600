//! A publication as the catalogue shows it, and what it leaves out.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Client;

use super::error::SourceError;
use super::publication::{PublicationName, table_list, unsuitable};
use crate::change::table::{SourceTable, TableName};

/// A publication as the catalogue shows it.
#[expect(clippy::struct_excessive_bools, reason = "independent facts of the catalogue")]
pub(super) struct Published {
    /// Tables that it publishes, in order.
    pub(super) tables: BTreeSet<TableName>,
    /// OIDs of the entries of the tables that are named one by one.
    entries: BTreeMap<TableName, u32>,
    pub(super) has_all_options: bool,
    via_root: bool,
    missing_operations: Vec<&'static str>,
    publishes_generated: bool,
    /// Tables with a row filter or a column list.
    narrowed: Vec<TableName>,
    /// FOR ALL TABLES, whole schemas, or narrowed tables: not what ours is made of.
    pub(super) has_other_selection: bool,
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
                     NOT IN ('n', 'false') \
                 FROM pg_catalog.pg_publication AS p WHERE p.pubname = $1::text::name",
                &[&name.as_str()],
            )
            .await
            .map_err(failed)?;
        let Some(row) = row else { return Ok(None) };
        let listed = client
            .query(
                "SELECT schemaname::text, tablename::text FROM pg_catalog.pg_publication_tables \
                 WHERE pubname = $1::text::name",
                &[&name.as_str()],
            )
            .await
            .map_err(failed)?;
        let named = client
            .query(
                "SELECT n.nspname::text, c.relname::text, \
                   pg_catalog.to_json(r)->>'prqual' IS NOT NULL OR pg_catalog.to_json(r)->>'prattrs' IS NOT NULL, \
                   r.oid \
                 FROM pg_catalog.pg_publication_rel AS r JOIN pg_catalog.pg_class AS c ON c.oid = r.prrelid \
                 JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace WHERE r.prpubid = $1",
                &[&row.get::<_, u32>(0)],
            )
            .await
            .map_err(failed)?;
        let table =
            |row: &tokio_postgres::Row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        let tables: BTreeSet<TableName> = listed.iter().map(table).collect();
        let entries: BTreeMap<TableName, u32> = named.iter().map(|row| (table(row), row.get(3))).collect();
        let narrowed: Vec<TableName> = named.iter().filter(|row| row.get(2)).map(table).collect();
        let operations = [("insert", 3), ("update", 4), ("delete", 5), ("truncate", 6)];
        let missing_operations: Vec<&str> = operations
            .into_iter()
            .filter(|(_, column)| !row.get::<_, bool>(*column))
            .map(|(operation, _)| operation)
            .collect();
        let (via_root, publishes_generated): (bool, bool) = (row.get(2), row.get(7));
        Ok(Some(Self {
            has_other_selection: row.get(1) || !narrowed.is_empty() || !tables.iter().eq(entries.keys()),
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

    /// OID of the table's entry; 0 if it is not named by itself.
    pub(super) fn entry(&self, table: &TableName) -> u32 {
        self.entries.get(table).copied().unwrap_or_default()
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
