//! Source comparison: is the sink what the source was at one position of the stream? Neither is stopped.
//!
//! A temporary slot gives a snapshot of the source, P. A barrier behind it, B, gives a snapshot of each shard's sink.
//! Between the two lie few transactions; the slot says which keys they changed. So at B the sink must hold the rows of
//! P, but for those keys, which must be as the slot said last.
//!
//! Like `pipeline.rs` this joins source and sink; it shares no state with a worker that runs.

mod attempt;
mod cell;
mod changes;
mod pairs;
mod revisions;
mod side;
mod since;
mod subject;
mod summary;
mod sums;
mod table;
mod verdict;
mod window;

use std::collections::BTreeMap;
use std::time::Duration;

use penstock_crds::table_pattern::TablePattern;
use tokio_util::sync::CancellationToken;

pub use self::revisions::compare_revisions;
pub(crate) use self::revisions::emit_barrier;
pub(crate) use self::since::Since;
pub use self::verdict::{Comparison, Difference, Kind, TableResult, Values, Verdict};
use crate::change::table::TableName;
use crate::failure::Failure;
use crate::settings::Pipeline;

/// Barriers that one comparison uses at most: for tables that cannot be compared at the first.
const BARRIERS_MAX: u32 = 3;

/// What is to be compared.
#[derive(Clone, Debug)]
pub struct Request {
    /// Tables of the source; all when empty.
    pub tables: Vec<TablePattern>,
    /// Differing rows that are named.
    pub limit: usize,
    /// Name their values, too.
    pub has_values: bool,
    /// Columns that two revisions may have different values in.
    pub leave_out: Vec<String>,
    /// Sessions at each end.
    pub sessions: usize,
    /// How long the source may take to make a slot, and the shards to meet the barrier.
    pub patience: Duration,
    /// Nobody waits for it any more: what would outlive its connections is ended.
    pub stop: CancellationToken,
}

/// How one barrier ended.
enum Round {
    /// Tables were compared; those of the map may be at another barrier.
    Compared(Vec<(TableResult, Vec<Difference>)>, BTreeMap<TableName, TableResult>),
    /// The barrier was of no use.
    Void(String),
}

/// Compares the sink with the source.
///
/// # Errors
/// Nothing could be compared: the manifest is not valid, an end does not answer or refuses, no worker meets the
/// barrier. Whoever asked knows nothing then.
pub async fn compare(pipeline: &Pipeline, request: &Request) -> Result<Comparison, Failure> {
    let mut settled: BTreeMap<String, (TableResult, Vec<Difference>)> = BTreeMap::new();
    let mut open: Option<BTreeMap<TableName, TableResult>> = None;
    let mut void = String::new();
    for _ in 0..BARRIERS_MAX {
        let only = open.as_ref().map(|open| open.keys().cloned().collect());
        let round = attempt::attempt(pipeline, request, only.as_ref()).await;
        match (round, &mut open) {
            (Ok(Round::Compared(done, unsettled)), _) => {
                for (table, differences) in done {
                    settled.insert(table.table.clone(), (table, differences));
                }
                let is_done = unsettled.is_empty();
                open = Some(unsettled);
                if is_done {
                    break;
                }
            }
            (Ok(Round::Void(why)), _) => {
                tracing::info!("the barrier is void: {why}");
                void = why;
            }
            (Err(failure), None) => return Err(failure),
            (Err(failure), Some(open)) => {
                for table in open.values_mut() {
                    table.reason = Some(failure.message.clone());
                }
                break;
            }
        }
    }
    let Some(open) = open else {
        let message = format!("No barrier could be used, {BARRIERS_MAX} times; the last time {void}.");
        return Err(Failure::new(penstock_crds::report::Reason::SinkUnreachable, message));
    };
    for table in open.into_values() {
        settled.insert(table.table.clone(), (table, Vec::new()));
    }
    let (tables, differences): (Vec<_>, Vec<_>) = settled.into_values().unzip();
    let differences = differences.into_iter().flatten().take(request.limit).collect();
    Ok(Comparison::new(tables, differences))
}
