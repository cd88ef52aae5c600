//! The manifest that a revision's workers run: the pipeline's, with the revision's data-affecting fields.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, PodSpec};
use penstock_crds::names::{ANNOTATION_ADOPT, FILE_PIPELINE};
use penstock_crds::worker::Worker;
use penstock_crds::{CdcPipeline, CdcPipelineSpec};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Manifest, metadata};
use crate::names::{self, Component};
use crate::plan::PlanError;
use crate::world::{KnownRevision, World};

/// The ConfigMap of a revision.
pub(crate) fn config_map(world: &World, revision: &KnownRevision) -> Result<Manifest, PlanError> {
    Ok(Manifest::ConfigMap(Box::new(ConfigMap {
        metadata: metadata(
            world,
            names::of_revision(world.name(), &revision.name),
            Component::Worker,
            Some(&revision.name),
        ),
        data: Some(BTreeMap::from([(FILE_PIPELINE.to_owned(), worker_manifest(world, revision)?)])),
        ..ConfigMap::default()
    })))
}

/// Hash of everything that a pod is made from, the manifest that it reads at its start included: a pod with
/// another hash is replaced. Credentials are read at every connection and are not in it.
pub(super) fn made_from(world: &World, revision: &KnownRevision, pod: &PodSpec) -> Result<String, PlanError> {
    let manifest = Sha256::digest(worker_manifest(world, revision)?);
    let content = format!("{}{}", hex::encode(manifest), serde_json::to_string(pod)?);
    let mut digest = hex::encode(Sha256::digest(content));
    digest.truncate(16);
    Ok(digest)
}

fn worker_manifest(world: &World, revision: &KnownRevision) -> Result<String, PlanError> {
    let object = json!({
        "apiVersion": "penstock.dev/v1alpha1",
        "kind": "CdcPipeline",
        "metadata": worker_metadata(world),
        "spec": worker_spec(&world.pipeline.spec, revision),
    });
    Ok(serde_yaml::to_string(&object)?)
}

/// Hash of everything that decides what a comparison compares: of the revision and its number, and of what its workers
/// run, but for how they run it.
pub(crate) fn compared_spec(world: &World, revision: &KnownRevision) -> Result<String, PlanError> {
    let mut spec = worker_spec(&world.pipeline.spec, revision);
    spec.worker.log = Worker::default().log;
    let content = format!("{}{}", revision.number, serde_json::to_string(&spec)?);
    Ok(penstock_crds::names::uid8(&content))
}

fn worker_metadata(world: &World) -> Value {
    let mut metadata = json!({"name": world.name(), "namespace": world.namespace(), "uid": world.uid});
    if let Some(adopted) = adopted_uid(&world.pipeline) {
        metadata["annotations"] = json!({ANNOTATION_ADOPT: adopted});
    }
    metadata
}

/// UID of the deleted pipeline whose state this one takes over.
pub(crate) fn adopted_uid(pipeline: &CdcPipeline) -> Option<&str> {
    pipeline
        .metadata
        .annotations
        .as_ref()?
        .get(ANNOTATION_ADOPT)
        .map(String::as_str)
        .filter(|uid| !uid.is_empty())
}

/// What only the operator acts on is left at its default, so that changing it restarts no worker.
fn worker_spec(spec: &CdcPipelineSpec, revision: &KnownRevision) -> CdcPipelineSpec {
    let data = &revision.minted.data;
    let mut spec = spec.clone();
    spec.paused = false;
    spec.deletion_policy = penstock_crds::spec::DeletionPolicy::default();
    spec.source_comparison = penstock_crds::comparison::SourceComparison::default();
    spec.rollout = penstock_crds::rollout::Rollout::default();
    spec.source.postgres.tables.clone_from(&data.tables);
    spec.transforms.clone_from(&data.transforms);
    spec.sink.postgres.schema_map.clone_from(&data.schema_map);
    spec.worker = Worker {
        image: Some(revision.minted.image.clone()),
        shards: data.shards,
        log: spec.worker.log,
        ..Worker::default()
    };
    spec
}
