//! Step 9: the changes, until the worker is asked to stop.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use penstock_crds::report::{Reason, WorkerPhase};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::task::AbortOnDropHandle;

use super::apply::{Applier, Bounds, Ends};
use super::decided::log_of;
use super::heartbeat::{Due, recognise};
use super::ranges::Ranges;
use super::shapes::{ShapeKeeper, explain_refusal};
use super::start::Fenced;
use super::watch::{Announcer, Ended as WatchEnded, watch_source};
use super::{Context, Ended, Ready};
use crate::change::table::TableName;
use crate::change::{Lsn, RelationId, TableShape};
use crate::failure::Failure;
use crate::source::{self, SlotName, StreamRequest};

/// Frames read ahead of the sink.
const READ_AHEAD_BYTES: usize = 8 << 20;
/// How long a stop waits for the end of the source transaction that is being applied.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// How often the sink hears of a transaction that waits for the rest of the source's; it ends one after 60 s.
const KEEP_OPEN_EVERY: Duration = Duration::from_secs(15);

pub(super) async fn stream(context: Context<'_>, ready: Ready) -> Result<Ended, Failure> {
    let Ready { mut volume, mut fenced, checkpoint, from, tables, ranges, assigned, transforms } = ready;
    let settings = context.settings;
    let request = StreamRequest {
        slot: fenced.slot.clone(),
        publication: fenced.publication.clone(),
        start: from.start,
        identity: fenced.identity.clone(),
        format: fenced.stream_format,
        capacity_bytes: READ_AHEAD_BYTES,
    };
    let writer = fenced.sink.writer(checkpoint.sequence).await?;
    let reader = source::spawn_reader(settings.pipeline.source.clone(), request);
    let (status, metrics, heartbeat_due) = (context.status, context.metrics, Due::default());
    let ends = Ends {
        heartbeat_due: heartbeat_due.clone(),
        reader,
        writer,
        barriers: fenced.sink.barriers(),
        volume: &mut volume,
        status,
        metrics,
    };
    let slot = SlotName::of_later_copy(&fenced.started.names_uid, settings.shard);
    let range_reader = source::spawn_range_reader(settings.pipeline.source.clone(), slot);
    let ranges = Ranges::new(range_reader, ranges);
    let own: Vec<TableName> = assigned.tables.iter().map(|table| table.name.clone()).collect();
    let known = followed_shapes(&fenced, &own).await?;
    let (announce, announced) = mpsc::unbounded_channel();
    let shapes = ShapeKeeper::new(context, known.clone(), Arc::clone(&transforms), announced);
    let mut applier = Applier::new(ends, (checkpoint, from.start), tables, ranges, shapes, &bounds(context));
    context.status.durable(checkpoint.sequence, checkpoint.end_lsn, None);
    let first = match recognise(context, &mut fenced, &mut applier.ends.reader, from.mark).await {
        Ok(Some(first)) => first,
        Ok(None) => return Ok(Ended::Stopped),
        Err(failure) => return Err(noted(&mut fenced, failure).await?),
    };
    if is_mark_behind(&fenced).await? {
        heartbeat_due.set();
    }
    let watched = Announcer::new(known, transforms, announce);
    let mut watch = watch_source(context, &fenced, assigned.followed, watched, heartbeat_due)?;
    context.status.enter(WorkerPhase::Streaming);
    tracing::info!(lsn = %checkpoint.end_lsn, sequence = checkpoint.sequence, "streaming");
    fenced.sink.no_dead_end().await?;
    applier.begin_ranges();
    let run = async {
        for frame in first {
            applier.take(frame).await?;
            if applier.tables_are_exchanged {
                return Ok(Ended::TablesExchanged);
            }
        }
        apply_until_stopped(context, &mut applier, &mut watch).await
    };
    match run.await {
        Ok(ended) => {
            applier.close().await;
            Ok(ended)
        }
        Err(failure) => {
            drop(applier);
            let failure = noted(&mut fenced, failure).await?;
            Err(explain_refusal(context, &mut fenced, &own, failure).await)
        }
    }
}

/// Tables were copied at once, or the last run ended before its mark.
async fn is_mark_behind(fenced: &Fenced) -> Result<bool, Failure> {
    let marked = fenced.started.heartbeat.map_or(Lsn(0), |mark| mark.commit_lsn);
    Ok(fenced.sink.holds().await? > marked)
}

/// The shapes of the tables that are followed, as their rows are in the sink.
async fn followed_shapes(
    fenced: &Fenced,
    own: &[TableName],
) -> Result<HashMap<RelationId, TableShape>, Failure> {
    let recorded = fenced.sink.recorded().await?;
    let followed = recorded.into_iter().filter(|(name, recorded)| own.contains(name) && recorded.is_followed);
    Ok(followed.map(|(_, recorded)| (recorded.source, recorded.shape)).collect())
}

fn bounds(context: Context<'_>) -> Bounds {
    let batch = &context.settings.pipeline.manifest.spec.sink.postgres.batch;
    Bounds {
        max_rows: batch.max_rows,
        max_bytes: batch.max_bytes,
        max_delay: Duration::from_millis(u64::from(batch.max_delay_ms)),
        idle_advance: context.settings.idle_advance,
    }
}

/// Changes in the log belong to a publication that is gone: the source will never send them, though a new one of
/// that name is there.
async fn noted(fenced: &mut Fenced, failure: Failure) -> Result<Failure, Failure> {
    if failure.reason == Reason::PublicationUnsuitable {
        fenced.sink.note_dead_end(&failure, &log_of(fenced), None).await?;
    }
    Ok(failure)
}

async fn apply_until_stopped(
    context: Context<'_>,
    applier: &mut Applier<'_>,
    watch: &mut AbortOnDropHandle<WatchEnded>,
) -> Result<Ended, Failure> {
    let far = Duration::from_hours(1);
    let timer = tokio::time::sleep(far);
    tokio::pin!(timer);
    let mut keep_open = tokio::time::interval(KEEP_OPEN_EVERY);
    keep_open.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stop_by: Option<Instant> = None;
    loop {
        if applier.tables_are_exchanged {
            return Ok(Ended::TablesExchanged);
        }
        if stop_by.is_some() && applier.is_between_transactions() {
            return applier.commit().await.map(|()| Ended::Stopped);
        }
        let due = applier.commit_due().or(stop_by).unwrap_or_else(|| Instant::now() + far);
        timer.as_mut().reset(due.into());
        tokio::select! {
            biased;
            () = context.stop.cancelled(), if stop_by.is_none() => stop_by = Some(Instant::now() + STOP_PATIENCE),
            () = &mut timer => {
                if stop_by.is_some_and(|by| by <= Instant::now()) {
                    tracing::warn!("the source transaction under way is too long to wait for; it is applied after the next start");
                    return Ok(Ended::Stopped);
                }
                applier.commit().await?;
            }
            found = &mut *watch => {
                let WatchEnded { failure, lost } = found.unwrap_or_else(|error| watch_broke(&error).into());
                for table in &lost {
                    applier.ends.writer.copy_again(table).await?;
                }
                return Err(failure);
            }
            answer = applier.ranges.next() => applier.take_answer(answer?),
            _ = keep_open.tick(), if applier.is_writing() => applier.ends.writer.keep_open().await?,
            frame = applier.ends.reader.next() => applier.take(frame?).await?,
        }
    }
}

fn watch_broke(error: &tokio::task::JoinError) -> Failure {
    Failure::new(
        Reason::TablesChanged,
        format!("The watch on the source's tables ended: {error}. It begins anew."),
    )
}
