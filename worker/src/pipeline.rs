//! One attempt to run a shard, from connecting to streaming. A table of contents: the only file that names
//! every stage. Whatever fails ends the attempt; the next one begins at step 1.

mod apply;
mod barrier;
mod chunks;
mod copy;
mod decided;
mod followed;
mod heartbeat;
mod land;
mod names;
mod ranges;
mod shapes;
mod silence;
mod start;
mod steps;
mod stream;
mod transaction;
mod watch;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use self::decided::Start;
use self::followed::FollowedTables;
use self::heartbeat::ReadFrom;
use self::ranges::RangeTable;
use self::start::{Assigned, Fenced};
use crate::change::Checkpoint;
use crate::checkpoint::Volume;
use crate::failure::Failure;
use crate::serve::Metrics;
use crate::settings::Settings;
use crate::sink::Decision;
use crate::status::Status;
use crate::transform::Transforms;

/// What every step needs.
#[derive(Clone, Copy)]
struct Context<'a> {
    settings: &'a Settings,
    status: &'a Status,
    metrics: &'a Metrics,
    stop: &'a CancellationToken,
}

/// Runs the shard until `stop` is cancelled.
///
/// # Errors
/// Whatever ended the attempt; its policy says what happens next.
pub async fn run(
    settings: &Settings,
    status: &Status,
    metrics: &Metrics,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let context = Context { settings, status, metrics, stop };
    while let Ended::TablesExchanged =
        silence::unless_sink_is_silent(context, Box::pin(attempt(context))).await?
    {}
    Ok(())
}

/// How an attempt ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// It was asked to stop.
    Stopped,
    /// The lineage's tables are other ones now: the next attempt begins at once.
    TablesExchanged,
}

async fn attempt(context: Context<'_>) -> Result<Ended, Failure> {
    // Until rows are streamed a stop is no different from a crash: nothing needs to be finished.
    let Some(ready) = context.stop.run_until_cancelled(prepare(context)).await else {
        return Ok(Ended::Stopped);
    };
    // 9. The changes.
    stream::stream(context, ready?).await
}

async fn prepare(context: Context<'_>) -> Result<Ready, Failure> {
    // 1. The volume: its identity, and a lock on it.
    let mut volume = start::open_volume(context)?;
    // 2. The source as it is: version, privileges, tables. Nothing is changed yet.
    let mut source = start::inspect_source(context).await?;
    // 3. The fence: from here on no other run of this shard commits anything.
    let mut fenced = start::fence(context, &source, &volume).await?;
    // 4. Slot, volume and sink agree on where to go on, or a person decided it.
    let beginning = start::reconcile(context, &source, &mut fenced, &volume).await?;
    // 5. The tables of this shard, and the publication that carries them.
    let assigned = start::assign(context, &mut source, &mut fenced).await?;
    // 6. The sink's tables, made or compared, and what happened to the source's since.
    let begins_anew = matches!(beginning, Start::Decided { decision: Decision::BeginAnew, .. });
    shapes::look_back(context, &source, &assigned, &mut fenced, begins_anew).await?;
    let states = copy::ensure_tables(context, &source, &assigned.tables, &mut fenced).await?;
    // 7. The position; from here on the source keeps its log for this shard.
    let mut resumed = start::begin(context, &source, &mut fenced, &mut volume, beginning).await?;
    // 8. The rows that are not there yet, but for those that can be copied while the stream runs.
    let (tables, ranges) =
        copy::copy_missing(context, &source, &assigned.tables, states, &mut fenced, &mut resumed).await?;
    // Nothing has moved the slot since step 4, but for a new one.
    let from = start::read_from(&source, &fenced, &resumed).await?;
    source.session.close().await;
    let (checkpoint, transforms) = (resumed.checkpoint, source.transforms);
    Ok(Ready { volume, fenced, checkpoint, from, tables, ranges, assigned, transforms })
}

/// Everything that the stream needs.
struct Ready {
    volume: Volume,
    fenced: Fenced,
    checkpoint: Checkpoint,
    from: ReadFrom,
    tables: FollowedTables,
    /// The tables that are copied while the stream runs.
    ranges: Vec<RangeTable>,
    assigned: Assigned,
    transforms: Arc<Transforms>,
}
