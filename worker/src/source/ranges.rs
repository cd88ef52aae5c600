//! Ranges of a table's key, read one after another beside the stream, for the incremental snapshot.
//!
//! Each is read in a transaction of its own that takes ACCESS SHARE before its snapshot, so that the table cannot be
//! rewritten between the two (an old snapshot reads no rows of a rewritten table). When all rows are read, a message
//! is written into the source's log: the stream meets it after every transaction that the snapshot sees.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::binary_copy::BinaryCopyOutStream;
use tokio_postgres::types::Type;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::error::SourceError;
use super::horizon::{Horizon, Look};
use super::raw::{Raw, RawParameter};
use super::slot::SlotName;
use crate::change::table::{SourceTable, quote_identifier};
use crate::change::{Relation, RelationColumn, ReplicaIdentity, Row, Value};
use crate::failpoint::{Point, reach};
use crate::incremental::{Key, KeyColumn, Read, Snapshot};
use crate::postgres::{Endpoint, Session};

/// Prefix of the messages.
pub const WATERMARK_PREFIX: &str = "penstock";

/// Bytes that a range holds; it ends with the row that reaches them.
const RANGE_BYTES: usize = 8 << 20;
const RANGE_ROWS_FIRST: usize = 256;
const RANGE_ROWS_MAX: usize = 20_000;
/// A range may have this many times the rows of the one before: rows may be much larger further on.
const RANGE_GROWTH: usize = 8;
const OLD_TRANSACTIONS_POLL: Duration = Duration::from_millis(250);
const OLD_TRANSACTIONS_LOG: Duration = Duration::from_secs(10);
/// After this long a person hears of it: whoever forgot a transaction does not know that a copy waits.
const OLD_TRANSACTIONS_TELL: Duration = Duration::from_mins(1);
/// How long a range stays open that nobody reads.
const OPEN_FOR: Duration = Duration::from_secs(5);
/// Before a snapshot that could not be used is followed by another.
const AGAIN_AFTER: Duration = Duration::from_millis(50);

/// A range to open.
#[derive(Clone, Debug)]
pub struct RangeRequest {
    /// The table.
    pub table: Arc<SourceTable>,
    /// Its key.
    pub key: Arc<Vec<KeyColumn>>,
    /// The range begins after this key, as SQL literals; `None`: at the first row.
    pub after: Option<Vec<String>>,
    /// The snapshot before could not be used.
    pub is_again: bool,
}

/// What the reader of ranges says.
#[derive(Debug)]
pub enum RangeAnswer {
    /// A snapshot was looked at; no range is open yet.
    Seen(Arc<Snapshot>),
    /// No range is opened for a while now: transactions that were running when the stream began have not ended.
    Waits {
        /// The oldest of them.
        oldest: String,
    },
    /// The range will be read in this snapshot, if [`RangeReader::read`] says so.
    Opened(Arc<Snapshot>),
    /// The rows.
    Read {
        /// The rows.
        read: Read,
        /// The last key as SQL literals, if rows may come after it.
        last: Option<Vec<String>>,
        /// The content of the message in the log.
        watermark: String,
    },
}

enum Command {
    Open(RangeRequest),
    Read,
}

/// Reads ranges in a task of its own.
#[derive(Debug)]
pub struct RangeReader {
    commands: mpsc::UnboundedSender<Command>,
    answers: mpsc::UnboundedReceiver<Result<RangeAnswer, SourceError>>,
    _task: AbortOnDropHandle<()>,
}

/// Starts the reader. `slot` is what its connection is called, so that the next run finds and ends it.
pub fn spawn_range_reader(endpoint: Endpoint, slot: SlotName) -> RangeReader {
    let (commands, received) = mpsc::unbounded_channel();
    let (sender, answers) = mpsc::unbounded_channel();
    let task = tokio::spawn(async move {
        let worker =
            Worker { endpoint, slot, commands: received, answers: sender.clone(), rows: RANGE_ROWS_FIRST };
        if let Err(error) = worker.run().await {
            let _nobody_listens = sender.send(Err(error));
        }
    });
    RangeReader { commands, answers, _task: AbortOnDropHandle::new(task) }
}

impl RangeReader {
    /// Opens a range; one that is open is left.
    pub fn open(&self, request: RangeRequest) {
        let _ended_and_said_so = self.commands.send(Command::Open(request));
    }

    /// Reads the range that is open.
    pub fn read(&self) {
        let _ended_and_said_so = self.commands.send(Command::Read);
    }

    /// The next answer. Cancelling it loses nothing.
    pub async fn next(&mut self) -> Result<RangeAnswer, SourceError> {
        match self.answers.recv().await {
            Some(answer) => answer,
            None => Err(SourceError::lost(&"the reader has stopped", "reading ranges of rows")),
        }
    }

    /// An answer that is there already.
    pub fn try_next(&mut self) -> Option<Result<RangeAnswer, SourceError>> {
        self.answers.try_recv().ok()
    }
}

struct Worker {
    endpoint: Endpoint,
    slot: SlotName,
    commands: mpsc::UnboundedReceiver<Command>,
    answers: mpsc::UnboundedSender<Result<RangeAnswer, SourceError>>,
    /// Rows of the next range.
    rows: usize,
}

impl Worker {
    async fn run(mut self) -> Result<(), SourceError> {
        // Most runs have nothing to copy, and no connection for it.
        let Some(mut command) = self.commands.recv().await else { return Ok(()) };
        let mut session = self.connect().await?;
        self.wait_for_old_transactions(&session).await?;
        let (mut open, mut lapsed) = (None, None::<RangeRequest>);
        loop {
            match command {
                Command::Open(request) => {
                    if open.is_some() {
                        end(&session).await?;
                    }
                    if request.is_again {
                        sleep(AGAIN_AFTER).await;
                    }
                    let snapshot = begin(&session, &request.table).await?;
                    self.answer(RangeAnswer::Opened(snapshot));
                    open = Some(request);
                }
                Command::Read => {
                    if let Some(request) = open.take() {
                        session = self.finish(session, &request).await?;
                    } else if let Some(request) = lapsed.take() {
                        // Opened a second time: the applier sees that it is not the one it knows, and asks again.
                        self.answer(RangeAnswer::Opened(begin(&session, &request.table).await?));
                        open = Some(request);
                    }
                }
            }
            command = match self.next_command(&session, &mut open, &mut lapsed).await? {
                Some(command) => command,
                None => break,
            };
        }
        session.close().await;
        Ok(())
    }

    /// A range that is open holds a lock, for which others may queue: it is let go if nobody reads it.
    async fn next_command(
        &mut self,
        session: &Session,
        open: &mut Option<RangeRequest>,
        lapsed: &mut Option<RangeRequest>,
    ) -> Result<Option<Command>, SourceError> {
        if open.is_some() {
            if let Ok(command) = timeout(OPEN_FOR, self.commands.recv()).await {
                return Ok(command);
            }
            end(session).await?;
            *lapsed = open.take();
        }
        Ok(self.commands.recv().await)
    }

    /// Reads the range, hands it over, and marks the place in the log.
    async fn finish(&mut self, mut session: Session, request: &RangeRequest) -> Result<Session, SourceError> {
        reach(Point::BeforeRangeRead)?;
        let range = self.read(&session, request).await?;
        if range.is_cut {
            // The server would send all the rest of it first.
            session = self.connect().await?;
        } else {
            end(&session).await?;
        }
        let last = match &range.last {
            Some(values) => Some(literals(&session, &request.key, values).await?),
            None => None,
        };
        let watermark = Uuid::new_v4().to_string();
        let read = Read {
            relation: range.relation,
            rows: range.rows,
            last: range.last.map(|values| Key::new(&request.key, &values)),
        };
        // Whoever sees the watermark has the rows.
        self.answer(RangeAnswer::Read { read, last, watermark: watermark.clone() });
        reach(Point::BeforeWatermark)?;
        emit(&session, &watermark).await?;
        reach(Point::AfterWatermark)?;
        Ok(session)
    }

    fn answer(&self, answer: RangeAnswer) {
        let _nobody_listens = self.answers.send(Ok(answer));
    }

    async fn connect(&self) -> Result<Session, SourceError> {
        let session = self
            .endpoint
            .connect(self.slot.as_str())
            .await
            .map_err(|error| SourceError::connect(&self.endpoint, &error))?;
        // Local: the stream does not wait for standbys either.
        let settings = "SET search_path = ''; SET datestyle = 'ISO'; SET timezone = 'UTC'; SET bytea_output = 'hex'; \
                        SET synchronous_commit = local; SET statement_timeout = 0";
        session.batch_execute(settings).await.map_err(|error| failed(&error))?;
        Ok(session)
    }

    /// Until every transaction that was running when the stream began has ended: the stream may have passed its COMMIT
    /// in an earlier run.
    async fn wait_for_old_transactions(&self, session: &Session) -> Result<(), SourceError> {
        let horizon = Horizon::now(session).await.map_err(|error| failed(&error))?;
        let mut next_log = Instant::now() + OLD_TRANSACTIONS_LOG;
        let mut tell_at = Some(Instant::now() + OLD_TRANSACTIONS_TELL);
        loop {
            let Look { is_over, snapshot, oldest } =
                horizon.look(session).await.map_err(|error| failed(&error))?;
            self.answer(RangeAnswer::Seen(parse_snapshot(&snapshot)?));
            if is_over {
                return Ok(());
            }
            if Instant::now() >= next_log {
                tracing::info!(%oldest, "rows are copied when the transactions that were running at the source have ended");
                next_log += OLD_TRANSACTIONS_LOG;
            }
            if tell_at.take_if(|at| *at <= Instant::now()).is_some() {
                self.answer(RangeAnswer::Waits { oldest });
            }
            sleep(OLD_TRANSACTIONS_POLL).await;
        }
    }

    async fn read(&mut self, session: &Session, request: &RangeRequest) -> Result<Range, SourceError> {
        let table = &request.table;
        let relation = read_relation(session, table).await?;
        let sql = copy_statement(request, &relation, self.rows);
        tracing::debug!(%sql, "reading a range");
        let copy = session.copy_out(&sql).await.map_err(|error| reading(&error, table))?;
        let types = vec![Type::BYTEA; relation.columns.len()];
        let mut stream = std::pin::pin!(BinaryCopyOutStream::new(copy, &types));
        let (mut rows, mut bytes) = (Vec::new(), 0);
        while let Some(row) = stream.next().await {
            let row = row.map_err(|error| reading(&error, table))?;
            let values =
                (0..relation.columns.len()).map(|place| match row.try_get::<Option<Raw<'_>>>(place) {
                    Ok(None) => Ok(Value::Null),
                    Ok(Some(Raw(value))) => Ok(Value::Binary(Bytes::copy_from_slice(value))),
                    Err(error) => Err(reading(&error, table)),
                });
            let row = Row(values.collect::<Result<_, _>>()?);
            bytes += row.size();
            rows.push(row);
            if bytes >= RANGE_BYTES && rows.len() < self.rows {
                break;
            }
        }
        let is_cut = bytes >= RANGE_BYTES && rows.len() < self.rows;
        let is_last = !is_cut && rows.len() < self.rows;
        let last = if is_last { None } else { Some(last_key(request, &relation, &rows)?) };
        if !is_last {
            let fitting = rows.len().saturating_mul(RANGE_BYTES) / bytes.max(1);
            self.rows = fitting.clamp(1, RANGE_ROWS_MAX).min(self.rows.saturating_mul(RANGE_GROWTH));
        }
        Ok(Range { relation, rows, last, is_cut })
    }
}

struct Range {
    relation: Relation,
    rows: Vec<Row>,
    /// Values of the last key, if rows may come after it.
    last: Option<Vec<Bytes>>,
    /// The server has more of it to send.
    is_cut: bool,
}

fn failed(error: &tokio_postgres::Error) -> SourceError {
    SourceError::sql(error, "copying rows beside the stream")
}

fn reading(error: &tokio_postgres::Error, table: &SourceTable) -> SourceError {
    SourceError::sql(error, &format!("reading rows of {}", table.name))
}

fn parse_snapshot(text: &str) -> Result<Arc<Snapshot>, SourceError> {
    text.parse().map(Arc::new).map_err(|error| SourceError::Protocol(format!("{error}")))
}

/// The lock comes before the snapshot.
async fn begin(session: &Session, table: &SourceTable) -> Result<Arc<Snapshot>, SourceError> {
    let begin = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY; LOCK TABLE {} IN ACCESS SHARE MODE",
        from(table)
    );
    session.batch_execute(&begin).await.map_err(|error| reading(&error, table))?;
    let row = session
        .query_one(
            "SELECT pg_catalog.pg_current_snapshot()::text, \
               (SELECT c.oid FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
                WHERE n.nspname = $1::text::name AND c.relname = $2::text::name)",
            &[&table.name.schema, &table.name.name],
        )
        .await
        .map_err(|error| reading(&error, table))?;
    if row.get::<_, Option<u32>>(1) != Some(table.id.0) {
        return Err(SourceError::Rewritten { table: table.name.clone(), what: "dropped or made anew" });
    }
    parse_snapshot(row.get(0))
}

async fn end(session: &Session) -> Result<(), SourceError> {
    session.batch_execute("COMMIT").await.map_err(|error| failed(&error))
}

async fn emit(session: &Session, watermark: &str) -> Result<(), SourceError> {
    let sql = "SELECT pg_catalog.pg_logical_emit_message(true, $1, $2::text)";
    session.execute(sql, &[&WATERMARK_PREFIX, &watermark]).await.map_err(|error| failed(&error)).map(drop)
}

/// Children by inheritance are tables of their own; partitions are not.
fn from(table: &SourceTable) -> String {
    if table.is_partitioned { table.name.quoted() } else { format!("ONLY {}", table.name.quoted()) }
}

fn copy_statement(request: &RangeRequest, relation: &Relation, rows: usize) -> String {
    let columns: Vec<String> = relation.columns.iter().map(|column| quote_identifier(&column.name)).collect();
    let key = KeyColumn::names(&request.key);
    let mut sql = format!("COPY (SELECT {} FROM {}", columns.join(", "), from(&request.table));
    if let Some(after) = &request.after {
        let _infallible = write!(sql, " WHERE ({key}) > ({})", KeyColumn::literals(&request.key, after));
    }
    let _infallible = write!(sql, " ORDER BY {key} LIMIT {rows}) TO STDOUT (FORMAT binary)");
    sql
}

/// The table as the stream would describe it now.
async fn read_relation(session: &Session, table: &SourceTable) -> Result<Relation, SourceError> {
    let rows = session
        .query(
            "SELECT a.attname::text, a.atttypid, a.atttypmod, c.relreplident::text, \
               EXISTS (SELECT FROM pg_catalog.pg_index AS i \
                       CROSS JOIN LATERAL pg_catalog.unnest(i.indkey::pg_catalog.int2[]) WITH ORDINALITY AS k (attnum, place) \
                       WHERE i.indrelid = c.oid AND k.attnum = a.attnum AND k.place <= i.indnkeyatts \
                       AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END) \
             FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid \
             WHERE c.oid = $1 AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum",
            &[&table.id.0],
        )
        .await
        .map_err(|error| reading(&error, table))?;
    let replica_identity = match rows.first().map(|row| row.get::<_, String>(3)).as_deref() {
        Some("d") => ReplicaIdentity::Default,
        Some("f") => ReplicaIdentity::Full,
        Some("i") => ReplicaIdentity::Index,
        _ => ReplicaIdentity::Nothing,
    };
    let columns = rows
        .iter()
        .map(|row| RelationColumn {
            name: row.get(0),
            type_oid: row.get(1),
            type_modifier: row.get(2),
            is_key: row.get::<_, bool>(4) || replica_identity == ReplicaIdentity::Full,
        })
        .collect();
    let (schema, name) = (table.name.schema.clone(), table.name.name.clone());
    Ok(Relation { id: table.id, schema, name, replica_identity, columns })
}

fn last_key(request: &RangeRequest, relation: &Relation, rows: &[Row]) -> Result<Vec<Bytes>, SourceError> {
    let value = |column: &KeyColumn| {
        let place = relation.columns.iter().position(|other| other.name == column.name)?;
        match rows.last()?.0.get(place)? {
            Value::Binary(bytes) => Some(bytes.clone()),
            Value::Null | Value::Unchanged | Value::Text(_) => None,
        }
    };
    let values = request.key.iter().map(value).collect::<Option<_>>();
    values.ok_or_else(|| SourceError::Rewritten {
        table: request.table.name.clone(),
        what: "given another key",
    })
}

/// Values of a key as the server writes them.
async fn literals(
    session: &Session,
    key: &[KeyColumn],
    values: &[Bytes],
) -> Result<Vec<String>, SourceError> {
    let list: Vec<String> = key
        .iter()
        .enumerate()
        .map(|(place, column)| format!("${}::{}::text", place + 1, column.type_sql))
        .collect();
    let values: Vec<RawParameter> = values.iter().cloned().map(RawParameter).collect();
    let parameters: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> =
        values.iter().map(|value| value as &(dyn tokio_postgres::types::ToSql + Sync)).collect();
    let row = session
        .query_one(&format!("SELECT {}", list.join(", ")), &parameters)
        .await
        .map_err(|error| failed(&error))?;
    Ok((0..key.len()).map(|place| row.get(place)).collect())
}

/// A key that was kept as SQL literals.
pub async fn read_key(session: &Session, key: &[KeyColumn], literals: &[String]) -> Result<Key, SourceError> {
    let row = session
        .query_one(&format!("SELECT {}", KeyColumn::literals(key, literals)), &[])
        .await
        .map_err(|error| failed(&error))?;
    let values = (0..key.len())
        .map(|place| row.try_get::<_, Raw<'_>>(place).map(|Raw(value)| Bytes::copy_from_slice(value)));
    let values: Vec<Bytes> = values.collect::<Result<_, _>>().map_err(|error| failed(&error))?;
    Ok(Key::new(key, &values))
}
