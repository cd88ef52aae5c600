//! Steps 1 to 5, and 7: from two addresses to an agreed position.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use penstock_crds::names::ANNOTATION_ADOPT;
use penstock_crds::report::Reason;
use penstock_crds::table_pattern::TablePattern;

use super::Context;
use super::decided::{self, Start};
use super::heartbeat::ReadFrom;
use crate::change::table::{SourceTable, TableName};
use crate::change::travel::{self, Format, Versions};
use crate::change::{Checkpoint, LogIdentity, Position, PublishedAs, RelationId, SourceIdentity};
use crate::checkpoint::{self, Beginning, Identity, Known, KnownSource, Record, Volume};
use crate::failure::Failure;
use crate::postgres::{End, Session, classify};
use crate::sink::{self, Owner, Sink, Started, TableMap};
use crate::source::{
    self, Durability, ExportedSnapshot, Followed, Inspection, PublicationName, Shapes, SlotName,
};
use crate::transform::Transforms;

/// The shard of each table.
type Shards = BTreeMap<TableName, u16>;
/// The entry of each table in the publication.
type Carried = BTreeMap<TableName, PublishedAs>;

/// How long a shard waits for shard 0 to write which tables are whose.
const ASSIGNMENT_PATIENCE: Duration = Duration::from_mins(1);
const ASSIGNMENT_POLL: Duration = Duration::from_millis(500);

/// The source as it was found, and a session on it.
pub(super) struct Source {
    pub(super) session: Session,
    pub(super) inspection: Inspection,
    /// Of the same tables at the same time.
    pub(super) shapes: Shapes,
    /// What is done to their rows.
    pub(super) transforms: Arc<Transforms>,
}

/// The fence is ours: no other run of this shard commits anything.
pub(super) struct Fenced {
    pub(super) sink: Sink,
    pub(super) started: Started,
    pub(super) identity: source::SourceIdentity,
    pub(super) slot: SlotName,
    pub(super) publication: PublicationName,
    pub(super) versions: Versions,
    /// Of all tables of the pipeline, those of other shards too: they are in the stream of this one.
    pub(super) stream_format: Format,
}

/// Which tables are whose.
pub(super) struct Assigned {
    /// Those of this shard.
    pub(super) tables: Vec<SourceTable>,
    /// Those that the watch looks at: for shard 0, which keeps the publication, all.
    pub(super) followed: Followed,
}

/// Where to go on.
pub(super) struct Resumed {
    pub(super) checkpoint: Checkpoint,
    /// The first load's snapshot, while the slot is new.
    pub(super) exported: Option<ExportedSnapshot>,
}

/// Step 1.
pub(super) fn open_volume(context: Context<'_>) -> Result<Volume, Failure> {
    let settings = context.settings;
    let identity = Identity { uid: settings.pipeline.lineage.key().clone(), shard: settings.shard };
    let volume = tokio::task::block_in_place(|| Volume::open(&settings.state_dir, &identity))?;
    if let Some(file) = volume.set_aside() {
        tracing::warn!(file = %file.display(), "the checkpoint on the volume was damaged and is set aside");
    }
    Ok(volume)
}

/// Step 2.
pub(super) async fn inspect_source(context: Context<'_>) -> Result<Source, Failure> {
    let settings = context.settings;
    let endpoint = &settings.pipeline.source;
    let spec = &settings.pipeline.manifest.spec.source.postgres;
    let patterns = patterns(context)?;
    let session = endpoint
        .connect("penstock")
        .await
        .map_err(|error| error.failure(End::Source, &endpoint.connection))?;
    context.status.reached(End::Source);
    // All of it at one moment.
    let doing = "inspecting its tables";
    let error = |error: tokio_postgres::Error| classify(End::Source, &error, doing);
    session.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.map_err(error)?;
    let inspection = source::preflight(&session, spec, &patterns).await?;
    let ids: Vec<RelationId> = inspection.tables.iter().map(|table| table.id).collect();
    let mut shapes = source::shapes(&session, &ids).await?;
    session.batch_execute("COMMIT").await.map_err(error)?;
    let keys = settings.pipeline.mask_keys().await?;
    let transforms = Transforms::new(&settings.pipeline.transforms, &keys, &inspection.tables, &shapes)?;
    transforms.veil_all(&mut shapes);
    let source = Source { session, inspection, shapes, transforms: Arc::new(transforms) };
    super::shapes::check_inspection(&source)?;
    Ok(source)
}

/// The tables that the manifest names.
pub(super) fn patterns(context: Context<'_>) -> Result<Vec<TablePattern>, Failure> {
    let tables = &context.settings.pipeline.manifest.spec.source.postgres.tables;
    let parsed = tables.iter().map(|table| table.parse::<TablePattern>()).collect::<Result<_, _>>();
    parsed.map_err(|error| Failure::new(Reason::ManifestInvalid, error.to_string()))
}

/// Step 3.
pub(super) async fn fence(context: Context<'_>, source: &Source, volume: &Volume) -> Result<Fenced, Failure> {
    let settings = context.settings;
    let pipeline = &settings.pipeline;
    let owner = Owner {
        lineage: pipeline.lineage.clone(),
        namespace: pipeline.namespace.clone(),
        name: pipeline.name.clone(),
        revision: pipeline.revision.clone(),
        revision_number: settings.revision_number,
        shard: settings.shard,
        shards: pipeline.manifest.spec.worker.shards,
        volume_id: volume.id(),
        adopt: adopted_uid(context).map(str::to_owned),
    };
    let identity = source.inspection.identity.clone();
    let log = SourceIdentity {
        system_id: identity.system_id.clone(),
        timeline: identity.timeline,
        slot: SlotName::of_shard(pipeline.lineage.key(), settings.shard).as_str().to_owned(),
    };
    let tables = TableMap::new(pipeline.manifest.spec.sink.postgres.schema_map.clone())
        .renaming(source.transforms.names().clone());
    let (mut sink, started) = sink::start(pipeline.sink.clone(), owner, tables, &log).await?;
    context.status.reached(End::Sink);
    context.status.fenced(started.epoch, started.role.reported());
    context.status.decided(started.decisions);
    sink.act_as(pipeline.manifest.spec.sink.postgres.session_replication_role).await?;
    if let Some(revision) = &started.moved_from_revision {
        tracing::info!(from = revision, "going on where an older revision stopped");
    }
    let publication = match &pipeline.manifest.spec.source.postgres.publication {
        Some(given) => PublicationName::given(given),
        None => PublicationName::of_pipeline(&started.names_uid),
    };
    let slot = SlotName::of_shard(&started.names_uid, settings.shard);
    let versions = Versions { source: identity.server_version / 10_000, sink: sink.server_version / 10_000 };
    travel::check(&source.inspection.tables, versions)?;
    let stream_format = travel::stream_format(&source.inspection.tables, versions);
    context.status.reads(slot.as_str(), publication.as_str());
    Ok(Fenced { sink, started, identity, slot, publication, versions, stream_format })
}

/// Step 5: the tables of this shard. Shard 0 brings the publication up to date and then writes who has what; the
/// others wait for it.
///
/// The sink hears first of what the source is about to be told: a table that the publication does not carry is to be
/// copied again before it is put back, and forgotten before it is taken out. If this run ends in between, the next
/// one does not take rows for whole that are not. A new table is published before another shard may copy it.
pub(super) async fn assign(
    context: Context<'_>,
    source: &mut Source,
    fenced: &mut Fenced,
) -> Result<Assigned, Failure> {
    let shard = context.settings.shard;
    let (assignment, carried) = if shard == 0 {
        write_assignment(context, source, fenced).await?
    } else {
        wait_for_assignment(context, source, fenced).await?
    };
    source::refresh_entries(&source.session, &mut source.shapes).await?;
    let all = &source.inspection.tables;
    let tables: Vec<SourceTable> =
        all.iter().filter(|table| assignment.get(&table.name) == Some(&shard)).cloned().collect();
    let followed = Followed { tables: if shard == 0 { all.clone() } else { tables.clone() }, carried };
    Ok(Assigned { tables, followed })
}

async fn write_assignment(
    context: Context<'_>,
    source: &mut Source,
    fenced: &mut Fenced,
) -> Result<(Shards, Carried), Failure> {
    let spec = &context.settings.pipeline.manifest.spec;
    let is_managed = spec.source.postgres.publication.is_none();
    let Source { session, inspection, .. } = source;
    let tables = &inspection.tables;
    let known = fenced.sink.assignment().await?;
    let wanted = source::assign_shards(tables, spec.worker.shards, &known);
    let kept = wanted.iter().filter(|(name, _)| known.contains_key(name));
    fenced.sink.assign(&kept.map(|(name, shard)| (name.clone(), *shard)).collect()).await?;
    let before = fenced.sink.carried().await?;
    let carried = source::carried_tables(session, &fenced.publication, tables).await?;
    let lost = tables.iter().map(|table| &table.name).filter(|name| match carried.get(*name) {
        None => true,
        Some(entry) => before.get(*name).is_some_and(|before| entry.is_anew_since(*before)),
    });
    fenced.sink.copy_again(&lost.cloned().collect::<Vec<_>>()).await?;
    source::ensure_publication(session, &fenced.publication, tables, is_managed).await?;
    let now = source::carried_tables(session, &fenced.publication, tables).await?;
    // Taken out and put back by somebody else in the meantime.
    let is_other = |(name, entry): &(&TableName, &PublishedAs)| now.get(*name) != Some(*entry);
    let lost: Vec<TableName> = carried.iter().filter(is_other).map(|(name, _)| name.clone()).collect();
    fenced.sink.copy_again(&lost).await?;
    fenced.sink.assign(&wanted).await?;
    fenced.sink.note_carried(&now).await?;
    Ok((fenced.sink.assignment().await?, now))
}

/// Until shard 0 has written whose every table is, and the publication carries those of this shard.
async fn wait_for_assignment(
    context: Context<'_>,
    source: &Source,
    fenced: &Fenced,
) -> Result<(Shards, Carried), Failure> {
    let tables = &source.inspection.tables;
    let shard = context.settings.shard;
    let began = Instant::now();
    let mut missing = String::new();
    while began.elapsed() < ASSIGNMENT_PATIENCE && !context.stop.is_cancelled() {
        let assignment = fenced.sink.assignment().await?;
        let own: Vec<SourceTable> =
            tables.iter().filter(|table| assignment.get(&table.name) == Some(&shard)).cloned().collect();
        let carried = source::carried_tables(&source.session, &fenced.publication, &own).await?;
        let lost = own.iter().map(|table| &table.name).find(|name| !carried.contains_key(*name));
        let unassigned = tables.iter().map(|table| &table.name).find(|name| !assignment.contains_key(name));
        missing = match (unassigned, lost) {
            (None, None) => return Ok((assignment, carried)),
            (Some(table), _) => format!("written yet whose the table {table} is"),
            (None, Some(table)) => format!("put the table {table} into the publication yet"),
        };
        tokio::time::sleep(ASSIGNMENT_POLL).await;
    }
    let message = format!("Shard 0 has not {missing}. It says in its own report what it waits for.");
    Err(Failure::new(Reason::WaitingForShardZero, message))
}

/// Step 4: slot, volume and sink agree on where to go on. Changes nothing but what a dead predecessor left open.
pub(super) async fn reconcile(
    context: Context<'_>,
    source: &Source,
    fenced: &mut Fenced,
    volume: &Volume,
) -> Result<Start, Failure> {
    let copy_slot = SlotName::of_later_copy(&fenced.started.names_uid, context.settings.shard);
    source::end_stale_sessions(&source.session, &[&fenced.slot, &copy_slot]).await?;
    source::end_stale_walsender(&source.session, &fenced.slot).await?;
    source::check_room(&source.session, &fenced.slot).await?;
    let slot = source::slot_state(&source.session, &fenced.slot).await?;
    let known = Known {
        slot: slot.as_ref().map(|slot| slot.confirmed_flush.unwrap_or_default()),
        volume: volume.record()?,
        sink: fenced.started.checkpoint,
        is_new_revision: fenced.started.moved_from_revision.is_some(),
        source: known_source(context, source, fenced).await?,
        sink_source: fenced.started.source.clone(),
        sink_holds: fenced.sink.holds().await?,
        slot_is_synced: slot.as_ref().is_some_and(|slot| slot.is_synced),
    };
    let agreed = checkpoint::reconcile(&known).and_then(|beginning| {
        if let (Beginning::Resume { .. }, Some(slot)) = (&beginning, &slot) {
            slot.verify(&fenced.slot, &fenced.identity.database)?;
        }
        Ok(beginning)
    });
    let start = decided::decide(fenced, slot.as_ref(), agreed, known.source.end).await?;
    if let Start::Agreed(Beginning::Resume { notice: Some(notice), .. }) = &start {
        context.status.notice(notice.reason, notice.message.clone());
    }
    let carries_on = matches!(start, Start::Agreed(Beginning::Resume { .. }));
    if carries_on && slot.is_some_and(|slot| slot.failover == Some(false)) {
        carry_to_standbys(context, fenced).await;
    }
    Ok(start)
}

async fn known_source(
    context: Context<'_>,
    source: &Source,
    fenced: &Fenced,
) -> Result<KnownSource, Failure> {
    let source::SourceIdentity { system_id, timeline, .. } = fenced.identity.clone();
    let is_other_timeline = timeline != fenced.started.source.timeline;
    let switches = if is_other_timeline {
        source::timeline_switches(&context.settings.pipeline.source, timeline).await?
    } else {
        Vec::new()
    };
    let end = source::wal_position(&source.session, &fenced.slot).await?.end;
    Ok(KnownSource { identity: LogIdentity { system_id, timeline }, end, switches })
}

/// A slot that was made where or when there were no failover slots. Without it the stream is as good as before.
async fn carry_to_standbys(context: Context<'_>, fenced: &Fenced) {
    if let Err(error) = source::carry_to_standbys(&context.settings.pipeline.source, &fenced.slot).await {
        tracing::warn!("the slot is not carried over to standbys: {error}");
    }
}

/// Step 7. A shard that never had a position gets a new slot.
pub(super) async fn begin(
    context: Context<'_>,
    source: &Source,
    fenced: &mut Fenced,
    volume: &mut Volume,
    start: Start,
) -> Result<Resumed, Failure> {
    let resumed = match start {
        Start::Agreed(Beginning::Resume { checkpoint, .. }) => {
            if fenced.identity.timeline != fenced.started.source.timeline {
                fenced.sink.follow_source(&checkpoint, &decided::log_of(fenced)).await?;
            }
            Resumed { checkpoint, exported: None }
        }
        Start::Decided { decision, is_slot_usable } => {
            decided::carry_out(context, source, fenced, volume, (decision, is_slot_usable)).await?
        }
        Start::Agreed(Beginning::First { slot_is_left_over }) => {
            if slot_is_left_over {
                // A later run cannot begin while the fence is held, so the slot is not its.
                let held = fenced.sink.hold_fence().await?;
                source::drop_slot(&source.session, &fenced.slot).await?;
                held.release().await?;
            }
            begin_first(context, fenced).await?
        }
    };
    let record = Record {
        revision: context.settings.pipeline.revision.clone(),
        epoch: fenced.started.epoch,
        checkpoint: resumed.checkpoint,
        source: decided::log_of(fenced),
    };
    tokio::task::block_in_place(|| volume.write(&record))?;
    Ok(resumed)
}

/// Where the stream begins: behind the checkpoint, or a little before, where the log shows which it is.
pub(super) async fn read_from(
    source: &Source,
    fenced: &Fenced,
    resumed: &Resumed,
) -> Result<ReadFrom, Failure> {
    let slot = source::slot_state(&source.session, &fenced.slot).await?;
    let confirmed = slot.and_then(|slot| slot.confirmed_flush);
    Ok(ReadFrom::new(resumed.checkpoint.end_lsn, confirmed, fenced.started.heartbeat))
}

/// The slot is made, and its beginning is the first checkpoint: from here on the sink knows where it stands.
async fn begin_first(context: Context<'_>, fenced: &mut Fenced) -> Result<Resumed, Failure> {
    let endpoint = &context.settings.pipeline.source;
    let exported = source::create_slot(endpoint, &fenced.slot, Durability::Permanent).await?;
    let end_lsn = exported.consistent_point;
    let checkpoint = Checkpoint { position: Position::default(), end_lsn, sequence: 0 };
    fenced.sink.begin_at(&checkpoint).await?;
    Ok(Resumed { checkpoint, exported: Some(exported) })
}

fn adopted_uid(context: Context<'_>) -> Option<&str> {
    let annotations = context.settings.pipeline.manifest.metadata.annotations.as_ref()?;
    annotations.get(ANNOTATION_ADOPT).map(String::as_str).filter(|uid| !uid.is_empty())
}
