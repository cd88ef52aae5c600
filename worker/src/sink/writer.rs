//! Applies batches of changes, each in one transaction that moves the checkpoint with them.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use penstock_crds::report::Reason;
use postgres_types::PgLsn;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Error, Statement};

use super::apply::TableWriter;
use super::catalogue::read_table;
use super::compare::Difference;
use super::error::{failed, fenced, rows_refused};
use super::owner::TableMap;
use super::plan::{Misfit, Plan};
use super::prepared::Prepared;
use super::run::Run;
use super::statements;
use super::tables::{FirstCopy, Mismatch, mismatch};
use crate::batch::{Operation, TableTraits};
use crate::change::table::{TableName, quote_identifier};
use crate::change::{Checkpoint, Relation, RelationColumn, RelationId, STABLE_OIDS_END};
use crate::failpoint::{Point, reach};
use crate::failure::Failure;
use crate::postgres::Session;

/// Applies batches of changes. One transaction is open at a time; dropping the writer rolls it back.
pub struct Writer {
    pub(super) session: Session,
    run: Run,
    pub(super) tables: TableMap,
    /// The rows that are there were copied by this pipeline.
    is_copied: bool,
    plans: HashMap<RelationId, Arc<Plan>>,
    prepared: Prepared,
    fence: Statement,
    advance: Statement,
    /// Of the checkpoint in the sink: what the fence must find.
    sequence: i64,
    transaction: State,
}

/// The writer's transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// None is open. Set by `new`, `commit` and every failure. Next: `Open`.
    None,
    /// The fence is held. Set by `begin` and `write`. Next: `Unsettled`, or `None` by `commit`.
    Open,
    /// Something is under way. It stays so when the future that does it is dropped; then the transaction must not
    /// be committed. Next: `Open` or `None`.
    Unsettled,
}

/// The fence comes first: without it nothing else is done.
const FENCE: &str = "SELECT layout FROM penstock.checkpoint \
    WHERE uid = $1 AND shard = $2 AND epoch = $3 AND sequence = $4 \
    AND run_id = $5::pg_catalog.text::pg_catalog.uuid FOR NO KEY UPDATE";

/// The checkpoint moves last, and never backward.
const ADVANCE: &str = "UPDATE penstock.checkpoint SET sequence = $5, commit_lsn = $6, xid = $7, ordinal = $8, end_lsn = $9, \
    updated_at = pg_catalog.clock_timestamp() \
    WHERE uid = $1 AND shard = $2 AND epoch = $3 AND sequence = $4 AND (end_lsn IS NULL OR end_lsn <= $9)";

impl Writer {
    pub(super) async fn new(
        session: Session,
        run: Run,
        tables: TableMap,
        first_copy: FirstCopy,
        sequence: i64,
    ) -> Result<Self, Failure> {
        let prepare = async { Ok((session.prepare(FENCE).await?, session.prepare(ADVANCE).await?)) };
        let (fence, advance) = prepare.await.map_err(|error: Error| failed(&error, "preparing the fence"))?;
        Ok(Self {
            session,
            run,
            tables,
            is_copied: first_copy == FirstCopy::Copied,
            plans: HashMap::new(),
            prepared: Prepared::default(),
            fence,
            advance,
            sequence,
            transaction: State::None,
        })
    }

    /// Matches a relation with its sink table. Comes before the relation's first row, and again when it changed;
    /// may come inside a transaction.
    ///
    /// # Errors
    /// `SinkTableMismatch`, with the statements that would make the sink table fit.
    pub async fn describe(&mut self, relation: &Relation) -> Result<TableTraits, Failure> {
        self.describe_without(relation, &BTreeSet::new()).await
    }

    /// The same for a table that does not take some of the columns.
    pub(super) async fn describe_without(
        &mut self,
        relation: &Relation,
        left_out: &BTreeSet<String>,
    ) -> Result<TableTraits, Failure> {
        match self.match_columns(relation, left_out).await {
            Ok(plan) => Ok(self.adopt(relation, plan)),
            Err(failure) => Err(self.give_up(failure).await),
        }
    }

    /// From here on rows of the relation are written by this plan.
    pub(super) fn adopt(&mut self, relation: &Relation, plan: Plan) -> TableTraits {
        self.prepared.forget(relation.id);
        let traits = plan.traits();
        self.plans.insert(relation.id, Arc::new(plan));
        traits
    }

    async fn match_columns(&self, relation: &Relation, left_out: &BTreeSet<String>) -> Result<Plan, Failure> {
        let name = self.tables.sink_name(&TableName::new(&relation.schema, &relation.name));
        let doing = format!("reading the sink table {name}");
        let error = |error: Error| failed(&error, &doing);
        let Some(table) = read_table(&self.session.client, &name).await.map_err(error)? else {
            let message = format!("The sink table {name} is gone. It is made anew and copied again.");
            return Err(Failure::new(Reason::SinkTableMismatch, message));
        };
        match Plan::without(relation, &table, left_out) {
            Ok(plan) => Ok(plan),
            Err(misfit) => {
                let found = self.differences(&name, misfit).await.map_err(error)?;
                Err(mismatch(&[Mismatch { table: name, found, is_copied: self.is_copied, is_remade: false }]))
            }
        }
    }

    /// Opens a transaction and takes the fence; does nothing if one is open.
    ///
    /// # Errors
    /// `Fenced`: another run owns the shard, or a commit whose answer was lost did happen.
    pub async fn begin(&mut self) -> Result<(), Failure> {
        match self.transaction {
            State::Open => Ok(()),
            State::None => {
                self.transaction = State::Unsettled;
                let taken = self.take_fence().await;
                self.settle(taken).await
            }
            State::Unsettled => {
                let message = "A write to the sink was cut short; this run starts again.";
                self.roll_back().await;
                Err(Failure::new(Reason::SinkUnreachable, message))
            }
        }
    }

    /// Executes operations in order, in the open transaction; opens one if there is none.
    ///
    /// # Errors
    /// `SinkDiverged`, `SinkRejectedRow`, `SinkTableMismatch`, `SinkOutOfResources`, `SinkUnreachable`, `Fenced`. The transaction is rolled back.
    pub async fn write(&mut self, operations: Vec<Operation>) -> Result<(), Failure> {
        self.begin().await?;
        self.transaction = State::Unsettled;
        let mut written = Ok(());
        for operation in operations {
            written = self.execute(&operation).await;
            if written.is_err() {
                break;
            }
        }
        self.settle(written).await
    }

    /// Tells the sink that the open transaction is still wanted: it ends one in which nothing comes for a minute.
    ///
    /// # Errors
    /// `SinkUnreachable`. The transaction is rolled back.
    pub async fn keep_open(&mut self) -> Result<(), Failure> {
        if self.transaction != State::Open {
            return Ok(());
        }
        self.transaction = State::Unsettled;
        let answered = self.session.batch_execute("SELECT 1").await;
        self.settle(answered.map_err(|error| failed(&error, "keeping a transaction open"))).await
    }

    /// Moves the checkpoint and commits; opens a transaction if there is none, for an advance without changes.
    ///
    /// # Errors
    /// As `write`. After a lost connection nobody knows whether it happened: begin again with `start`.
    pub async fn commit(&mut self, checkpoint: &Checkpoint) -> Result<(), Failure> {
        self.begin().await?;
        self.transaction = State::Unsettled;
        let committed = self.advance_and_commit(checkpoint).await;
        if committed.is_ok() {
            self.sequence = checkpoint.sequence;
            self.transaction = State::None;
            return Ok(());
        }
        self.settle(committed).await
    }

    pub(super) fn key(&self) -> &String {
        self.run.key()
    }

    pub(super) fn shard(&self) -> i32 {
        self.run.shard
    }

    pub(super) fn epoch(&self) -> i64 {
        self.run.epoch
    }

    /// Changes one row of what is kept about tables, in the open transaction.
    pub(super) async fn note(
        &mut self,
        sql: &str,
        parameters: &[&(dyn postgres_types::ToSql + Sync)],
    ) -> Result<(), Failure> {
        let doing = "noting how far a table is copied";
        match self.execute_in_transaction(sql, parameters, doing).await? {
            1 => Ok(()),
            _ => Err(self.give_up(self.run.lost()).await),
        }
    }

    /// Executes a statement in the open transaction; opens one if there is none. Says how many rows it changed.
    pub(super) async fn execute_in_transaction(
        &mut self,
        sql: &str,
        parameters: &[&(dyn postgres_types::ToSql + Sync)],
        doing: &str,
    ) -> Result<u64, Failure> {
        self.begin().await?;
        self.transaction = State::Unsettled;
        match self.session.execute(sql, parameters).await {
            Ok(rows) => {
                self.transaction = State::Open;
                Ok(rows)
            }
            Err(error) => Err(self.give_up(failed(&error, doing)).await),
        }
    }

    /// Whether a transaction is open.
    pub fn is_open(&self) -> bool {
        self.transaction == State::Open
    }

    /// Ends a transaction that changed no rows of tables.
    pub(super) async fn commit_without_position(&mut self) -> Result<(), Error> {
        self.transaction = State::None;
        self.session.batch_execute("COMMIT").await
    }

    /// Both go out together; the fence is of no use if BEGIN fails, and does no harm. The source checked its deferrable
    /// constraints when a statement or the transaction ended, and no sooner.
    async fn take_fence(&self) -> Result<(), Failure> {
        let Run { lineage, shard, epoch, id, layout } = &self.run;
        let parameters: [&(dyn postgres_types::ToSql + Sync); 5] =
            [lineage.key(), shard, epoch, &self.sequence, id];
        let begin = self.session.batch_execute(
            "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL synchronous_commit = on; \
             SET CONSTRAINTS ALL DEFERRED",
        );
        let fence = self.session.query_opt(&self.fence, &parameters);
        let (opened, row) = futures::future::join(begin, fence).await;
        let row = opened.and(row).map_err(|error| failed(&error, "taking the fence"))?;
        let found: Option<i64> =
            row.map(|row| row.try_get(0)).transpose().map_err(|error| failed(&error, "taking the fence"))?;
        if found == Some(*layout) {
            return Ok(());
        }
        Err(fenced(&format!("this run has epoch {epoch} and wrote up to sequence {}", self.sequence)))
    }

    async fn execute(&mut self, operation: &Operation) -> Result<(), Failure> {
        reach(Point::BeforeSinkStatement)?;
        self.carry_out(operation).await?;
        reach(Point::AfterSinkStatement)
    }

    async fn carry_out(&mut self, operation: &Operation) -> Result<(), Failure> {
        match operation {
            Operation::Insert { relation, rows } => {
                let plan = self.plan(*relation)?;
                self.table(*relation, &plan).insert(rows).await
            }
            Operation::Update { relation, rows } => {
                let plan = self.plan(*relation)?;
                self.table(*relation, &plan).update(rows).await
            }
            Operation::Delete { relation, rows } => {
                let plan = self.plan(*relation)?;
                self.table(*relation, &plan).delete(rows).await
            }
            // The source names every table that it emptied, those by CASCADE too: repeating it here would only
            // empty tables that are none of the pipeline's.
            Operation::Truncate { relations, restart_identity, cascade: _ } => {
                self.truncate(relations, *restart_identity).await
            }
        }
    }

    fn table<'a>(&'a mut self, relation: RelationId, plan: &'a Plan) -> TableWriter<'a> {
        TableWriter { client: &self.session.client, prepared: &mut self.prepared, relation, plan }
    }

    fn plan(&self, relation: RelationId) -> Result<Arc<Plan>, Failure> {
        self.plans.get(&relation).map(Arc::clone).ok_or_else(|| {
            let message =
                format!("The source sent a change of relation {} before describing it.", relation.0);
            Failure::new(Reason::ProtocolViolation, message)
        })
    }

    async fn truncate(&self, relations: &[RelationId], restart_identity: bool) -> Result<(), Failure> {
        let plans = relations.iter().map(|relation| self.plan(*relation)).collect::<Result<Vec<_>, _>>()?;
        let Some(first) = plans.first() else { return Ok(()) };
        let plans = || plans.iter().map(AsRef::as_ref);
        let deferrable = deferrable_constraints(&self.session.client, plans())
            .await
            .map_err(|error| failed(&error, "reading the constraints of tables that were truncated"))?;
        let sql = statements::truncate(plans(), restart_identity, deferrable.as_deref());
        self.session.batch_execute(&sql).await.map_err(|error| {
            if error.code() != Some(&SqlState::FEATURE_NOT_SUPPORTED) {
                return rows_refused(&error, &first.sink, "truncating");
            }
            let message = format!(
                "The source truncated {}; the sink cannot, because a foreign key of another table refers to it. Drop that \
                 foreign key in the sink, or add its table to source.postgres.tables.",
                plans().map(|plan| plan.sink.to_string()).collect::<Vec<_>>().join(", ")
            );
            Failure::new(Reason::SinkRejectedRow, message)
        })
    }

    async fn advance_and_commit(&self, checkpoint: &Checkpoint) -> Result<(), Failure> {
        let Checkpoint { position, end_lsn, sequence } = checkpoint;
        let Run { lineage, shard, epoch, .. } = &self.run;
        let (commit_lsn, end) = (PgLsn::from(position.commit_lsn.0), PgLsn::from(end_lsn.0));
        let (xid, ordinal) = (i64::from(position.xid), position.ordinal.cast_signed());
        let parameters: [&(dyn postgres_types::ToSql + Sync); 9] =
            [lineage.key(), shard, epoch, &self.sequence, sequence, &commit_lsn, &xid, &ordinal, &end];
        let moved = self
            .session
            .execute(&self.advance, &parameters)
            .await
            .map_err(|error| failed(&error, "moving the checkpoint"))?;
        if moved != 1 {
            let message = format!("The source's log went backward: the sink has changes beyond {end_lsn}.");
            return Err(Failure::new(Reason::ProtocolViolation, message));
        }
        reach(Point::BeforeSinkCommit)?;
        self.session.batch_execute("COMMIT").await.map_err(|error| commit_failed(&error))?;
        reach(Point::AfterSinkCommit)
    }

    /// Something begins that must be done for the transaction to be committed.
    pub(super) fn unsettle(&mut self) {
        self.transaction = State::Unsettled;
    }

    pub(super) async fn settle(&mut self, outcome: Result<(), Failure>) -> Result<(), Failure> {
        match outcome {
            Ok(()) => {
                self.transaction = State::Open;
                Ok(())
            }
            Err(failure) => Err(self.give_up(failure).await),
        }
    }

    /// Rolls back. The fence is read again before anything is made of the failure: a run that was replaced says
    /// so, and not that the sink is wrong.
    pub async fn give_up(&mut self, failure: Failure) -> Failure {
        self.roll_back().await;
        match self.run.is_current(&self.session.client).await {
            Ok(false) => self.run.lost(),
            Ok(true) | Err(_) => failure,
        }
    }

    /// An error here means that the connection is gone, and the transaction with it.
    pub(super) async fn roll_back(&mut self) {
        let _gone_either_way = self.session.batch_execute("ROLLBACK").await;
        self.transaction = State::None;
    }

    /// What does not fit, with the names of types as the sink knows them.
    async fn differences(&self, table: &TableName, misfit: Misfit<'_>) -> Result<Vec<Difference>, Error> {
        let table = table.quoted();
        let mut found = misfit.others;
        for column in misfit.missing {
            let wanted = self.type_name(column).await?;
            found.push(Difference::about_values(
                format!("column {} is missing", column.name),
                format!("ALTER TABLE {table} ADD COLUMN {} {wanted}", quote_identifier(&column.name)),
            ));
        }
        for mismatch in misfit.types {
            let (name, wanted) = (&mismatch.column.name, self.type_name(mismatch.column).await?);
            let column = quote_identifier(name);
            found.push(Difference::about_values(
                format!("column {name} is {}, the source's is {wanted}", mismatch.sink_type),
                format!("ALTER TABLE {table} ALTER COLUMN {column} TYPE {wanted} USING {column}::{wanted}"),
            ));
        }
        Ok(found)
    }

    /// The stream names types by OID; only built-in ones mean the same here.
    async fn type_name(&self, column: &RelationColumn) -> Result<String, Error> {
        if column.type_oid >= STABLE_OIDS_END {
            return Ok("<the type it has in the source>".to_owned());
        }
        let sql = "SELECT pg_catalog.format_type($1, $2)";
        self.session.query_one(sql, &[&column.type_oid, &column.type_modifier]).await?.try_get(0)
    }
}

/// What may still have to be checked of these tables, for SET CONSTRAINTS.
async fn deferrable_constraints(
    client: &tokio_postgres::Client,
    plans: impl Iterator<Item = &Plan>,
) -> Result<Option<String>, Error> {
    let tables: Vec<String> = plans.map(|plan| plan.sink.quoted()).collect();
    let sql = "SELECT pg_catalog.string_agg(DISTINCT pg_catalog.format('%I.%I', n.nspname, c.conname), ', ') \
               FROM pg_catalog.pg_constraint AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.connamespace, \
                    pg_catalog.unnest($1::text[]::pg_catalog.regclass[]) AS t (id) \
               WHERE c.condeferrable AND t.id IN (c.conrelid, c.confrelid)";
    client.query_one(sql, &[&tables]).await?.try_get(0)
}

/// Deferred constraints speak at COMMIT, and name their table.
fn commit_failed(error: &Error) -> Failure {
    let table =
        error.as_db_error().and_then(|server| Some(TableName::new(server.schema()?, server.table()?)));
    match table {
        Some(table) => rows_refused(error, &table, "committing rows of"),
        None => failed(error, "committing"),
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("run", &self.run)
            .field("sequence", &self.sequence)
            .field("transaction", &self.transaction)
            .finish_non_exhaustive()
    }
}
