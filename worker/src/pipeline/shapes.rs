//! Tables whose columns change: what the catalogue says joined with what the stream says and what the sink holds.
//!
//! The order is what makes it exact. Rows of a new shape wait until the sink table takes them, in the same sink
//! transaction. The catalogue is read after the stream brought the shape, so it may be ahead; `evolve` knows what
//! can still be told then. Where nothing comes in the stream, the watch writes a message into the source's log under a
//! lock: where the stream meets it, the table is as it was read.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use penstock_crds::report::{NoticeReason, Reason};
use penstock_crds::source::SnapshotMode;
use penstock_crds::spec::SchemaChanges;
use tokio::sync::mpsc;

use super::Context;
use super::apply::Applier;
use super::start::{Assigned, Fenced, Source};
use super::steps::compare_steps;
use crate::batch::TableTraits;
use crate::change::table::{SourceTable, TableName};
use crate::change::{PresentTable, Relation, RelationId, TableShape};
use crate::evolve::{Explanation, Occasion, explain, renamed_labels, same_rows};
use crate::failure::Failure;
use crate::postgres::{End, Endpoint, Session};
use crate::sink::{Foreseen, Reshaped, Rules, copy_needed};
use crate::source;
use crate::transform::{Plan, Told, Transforms, Untold};

/// How long an ALTER TABLE that is under way is waited for. A sink transaction may be open meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);

/// A table as the stream will find it where it meets the message.
#[derive(Debug)]
pub(super) struct Announced {
    /// The message's content.
    pub(super) content: String,
    pub(super) present: PresentTable,
}

/// How rows of a relation go into the sink.
pub(super) struct Fit {
    pub(super) traits: TableTraits,
    /// What is done to them; `None`: nothing.
    pub(super) plan: Option<Plan>,
}

/// What the sink's rows look like, and where to ask for more.
pub(super) struct ShapeKeeper {
    pub(super) recorded: HashMap<RelationId, TableShape>,
    pub(super) rules: Rules,
    endpoint: Endpoint,
    session: Option<Session>,
    transforms: Arc<Transforms>,
    announced: mpsc::UnboundedReceiver<Announced>,
    waiting: Vec<Announced>,
}

/// What the manifest allows.
pub(super) fn rules(context: Context<'_>) -> Rules {
    let spec = &context.settings.pipeline.manifest.spec;
    Rules {
        policy: spec.sink.postgres.schema_changes,
        may_copy: spec.source.postgres.snapshot.mode == SnapshotMode::Initial,
    }
}

/// Before the sink's tables are compared: what happened to the source's while no worker ran, as far as it needs no
/// stream. Rewritten rows are copied again; what needs a person is said before anything is streamed. If all tables are
/// about to be copied anew, what their rows were is of no importance.
pub(super) async fn look_back(
    context: Context<'_>,
    source: &Source,
    assigned: &Assigned,
    fenced: &mut Fenced,
    begins_anew: bool,
) -> Result<(), Failure> {
    let rules = rules(context);
    fenced.sink.allow(rules);
    let recorded = fenced.sink.recorded().await?;
    let mut pending = BTreeSet::new();
    let mut rewritten = Vec::new();
    let restepped = compare_steps(context, source, assigned, fenced, &recorded, begins_anew)?;
    for table in &assigned.tables {
        let (Some(known), Some(shape)) = (recorded.get(&table.name), source.shapes.get(&table.id)) else {
            continue;
        };
        // It is copied anew; and where it goes from now on may be somebody else's.
        if restepped.contains(&table.name) || known.sink != fenced.sink.name_of(&table.name) {
            continue;
        }
        let is_followed = known.is_followed && !begins_anew;
        if is_followed && let Some(column) = fenced.sink.made_since(&table.name, &known.left_out).await? {
            let why = format!("the sink has column {column} now, which was left out of them");
            if !rules.copies() {
                return Err(copy_needed(&table.name, &why, rules));
            }
            announce_copy(context, &table.name, &why);
            rewritten.push(table.name.clone());
            continue;
        }
        let is_same = known.shape == *shape;
        // What was left out so far, for another policy, comes with a copy.
        if known.source != table.id || (is_same && rules.policy != SchemaChanges::Apply) {
            continue;
        }
        if !fenced.sink.has_table(&table.name).await? {
            continue;
        }
        let in_sink = source.transforms.table(table)?;
        fenced.sink.rename_labels(&in_sink, &renamed_labels(&known.shape, shape)).await?;
        if !is_followed {
            let steps = source.transforms.of(table.id);
            let in_names_of_sink =
                |shape: &TableShape| steps.map_or_else(|| shape.clone(), |steps| steps.shape(shape));
            let (before, now) = (in_names_of_sink(&known.shape), in_names_of_sink(shape));
            fenced.sink.refuse_left_behind(&in_sink, &before, &now).await?;
            continue;
        }
        let present = PresentTable { table: table.clone(), shape: shape.clone() };
        let why = foresee(source, fenced, &present, &known.shape, rules).await?;
        match why {
            None if is_same => {}
            None => drop(pending.insert(table.name.clone())),
            Some(why) if rules.copies() => {
                announce_copy(context, &table.name, &why);
                rewritten.push(table.name.clone());
            }
            Some(why) => return Err(copy_needed(&table.name, &why, rules)),
        }
    }
    fenced.sink.leave_to_stream(pending);
    fenced.sink.copy_again(&rewritten).await
}

/// Why the table has to be copied again for what happened to its columns, if it has to be.
async fn foresee(
    source: &Source,
    fenced: &Fenced,
    present: &PresentTable,
    known: &TableShape,
    rules: Rules,
) -> Result<Option<String>, Failure> {
    let relation = present.relation();
    let change = match explain(known, &present.shape, &relation, Occasion::Present) {
        Explanation::Known(change) => change,
        Explanation::Unknown(why) => return Ok(Some(why)),
    };
    let told = match source.transforms.tell(&relation, &change, &present.table) {
        Ok(told) => told,
        Err(Untold::RowsUnknown(why)) => return Ok(Some(why)),
        Err(Untold::Unsuitable(error)) => return Err(error.into()),
    };
    match fenced.sink.foresee(&told.relation, &told.change, &told.table, rules).await? {
        Foreseen::Fits => Ok(None),
        Foreseen::CopyAgain(why) => Ok(Some(why)),
    }
}

pub(super) fn announce_copy(context: Context<'_>, table: &TableName, why: &str) {
    context
        .status
        .notice(NoticeReason::SchemaChangeApplied, format!("{table} is copied again, because {why}"));
}

/// Whether the catalogue is still as it was inspected; a snapshot in between then has the same columns.
pub(super) async fn check_unchanged(source: &Source, tables: &[SourceTable]) -> Result<(), Failure> {
    let ids: Vec<RelationId> = tables.iter().map(|table| table.id).collect();
    let shapes = &source.shapes;
    let mut now = source::shapes(&source.session, &ids).await?;
    source.transforms.veil_all(&mut now);
    let is_other = |table: &&SourceTable| match (shapes.get(&table.id), now.get(&table.id)) {
        (Some(before), Some(now)) => !same_rows(before, now),
        (before, now) => before != now,
    };
    match tables.iter().find(is_other) {
        None => Ok(()),
        Some(table) => Err(altered(&table.name)),
    }
}

/// The inspection took a while; what it found must be of one moment.
pub(super) fn check_inspection(source: &Source) -> Result<(), Failure> {
    for table in &source.inspection.tables {
        let shape = source.shapes.get(&table.id);
        let names = |shape: &TableShape| {
            shape
                .columns
                .iter()
                .map(|column| &column.name)
                .eq(table.columns.iter().map(|column| &column.name))
        };
        if !shape.is_some_and(names) {
            return Err(altered(&table.name));
        }
    }
    Ok(())
}

fn altered(table: &TableName) -> Failure {
    let message =
        format!("The source table {table} was altered while it was looked at; it is looked at again.");
    Failure::new(Reason::TablesChanged, message)
}

/// A row was refused. If the source allows by now what the sink does not, that is the reason.
pub(super) async fn explain_refusal(
    context: Context<'_>,
    fenced: &mut Fenced,
    tables: &[TableName],
    failure: Failure,
) -> Failure {
    if failure.reason != Reason::SinkRejectedRow {
        return failure;
    }
    let looked = async {
        let source = super::start::inspect_source(context).await?;
        let own: Vec<SourceTable> =
            source.inspection.tables.into_iter().filter(|table| tables.contains(&table.name)).collect();
        let in_sink = source.transforms.tables(&own)?;
        source.session.close().await;
        // A label that has another name is not a new one: rows of before hold it as well.
        let recorded = fenced.sink.recorded().await?;
        let has_renamed = |table: &&SourceTable| {
            let (known, now) = (recorded.get(&table.name), source.shapes.get(&table.id));
            known.zip(now).is_some_and(|(known, now)| {
                known.source == table.id && !renamed_labels(&known.shape, now).is_empty()
            })
        };
        let renamed: Vec<TableName> =
            own.iter().filter(has_renamed).map(|table| table.name.clone()).collect();
        if let Some(first) = renamed.first() {
            return labels_renamed(fenced, first, &renamed, rules(context)).await;
        }
        fenced.sink.relax(&in_sink).await
    };
    match looked.await {
        Ok(done) if done.is_empty() => failure,
        Ok(done) => {
            let done = done.join("; ");
            context
                .status
                .notice(NoticeReason::SchemaChangeApplied, format!("allowed, as the source does: {done}"));
            let message =
                format!("The sink refused a row, because {done}. That is mended; the row is written again.");
            Failure::new(Reason::TablesChanged, message)
        }
        Err(told)
            if matches!(
                told.reason,
                Reason::SinkTableMismatch | Reason::SinkDiverged | Reason::TableRewritten
            ) =>
        {
            told
        }
        Err(_) => failure,
    }
}

/// Where in the stream the labels were renamed nobody knows, so rows of before and of after it cannot be told apart.
async fn labels_renamed(
    fenced: &mut Fenced,
    first: &TableName,
    tables: &[TableName],
    rules: Rules,
) -> Result<Vec<String>, Failure> {
    let why = "a label of a type of its columns was renamed";
    if !rules.copies() {
        return Err(copy_needed(first, why, rules));
    }
    fenced.sink.copy_again(tables).await?;
    let message = format!("The sink refused a row of {first}, because {why}; the table is copied again.");
    Err(Failure::new(Reason::TableRewritten, message))
}

impl ShapeKeeper {
    pub(super) fn new(
        context: Context<'_>,
        recorded: HashMap<RelationId, TableShape>,
        transforms: Arc<Transforms>,
        announced: mpsc::UnboundedReceiver<Announced>,
    ) -> Self {
        let endpoint = context.settings.pipeline.source.clone();
        let (session, rules, waiting) = (None, rules(context), Vec::new());
        Self { recorded, rules, endpoint, session, transforms, announced, waiting }
    }

    /// The table as it is in the source by now.
    pub(super) async fn read(&mut self, id: RelationId) -> Result<PresentTable, Failure> {
        let session = match self.session.take().filter(|session| !session.client.is_closed()) {
            Some(session) => session,
            None => self
                .endpoint
                .connect("penstock columns")
                .await
                .map_err(|error| error.failure(End::Source, &self.endpoint.connection))?,
        };
        let mut present = source::present_table(&session, id, PATIENCE).await?;
        self.transforms.veil(id, &mut present.shape);
        self.session = Some(session);
        Ok(present)
    }

    /// The tables that were announced by these messages.
    fn take(&mut self, contents: &[Bytes]) -> Vec<PresentTable> {
        while let Ok(announced) = self.announced.try_recv() {
            self.waiting.push(announced);
        }
        let is_met =
            |announced: &Announced| contents.iter().any(|content| content == announced.content.as_bytes());
        let (met, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(is_met);
        self.waiting = waiting;
        let met: Vec<Announced> = met;
        met.into_iter().map(|announced| announced.present).collect()
    }
}

impl Applier<'_> {
    /// Matches a relation with its sink table, and brings that up if it has to be.
    pub(super) async fn fit(&mut self, relation: &Arc<Relation>) -> Result<Fit, Failure> {
        let Some(recorded) = self.shapes.recorded.get(&relation.id) else {
            return self.describe_in_sink(relation).await;
        };
        if recorded.is_of(relation) {
            let plan = self.plan(relation).await?;
            let in_sink = plan.as_ref().map_or(relation.as_ref(), |plan| &plan.relation);
            if let Some(traits) = self.ends.writer.describe_if_fit(in_sink).await? {
                return Ok(Fit { traits, plan });
            }
        }
        let present = self.shapes.read(relation.id).await?;
        self.reshape(relation, &present, Occasion::Rows).await
    }

    /// What is done to rows of the relation.
    async fn plan(&mut self, relation: &Relation) -> Result<Option<Plan>, Failure> {
        let plan = self.shapes.transforms.of(relation.id).map(|steps| steps.plan(relation)).transpose();
        match plan {
            Ok(plan) => Ok(plan),
            Err(error) => Err(self.ends.writer.give_up(error.into()).await),
        }
    }

    async fn describe_in_sink(&mut self, relation: &Relation) -> Result<Fit, Failure> {
        let plan = self.plan(relation).await?;
        let in_sink = plan.as_ref().map_or(relation, |plan| &plan.relation);
        Ok(Fit { traits: self.ends.writer.describe(in_sink).await?, plan })
    }

    async fn reshape(
        &mut self,
        relation: &Relation,
        present: &PresentTable,
        occasion: Occasion,
    ) -> Result<Fit, Failure> {
        let name = &present.table.name;
        let Some(recorded) = self.shapes.recorded.get(&relation.id) else {
            return self.describe_in_sink(relation).await;
        };
        let change = match explain(recorded, &present.shape, relation, occasion) {
            Explanation::Known(change) => change,
            Explanation::Unknown(why) => return Err(self.rows_are_unknown(name, &why).await),
        };
        let Told { relation: in_sink, change, table, plan } =
            match self.shapes.transforms.tell(relation, &change, &present.table) {
                Ok(told) => told,
                Err(Untold::RowsUnknown(why)) => return Err(self.rows_are_unknown(name, &why).await),
                Err(Untold::Unsuitable(error)) => return Err(self.ends.writer.give_up(error.into()).await),
            };
        let reshaped = self.ends.writer.reshape(&in_sink, &change, &table, self.shapes.rules).await?;
        let (traits, applied, ignored) = match reshaped {
            Reshaped::Fits { traits, applied, ignored } => (traits, applied, ignored),
            Reshaped::CopyAgain(why) => return Err(self.rows_are_unknown(name, &why).await),
        };
        self.is_writing = self.ends.writer.is_open();
        if let Some(shape) = change.shape {
            self.shapes.recorded.insert(relation.id, shape);
        }
        for (reason, what) in
            [(NoticeReason::SchemaChangeApplied, applied), (NoticeReason::SchemaChangeIgnored, ignored)]
        {
            if !what.is_empty() {
                self.ends.status.notice(reason, format!("{name}: {}", what.join("; ")));
            }
        }
        Ok(Fit { traits, plan })
    }

    async fn rows_are_unknown(&mut self, table: &TableName, why: &str) -> Failure {
        if !self.shapes.rules.copies() {
            return self.ends.writer.give_up(copy_needed(table, why, self.shapes.rules)).await;
        }
        match self.ends.writer.copy_again(table).await {
            Ok(()) => Failure::new(
                Reason::TableRewritten,
                format!("The columns of {table} changed, and {why}; the table is copied again."),
            ),
            Err(failure) => failure,
        }
    }

    /// The stream is where the watch read the catalogue.
    pub(super) async fn meet(&mut self, contents: &[Bytes]) -> Result<(), Failure> {
        for present in self.shapes.take(contents) {
            let id = present.table.id;
            if self.shapes.recorded.get(&id).is_none_or(|recorded| *recorded == present.shape) {
                continue;
            }
            if self.tables.get(&id).is_none_or(|table| table.name != present.table.name) {
                continue;
            }
            self.write_batch().await?;
            self.reshape(&present.relation(), &present, Occasion::Present).await?;
            // Statements are prepared for the columns of before.
            if let Some(described) = self.relations.get_mut(&id) {
                described.fit = None;
            }
            self.commit().await?;
        }
        Ok(())
    }
}
