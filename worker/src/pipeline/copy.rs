//! Steps 6 and 8: the sink's tables, and the rows that are not in them yet.
//!
//! Rows are read at one snapshot, in chunks, by several readers; each chunk is loaded in a sink transaction of its
//! own under the fence. A table is ready when the source proves at the end that the snapshot was whole. One that is
//! not when the worker dies is copied again from its beginning.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use futures::TryStreamExt as _;
use futures::future::try_join_all;
use penstock_crds::report::{NoticeReason, Reason, WorkerPhase};
use penstock_crds::source::SnapshotMode;

use super::Context;
use super::apply::{ReadyTable, ReadyTables};
use super::start::{Fenced, Resumed};
use crate::change::RelationId;
use crate::change::table::{SourceTable, TableName};
use crate::change::travel::{Versions, table_format};
use crate::failure::Failure;
use crate::postgres::{End, classify};
use crate::sink::{FirstCopy, Sink, TableState};
use crate::source::{self, Chunk, Durability, ExportedSnapshot, SlotName, TableCopy};

/// How far each table of the shard is.
pub(super) type States = BTreeMap<TableName, TableState>;

/// Step 6: makes or compares the shard's sink tables. What does not fit ends the attempt before a slot is made, which
/// would keep the source's log while a person is awaited.
pub(super) async fn ensure_tables(
    context: Context<'_>,
    tables: &[SourceTable],
    fenced: &mut Fenced,
) -> Result<States, Failure> {
    let first_copy = match context.settings.pipeline.manifest.spec.source.postgres.snapshot.mode {
        SnapshotMode::Initial => FirstCopy::Copied,
        SnapshotMode::Never => FirstCopy::AlreadyThere,
    };
    fenced.sink.ensure_tables(tables, first_copy).await
}

/// Step 8: copies what is missing; says from which commit on the changes of each table count.
pub(super) async fn copy_missing(
    context: Context<'_>,
    tables: &[SourceTable],
    mut states: States,
    fenced: &mut Fenced,
    resumed: &mut Resumed,
) -> Result<ReadyTables, Failure> {
    let mode = context.settings.pipeline.manifest.spec.source.postgres.snapshot.mode;
    // Before a new slot nothing was followed: what was copied then is worth nothing now.
    let is_new = resumed.exported.is_some();
    let missing: Vec<SourceTable> = tables
        .iter()
        .filter(|table| is_new || !matches!(states.get(&table.name), Some(TableState::Ready(_))))
        .cloned()
        .collect();
    announce(context, tables, &missing);
    if mode == SnapshotMode::Never && !is_new {
        refuse_stale(&states)?;
    }
    if !missing.is_empty() {
        let exported = match resumed.exported.take() {
            Some(exported) => exported,
            None => later_snapshot(context, fenced, &missing).await?,
        };
        if mode == SnapshotMode::Initial {
            context.status.enter(WorkerPhase::Snapshotting);
            copy(context, &missing, &exported, fenced).await?;
        }
        for table in &missing {
            fenced.sink.mark_ready(&table.name, exported.consistent_point).await?;
            states.insert(table.name.clone(), TableState::Ready(exported.consistent_point));
        }
        context.status.snapshot(|progress| progress.tables_copied = progress.tables);
        context.status.notice(
            NoticeReason::SnapshotCompleted,
            format!("{} tables are copied as they were at {}", missing.len(), exported.consistent_point),
        );
    }
    resumed.exported = None;
    Ok(ready_tables(tables, &states))
}

/// Rows that the user vouched for are not copied, so what they lack cannot be made good.
fn refuse_stale(states: &States) -> Result<(), Failure> {
    let stale = states.iter().find(|(_, state)| **state == TableState::Stale);
    let Some((table, _)) = stale else { return Ok(()) };
    let message = format!(
        "Changes of {table} were left out of the stream: it left the publication for a while, or one of the two tables was \
         made anew. It is not copied again, because source.postgres.snapshot.mode is Never. Take it out of \
         source.postgres.tables, make the sink's rows equal to the source's while nobody writes it, and put it back."
    );
    Err(Failure::new(Reason::SinkDiverged, message))
}

fn ready_tables(tables: &[SourceTable], states: &BTreeMap<TableName, TableState>) -> ReadyTables {
    tables
        .iter()
        .filter_map(|table| match states.get(&table.name)? {
            TableState::Ready(lsn) => Some((table.id, ReadyTable { name: table.name.clone(), from: *lsn })),
            TableState::Copying | TableState::Stale => None,
        })
        .collect()
}

fn announce(context: Context<'_>, tables: &[SourceTable], missing: &[SourceTable]) {
    let count = |tables: &[SourceTable]| u32::try_from(tables.len()).unwrap_or(u32::MAX);
    context.status.snapshot(|progress| {
        progress.tables = count(tables);
        progress.tables_copied = count(tables) - count(missing);
        progress.rows_copied = 0;
        progress.rows_estimated = missing.iter().map(|table| table.estimated_rows).sum();
    });
}

/// A snapshot for tables that were added, or not finished: from a slot that lives as long as the copy. The shard's
/// own slot keeps every change since before it.
async fn later_snapshot(
    context: Context<'_>,
    fenced: &Fenced,
    missing: &[SourceTable],
) -> Result<ExportedSnapshot, Failure> {
    let names: Vec<String> = missing.iter().take(5).map(|table| table.name.to_string()).collect();
    context.status.notice(
        NoticeReason::SnapshotRestarted,
        format!("{} tables are copied from their beginning: {} …", missing.len(), names.join(", ")),
    );
    let slot = SlotName::of_later_copy(&fenced.started.names_uid, context.settings.shard);
    Ok(source::create_slot(&context.settings.pipeline.source, &slot, Durability::Temporary).await?)
}

/// Chunks that wait to be read.
struct Queue<'a> {
    chunks: Mutex<Vec<Chunk>>,
    tables: HashMap<RelationId, &'a SourceTable>,
    versions: Versions,
}

impl Queue<'_> {
    fn next(&self) -> Option<Chunk> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

async fn copy(
    context: Context<'_>,
    tables: &[SourceTable],
    exported: &ExportedSnapshot,
    fenced: &mut Fenced,
) -> Result<(), Failure> {
    let Fenced { sink, versions, .. } = fenced;
    for table in tables {
        sink.restart_copy(&table.name).await?;
    }
    let copy = exported.open_copy(&context.settings.pipeline.source, tables).await?;
    let mut chunks: Vec<Chunk> = tables.iter().flat_map(|table| copy.chunks(table)).collect();
    chunks.reverse();
    let parallelism =
        usize::from(context.settings.pipeline.manifest.spec.source.postgres.snapshot.parallelism);
    let readers = parallelism.min(chunks.len()).max(1);
    tracing::info!(tables = tables.len(), chunks = chunks.len(), readers, "copying rows");
    let queue = Queue {
        chunks: Mutex::new(chunks),
        tables: tables.iter().map(|table| (table.id, table)).collect(),
        versions: *versions,
    };
    try_join_all((0..readers).map(|_| copy_chunks(context, &copy, sink, &queue))).await?;
    copy.finish().await?;
    Ok(())
}

async fn copy_chunks(
    context: Context<'_>,
    copy: &TableCopy,
    sink: &Sink,
    queue: &Queue<'_>,
) -> Result<(), Failure> {
    let reader = copy.reader().await?;
    let mut loader = sink.loader().await?;
    while let Some(chunk) = queue.next() {
        let Some(table) = queue.tables.get(&chunk.table) else { continue };
        let columns: Vec<String> = table
            .columns
            .iter()
            .filter(|column| column.generated.is_none())
            .map(|column| column.name.clone())
            .collect();
        let doing = format!("reading rows of {}", table.name);
        let format = table_format(table, queue.versions);
        let rows = reader
            .read(&chunk, &columns, format)
            .await?
            .map_err(|error| classify(End::Source, &error, &doing));
        let count = loader.load_chunk(&table.name, &columns, format, rows).await?;
        context.status.snapshot(|progress| progress.rows_copied += count);
        context.metrics.snapshot_rows.inc_by(count);
    }
    reader.close().await;
    Ok(())
}
