//! Comparison of two lineages of a pipeline: the tables of both as they are at one barrier, in the sink alone. Nothing is
//! changed between the two, so sums of all rows are all that is needed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use penstock_crds::report::Reason;
use penstock_crds::table_pattern::TablePattern;
use tokio::time::sleep;

use super::attempt::LOOK_FOR_ARRIVALS_EVERY;
use super::changes::TableChanges;
use super::side::{Side, Unsettled};
use super::subject::{Hashing, Subject};
use super::table::{self, Ends};
use super::verdict::{Between, Comparison, Difference, TableResult};
use super::{BARRIERS_MAX, Request};
use crate::change::Lsn;
use crate::change::table::TableName;
use crate::failure::Failure;
use crate::postgres::{End, Endpoint};
use crate::settings::Pipeline;
use crate::sink::{
    self, Arrival, BARRIER_PREFIX, BarrierId, BarrierKind, LineageFacts, Registration, TableAtBarrier,
};
use crate::source;

/// Both sides at a barrier.
struct Opened {
    stable: Lineage,
    other: Lineage,
    position: Lsn,
}

/// One side: its shards' sessions, and its tables with the shard of each.
struct Lineage {
    shards: BTreeMap<u16, Side>,
    tables: BTreeMap<TableName, (u16, TableAtBarrier)>,
}

/// Compares the tables of the pipeline's stable lineage with those of the one that is meant.
///
/// # Errors
/// Nothing could be compared: there is no such lineage, the sink does not answer or refuses, no worker meets the barrier.
pub async fn compare_revisions(pipeline: &Pipeline, request: &Request) -> Result<Comparison, Failure> {
    let mut void = String::new();
    for _ in 0..BARRIERS_MAX {
        match open(pipeline, request).await? {
            Ok(opened) => return compare(&opened, request).await,
            Err(why) => {
                tracing::info!("the barrier is void: {why}");
                void = why;
            }
        }
    }
    let message = format!("No barrier could be used, {BARRIERS_MAX} times; the last time {void}.");
    Err(Failure::new(Reason::SinkUnreachable, message))
}

/// Writes a registered barrier into the source's log.
///
/// # Errors
/// The source does not answer or refuses.
pub(crate) async fn emit_barrier(endpoint: &Endpoint, registration: &Registration) -> Result<(), Failure> {
    let session = endpoint
        .connect("penstock barrier")
        .await
        .map_err(|error| error.failure(End::Source, &endpoint.connection))?;
    source::emit(&session, BARRIER_PREFIX, &registration.id.content()).await?;
    session.close().await;
    Ok(())
}

async fn open(pipeline: &Pipeline, request: &Request) -> Result<Result<Opened, String>, Failure> {
    let uid = pipeline.lineage.uid();
    let registration =
        sink::register(&pipeline.sink, BarrierId::new(uid), BarrierKind::Revisions, sink::LEASE).await?;
    let opened = open_both(pipeline, request, &registration).await;
    let ended = registration.end().await;
    let opened = opened?;
    ended.map(|()| opened)
}

async fn open_both(
    pipeline: &Pipeline,
    request: &Request,
    registration: &Registration,
) -> Result<Result<Opened, String>, Failure> {
    let stable = &registration.lineage;
    let other = beside(pipeline, registration)?;
    emit_barrier(&pipeline.source, registration).await?;
    let (at_stable, at_other) =
        tokio::try_join!(wait_for(request, registration, stable), wait_for(request, registration, other))?;
    let positions: BTreeSet<Lsn> = at_stable
        .values()
        .chain(at_other.values())
        .filter_map(|arrival| match arrival {
            Arrival::Held { commit_lsn, .. } => Some(*commit_lsn),
            Arrival::Void(_) => None,
        })
        .collect();
    let Some(position) = positions.first().copied().filter(|_| positions.len() == 1) else {
        return Ok(Err("not all shards met the barrier at one place".into()));
    };
    let stable = open_lineage(pipeline, request, stable, &at_stable).await?;
    let other = open_lineage(pipeline, request, other, &at_other).await?;
    Ok(match (stable, other) {
        (Ok(stable), Ok(other)) => Ok(Opened { stable, other, position }),
        (Err(why), _) | (_, Err(why)) => Err(why),
    })
}

/// The lineage that is compared with the stable one.
fn beside<'a>(pipeline: &Pipeline, registration: &'a Registration) -> Result<&'a LineageFacts, Failure> {
    let is_meant = |other: &&LineageFacts| other.key == *pipeline.lineage.key();
    let meant = registration.others.iter().find(is_meant).or_else(|| {
        registration.others.first().filter(|_| registration.lineage.key == *pipeline.lineage.key())
    });
    meant.ok_or_else(|| {
        let message = format!(
            "The sink has no tables of {} beside those that readers know: no canary of that revision was run, or it is removed.",
            pipeline.lineage
        );
        Failure::new(Reason::ManifestInvalid, message)
    })
}

async fn wait_for(
    request: &Request,
    registration: &Registration,
    lineage: &LineageFacts,
) -> Result<BTreeMap<u16, Arrival>, Failure> {
    let began = Instant::now();
    loop {
        let arrivals = registration.arrivals(lineage).await?;
        let missing: Vec<String> = (0..lineage.shards)
            .filter(|shard| !arrivals.contains_key(shard))
            .map(|shard| shard.to_string())
            .collect();
        if missing.is_empty() || arrivals.values().any(|arrival| matches!(arrival, Arrival::Void(_))) {
            return Ok(arrivals);
        }
        if began.elapsed() > request.patience {
            let message = format!(
                "The workers of {} ({}), shards {}, have not met the barrier within {} s: they do not run, or are that far behind; \
                 --timeout waits longer.",
                lineage.key,
                lineage.role.word(),
                missing.join(", "),
                request.patience.as_secs()
            );
            return Err(Failure::new(Reason::SinkUnreachable, message));
        }
        sleep(LOOK_FOR_ARRIVALS_EVERY).await;
    }
}

/// A side at its shards' snapshots; or why the barrier is of no use.
async fn open_lineage(
    pipeline: &Pipeline,
    request: &Request,
    lineage: &LineageFacts,
    arrivals: &BTreeMap<u16, Arrival>,
) -> Result<Result<Lineage, String>, Failure> {
    let (mut shards, mut tables) = (BTreeMap::new(), BTreeMap::new());
    for (shard, arrival) in arrivals {
        let (snapshot, commit, sequence) = match arrival {
            Arrival::Held { snapshot, commit_lsn, sequence, .. } => (snapshot, *commit_lsn, *sequence),
            Arrival::Void(why) => {
                return Ok(Err(format!(
                    "shard {shard} of {} could not open its snapshot ({why})",
                    lineage.key
                )));
            }
        };
        let sessions = match sink::open_at_barrier(&pipeline.sink, snapshot, request.sessions).await {
            Ok(sessions) => sessions,
            Err(failure) => return Ok(Err(failure.message)),
        };
        let side = Side::new(End::Sink, pipeline.sink.clone(), sessions);
        if !sink::is_at_barrier(side.session()?, &lineage.key, *shard, commit, sequence).await? {
            return Ok(Err(format!("shard {shard} of {} is not at the barrier", lineage.key)));
        }
        for table in sink::tables_at_barrier(side.session()?, &lineage.key, *shard).await? {
            tables.insert(table.source.clone(), (*shard, table));
        }
        shards.insert(*shard, side);
    }
    Ok(Ok(Lineage { shards, tables }))
}

async fn compare(opened: &Opened, request: &Request) -> Result<Comparison, Failure> {
    let is_meant = |name: &TableName| {
        let is_named = |pattern: &TablePattern| pattern.matches(&name.schema, &name.name);
        request.tables.is_empty() || request.tables.iter().any(is_named)
    };
    let names: BTreeSet<&TableName> =
        opened.stable.tables.keys().chain(opened.other.tables.keys()).filter(|name| is_meant(name)).collect();
    let hashing = Hashing { row_seed: rand::random(), key_seed: rand::random(), is_same_encoding: true };
    let (mut tables, mut differences) = (Vec::new(), Vec::<Difference>::new());
    for name in names {
        let limit = request.limit.saturating_sub(differences.len());
        match compare_table(opened, name, hashing, (limit, request.has_values), &request.leave_out).await {
            Ok((table, found)) => {
                tables.push(table);
                differences.extend(found);
            }
            Err(why) => {
                let at = |lineage: &Lineage| {
                    lineage.tables.get(name).map_or_else(String::new, |(_, table)| table.sink.to_string())
                };
                tables.push(TableResult::unknown(at(&opened.stable), at(&opened.other), why));
            }
        }
    }
    Ok(Comparison::new(tables, differences).between(Between::Revisions))
}

async fn compare_table(
    opened: &Opened,
    name: &TableName,
    hashing: Hashing,
    (limit, has_values): (usize, bool),
    leave_out: &[String],
) -> Result<(TableResult, Vec<Difference>), String> {
    let (Some((shard, stable)), Some((other_shard, other))) =
        (opened.stable.tables.get(name), opened.other.tables.get(name))
    else {
        return Err("only one of the two has it".into());
    };
    if !stable.is_followed || !other.is_followed {
        return Err("its rows are being copied, or are to be copied again".into());
    }
    let sides = (opened.stable.shards.get(shard), opened.other.shards.get(other_shard));
    let (Some(source), Some(sink)) = sides else { return Err("its shard has no snapshot".into()) };
    let is_compared = |column: &String| other.columns.contains(column) && !leave_out.contains(column);
    let (columns, mut left_out): (Vec<String>, Vec<String>) =
        stable.columns.iter().cloned().partition(is_compared);
    left_out.extend(other.columns.iter().filter(|column| !stable.columns.contains(column)).cloned());
    let session = source.session().map_err(|failure| failure.message)?;
    let key = sink::key_at_barrier(session, &stable.sink).await.map_err(|failure| failure.message)?;
    let subject = Subject {
        name: stable.sink.clone(),
        sink: other.sink.clone(),
        shard: *shard,
        key: if key.columns.iter().all(|column| columns.contains(column)) { key.columns } else { Vec::new() },
        columns,
        projection: None,
        left_out,
        is_key_built_in: key.is_built_in,
        estimated_rows: key.estimated_rows,
    };
    let ends = Ends {
        source,
        sink,
        hashing,
        limit,
        has_values,
        position: opened.position.to_string(),
        is_source_partitioned: stable.is_partitioned,
        is_sink_partitioned: other.is_partitioned,
    };
    match table::compare(&ends, &subject, TableChanges::default()).await {
        Ok(found) => Ok(found),
        Err(Unsettled::Later(why) | Unsettled::Failed(Failure { message: why, .. })) => Err(why),
    }
}
