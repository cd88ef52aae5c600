//! The shape that a sink table's rows have, as it is kept beside them, and what the start does about tables that do not
//! fit: the rest is the stream's to bring.

use std::collections::{BTreeMap, BTreeSet};

use penstock_crds::spec::SchemaChanges;
use tokio_postgres::Error;

use super::Sink;
use super::catalogue::{SinkTable, read_table};
use super::compare::{Difference, Effect};
use super::error::failed;
use super::evolve::Rules;
use super::made_types::{ExtensionTypes, label_differences, missing_types};
use super::reshape::written;
use super::state::{TableState, fenced_ddl_transaction, fenced_transaction, forget_chunks, read_state};
use super::tables::{Mismatch, mismatch};
use crate::change::table::{SourceTable, TableName, quote_identifier};
use crate::change::{RelationId, Steps, TableShape};
use crate::evolve::{RenamedLabel, renamed_labels};
use crate::failure::Failure;

/// What may be done to tables that do not fit.
#[derive(Clone, Debug, Default)]
pub(super) struct Allowed {
    rules: Rules,
    /// Tables whose columns changed; the stream comes to it.
    pending: BTreeSet<TableName>,
    /// Columns that the sink does not have, and need not have.
    left_out: BTreeMap<TableName, BTreeSet<String>>,
    /// Tables to whose rows something else was done than is now, each with the columns that are not carried any more.
    restepped: BTreeMap<TableName, Vec<String>>,
    /// Tables to whose rows the same was done, written in another way.
    rewritten: BTreeSet<TableName>,
}

/// The shape that a table's rows in the sink have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// The source table that they came from.
    pub source: RelationId,
    /// The sink table.
    pub sink: TableName,
    /// What was done to them on their way; `None` where that cannot be read.
    pub steps: Option<Steps>,
    /// Its shape.
    pub shape: TableShape,
    /// Columns of it that the rows were written without.
    pub left_out: Vec<String>,
    /// The rows are there, or come in ranges. If not, or if the sink table was dropped, they are about to be copied anew.
    pub is_followed: bool,
}

impl Sink {
    /// What the manifest allows.
    pub fn allow(&mut self, rules: Rules) {
        self.changes.rules = rules;
    }

    /// The stream will bring these tables' columns up.
    pub fn leave_to_stream(&mut self, tables: BTreeSet<TableName>) {
        self.changes.pending = tables;
    }

    /// The sink table of one of the source.
    pub fn name_of(&self, table: &TableName) -> TableName {
        self.tables.sink_name(table)
    }

    /// To the rows of these tables something else was done on their way than is now: they are copied again. Each with the
    /// columns of the sink that are not carried any more.
    pub fn copy_with_other_steps(&mut self, tables: BTreeMap<TableName, Vec<String>>) {
        self.changes.restepped = tables;
    }

    /// The same is done to the rows of these tables, written in another way.
    pub fn note_steps_anew(&mut self, tables: BTreeSet<TableName>) {
        self.changes.rewritten = tables;
    }

    /// Whether rows of the table are written without this column.
    pub fn leaves_out(&self, table: &TableName, column: &str) -> bool {
        self.changes.left_out.get(table).is_some_and(|columns| columns.contains(column))
    }

    /// Whether rows of the table are written without some column.
    pub fn leaves_out_any(&self, table: &TableName) -> bool {
        self.changes.left_out.get(table).is_some_and(|columns| !columns.is_empty())
    }

    /// The shapes of tables that were copied, or began to be, to where they are written now. One that goes somewhere else is
    /// copied anew, and what has its new name may be somebody else's.
    pub async fn recorded(&self) -> Result<BTreeMap<TableName, Recorded>, Failure> {
        let sql = "SELECT source_schema, source_table, source_oid, shape, state IN ('ready', 'incremental') \
                       AND EXISTS (SELECT FROM pg_catalog.pg_class AS class \
                           JOIN pg_catalog.pg_namespace AS schema ON schema.oid = class.relnamespace \
                           WHERE schema.nspname = sink_schema AND class.relname = sink_table \
                             AND class.oid::pg_catalog.int8 = sink_oid), left_out, \
                       sink_schema, sink_table, steps \
                   FROM penstock.table_state WHERE uid = $1 AND shape IS NOT NULL";
        let doing = "reading the shapes of its tables";
        let rows =
            self.session.query(sql, &[self.owner.key()]).await.map_err(|error| failed(&error, doing))?;
        let mut recorded = BTreeMap::new();
        for row in rows {
            let read = || -> Result<(TableName, i64, String), Error> {
                Ok((
                    TableName::new(row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?),
                    row.try_get(2)?,
                    row.try_get(3)?,
                ))
            };
            let (name, source, text) = read().map_err(|error| failed(&error, doing))?;
            let written = || Ok(TableName::new(row.try_get::<_, String>(6)?, row.try_get::<_, String>(7)?));
            if written().map_err(|error: Error| failed(&error, doing))? != self.tables.sink_name(&name) {
                continue;
            }
            // What cannot be read is as good as not known: then nothing is made of a change but what the sink's columns say.
            let (Ok(source), Ok(shape)) = (u32::try_from(source), serde_json::from_str(&text)) else {
                continue;
            };
            let is_followed = row.try_get(4).map_err(|error| failed(&error, doing))?;
            let left_out: Vec<String> = row.try_get(5).map_err(|error| failed(&error, doing))?;
            let place = || -> Result<(String, String, String), Error> {
                Ok((row.try_get(6)?, row.try_get(7)?, row.try_get(8)?))
            };
            let (schema, table, steps) = place().map_err(|error| failed(&error, doing))?;
            let (source, sink, steps) =
                (RelationId(source), TableName::new(schema, table), Steps::noted(&steps));
            recorded.insert(name, Recorded { source, sink, steps, shape, left_out, is_followed });
        }
        Ok(recorded)
    }

    /// The first of these columns that the sink table has.
    pub async fn made_since(&self, table: &TableName, columns: &[String]) -> Result<Option<String>, Failure> {
        if columns.is_empty() {
            return Ok(None);
        }
        let name = self.tables.sink_name(table);
        let sink = read_table(&self.session.client, &name)
            .await
            .map_err(|error| failed(&error, &format!("reading the sink table {name}")))?;
        let has = |column: &&String| sink.as_ref().is_some_and(|sink| sink.column(column).is_some());
        Ok(columns.iter().find(has).cloned())
    }

    /// The rows of these tables are about to be copied in these shapes.
    pub async fn record<'a>(
        &mut self,
        shapes: impl IntoIterator<Item = (&'a TableName, &'a TableShape)>,
    ) -> Result<(), Failure> {
        let doing = "noting the shapes of its tables";
        let transaction = fenced_transaction(&mut self.session, &self.run, doing).await?;
        let sql = "UPDATE penstock.table_state SET shape = $4, left_out = $5 \
                   WHERE uid = $1 AND source_schema = $2 AND source_table = $3";
        for (table, shape) in shapes {
            let left_out: Vec<&String> = self.changes.left_out.get(table).into_iter().flatten().collect();
            transaction
                .execute(sql, &[self.owner.key(), &table.schema, &table.name, &written(shape), &left_out])
                .await
                .map_err(|error| failed(&error, doing))?;
            // What was copied in another shape is not kept.
            forget_chunks(&transaction, self.owner.key(), table)
                .await
                .map_err(|error| failed(&error, doing))?;
        }
        transaction.commit().await.map_err(|error| failed(&error, doing))
    }

    /// Looks whether sink tables refuse values that the source's tables allow by now: NULL, or new labels. With `Apply`
    /// they are allowed, and it says what was; else it fails with the statements.
    ///
    /// # Errors
    /// `SinkTableMismatch`.
    pub async fn relax(&mut self, tables: &[SourceTable]) -> Result<Vec<String>, Failure> {
        let doing = "comparing its tables with the source's";
        let error = |error: Error| failed(&error, doing);
        let extensions = ExtensionTypes::read(&self.session.client, tables).await.map_err(error)?;
        let mut mismatches = Vec::new();
        for source in tables {
            let name = self.tables.sink_name(&source.name);
            let placed = extensions.place(source);
            let mut found = self.mismatches_of(&placed, &name).await.map_err(error)?;
            found.retain(|difference| difference.effect == Effect::Relaxes);
            if !found.is_empty() {
                mismatches.push(Mismatch { table: name, found, is_copied: false, is_remade: false });
            }
        }
        if mismatches.is_empty() {
            return Ok(Vec::new());
        }
        if self.changes.rules.policy != SchemaChanges::Apply {
            return Err(mismatch(&mismatches));
        }
        let mut done = Vec::new();
        for Mismatch { table, found, .. } in mismatches {
            self.carry_out(&table, &[], &found).await?;
            done.extend(found.into_iter().map(|difference| format!("{table}: {}", difference.what)));
        }
        Ok(done)
    }

    /// What may be done before the stream is there: values that the source allows now may be allowed early, and a table
    /// that is about to be copied is to have the columns of now.
    pub(super) async fn bring_up(
        &mut self,
        tables: &[SourceTable],
        extensions: &ExtensionTypes,
    ) -> Result<(), Failure> {
        if self.changes.rules.policy != SchemaChanges::Apply {
            return Ok(());
        }
        for source in tables {
            let name = self.tables.sink_name(&source.name);
            let doing = format!("comparing the sink table {name}");
            let error = |error: Error| failed(&error, &doing);
            let known = read_state(&self.session.client, self.owner.key(), source).await.map_err(error)?;
            let Some((written, state)) = known else { continue };
            // One that it is to be written into from now on may be somebody else's.
            if written != name || !extensions.missing(source).is_empty() {
                continue;
            }
            let placed = extensions.place(source);
            let mut found = self.mismatches_of(&placed, &name).await.map_err(error)?;
            found.retain(|difference| match difference.effect {
                Effect::Relaxes => true,
                Effect::AddsColumn | Effect::Widens => {
                    is_to_be_copied(&state) || self.changes.restepped.contains_key(&source.name)
                }
                Effect::Other => false,
            });
            if !found.is_empty() {
                let types =
                    missing_types(&self.session.client, &placed, &self.tables).await.map_err(error)?;
                self.carry_out(&name, &types, &found).await?;
            }
        }
        Ok(())
    }

    /// With `Apply`, renames labels of the sink's types as the source did. A row of the stream that still has the old one
    /// is refused then, and not taken for one of now.
    pub async fn rename_labels(
        &mut self,
        table: &SourceTable,
        renamed: &[RenamedLabel],
    ) -> Result<(), Failure> {
        if self.changes.rules.policy != SchemaChanges::Apply {
            return Ok(());
        }
        let found = self.labels_left_behind(table, renamed).await?;
        if found.is_empty() {
            return Ok(());
        }
        self.carry_out(&self.tables.sink_name(&table.name), &[], &found).await
    }

    async fn labels_left_behind(
        &self,
        table: &SourceTable,
        renamed: &[RenamedLabel],
    ) -> Result<Vec<Difference>, Failure> {
        if renamed.is_empty() {
            return Ok(Vec::new());
        }
        let client = &self.session.client;
        let read = async {
            let tables = std::slice::from_ref(table);
            let placed = ExtensionTypes::read(client, tables).await?.place(table).into_owned();
            label_differences(client, &placed, &self.tables, renamed).await
        };
        read.await.map_err(|error: Error| failed(&error, "reading the labels of its types"))
    }

    /// Columns that were dropped or renamed before the table is copied anew, a person decides what becomes of theirs; and
    /// labels that were renamed.
    ///
    /// # Errors
    /// `SinkTableMismatch`.
    pub async fn refuse_left_behind(
        &self,
        source: &SourceTable,
        before: &TableShape,
        now: &TableShape,
    ) -> Result<(), Failure> {
        let name = self.tables.sink_name(&source.name);
        let sink = read_table(&self.session.client, &name)
            .await
            .map_err(|error| failed(&error, &format!("reading the sink table {name}")))?;
        let mut found = self.labels_left_behind(source, &renamed_labels(before, now)).await?;
        if self.changes.rules.policy != SchemaChanges::Ignore {
            found.extend(sink.map_or_else(Vec::new, |sink| left_behind(&sink, before, now)));
        }
        if found.is_empty() {
            return Ok(());
        }
        Err(mismatch(&[Mismatch { table: name, found, is_copied: false, is_remade: false }]))
    }

    async fn carry_out(
        &mut self,
        table: &TableName,
        types: &[String],
        found: &[Difference],
    ) -> Result<(), Failure> {
        let doing = format!("changing the columns of the sink table {table}");
        let transaction = fenced_ddl_transaction(&mut self.session, &self.run, &doing).await?;
        for statement in types.iter().chain(found.iter().map(|difference| &difference.statement)) {
            tracing::info!(%table, statement, "changing a sink table as its source was changed");
            transaction.batch_execute(statement).await.map_err(|error| failed(&error, &doing))?;
        }
        transaction.commit().await.map_err(|error| failed(&error, &doing))
    }

    /// What of it keeps the run from going on.
    pub(super) fn not_tolerated(
        &mut self,
        table: &TableName,
        state: Option<TableState>,
        mut found: Vec<Difference>,
    ) -> Vec<Difference> {
        let Some(state) = state else { return found };
        if self.changes.pending.contains(table) && !is_to_be_copied(&state) {
            return Vec::new();
        }
        // What the manifest asks for anew is not something that the source added.
        if self.changes.rules.policy == SchemaChanges::Ignore && !self.changes.restepped.contains_key(table) {
            let left_out = self.changes.left_out.entry(table.clone()).or_default();
            found.retain(|difference| match &difference.column {
                Some(column) if difference.effect == Effect::AddsColumn => {
                    left_out.insert(column.clone());
                    false
                }
                Some(_) | None => true,
            });
        }
        found
    }
}

impl Allowed {
    /// Whether something else was done to the table's rows than is now.
    pub(super) fn has_other_steps(&self, table: &TableName) -> bool {
        self.restepped.contains_key(table)
    }

    /// Whether what was done to them is to be noted in another way.
    pub(super) fn notes_steps_anew(&self, table: &TableName) -> bool {
        self.rewritten.contains(table)
    }

    /// Columns of the sink table that were written, and are not any more: rows that are copied again would lose theirs.
    pub(super) fn not_carried_any_more(&self, table: &TableName, sink: &SinkTable) -> Vec<Difference> {
        let columns = self.restepped.get(table).into_iter().flatten();
        let left = columns.filter(|column| sink.column(column).is_some());
        left.map(|column| {
            let statement =
                format!("ALTER TABLE {} DROP COLUMN {}", sink.name.quoted(), quote_identifier(column));
            Difference::new(format!("column {column} is not carried any more"), statement)
        })
        .collect()
    }
}

fn left_behind(sink: &SinkTable, before: &TableShape, now: &TableShape) -> Vec<Difference> {
    let alter = format!("ALTER TABLE {}", sink.name.quoted());
    let is_wanted = |name: &str| now.columns.iter().any(|column| column.name == name);
    let left = before.columns.iter().filter(|old| sink.column(&old.name).is_some() && !is_wanted(&old.name));
    left.filter_map(|old| {
        let column = quote_identifier(&old.name);
        match now.column(old.number) {
            None => Some(Difference::new(
                format!("column {} was dropped at the source", old.name),
                format!("{alter} DROP COLUMN {column}"),
            )),
            Some(new) if sink.column(&new.name).is_none() => Some(Difference::new(
                format!("column {} was renamed to {} at the source", old.name, new.name),
                format!("{alter} RENAME COLUMN {column} TO {}", quote_identifier(&new.name)),
            )),
            Some(_) => None,
        }
    })
    .collect()
}

/// Its rows are worth nothing, or are not there yet.
pub(super) fn is_to_be_copied(state: &TableState) -> bool {
    match state {
        TableState::Copying | TableState::CutShort(_) | TableState::Stale => true,
        TableState::Incremental(_) | TableState::Ready(_) => false,
    }
}
