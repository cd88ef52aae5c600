//! The sink's tables: made where they are missing, compared where they are there, claimed for the pipeline.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use penstock_crds::report::Reason;
use tokio_postgres::{Error, Transaction};

use super::catalogue::read_table;
use super::compare::{Difference, Effect, differences};
use super::error::failed;
use super::made_types::{ExtensionTypes, make_types, type_differences};
use super::ownership::{self, Claim};
use super::shapes::is_to_be_copied;
use super::state::{TableState, fenced_ddl_transaction, note_steps, read_state, write_state};
use super::{Sink, ddl, layout};
use crate::change::table::{SourceTable, TableName, quote_identifier};
use crate::failpoint::{Point, reach};
use crate::failure::Failure;

/// Tables whose differences are told in one message; a person fixes the first ones first.
const TABLES_TOLD_MAX: usize = 10;

/// Whether a table that is not known yet will be filled by this pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstCopy {
    /// It will be copied, so it must be empty.
    Copied,
    /// It holds the source's rows already.
    AlreadyThere,
}

impl Sink {
    /// Makes sure that every table of this shard is there, takes the source's rows, and belongs to this pipeline;
    /// says how far each is. A new one is `Copying`. Safe to repeat, and for shards to do at once.
    ///
    /// # Errors
    /// `SinkTableMismatch` (every difference of every table, with the statements to run), `SinkTableOwned`,
    /// `SinkTableNotEmpty`, `SinkPrivilegeMissing`, `Fenced`.
    pub async fn ensure_tables(
        &mut self,
        tables: &[SourceTable],
        first_copy: FirstCopy,
    ) -> Result<BTreeMap<TableName, TableState>, Failure> {
        self.first_copy = first_copy;
        let extensions = ExtensionTypes::read(&self.session.client, tables)
            .await
            .map_err(|error| failed(&error, "looking for the types of extensions"))?;
        self.bring_up(tables, &extensions).await?;
        self.refuse_mismatches(tables, &extensions).await?;
        self.release_moved(tables).await?;
        let mut states = BTreeMap::new();
        for table in tables {
            let placed = extensions.place(table);
            states.insert(table.name.clone(), self.ensure_table(&placed, first_copy).await?);
        }
        Ok(states)
    }

    async fn refuse_mismatches(
        &mut self,
        tables: &[SourceTable],
        extensions: &ExtensionTypes,
    ) -> Result<(), Failure> {
        let mut mismatches = Vec::new();
        for source in tables {
            let name = self.tables.sink_name(&source.name);
            let doing = format!("reading the sink table {name}");
            let mut found = extensions.missing(source);
            if found.is_empty() {
                let placed = extensions.place(source);
                found = self.mismatches_of(&placed, &name).await.map_err(|error| failed(&error, &doing))?;
            }
            if !found.is_empty() {
                let state =
                    self.state_there(source, &name).await.map_err(|error| failed(&error, &doing))??;
                let is_remade = self.first_copy == FirstCopy::Copied
                    && self.changes.has_other_steps(&source.name)
                    && state.is_some()
                    && found.iter().any(|difference| difference.effect != Effect::Relaxes);
                let is_copied = self.first_copy == FirstCopy::Copied
                    && state.as_ref().is_some_and(|s| !is_to_be_copied(s));
                let found = self.not_tolerated(&source.name, state, found);
                if found.is_empty() {
                    continue;
                }
                mismatches.push(Mismatch { table: name, found, is_copied, is_remade });
            }
        }
        if mismatches.is_empty() { Ok(()) } else { Err(mismatch(&mismatches)) }
    }

    /// How far the table is in its place of now. What is known of another place says nothing of this one.
    ///
    /// # Errors
    /// `SinkTableOwned`: what is to be altered there, or dropped, is for its owner to say.
    async fn state_there(
        &self,
        source: &SourceTable,
        name: &TableName,
    ) -> Result<Result<Option<TableState>, Failure>, Error> {
        let (client, owner) = (&self.session.client, &self.owner);
        let claim = ownership::read(client, owner, &source.name, name).await?;
        if matches!(claim, Claim::Theirs { .. }) {
            return Ok(claim.refuse(&source.name, name).map(|()| None));
        }
        let known = read_state(client, owner.key(), source).await?;
        Ok(Ok(known.filter(|(written, _)| written == name).map(|(_, state)| state)))
    }

    pub(super) async fn mismatches_of(
        &self,
        source: &SourceTable,
        name: &TableName,
    ) -> Result<Vec<Difference>, Error> {
        let sink = read_table(&self.session.client, name).await?;
        let mut found = sink.as_ref().map_or_else(Vec::new, |sink| differences(source, sink, &self.tables));
        found.extend(sink.iter().flat_map(|sink| self.changes.not_carried_any_more(&source.name, sink)));
        if found.is_empty() {
            return type_differences(&self.session.client, source, &self.tables).await;
        }
        Ok(found)
    }

    /// Tables whose sink name changed let go of the old one first, so that another may take it.
    async fn release_moved(&mut self, tables: &[SourceTable]) -> Result<(), Failure> {
        let doing = "releasing sink tables that are not written any more";
        let transaction = fenced_ddl_transaction(&mut self.session, &self.run, doing).await?;
        for table in tables {
            let sink = self.tables.sink_name(&table.name);
            ownership::release(&transaction, &self.owner, &table.name, Some(&sink))
                .await
                .map_err(|error| failed(&error, doing))?;
        }
        transaction.commit().await.map_err(|error| failed(&error, doing))
    }

    /// One table in one transaction: claimed, made and noted together, or not at all.
    async fn ensure_table(
        &mut self,
        source: &SourceTable,
        first_copy: FirstCopy,
    ) -> Result<TableState, Failure> {
        let name = self.tables.sink_name(&source.name);
        let doing = format!("preparing the sink table {name}");
        let Self { session, run, owner, tables, changes, .. } = self;
        let transaction = fenced_ddl_transaction(session, run, &doing).await?;
        let error = |error: Error| preparation_failed(&error, &name, &doing);
        let known = read_state(&transaction, owner.key(), source).await.map_err(error)?;
        let claim = ownership::read(&transaction, owner, &source.name, &name).await.map_err(error)?;
        claim.refuse(&source.name, &name)?;
        let exists = read_table(&transaction, &name).await.map_err(error)?.is_some();
        let (state, word) = match known {
            Some((sink, state))
                if sink == name
                    && exists
                    && claim == Claim::Ours
                    && state != TableState::Stale
                    && !changes.has_other_steps(&source.name) =>
            {
                if changes.notes_steps_anew(&source.name) {
                    note_steps(&transaction, owner.key(), source).await.map_err(error)?;
                    transaction.commit().await.map_err(error)?;
                }
                return Ok(state);
            }
            // It goes somewhere else now, or in another way, or one of the two tables was made anew, or the stream left
            // changes out.
            Some(_) => (TableState::Stale, "stale"),
            None => (TableState::Copying, "copying"),
        };
        if !exists {
            create(&transaction, source, &name, tables).await.map_err(error)?;
        } else if claim == Claim::Free && first_copy == FirstCopy::Copied {
            refuse_rows(&transaction, &name).await.map_err(error)??;
        }
        ownership::claim(&transaction, owner, &source.name, &name).await.map_err(error)?;
        layout::note(&transaction, owner.key(), &tables.live_name(&source.name), &name)
            .await
            .map_err(error)?;
        write_state(&transaction, owner.key(), source, &name, word).await.map_err(error)?;
        reach(Point::BeforeTableMade)?;
        transaction.commit().await.map_err(error)?;
        reach(Point::AfterTableMade)?;
        Ok(state)
    }
}

async fn create(
    transaction: &Transaction<'_>,
    source: &SourceTable,
    name: &TableName,
    tables: &super::owner::TableMap,
) -> Result<(), Error> {
    ensure_schema(transaction, &name.schema).await?;
    make_types(transaction, source, tables).await?;
    for statement in ddl::create_table(source, tables) {
        transaction.batch_execute(&statement).await?;
    }
    Ok(())
}

/// `CREATE SCHEMA IF NOT EXISTS` asks for a privilege even if it has nothing to do.
pub(super) async fn ensure_schema(transaction: &Transaction<'_>, schema: &str) -> Result<(), Error> {
    let sql = "SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1";
    if transaction.query_opt(sql, &[&schema]).await?.is_none() {
        transaction.batch_execute(&format!("CREATE SCHEMA {}", quote_identifier(schema))).await?;
    }
    Ok(())
}

async fn refuse_rows(transaction: &Transaction<'_>, name: &TableName) -> Result<Result<(), Failure>, Error> {
    let sql = format!("SELECT EXISTS (SELECT FROM {})", name.quoted());
    let has_rows: bool = transaction.query_one(&sql, &[]).await?.try_get(0)?;
    if !has_rows {
        return Ok(Ok(()));
    }
    let message = format!(
        "The sink table {name} holds rows that this pipeline did not write; copying the source's rows into it would mix them. \
         Empty it (TRUNCATE {}), write into another schema with sink.postgres.schemaMap, or set \
         source.postgres.snapshot.mode to Never if the rows are the source's already.",
        name.quoted()
    );
    Ok(Err(Failure::new(Reason::SinkTableNotEmpty, message)))
}

/// Classes 42 and 3F here: a type, function or schema that the table needs is not there.
fn preparation_failed(error: &Error, name: &TableName, doing: &str) -> Failure {
    let Some(server) = error.as_db_error() else { return failed(error, doing) };
    let code = server.code().code();
    let is_about_names = code.starts_with("42") || code.starts_with("3F");
    if !is_about_names || code == "42501" {
        return failed(error, doing);
    }
    let message = format!(
        "The sink table {name} cannot be made: {} (SQLSTATE {code}). Create what is missing in the sink (a type, an extension, a function), \
         or create the table itself.",
        server.message()
    );
    Failure::new(Reason::SinkTableMismatch, message)
}

/// A sink table that does not fit.
pub(super) struct Mismatch {
    pub(super) table: TableName,
    pub(super) found: Vec<Difference>,
    /// This pipeline copied its rows, and does so again if it is dropped.
    pub(super) is_copied: bool,
    /// The same, and its columns are to be others because its transforms are: nothing that it holds is worth an ALTER, and
    /// what it holds may not go into the columns that are wanted.
    pub(super) is_remade: bool,
}

impl Mismatch {
    /// Rows that were copied before the source's table changed may have other values now than any ALTER of the
    /// sink's would give them.
    fn is_about_values(&self) -> bool {
        self.is_copied && !self.is_remade && self.found.iter().any(|difference| difference.is_about_values)
    }

    fn alter(&self) -> impl Iterator<Item = String> {
        self.found.iter().map(|difference| format!(" {};", difference.statement))
    }
}

/// Everything that is different, and what to run.
pub(super) fn mismatch(mismatches: &[Mismatch]) -> Failure {
    let mut message = String::new();
    for Mismatch { table, found, .. } in mismatches.iter().take(TABLES_TOLD_MAX) {
        let what = found.iter().map(|difference| difference.what.as_str()).collect::<Vec<_>>().join("; ");
        let _infallible = write!(message, "The sink table {table} does not fit: {what}. ");
    }
    if let Some(more) = mismatches.len().checked_sub(TABLES_TOLD_MAX).filter(|more| *more > 0) {
        let _infallible = write!(message, "{more} more tables do not fit. ");
    }
    let told = || mismatches.iter().take(TABLES_TOLD_MAX);
    message.push_str("Run on the sink:");
    for mismatch in told() {
        if mismatch.is_remade || mismatch.is_about_values() {
            let _infallible = write!(message, " DROP TABLE {};", mismatch.table.quoted());
        } else {
            message.extend(mismatch.alter());
        }
    }
    if told().any(|mismatch| mismatch.is_remade) {
        message.push_str(
            " A table that is dropped is made anew and copied again, as its transforms are by now. Keep what else it holds before.",
        );
    }
    if told().any(Mismatch::is_about_values) {
        message.push_str(
            " A table that is dropped is made anew and copied again, so that its rows get the values they have now. If no row \
             has another value than NULL, or than a constant default, in what is new, this is enough:",
        );
        message.extend(told().filter(|mismatch| mismatch.is_about_values()).flat_map(Mismatch::alter));
    }
    Failure::new(Reason::SinkTableMismatch, message)
}
