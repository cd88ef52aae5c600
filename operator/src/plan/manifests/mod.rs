//! The objects of a pipeline, whole, as they are applied. Pure.

mod clean_up;
mod comparison;
mod config;
mod pod;
mod rollout;
mod stateful_set;

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use penstock_crds::CdcPipeline;
use penstock_crds::names::{LABEL_PIPELINE, LABEL_REVISION, PORT_CONTROL};
use penstock_crds::revision::RevisionName;
use serde::Serialize;

pub(crate) use clean_up::clean_up_job;
pub(crate) use comparison::comparison_job;
pub(crate) use config::{adopted_uid, compared_spec, config_map};
pub(crate) use rollout::rollout_job;
pub(crate) use stateful_set::{stateful_set, workers_made_from};

use crate::names::{self, ANNOTATION_COURSE, Component, LABEL_COMPONENT, LABEL_MANAGED_BY, MANAGED_BY};
use crate::plan::PlanError;
use crate::world::{KnownRevision, RevisionCourse, World};

/// An object to apply.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Manifest {
    /// The identity of the workers; it may do nothing.
    ServiceAccount(Box<ServiceAccount>),
    /// The names of the workers.
    Service(Box<Service>),
    /// The manifest that a revision's workers run.
    ConfigMap(Box<ConfigMap>),
    /// A revision as it was minted.
    ControllerRevision(Box<ControllerRevision>),
    /// The workers of a revision.
    StatefulSet(Box<StatefulSet>),
    /// The clean-up after deletion.
    Job(Box<Job>),
    /// A comparison. Where it is refused, the pipeline goes on without.
    Comparison(Box<Job>),
}

/// Who owns what is made for a pipeline. A foreground deletion takes these objects away at once, whatever
/// `blockOwnerDeletion` says. False only lets it be over soon: while the pipeline has Kubernetes' finalizer of
/// a foreground deletion, what the clean-up makes anew would be taken away too. The operator's own finalizer
/// does the waiting.
pub(crate) fn owner(pipeline: &CdcPipeline) -> OwnerReference {
    OwnerReference {
        api_version: "penstock.dev/v1alpha1".into(),
        kind: "CdcPipeline".into(),
        name: pipeline.metadata.name.clone().unwrap_or_default(),
        uid: pipeline.metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(false),
    }
}

/// Labels of everything that is made for a pipeline.
pub(crate) fn labels(
    pipeline: &str,
    component: Component,
    revision: Option<&RevisionName>,
) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([
        ("app.kubernetes.io/name".to_owned(), "penstock".to_owned()),
        ("app.kubernetes.io/instance".to_owned(), pipeline.to_owned()),
        (LABEL_COMPONENT.to_owned(), component.label().to_owned()),
        (LABEL_MANAGED_BY.to_owned(), MANAGED_BY.to_owned()),
        (LABEL_PIPELINE.to_owned(), pipeline.to_owned()),
    ]);
    if let Some(revision) = revision {
        labels.insert(LABEL_REVISION.to_owned(), revision.to_string());
    }
    labels
}

fn metadata(
    world: &World,
    name: String,
    component: Component,
    revision: Option<&RevisionName>,
) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(world.namespace().to_owned()),
        labels: Some(labels(world.name(), component, revision)),
        owner_references: Some(vec![owner(&world.pipeline)]),
        ..ObjectMeta::default()
    }
}

/// The identity of the workers. It has no rights and no token is mounted.
pub(crate) fn service_account(world: &World) -> Manifest {
    Manifest::ServiceAccount(Box::new(ServiceAccount {
        metadata: metadata(world, names::of_workers(world.name()), Component::Worker, None),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }))
}

/// The names of the workers, from their start on: the operator asks a worker that is not ready too.
pub(crate) fn service(world: &World) -> Manifest {
    Manifest::Service(Box::new(Service {
        metadata: metadata(world, names::of_workers(world.name()), Component::Worker, None),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".into()),
            publish_not_ready_addresses: Some(true),
            selector: Some(names::worker_selector(world.name(), None)),
            ports: Some(vec![ServicePort {
                name: Some("control".into()),
                port: PORT_CONTROL.into(),
                protocol: Some("TCP".into()),
                target_port: Some(IntOrString::String("control".into())),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }))
}

/// A revision as it was minted. It carries no component label: the StatefulSet controller lists the
/// revisions that its own selector matches.
pub(crate) fn controller_revision(world: &World, revision: &KnownRevision) -> Result<Manifest, PlanError> {
    let mut metadata = metadata(
        world,
        names::of_revision(world.name(), &revision.name),
        Component::Worker,
        Some(&revision.name),
    );
    metadata.labels.get_or_insert_default().remove(LABEL_COMPONENT);
    if revision.course != RevisionCourse::default() {
        let course = serde_json::to_string(&revision.course)?;
        metadata.annotations = Some(BTreeMap::from([(ANNOTATION_COURSE.to_owned(), course)]));
    }
    Ok(Manifest::ControllerRevision(Box::new(ControllerRevision {
        metadata,
        data: Some(serde_json::from_value(serde_json::to_value(&revision.minted)?)?),
        revision: revision.number,
    })))
}
