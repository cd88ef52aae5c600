//! Executes operations inside the writer's transaction.

use bytes::Bytes;
use futures::SinkExt as _;
use penstock_crds::report::Reason;
use tokio_postgres::{Client, Statement};

use super::copy::{CopyEncoder, format_of};
use super::error::rows_refused;
use super::in_flight::{InFlight, NotApplied};
use super::plan::Plan;
use super::prepared::Prepared;
use super::statements::Shape;
use super::value::Parameter;
use crate::batch::UpdateRow;
use crate::change::travel::Format;
use crate::change::{OldRow, RelationId, Row, Value};
use crate::failure::Failure;

/// COPY waits for the server twice; fewer rows than this are faster as INSERTs, which wait once.
const COPY_ROWS_MIN: usize = 8;

/// What writes rows of one table.
pub(super) struct TableWriter<'a> {
    pub(super) client: &'a Client,
    pub(super) prepared: &'a mut Prepared,
    pub(super) relation: RelationId,
    pub(super) plan: &'a Plan,
}

impl<'a> TableWriter<'a> {
    pub(super) async fn insert(&mut self, rows: &'a [Row]) -> Result<(), Failure> {
        for row in rows {
            self.check_width(row)?;
        }
        match format_of(rows) {
            Some(format) if rows.len() >= COPY_ROWS_MIN && self.plan.takes(format) => {
                self.copy(rows, format).await
            }
            Some(_) | None => self.insert_one_by_one(rows).await,
        }
    }

    pub(super) async fn update(&mut self, rows: &'a [UpdateRow]) -> Result<(), Failure> {
        let mut in_flight = InFlight::default();
        for UpdateRow { old, new } in rows {
            self.check_width(new)?;
            let named = self.named_by(old)?;
            let columns = self.columns_to_set(named, new);
            let set: Vec<_> = columns.iter().filter_map(|place| parameter(new, *place)).collect();
            let parameters: Vec<_> = set.into_iter().chain(self.naming(named)).collect();
            let statement = self.statement(Shape::Update(columns), &mut in_flight, "updating").await?;
            self.send(&mut in_flight, statement, parameters, "updating").await?;
        }
        in_flight.settle().await.map_err(|error| self.not_applied(error, "updating"))
    }

    pub(super) async fn delete(&mut self, rows: &'a [OldRow]) -> Result<(), Failure> {
        let mut in_flight = InFlight::default();
        for old in rows {
            let parameters = self.naming(self.named_by(old)?).collect();
            let statement = self.statement(Shape::Delete, &mut in_flight, "deleting from").await?;
            self.send(&mut in_flight, statement, parameters, "deleting from").await?;
        }
        in_flight.settle().await.map_err(|error| self.not_applied(error, "deleting from"))
    }

    async fn insert_one_by_one(&mut self, rows: &'a [Row]) -> Result<(), Failure> {
        let mut in_flight = InFlight::default();
        let statement = self.statement(Shape::Insert, &mut in_flight, "inserting into").await?;
        for row in rows {
            let parameters = self.plan.written().filter_map(|(place, _)| parameter(row, place)).collect();
            self.send(&mut in_flight, statement.clone(), parameters, "inserting into").await?;
        }
        in_flight.settle().await.map_err(|error| self.not_applied(error, "inserting into"))
    }

    async fn copy(&mut self, rows: &[Row], format: Format) -> Result<(), Failure> {
        let doing = "inserting into";
        let statement = self.statement(Shape::Copy(format), &mut InFlight::default(), doing).await?;
        let refused = |error| rows_refused(&error, &self.plan.sink, doing);
        let copy = self.client.copy_in::<_, Bytes>(&statement).await.map_err(refused)?;
        let mut copy = std::pin::pin!(copy);
        let mut encoder = CopyEncoder::new(format);
        for row in rows {
            encoder.put(self.plan, row).map_err(|_| self.not_a_row("an inserted row lacks a value"))?;
            if let Some(chunk) = encoder.full_chunk() {
                copy.send(chunk).await.map_err(refused)?;
            }
        }
        copy.send(encoder.finish()).await.map_err(refused)?;
        let copied = copy.finish().await.map_err(refused)?;
        if copied == rows.len() as u64 { Ok(()) } else { Err(self.rows_left_out()) }
    }

    /// The prepared statement. What is in flight is settled before anything is prepared.
    async fn statement(
        &mut self,
        shape: Shape,
        in_flight: &mut InFlight<'_>,
        doing: &str,
    ) -> Result<Statement, Failure> {
        if let Some(statement) = self.prepared.find(self.relation, &shape) {
            return Ok(statement);
        }
        in_flight.settle().await.map_err(|error| self.not_applied(error, doing))?;
        self.prepared
            .prepare(self.client, self.relation, self.plan, shape)
            .await
            .map_err(|error| rows_refused(&error, &self.plan.sink, doing))
    }

    async fn send(
        &self,
        in_flight: &mut InFlight<'a>,
        statement: Statement,
        parameters: Vec<Parameter<'a>>,
        doing: &str,
    ) -> Result<(), Failure> {
        let client = self.client;
        let execution = async move { client.execute_raw(&statement, parameters).await };
        in_flight.send(execution).await.map_err(|error| self.not_applied(error, doing))
    }

    /// A key column is set only if it changed: identity columns that are GENERATED ALWAYS must not be set at all.
    fn columns_to_set(&self, old: &Row, new: &Row) -> Vec<usize> {
        let is_changed =
            |place: usize| !self.plan.key.contains(&place) || old.0.get(place) != new.0.get(place);
        self.plan
            .written()
            .map(|(place, _)| place)
            .filter(|place| !matches!(new.0.get(*place), Some(Value::Unchanged) | None) && is_changed(*place))
            .collect()
    }

    /// The values that name a row.
    fn naming(&self, old: &'a Row) -> impl Iterator<Item = Parameter<'a>> + use<'a> {
        let plan = self.plan;
        let whole = plan.written().filter(move |_| plan.key.is_empty());
        plan.key_columns().chain(whole).filter_map(move |(place, _)| parameter(old, place))
    }

    /// The old row, if it says enough to find the one in the sink.
    fn named_by(&self, old: &'a OldRow) -> Result<&'a Row, Failure> {
        let (row, is_whole) = match old {
            OldRow::Key(row) => (row, false),
            OldRow::Full(row) => (row, true),
        };
        self.check_width(row)?;
        let is_unknown = |place: usize| matches!(row.0.get(place), Some(Value::Unchanged) | None);
        let names_row = if self.plan.key.is_empty() {
            is_whole && !self.plan.written().any(|(place, _)| is_unknown(place))
        } else {
            !self.plan.key.iter().any(|place| is_unknown(*place))
        };
        if names_row {
            Ok(row)
        } else {
            Err(self.not_a_row("a changed row is not named by its replica identity"))
        }
    }

    fn check_width(&self, row: &Row) -> Result<(), Failure> {
        if row.0.len() == self.plan.columns.len() {
            Ok(())
        } else {
            Err(self.not_a_row("a row has another number of columns than its table"))
        }
    }

    fn not_a_row(&self, what: &str) -> Failure {
        Failure::new(Reason::ProtocolViolation, format!("The source sent for {}: {what}.", self.plan.sink))
    }

    fn not_applied(&self, error: NotApplied, doing: &str) -> Failure {
        let table = &self.plan.sink;
        match error {
            NotApplied::Refused(error) => rows_refused(&error, table, doing),
            NotApplied::Touched(_) if doing == "inserting into" => self.rows_left_out(),
            NotApplied::Touched(touched) => Failure::new(
                Reason::SinkDiverged,
                format!(
                    "{doing} the sink table {table} touched {touched} rows where the source has exactly one (the row is named by {}). \
                     Somebody else wrote to the sink table, or a trigger or policy of it hides rows: put the rows right, or copy the table again.",
                    self.plan.key_names()
                ),
            ),
        }
    }

    fn rows_left_out(&self) -> Failure {
        let message = format!(
            "The sink table {} did not take a row that was inserted: a trigger or rule of it leaves rows out. Drop or disable it.",
            self.plan.sink
        );
        Failure::new(Reason::SinkRejectedRow, message)
    }
}

fn parameter(row: &Row, place: usize) -> Option<Parameter<'_>> {
    row.0.get(place).map(Parameter)
}
