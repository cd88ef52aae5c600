//! One barrier: snapshots of both ends, what changed between them, and the tables one after another.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use penstock_crds::report::Reason;
use penstock_crds::spec::SchemaChanges;
use penstock_crds::table_pattern::TablePattern;
use tokio::time::{sleep, timeout};

use super::changes::Changes;
use super::pairs::{Circumstances, Pair, pair};
use super::side::{Side, Unsettled};
use super::subject::Hashing;
use super::table::{self, Ends};
use super::verdict::{Difference, TableResult};
use super::{Request, Round, window};
use crate::change::table::TableName;
use crate::change::{Lsn, PublishedAs, RelationId};
use crate::failure::Failure;
use crate::postgres::{End, Session};
use crate::settings::Pipeline;
use crate::sink::{self, Arrival, BARRIER_PREFIX, BarrierId, BarrierKind, Registration};
use crate::source::{self, Durability, ExportedSnapshot, Inspection, PublicationName, SlotName};
use crate::transform::{self, Transforms};

pub(super) const LOOK_FOR_ARRIVALS_EVERY: Duration = Duration::from_millis(50);

/// Both ends, open.
struct Opened {
    exported: ExportedSnapshot,
    source: Side,
    inspection: Inspection,
    /// By shard.
    sinks: BTreeMap<u16, Side>,
    /// Where the shards met the barrier.
    commits: Vec<Lsn>,
}

/// Compares what can be compared at one barrier; of `only` these tables, if it is given.
pub(super) async fn attempt(
    pipeline: &Pipeline,
    request: &Request,
    only: Option<&BTreeSet<TableName>>,
) -> Result<Round, Failure> {
    // 1. The barrier is known before it is in the log.
    let registration = {
        let (kind, id) = (BarrierKind::Comparison, BarrierId::new(pipeline.lineage.key()));
        sink::register(&pipeline.sink, id, kind, sink::LEASE).await?
    };
    let (barrier, publication) = (registration.id.clone(), publication(pipeline, &registration));
    // 2. Both ends. Once they are open the shards need not keep theirs any longer; nor if they could not be.
    let opened = open_ends(pipeline, request, &registration).await;
    let ended = registration.end().await;
    let Opened { exported, source, inspection, sinks, commits } = match opened? {
        Ok(opened) => opened,
        Err(why) => return Ok(Round::Void(why)),
    };
    ended?;
    // 3. Which table is which, and what changed between snapshot and barrier.
    let (hashing, circumstances) = hashing(pipeline, &source, &sinks).await?;
    let mut shards = BTreeMap::new();
    for (shard, side) in &sinks {
        shards
            .insert(*shard, sink::tables_at_barrier(side.session()?, pipeline.lineage.key(), *shard).await?);
    }
    let is_meant = |name: &TableName| {
        let is_named = |pattern: &TablePattern| pattern.matches(&name.schema, &name.name);
        only.map_or_else(
            || request.tables.is_empty() || request.tables.iter().any(is_named),
            |only| only.contains(name),
        )
    };
    let keys = pipeline.mask_keys().await?;
    source.set(&transform::settings(&keys)).await?;
    let transforms = Transforms::new(&pipeline.transforms, &keys, &inspection.tables, &BTreeMap::new())?;
    let (pairs, unknown) = pair(&inspection.tables, &transforms, is_meant, &shards, circumstances);
    if pairs.is_empty() && unknown.is_empty() {
        return Err(nothing_meant(&inspection));
    }
    let carried = source::carried_tables(source.session()?, &publication, &inspection.tables).await?;
    let log = exported.follow(&publication).await?;
    let read = timeout(request.patience, window::read(log, &barrier, &pairs)).await;
    let (changes, commit) = read.map_err(|_| late("has not sent its log up to the barrier", request))??;
    if commits.iter().any(|met| *met != commit) {
        return Ok(Round::Void("a shard met the barrier somewhere else".into()));
    }
    let still_carried = carried_now(pipeline, &publication, &inspection).await?;
    let is_carried = |name: &TableName| {
        let entry = carried.get(name);
        entry.is_some() && entry == still_carried.get(name)
    };
    // 4. The tables.
    let ends = BothEnds { source: &source, sinks: &sinks, hashing, position: commit.to_string() };
    let (mut done, unsettled) = compare_tables(&ends, request, &pairs, changes, is_carried).await;
    done.extend(unknown.into_iter().map(|table| (table, Vec::new())));
    Ok(Round::Compared(done, unsettled))
}

struct BothEnds<'a> {
    source: &'a Side,
    sinks: &'a BTreeMap<u16, Side>,
    hashing: Hashing,
    position: String,
}

/// One table after another: those that were compared, and those that cannot be at this barrier.
async fn compare_tables(
    both: &BothEnds<'_>,
    request: &Request,
    pairs: &BTreeMap<RelationId, Pair>,
    mut changes: Changes,
    is_carried: impl Fn(&TableName) -> bool,
) -> (Vec<(TableResult, Vec<Difference>)>, BTreeMap<TableName, TableResult>) {
    let (mut done, mut unsettled, mut named) = (Vec::new(), BTreeMap::new(), 0);
    for (id, pair) in by_name(pairs) {
        let subject = &pair.subject;
        let Some(sink) = both.sinks.get(&subject.shard) else { continue };
        let ends = Ends {
            source: both.source,
            sink,
            hashing: both.hashing,
            limit: request.limit.saturating_sub(named),
            has_values: request.has_values,
            position: both.position.clone(),
            is_source_partitioned: pair.is_source_partitioned,
            is_sink_partitioned: pair.is_sink_partitioned,
        };
        let compared = if is_carried(&subject.name) {
            table::compare(&ends, subject, changes.take(*id)).await
        } else {
            Err(Unsettled::Later("the publication does not carry every change of it".into()))
        };
        match compared {
            Ok((table, differences)) => {
                named += differences.len();
                done.push((table, differences));
            }
            Err(Unsettled::Later(why) | Unsettled::Failed(Failure { message: why, .. })) => {
                tracing::info!(table = %subject.name, "not compared at this barrier: {why}");
                let table = TableResult::unknown(subject.name.to_string(), subject.sink.to_string(), why);
                unsettled.insert(subject.name.clone(), table);
            }
        }
    }
    (done, unsettled)
}

/// The source at the snapshot, the barrier right behind it, and every shard's sink at the barrier; or why the barrier is
/// of no use.
async fn open_ends(
    pipeline: &Pipeline,
    request: &Request,
    registration: &Registration,
) -> Result<Result<Opened, String>, Failure> {
    let (exported, source) = open_source(pipeline, request, registration).await?;
    let inspection = inspect(pipeline, &source, registration).await?;
    let arrivals = wait_for_arrivals(request, registration).await?;
    let Some(sinks) = open_sinks(pipeline, request, registration, &arrivals).await? else {
        return Ok(Err(void_reason(&arrivals)));
    };
    let commit = |arrival: &Arrival| match arrival {
        Arrival::Held { commit_lsn, .. } => Some(*commit_lsn),
        Arrival::Void(_) => None,
    };
    let commits = arrivals.values().filter_map(commit).collect();
    Ok(Ok(Opened { exported, source, inspection, sinks, commits }))
}

/// What the publication carries, outside the snapshot: what it left out for a while is in neither stream.
async fn carried_now(
    pipeline: &Pipeline,
    publication: &PublicationName,
    inspection: &Inspection,
) -> Result<BTreeMap<TableName, PublishedAs>, Failure> {
    let endpoint = &pipeline.source;
    let session = endpoint
        .connect("penstock compare")
        .await
        .map_err(|error| error.failure(End::Source, &endpoint.connection))?;
    let carried = source::carried_tables(&session, publication, &inspection.tables).await?;
    session.close().await;
    Ok(carried)
}

fn by_name(pairs: &BTreeMap<RelationId, Pair>) -> Vec<(&RelationId, &Pair)> {
    let mut pairs: Vec<_> = pairs.iter().collect();
    pairs.sort_by(|(_, one), (_, other)| one.subject.name.cmp(&other.subject.name));
    pairs
}

fn publication(pipeline: &Pipeline, registration: &Registration) -> PublicationName {
    match &pipeline.manifest.spec.source.postgres.publication {
        Some(given) => PublicationName::given(given),
        None => PublicationName::of_pipeline(&registration.lineage.names_uid),
    }
}

/// The snapshot with its sessions, and the barrier right behind it: every transaction in between is one more to be
/// followed.
async fn open_source(
    pipeline: &Pipeline,
    request: &Request,
    registration: &Registration,
) -> Result<(ExportedSnapshot, Side), Failure> {
    let endpoint = &pipeline.source;
    let slot = SlotName::of_comparison(&registration.lineage.names_uid, rand::random());
    let emitter = endpoint
        .connect(slot.as_str())
        .await
        .map_err(|error| error.failure(End::Source, &endpoint.connection))?;
    let exported = tokio::select! {
        exported = source::create_slot(endpoint, &slot, Durability::Temporary) => Ok(exported?),
        () = sleep(request.patience) => {
            Err(late("has not given a snapshot: a transaction that began before is still open", request))
        }
        () = request.stop.cancelled() => {
            let message = "The comparison was asked to stop while the source made a snapshot.";
            Err(Failure::new(Reason::SourceUnreachable, message))
        }
    };
    let exported = match exported {
        Ok(exported) => exported,
        Err(failure) => {
            // The server waits on although nobody listens.
            source::end_stale_sessions(&emitter, &[&slot]).await?;
            return Err(failure);
        }
    };
    let sessions = exported.open_sessions(endpoint, request.sessions).await?;
    source::emit(&emitter, BARRIER_PREFIX, &registration.id.content()).await?;
    emitter.close().await;
    Ok((exported, Side::new(End::Source, endpoint.clone(), sessions)))
}

/// The tables as the snapshot knows them.
async fn inspect(
    pipeline: &Pipeline,
    source: &Side,
    registration: &Registration,
) -> Result<Inspection, Failure> {
    let spec = &pipeline.manifest.spec.source.postgres;
    let patterns =
        spec.tables.iter().map(|table| table.parse::<TablePattern>()).collect::<Result<Vec<_>, _>>();
    let patterns = patterns.map_err(|error| Failure::new(Reason::ManifestInvalid, error.to_string()))?;
    // Estimating rows locks a table; the lock would last as long as the transaction, and a TRUNCATE would wait for it.
    let session = source.session()?;
    let failed = |error: tokio_postgres::Error| source.failed(&error, "looking at its tables");
    session.batch_execute("SAVEPOINT inspection").await.map_err(failed)?;
    let inspection = source::preflight(session, spec, &patterns).await?;
    let release = "ROLLBACK TO SAVEPOINT inspection; RELEASE SAVEPOINT inspection";
    session.batch_execute(release).await.map_err(failed)?;
    if inspection.identity.system_id != registration.lineage.source_system_id {
        let message = format!(
            "The source is another server (system identifier {}) than the one that the sink's rows come from ({}). Set \
             source.postgres.connection back to that one.",
            inspection.identity.system_id, registration.lineage.source_system_id
        );
        return Err(Failure::new(Reason::SourceChanged, message));
    }
    Ok(inspection)
}

/// What every shard says of the barrier.
async fn wait_for_arrivals(
    request: &Request,
    registration: &Registration,
) -> Result<BTreeMap<u16, Arrival>, Failure> {
    let shards = registration.lineage.shards;
    let began = Instant::now();
    loop {
        let arrivals = registration.arrivals(&registration.lineage).await?;
        let is_void = arrivals.values().any(|arrival| matches!(arrival, Arrival::Void(_)));
        let missing: Vec<String> = (0..shards)
            .filter(|shard| !arrivals.contains_key(shard))
            .map(|shard| shard.to_string())
            .collect();
        if is_void || missing.is_empty() {
            return Ok(arrivals);
        }
        if began.elapsed() > request.patience {
            let message = format!(
                "The workers of shards {} have not met the barrier within {} s: they do not run, or are that far behind. Look at \
                 the pipeline's conditions and its lag; --timeout waits longer.",
                missing.join(", "),
                request.patience.as_secs()
            );
            return Err(Failure::new(Reason::SinkUnreachable, message));
        }
        sleep(LOOK_FOR_ARRIVALS_EVERY).await;
    }
}

fn void_reason(arrivals: &BTreeMap<u16, Arrival>) -> String {
    let reason = |(shard, arrival): (&u16, &Arrival)| match arrival {
        Arrival::Void(why) => Some(format!("shard {shard} could not open its snapshot ({why})")),
        Arrival::Held { .. } => None,
    };
    arrivals.iter().find_map(reason).unwrap_or_else(|| "a shard let its snapshot go".into())
}

/// Sessions at every shard's snapshot; `None` when one is of no use.
async fn open_sinks(
    pipeline: &Pipeline,
    request: &Request,
    registration: &Registration,
    arrivals: &BTreeMap<u16, Arrival>,
) -> Result<Option<BTreeMap<u16, Side>>, Failure> {
    let mut sinks = BTreeMap::new();
    for (shard, arrival) in arrivals {
        let Arrival::Held { snapshot, commit_lsn, sequence, .. } = arrival else { return Ok(None) };
        let opened = sink::open_at_barrier(&pipeline.sink, snapshot, request.sessions).await;
        let sessions = match opened {
            Ok(sessions) => sessions,
            Err(failure) => {
                tracing::debug!("{failure}");
                // A worker that ended took its snapshot along; a sink that is away says so again.
                registration.arrivals(&registration.lineage).await?;
                return Ok(None);
            }
        };
        let side = Side::new(End::Sink, pipeline.sink.clone(), sessions);
        let session = side.session()?;
        if !sink::is_at_barrier(session, &registration.lineage.key, *shard, *commit_lsn, *sequence).await? {
            return Ok(None);
        }
        sinks.insert(*shard, side);
    }
    Ok(Some(sinks))
}

/// How both ends hash alike.
async fn hashing(
    pipeline: &Pipeline,
    source: &Side,
    sinks: &BTreeMap<u16, Side>,
) -> Result<(Hashing, Circumstances), Failure> {
    let at_source = facts(source).await?;
    let mut sink_major = at_source.major;
    let mut is_same_encoding = true;
    for sink in sinks.values() {
        let at_sink = facts(sink).await?;
        sink_major = at_sink.major;
        is_same_encoding &= at_sink.encoding == at_source.encoding;
        if at_sink.probe != at_source.probe {
            let message = "Source and sink hash the same text to different numbers (processors of different byte order), so their rows \
                           cannot be compared by hashes.";
            return Err(Failure::new(Reason::SinkTableMismatch, message));
        }
    }
    let hashing = Hashing { row_seed: rand::random(), key_seed: rand::random(), is_same_encoding };
    let policy = pipeline.manifest.spec.sink.postgres.schema_changes;
    let circumstances = Circumstances {
        source_major: at_source.major,
        sink_major,
        may_leave_out: policy == SchemaChanges::Ignore,
    };
    Ok((hashing, circumstances))
}

struct Facts {
    probe: i64,
    encoding: String,
    major: u32,
}

async fn facts(side: &Side) -> Result<Facts, Failure> {
    let sql = "SELECT pg_catalog.hashtextextended('penstock compares 0123456789' COLLATE pg_catalog.\"C\", 42), \
               pg_catalog.current_setting('server_encoding'), pg_catalog.current_setting('server_version_num')::int8";
    let session: &Session = side.session()?;
    let doing = "asking how it hashes";
    let row = session.query_one(sql, &[]).await.map_err(|error| side.failed(&error, doing))?;
    let read = || {
        let number: i64 = row.try_get(2)?;
        let major = u32::try_from(number / 10_000).unwrap_or_default();
        Ok(Facts { probe: row.try_get(0)?, encoding: row.try_get(1)?, major })
    };
    read().map_err(|error| side.failed(&error, doing))
}

fn late(what: &str, request: &Request) -> Failure {
    let seconds = request.patience.as_secs();
    let message = format!("The source {what}, after {seconds} s; --timeout waits longer.");
    Failure::new(Reason::SourceUnreachable, message)
}

fn nothing_meant(inspection: &Inspection) -> Failure {
    let tables: Vec<String> = inspection.tables.iter().map(|table| table.name.to_string()).collect();
    let message = format!("No table of the pipeline is meant; it has {}.", tables.join(", "));
    Failure::new(Reason::ManifestInvalid, message)
}
