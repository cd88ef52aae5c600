//! Brings a sink table's columns up with the source's, in the order of the stream: inside the transaction that carries the
//! first rows of the new shape and the checkpoint, so that it happens once.

use std::collections::BTreeSet;

use penstock_crds::report::Reason;
use tokio_postgres::{Error, GenericClient};

use super::catalogue::read_table;
use super::error::failed;
use super::evolve::{Course, Decision, Ends, Rules, decide};
use super::made_types::{ExtensionTypes, missing_types};
use super::owner::TableMap;
use super::plan::Plan;
use super::{Sink, Writer};
use crate::batch::TableTraits;
use crate::change::table::{SourceTable, TableName};
use crate::change::{Relation, TableShape};
use crate::evolve::Change;
use crate::failpoint::{Point, reach};
use crate::failure::Failure;
use crate::postgres::{End, classify_or};

/// What became of a sink table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reshaped {
    /// Rows can be written.
    Fits {
        /// What batching needs to know.
        traits: TableTraits,
        /// What was changed, as clauses.
        applied: Vec<String>,
        /// What was left as it is, as clauses.
        ignored: Vec<String>,
    },
    /// The table is to be copied from its beginning; why, as a clause.
    CopyAgain(String),
}

/// What will become of a sink table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Foreseen {
    /// The stream can bring it.
    Fits,
    /// The table is to be copied from its beginning; why, as a clause.
    CopyAgain(String),
}

/// What both parts of the sink need to decide.
async fn decision(
    client: &impl GenericClient,
    relation: &Relation,
    change: &Change,
    present: &SourceTable,
    tables: &TableMap,
    rules: Rules,
) -> Result<Decision, Failure> {
    let name = tables.sink_name(&present.name);
    let doing = format!("reading the sink table {name}");
    let read = async {
        let Some(sink) = read_table(client, &name).await? else { return Ok(None) };
        let extensions = ExtensionTypes::read(client, std::slice::from_ref(present)).await?;
        let placed = extensions.place(present);
        let missing_types = missing_types(client, &placed, tables).await?;
        let ends = Ends { relation, present: &placed, sink: &sink, tables, missing_types: &missing_types };
        Ok(Some(decide(&ends, change, rules)))
    };
    let decided = read.await.map_err(|error: Error| failed(&error, &doing))?;
    decided.ok_or_else(|| {
        let message = format!("The sink table {name} is gone. It is made anew and copied again.");
        Failure::new(Reason::TablesChanged, message)
    })
}

impl Writer {
    /// As `describe`, but `None` if the sink table does not fit. Nothing is rolled back then.
    ///
    /// # Errors
    /// As `describe`.
    pub async fn describe_if_fit(&mut self, relation: &Relation) -> Result<Option<TableTraits>, Failure> {
        let name = self.tables.sink_name(&TableName::new(&relation.schema, &relation.name));
        let found = read_table(&self.session.client, &name).await;
        let found = found.map_err(|error| failed(&error, &format!("reading the sink table {name}")));
        match found {
            Ok(Some(table)) => {
                let plan = Plan::new(relation, &table).ok();
                Ok(plan.map(|plan| self.adopt(relation, plan)))
            }
            Ok(None) => Ok(None),
            Err(failure) => Err(self.give_up(failure).await),
        }
    }

    /// Makes the sink table take the rows that the relation describes, in the open transaction.
    ///
    /// # Errors
    /// `SinkTableMismatch` and `SinkDiverged`, with what a person has to do. The transaction is rolled back.
    pub async fn reshape(
        &mut self,
        relation: &Relation,
        change: &Change,
        present: &SourceTable,
        rules: Rules,
    ) -> Result<Reshaped, Failure> {
        let decided = decision(&self.session.client, relation, change, present, &self.tables, rules).await;
        let course = match decided {
            Ok(Decision::Go(course)) => course,
            Ok(Decision::CopyAgain(why)) => return Ok(Reshaped::CopyAgain(why)),
            Ok(Decision::Stop(failure)) | Err(failure) => return Err(self.give_up(failure).await),
        };
        if !course.statements.is_empty() {
            self.begin().await?;
            self.unsettle();
            let name = self.tables.sink_name(&present.name);
            let executed = execute(&self.session.client, &name, &course).await;
            self.settle(executed).await?;
        }
        if let Some(shape) = &change.shape {
            self.note_shape(&present.name, shape, &left_out(relation, &course)).await?;
        }
        let traits = self.describe_as(relation, &course).await?;
        Ok(Reshaped::Fits { traits, applied: course.applied, ignored: course.ignored })
    }

    async fn describe_as(&mut self, relation: &Relation, course: &Course) -> Result<TableTraits, Failure> {
        let mut adapted = relation.clone();
        for (column, name) in adapted.columns.iter_mut().zip(&course.names) {
            if let Some(name) = name {
                column.name.clone_from(name);
            }
        }
        self.describe_without(&adapted, &left_out(relation, course)).await
    }

    /// Notes how the rows of the table are from here on, in the open transaction.
    async fn note_shape(
        &mut self,
        table: &TableName,
        shape: &TableShape,
        left_out: &BTreeSet<String>,
    ) -> Result<(), Failure> {
        let sql = "UPDATE penstock.table_state SET shape = $4, left_out = $5, updated_at = pg_catalog.clock_timestamp() \
                   WHERE uid = $1 AND source_schema = $2 AND source_table = $3";
        let uid = self.key().to_owned();
        let left_out: Vec<&String> = left_out.iter().collect();
        self.note(sql, &[&uid, &table.schema, &table.name, &written(shape), &left_out]).await
    }
}

/// Columns of the relation that the sink does not get.
fn left_out(relation: &Relation, course: &Course) -> BTreeSet<String> {
    let columns = relation.columns.iter().zip(&course.names);
    columns.filter(|(_, name)| name.is_none()).map(|(column, _)| column.name.clone()).collect()
}

async fn execute(client: &tokio_postgres::Client, table: &TableName, course: &Course) -> Result<(), Failure> {
    reach(Point::BeforeDdl)?;
    for statement in &course.statements {
        tracing::info!(%table, statement, "changing a sink table as its source was changed");
        client.batch_execute(statement).await.map_err(|error| {
            let doing = format!("changing the columns of the sink table {table} ({statement})");
            classify_or(End::Sink, &error, &doing, Reason::SinkTableMismatch)
        })?;
    }
    reach(Point::AfterDdl)
}

impl Sink {
    /// Whether the sink table is there. If not, it is made anew and copied from its beginning.
    pub async fn has_table(&self, table: &TableName) -> Result<bool, Failure> {
        let name = self.tables.sink_name(table);
        let found = read_table(&self.session.client, &name).await;
        let found = found.map_err(|error| failed(&error, &format!("reading the sink table {name}")))?;
        Ok(found.is_some())
    }

    /// What the present shape of a source table will ask of its sink table when the stream is there.
    ///
    /// # Errors
    /// What a person has to do.
    pub async fn foresee(
        &self,
        relation: &Relation,
        change: &Change,
        present: &SourceTable,
        rules: Rules,
    ) -> Result<Foreseen, Failure> {
        let client = &self.session.client;
        match decision(client, relation, change, present, &self.tables, rules).await? {
            Decision::Go(_) => Ok(Foreseen::Fits),
            Decision::CopyAgain(why) => Ok(Foreseen::CopyAgain(why)),
            Decision::Stop(failure) => Err(failure),
        }
    }
}

/// As it is kept. It is plain data, which can always be written.
pub(super) fn written(shape: &TableShape) -> Option<String> {
    serde_json::to_string(shape).ok()
}
