//! Steps 1 to 5, and 7: from two addresses to an agreed position.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use penstock_crds::names::ANNOTATION_ADOPT;
use penstock_crds::report::Reason;
use penstock_crds::table_pattern::TablePattern;

use super::Context;
use crate::change::table::{SourceTable, TableName};
use crate::change::{Checkpoint, Position, SourceIdentity};
use crate::checkpoint::{self, Beginning, Identity, Known, Record, Volume};
use crate::failure::Failure;
use crate::postgres::{End, Session};
use crate::sink::{self, Owner, Sink, Started, TableMap};
use crate::source::{self, Durability, ExportedSnapshot, Inspection, PublicationName, SlotName};

/// How long a shard waits for shard 0 to write which tables are whose.
const ASSIGNMENT_PATIENCE: Duration = Duration::from_mins(1);
const ASSIGNMENT_POLL: Duration = Duration::from_millis(500);

/// The source as it was found, and a session on it.
pub(super) struct Source {
    pub(super) session: Session,
    pub(super) inspection: Inspection,
    pub(super) slot: SlotName,
}

/// The fence is ours: no other run of this shard commits anything.
pub(super) struct Fenced {
    pub(super) sink: Sink,
    pub(super) started: Started,
    pub(super) identity: source::SourceIdentity,
    pub(super) slot: SlotName,
    pub(super) publication: PublicationName,
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
    let identity = Identity { uid: settings.pipeline.uid.clone(), shard: settings.shard };
    let volume = tokio::task::block_in_place(|| Volume::open(&settings.state_dir, &identity))?;
    if let Some(file) = volume.set_aside() {
        tracing::warn!(file = %file.display(), "the checkpoint on the volume was damaged and is set aside");
    }
    Ok(volume)
}

/// Step 2. Which slot is ours is known for sure after step 3: an adopted pipeline keeps its names.
pub(super) async fn inspect_source(context: Context<'_>) -> Result<Source, Failure> {
    let settings = context.settings;
    let endpoint = &settings.pipeline.source;
    let spec = &settings.pipeline.manifest.spec.source.postgres;
    let patterns = spec
        .tables
        .iter()
        .map(|table| table.parse::<TablePattern>())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Failure::new(Reason::ManifestInvalid, error.to_string()))?;
    let session = endpoint
        .connect("penstock")
        .await
        .map_err(|error| error.failure(End::Source, &endpoint.connection))?;
    context.status.reached(End::Source);
    let slot = SlotName::of_shard(adopted_uid(context).unwrap_or(&settings.pipeline.uid), settings.shard);
    let inspection = source::preflight(&session, spec, &patterns, &slot).await?;
    Ok(Source { session, inspection, slot })
}

/// Step 3.
pub(super) async fn fence(context: Context<'_>, source: &Source, volume: &Volume) -> Result<Fenced, Failure> {
    let settings = context.settings;
    let pipeline = &settings.pipeline;
    let owner = Owner {
        uid: pipeline.uid.clone(),
        namespace: pipeline.namespace.clone(),
        name: pipeline.name.clone(),
        revision: settings.revision.clone(),
        revision_number: settings.revision_number,
        shard: settings.shard,
        volume_id: volume.id(),
        adopt: adopted_uid(context).map(str::to_owned),
    };
    let identity = source.inspection.identity.clone();
    let log = SourceIdentity {
        system_id: identity.system_id.clone(),
        timeline: identity.timeline,
        slot: source.slot.as_str().to_owned(),
    };
    let tables = TableMap::new(pipeline.manifest.spec.sink.postgres.schema_map.clone());
    let (sink, started) = sink::start(pipeline.sink.clone(), owner, tables, &log).await?;
    context.status.reached(End::Sink);
    context.status.fenced(started.epoch);
    if let Some(revision) = &started.moved_from_revision {
        tracing::info!(from = revision, "going on where an older revision stopped");
    }
    let publication = match &pipeline.manifest.spec.source.postgres.publication {
        Some(given) => PublicationName::given(given),
        None => PublicationName::of_pipeline(&started.names_uid),
    };
    let slot = SlotName::of_shard(&started.names_uid, settings.shard);
    Ok(Fenced { sink, started, identity, slot, publication })
}

/// Step 4: the tables of this shard. Shard 0 brings the publication up to date and then writes who has what; the
/// others wait for it.
pub(super) async fn assign(
    context: Context<'_>,
    source: &mut Source,
    fenced: &mut Fenced,
) -> Result<Vec<SourceTable>, Failure> {
    let spec = &context.settings.pipeline.manifest.spec;
    let tables = &source.inspection.tables;
    let is_managed = spec.source.postgres.publication.is_none();
    let assignment = if context.settings.shard == 0 {
        let known = fenced.sink.assignment().await?;
        let wanted = source::assign_shards(tables, spec.worker.shards, &known);
        // The sink forgets a table before the source stops publishing it: if this run ends in between, the table is
        // copied anew when somebody wants it back. A new table is published before another shard may copy it.
        let kept = wanted.iter().filter(|(name, _)| known.contains_key(name));
        fenced.sink.assign(&kept.map(|(name, shard)| (name.clone(), *shard)).collect()).await?;
        source::ensure_publication(&mut source.session, &fenced.publication, tables, is_managed).await?;
        fenced.sink.assign(&wanted).await?;
        fenced.sink.assignment().await?
    } else {
        wait_for_assignment(context, tables, fenced).await?
    };
    let shard = context.settings.shard;
    Ok(tables.iter().filter(|table| assignment.get(&table.name) == Some(&shard)).cloned().collect())
}

async fn wait_for_assignment(
    context: Context<'_>,
    tables: &[SourceTable],
    fenced: &Fenced,
) -> Result<BTreeMap<TableName, u16>, Failure> {
    let began = Instant::now();
    while began.elapsed() < ASSIGNMENT_PATIENCE && !context.stop.is_cancelled() {
        let assignment = fenced.sink.assignment().await?;
        if tables.iter().all(|table| assignment.contains_key(&table.name)) {
            return Ok(assignment);
        }
        tokio::time::sleep(ASSIGNMENT_POLL).await;
    }
    let message =
        "shard 0 has not written yet which tables are whose; it says in its own report what it waits for";
    Err(Failure::new(Reason::WaitingForShardZero, message))
}

/// Step 5: slot, volume and sink agree on where to go on. Changes nothing but what a dead predecessor left open.
pub(super) async fn reconcile(
    context: Context<'_>,
    source: &Source,
    fenced: &Fenced,
    volume: &Volume,
) -> Result<Beginning, Failure> {
    let copy_slot = SlotName::of_later_copy(&fenced.started.names_uid, context.settings.shard);
    source::end_stale_sessions(&source.session, &[&fenced.slot, &copy_slot]).await?;
    source::end_stale_walsender(&source.session, &fenced.slot).await?;
    let slot = source::slot_state(&source.session, &fenced.slot).await?;
    let known = Known {
        slot: slot.as_ref().map(|slot| slot.confirmed_flush.unwrap_or_default()),
        volume: volume.record()?,
        sink: fenced.started.checkpoint,
        is_new_revision: fenced.started.moved_from_revision.is_some(),
        source_end: source::wal_position(&source.session, &fenced.slot).await?.end,
    };
    let beginning = checkpoint::reconcile(&known)?;
    if let (Beginning::Resume { notice, .. }, Some(slot)) = (&beginning, &slot) {
        slot.verify(&fenced.slot, &fenced.identity.database)?;
        if let Some(notice) = notice {
            context.status.notice(notice.reason, notice.message.clone());
        }
    }
    Ok(beginning)
}

/// Step 7. A shard that never had a position gets a new slot.
pub(super) async fn begin(
    context: Context<'_>,
    source: &Source,
    fenced: &mut Fenced,
    volume: &mut Volume,
    beginning: Beginning,
) -> Result<Resumed, Failure> {
    let resumed = match beginning {
        Beginning::Resume { checkpoint, .. } => Resumed { checkpoint, exported: None },
        Beginning::First { slot_is_left_over } => {
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
        revision: context.settings.revision.clone(),
        epoch: fenced.started.epoch,
        checkpoint: resumed.checkpoint,
        source: SourceIdentity {
            system_id: fenced.identity.system_id.clone(),
            timeline: fenced.identity.timeline,
            slot: fenced.slot.as_str().to_owned(),
        },
    };
    tokio::task::block_in_place(|| volume.write(&record))?;
    Ok(resumed)
}

/// The slot is made, and its beginning is the first checkpoint: from here on the sink knows where it stands.
async fn begin_first(context: Context<'_>, fenced: &Fenced) -> Result<Resumed, Failure> {
    let endpoint = &context.settings.pipeline.source;
    let exported = source::create_slot(endpoint, &fenced.slot, Durability::Permanent).await?;
    let end_lsn = exported.consistent_point;
    let checkpoint = Checkpoint { position: Position::default(), end_lsn, sequence: 0 };
    let mut writer = fenced.sink.writer(0).await?;
    writer.begin().await?;
    writer.commit(&checkpoint).await?;
    Ok(Resumed { checkpoint, exported: Some(exported) })
}

fn adopted_uid(context: Context<'_>) -> Option<&str> {
    let annotations = context.settings.pipeline.manifest.metadata.annotations.as_ref()?;
    annotations.get(ANNOTATION_ADOPT).map(String::as_str).filter(|uid| !uid.is_empty())
}
