//! Steps 6 and 8: the sink's tables, and the rows that are not in them yet.
//!
//! Rows are read at one snapshot, in chunks, by several readers; each chunk is loaded in a sink transaction of its
//! own under the fence. A table is ready when all its chunks are loaded and the source proves that the snapshot was whole. One
//! that is not when the worker dies is copied in ranges of its key while the stream runs, as is every table that comes
//! later: after the last key that was copied, if it was copied in order of its key. One without a key whose order is known is
//! copied again from its beginning, before the stream goes on.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use futures::future::{Either, ready, try_join_all};
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use penstock_crds::report::{NoticeReason, Reason, WorkerPhase};
use penstock_crds::source::SnapshotMode;

use super::Context;
use super::chunks::Queue;
use super::followed::{FollowedTable, FollowedTables, Progress};
use super::ranges::RangeTable;
use super::shapes::check_unchanged;
use super::start::{Fenced, Resumed, Source};
use crate::change::table::{SourceTable, TableName};
use crate::change::travel::{Format, Versions, table_format};
use crate::change::{Lsn, RelationId};
use crate::evolve::same_rows;
use crate::failure::Failure;
use crate::incremental::{self, Copied, KeyColumn};
use crate::postgres::{End, classify};
use crate::sink::{self, ChunkEnd, FirstCopy, Loader, Recorded, Sink, TableState};
use crate::source::{self, Chunk, Durability, ExportedSnapshot, SlotName, TableCopy};
use crate::transform::{CopyColumns, CopyMask, Transforms};

/// How far each table of the shard is.
pub(super) type States = BTreeMap<TableName, TableState>;

/// Step 6: makes or compares the shard's sink tables. What does not fit ends the attempt before a slot is made, which
/// would keep the source's log while a person is awaited.
pub(super) async fn ensure_tables(
    context: Context<'_>,
    source: &Source,
    tables: &[SourceTable],
    fenced: &mut Fenced,
) -> Result<States, Failure> {
    let first_copy = match context.settings.pipeline.manifest.spec.source.postgres.snapshot.mode {
        SnapshotMode::Initial => FirstCopy::Copied,
        SnapshotMode::Never => FirstCopy::AlreadyThere,
    };
    fenced.sink.ensure_tables(&source.transforms.tables(tables)?, first_copy).await
}

/// Step 8: copies what is missing, unless it can be copied in ranges of its key while the stream runs; says from which
/// commit on the changes of each table count.
pub(super) async fn copy_missing(
    context: Context<'_>,
    source: &Source,
    tables: &[SourceTable],
    mut states: States,
    fenced: &mut Fenced,
    resumed: &mut Resumed,
) -> Result<(FollowedTables, Vec<RangeTable>), Failure> {
    let mode = context.settings.pipeline.manifest.spec.source.postgres.snapshot.mode;
    // Before a new slot nothing was followed: what was copied then is worth nothing now.
    let is_new = resumed.exported.is_some();
    let mut missing: Vec<SourceTable> = tables
        .iter()
        .filter(|table| is_new || !matches!(states.get(&table.name), Some(TableState::Ready(_))))
        .cloned()
        .collect();
    announce(context, tables, &missing);
    if mode == SnapshotMode::Never && !is_new {
        refuse_stale(&states)?;
    }
    let mut in_ranges = Vec::new();
    // Keys are compared in binary.
    if mode == SnapshotMode::Initial && !is_new && fenced.stream_format == Format::Binary {
        (in_ranges, missing) = missing.into_iter().partition(|table| key_of(source, table).is_some());
    }
    if !missing.is_empty() {
        let exported = match resumed.exported.take() {
            Some(exported) => exported,
            None => later_snapshot(context, fenced, &missing).await?,
        };
        let shape = |table: &'_ SourceTable| source.shapes.get(&table.id).cloned();
        let shapes: Vec<_> =
            missing.iter().filter_map(|table| Some((table.name.clone(), shape(table)?))).collect();
        fenced.sink.record(shapes.iter().map(|(name, shape)| (name, shape))).await?;
        match mode {
            SnapshotMode::Initial => {
                context.status.enter(WorkerPhase::Snapshotting);
                // What is kept of a copy goes on where the shard's own slot begins.
                let keeps_copied = is_new && fenced.stream_format == Format::Binary;
                copy(context, source, &missing, &exported, fenced, keeps_copied).await?;
            }
            SnapshotMode::Never => {
                check_unchanged(source, &missing).await?;
                for table in &missing {
                    fenced.sink.mark_ready(&table.name, exported.consistent_point).await?;
                }
            }
        }
        for table in &missing {
            states.insert(table.name.clone(), TableState::Ready(exported.consistent_point));
        }
        context.status.snapshot(|progress| progress.tables_copied = count(tables) - count(&in_ranges));
        context.status.notice(
            NoticeReason::SnapshotCompleted,
            format!("{} tables are copied as they were at {}", missing.len(), exported.consistent_point),
        );
    }
    resumed.exported = None;
    let mut followed = ready_tables(tables, &states);
    let ranges = begin_ranges(context, source, &in_ranges, &states, fenced, &mut followed).await?;
    Ok((followed, ranges))
}

/// Tables that go on where an earlier run stopped, or begin.
async fn begin_ranges(
    context: Context<'_>,
    source: &Source,
    tables: &[SourceTable],
    states: &States,
    fenced: &mut Fenced,
    followed: &mut FollowedTables,
) -> Result<Vec<RangeTable>, Failure> {
    let recorded = fenced.sink.recorded().await?;
    let mut ranges = Vec::new();
    let mut begun = Vec::new();
    for table in tables {
        let Some((key, in_sink)) = key_of(source, table) else { continue };
        let names: Vec<String> = key.iter().map(|column| column.name.clone()).collect();
        let last = match states.get(&table.name) {
            Some(TableState::Incremental(progress)) if progress.key == names => progress.last.clone(),
            Some(TableState::CutShort(sink::Progress { key: by, last: Some(last) }))
                if *by == names && is_as_recorded(&recorded, source, table) =>
            {
                fenced.sink.keep_copied(&table.name, &in_sink, last).await?;
                Some(last.clone())
            }
            _ => {
                // Before anything is read: what is altered from here on is seen.
                fenced.sink.record(source.shapes.get(&table.id).map(|shape| (&table.name, shape))).await?;
                fenced.sink.begin_incremental(&table.name, &names).await?;
                begun.push(table.name.clone());
                None
            }
        };
        let copied = match &last {
            Some(last) => Copied::UpTo(source::read_key(&source.session, &key, last).await?),
            None => Copied::Nothing,
        };
        tracing::info!(table = %table.name, after = ?last, "copying rows while changes are streamed");
        let progress = Progress::Incremental(Box::new(incremental::Table::new(key.clone(), copied)));
        followed.insert(table.id, FollowedTable { name: table.name.clone(), progress });
        ranges.push(RangeTable { table: Arc::new(table.clone()), key: Arc::new(key), last });
    }
    announce_begun(context, &begun);
    Ok(ranges)
}

/// The key by whose ranges a table is copied, and the same as the sink has it. `None` where the sink has other values: how far
/// a copy is, is noted there.
fn key_of(source: &Source, table: &SourceTable) -> Option<(Vec<KeyColumn>, Vec<KeyColumn>)> {
    let key = incremental::key_of(table)?;
    let in_sink = match source.transforms.of(table.id) {
        None => key.clone(),
        Some(steps) => steps.key(&key)?,
    };
    Some((key, in_sink))
}

/// Whether the source's rows have the columns, and lie in the file, of which some were copied.
fn is_as_recorded(recorded: &BTreeMap<TableName, Recorded>, source: &Source, table: &SourceTable) -> bool {
    let (before, now) = (recorded.get(&table.name), source.shapes.get(&table.id));
    before.zip(now).is_some_and(|(before, now)| same_rows(&before.shape, now))
}

fn announce_begun(context: Context<'_>, tables: &[TableName]) {
    if tables.is_empty() {
        return;
    }
    let names: Vec<String> = tables.iter().take(5).map(ToString::to_string).collect();
    context.status.notice(
        NoticeReason::SnapshotRestarted,
        format!("{} tables are copied from their beginning: {} …", tables.len(), names.join(", ")),
    );
}

fn count(tables: &[SourceTable]) -> u32 {
    u32::try_from(tables.len()).unwrap_or(u32::MAX)
}

/// Rows that the user vouched for are not copied, so what they lack cannot be made good.
fn refuse_stale(states: &States) -> Result<(), Failure> {
    let is_stale = |state: &TableState| matches!(state, TableState::Stale | TableState::Incremental(_));
    let Some((table, _)) = states.iter().find(|(_, state)| is_stale(state)) else { return Ok(()) };
    let message = format!(
        "The rows of {table} are not whole: it left the publication for a while, one of the two tables was made anew, or an \
         adopted pipeline had not finished its copy. It is not copied again, because source.postgres.snapshot.mode is Never. Take it out of \
         source.postgres.tables, make the sink's rows equal to the source's while nobody writes it, and put it back."
    );
    Err(Failure::new(Reason::SinkDiverged, message))
}

fn ready_tables(tables: &[SourceTable], states: &States) -> FollowedTables {
    tables
        .iter()
        .filter_map(|table| match states.get(&table.name)? {
            TableState::Ready(lsn) => {
                let progress = Progress::Ready { from: *lsn };
                Some((table.id, FollowedTable { name: table.name.clone(), progress }))
            }
            TableState::Copying
            | TableState::CutShort(_)
            | TableState::Incremental(_)
            | TableState::Stale => None,
        })
        .collect()
}

fn announce(context: Context<'_>, tables: &[SourceTable], missing: &[SourceTable]) {
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
    let names: Vec<TableName> = missing.iter().map(|table| table.name.clone()).collect();
    announce_begun(context, &names);
    let slot = SlotName::of_later_copy(&fenced.started.names_uid, context.settings.shard);
    Ok(source::create_slot(&context.settings.pipeline.source, &slot, Durability::Temporary).await?)
}

/// What the readers of a copy share.
struct Copy<'a> {
    source: TableCopy,
    sink: &'a Sink,
    transforms: &'a Transforms,
    queue: Queue,
    tables: HashMap<RelationId, &'a SourceTable>,
    versions: Versions,
    /// Where the snapshot is in the source's log.
    at: Lsn,
}

/// Copies the tables. With `keeps_copied`, a table whose rows lie in the order of its key is copied in that order, so
/// that what is there when the worker dies is worth something.
async fn copy(
    context: Context<'_>,
    source: &Source,
    tables: &[SourceTable],
    exported: &ExportedSnapshot,
    fenced: &mut Fenced,
    keeps_copied: bool,
) -> Result<(), Failure> {
    let opened = exported.open_copy(&context.settings.pipeline.source, tables).await?;
    check_unchanged(source, tables).await?;
    let mut chunks = Vec::new();
    for table in tables {
        // Rows without a column that the sink leaves out are of no use when it does not any more.
        let is_whole = !fenced.sink.leaves_out_any(&table.name);
        let key = key_of(source, table).map(|(key, _)| key).filter(|_| keeps_copied && is_whole);
        let parts = opened.chunks(table, key.as_deref()).await?;
        let key = parts.first().and_then(Chunk::key_columns);
        fenced.sink.restart_copy(&table.name, key.as_deref()).await?;
        chunks.extend(parts);
    }
    let parallelism =
        usize::from(context.settings.pipeline.manifest.spec.source.postgres.snapshot.parallelism);
    let readers = parallelism.min(chunks.len()).max(1);
    tracing::info!(tables = tables.len(), chunks = chunks.len(), readers, "copying rows");
    let copy = Copy {
        source: opened,
        sink: &fenced.sink,
        transforms: &source.transforms,
        queue: Queue::new(chunks, u32::try_from(readers).unwrap_or(u32::MAX)),
        tables: tables.iter().map(|table| (table.id, table)).collect(),
        versions: fenced.versions,
        at: exported.consistent_point,
    };
    // A partitioned table without partitions has no rows to wait for.
    for table in tables.iter().filter(|table| copy.queue.is_without(table.id)) {
        table_is_ready(context, &copy, &mut fenced.sink.loader().await?, table).await?;
    }
    try_join_all((0..readers).map(|_| copy_chunks(context, &copy))).await?;
    copy.source.close().await?;
    Ok(())
}

async fn copy_chunks(context: Context<'_>, copy: &Copy<'_>) -> Result<(), Failure> {
    let reader = copy.source.reader().await?;
    let mut loader = copy.sink.loader().await?;
    while let Some(chunk) = copy.queue.next().await {
        let Some(table) = copy.tables.get(&chunk.table) else { continue };
        let steps = copy.transforms.of(table.id).map(AsRef::as_ref);
        let columns = CopyColumns::of(table, steps, |column| copy.sink.leaves_out(&table.name, column));
        let doing = format!("reading rows of {}", table.name);
        let format = table_format(table, copy.versions);
        let rows = reader
            .read(&chunk, &columns.source, format)
            .await?
            .map_err(|error| classify(End::Source, &error, &doing));
        let rows = match columns.mask(format) {
            None => Either::Left(rows),
            Some(mask) => Either::Right(masked(&table.name, mask, rows)),
        };
        let end = chunk.end().map(|(number, key)| ChunkEnd { number, key });
        let count = loader.load_chunk(&table.name, &columns.sink, format, end, rows).await?;
        context.status.snapshot(|progress| progress.rows_copied += count);
        context.metrics.snapshot_rows.inc_by(count);
        if copy.queue.copied(&chunk) {
            table_is_ready(context, copy, &mut loader, table).await?;
        }
    }
    reader.close().await;
    Ok(())
}

/// Rows whose values are masked; an error at the end where they end within a row.
fn masked(
    table: &TableName,
    mask: CopyMask,
    rows: impl Stream<Item = Result<Bytes, Failure>>,
) -> impl Stream<Item = Result<Bytes, Failure>> {
    let rows = rows.map_ok(Some).chain(stream::once(ready(Ok(None))));
    rows.scan(mask, move |mask, piece| {
        let masked = piece.and_then(|piece| {
            let masked = match piece {
                Some(piece) => mask.push(&piece),
                None => mask.finish().map(|()| Bytes::new()),
            };
            masked.map_err(|error| error.of(table))
        });
        ready(Some(masked))
    })
}

/// All rows of the table are there.
async fn table_is_ready(
    context: Context<'_>,
    copy: &Copy<'_>,
    loader: &mut Loader,
    table: &SourceTable,
) -> Result<(), Failure> {
    copy.source.prove(table).await?;
    loader.mark_ready(&table.name, copy.at).await?;
    context.status.snapshot(|progress| progress.tables_copied += 1);
    Ok(())
}
