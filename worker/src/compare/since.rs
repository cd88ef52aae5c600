//! What changed since two lineages were compared: those rows are compared again while both stand still at a hold, so that
//! nothing between the comparison and the exchange is left out.
//!
//! Which rows these are the source's own log says, read from a temporary slot that is older than the comparison's barrier.

use std::collections::BTreeMap;

use penstock_crds::report::Reason;
use penstock_crds::table_pattern::TablePattern;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::Request;
use super::changes::{Changes, TableChanges};
use super::pairs::{Circumstances, Pair, pair};
use super::side::{Side, Unsettled};
use super::subject::Hashing;
use super::table::{self, Ends};
use super::verdict::{Between, Comparison, Difference, TableResult};
use super::window;
use crate::change::table::TableName;
use crate::change::{Lsn, RelationId};
use crate::failure::Failure;
use crate::postgres::End;
use crate::settings::Pipeline;
use crate::sink::{self, BarrierId, LineageFacts, TableAtBarrier};
use crate::source::{self, Durability, PublicationName, SlotName};
use crate::transform::Transforms;

/// The rows that change at the source, until it comes to a hold.
pub(crate) struct Since {
    pairs: BTreeMap<RelationId, Pair>,
    /// Where the stable lineage has each table.
    stable: BTreeMap<TableName, TableAtBarrier>,
    log: AbortOnDropHandle<Result<(Changes, Lsn), Failure>>,
}

impl Since {
    /// Begins to follow the source. Tables of the source that the canary does not have are left out: they are none of the
    /// exchange's.
    ///
    /// # Errors
    /// The source does not answer, refuses, or takes too long to give a snapshot.
    pub(crate) async fn begin(
        pipeline: &Pipeline,
        request: &Request,
        (stable, canary): (&LineageFacts, &LineageFacts),
        hold: &BarrierId,
    ) -> Result<Self, Failure> {
        let endpoint = &pipeline.source;
        let slot = SlotName::of_comparison(&canary.names_uid, rand::random());
        let exported = timeout(request.patience, source::create_slot(endpoint, &slot, Durability::Temporary));
        let exported = exported.await.map_err(|_| {
            let message = format!(
                "The source has not given a snapshot within {} s: a transaction that began before is still open; --timeout waits \
                 longer.",
                request.patience.as_secs()
            );
            Failure::new(Reason::SourceUnreachable, message)
        })??;
        let session = Side::new(End::Source, endpoint.clone(), exported.open_sessions(endpoint, 1).await?);
        let spec = &pipeline.manifest.spec.source.postgres;
        let patterns = spec.tables.iter().map(|table| table.parse::<TablePattern>());
        let patterns = patterns.collect::<Result<Vec<_>, _>>();
        let patterns = patterns.map_err(|error| Failure::new(Reason::ManifestInvalid, error.to_string()))?;
        let inspection = source::preflight(session.session()?, spec, &patterns).await?;
        let at_canary = tables_now(pipeline, canary).await?;
        let stable_tables = tables_now(pipeline, stable).await?.into_values().flatten();
        // Only which rows changed is asked for, not what they hold.
        let circumstances = Circumstances { source_major: 0, sink_major: 0, may_leave_out: true };
        let keys = pipeline.mask_keys().await?;
        let transforms = Transforms::new(&pipeline.transforms, &keys, &inspection.tables, &BTreeMap::new())?;
        let (pairs, unknown) = pair(&inspection.tables, &transforms, |_| true, &at_canary, circumstances);
        if let Some(TableResult { table, reason: Some(why), .. }) = unknown.into_iter().next() {
            return Err(Failure::new(
                Reason::SinkDiverged,
                format!("The table {table} cannot be compared: {why}."),
            ));
        }
        let publication = match &spec.publication {
            Some(given) => PublicationName::given(given),
            None => PublicationName::of_pipeline(&canary.names_uid),
        };
        let log = exported.follow(&publication).await?;
        let (barrier, watched) = (hold.clone(), pairs.clone());
        let log = tokio::spawn(async move { window::read(log, &barrier, &watched).await });
        let stable = stable_tables.map(|table| (table.source.clone(), table)).collect();
        Ok(Self { pairs, stable, log: AbortOnDropHandle::new(log) })
    }

    /// Compares what changed. Both lineages stand still at the hold, and the source's log has come to it.
    ///
    /// # Errors
    /// `SinkDiverged`: too much changed, or a table was truncated or altered. An end does not answer.
    pub(crate) async fn compare(self, pipeline: &Pipeline, request: &Request) -> Result<Comparison, Failure> {
        let Self { pairs, stable, log } = self;
        let (mut changes, position) = log.await.map_err(|error| {
            Failure::new(Reason::SourceUnreachable, format!("Reading the source's log broke off: {error}."))
        })??;
        let side = async || -> Result<Side, Failure> {
            let sessions = sink::open_now(&pipeline.sink, request.sessions).await?;
            Ok(Side::new(End::Sink, pipeline.sink.clone(), sessions))
        };
        let (one, other) = tokio::try_join!(side(), side())?;
        let hashing = Hashing { row_seed: rand::random(), key_seed: rand::random(), is_same_encoding: true };
        let (mut tables, mut differences) = (Vec::new(), Vec::new());
        for (id, pair) in &pairs {
            let since = changes.take(*id);
            if since.is_empty() {
                continue;
            }
            let Some(stable) = stable.get(&pair.subject.name) else { continue };
            let ends = Ends {
                source: &one,
                sink: &other,
                hashing,
                limit: request.limit,
                has_values: request.has_values,
                position: position.to_string(),
                is_source_partitioned: stable.is_partitioned,
                is_sink_partitioned: pair.is_sink_partitioned,
            };
            let (table, found) = compare_table(&ends, pair, stable, (since, &request.leave_out)).await?;
            tables.push(table);
            differences.extend::<Vec<Difference>>(found);
        }
        one.close().await;
        other.close().await;
        Ok(Comparison::new(tables, differences).between(Between::Revisions))
    }
}

/// The rows that changed, by their keys; all, where rows have none.
async fn compare_table(
    ends: &Ends<'_>,
    pair: &Pair,
    stable: &TableAtBarrier,
    (since, leave_out): (TableChanges, &[String]),
) -> Result<(TableResult, Vec<Difference>), Failure> {
    let mut subject = pair.subject.clone();
    let is_at_both = |column: &String| stable.columns.contains(column) && !leave_out.contains(column);
    subject.columns.retain(is_at_both);
    if !subject.key.iter().all(is_at_both) {
        subject.key.clear();
    }
    (subject.name, subject.projection) = (stable.sink.clone(), None);
    let name = subject.name.to_string();
    let compared = match since.void {
        Some(why) => Err(Unsettled::Later(why)),
        None if subject.has_key() => {
            let keys: Vec<_> = since.rows.into_keys().collect();
            table::compare_keys(ends, &subject, &keys).await
        }
        None => table::compare(ends, &subject, TableChanges::default()).await,
    };
    compared.map_err(|why| match why {
        Unsettled::Failed(failure) => failure,
        Unsettled::Later(why) => {
            let message = format!(
                "What changed of {name} since it was compared cannot be compared again: {why}. Try again."
            );
            Failure::new(Reason::SinkDiverged, message)
        }
    })
}

/// The tables of a lineage, by shard. Whether their rows are all there is asked at the barrier, where it can be known.
async fn tables_now(
    pipeline: &Pipeline,
    lineage: &LineageFacts,
) -> Result<BTreeMap<u16, Vec<TableAtBarrier>>, Failure> {
    let sessions = sink::open_now(&pipeline.sink, 1).await?;
    let side = Side::new(End::Sink, pipeline.sink.clone(), sessions);
    let mut tables = BTreeMap::new();
    for shard in 0..lineage.shards {
        let found = sink::tables_at_barrier(side.session()?, &lineage.key, shard).await?;
        tables.insert(
            shard,
            found.into_iter().map(|table| TableAtBarrier { is_followed: true, ..table }).collect(),
        );
    }
    side.close().await;
    Ok(tables)
}
