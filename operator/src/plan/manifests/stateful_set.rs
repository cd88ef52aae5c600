//! The workers of a revision.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{
    StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec, StatefulSetUpdateStrategy,
};
use k8s_openapi::api::core::v1::{
    Container, ContainerPort, EnvVar, EnvVarSource, HTTPGetAction, ObjectFieldSelector,
    PersistentVolumeClaim, PersistentVolumeClaimSpec, PodSpec, PodTemplateSpec, Probe, ResourceRequirements,
    TopologySpreadConstraint, VolumeMount, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use penstock_crds::names::{DIR_CONTROL, DIR_STATE, LABEL_UID, PORT_CONTROL, PORT_HEALTH};

use super::config::made_from;
use super::pod::{
    container, folder_arguments, lineage_arguments, mount_mask_keys, pod_spec, read_only, secret_volume,
};
use super::{Manifest, labels, metadata};
use crate::names::{self, ANNOTATION_MANIFEST, Component, LABEL_POD_INDEX};
use crate::plan::PlanError;
use crate::world::{KnownRevision, World};

/// Lets a batch finish.
const GRACE_PERIOD_SECONDS: i64 = 60;
/// Volume and port of the worker's control API.
const CONTROL: &str = "control";

/// The workers of a revision; none of them when it is paused or replaced.
pub(crate) fn stateful_set(
    world: &World,
    revision: &KnownRevision,
    replicas: u16,
) -> Result<Manifest, PlanError> {
    let selector = names::worker_selector(world.name(), Some(&revision.name));
    Ok(Manifest::StatefulSet(Box::new(StatefulSet {
        metadata: metadata(
            world,
            names::of_revision(world.name(), &revision.name),
            Component::Worker,
            Some(&revision.name),
        ),
        spec: Some(StatefulSetSpec {
            replicas: Some(replicas.into()),
            service_name: Some(names::of_workers(world.name())),
            pod_management_policy: Some("Parallel".into()),
            revision_history_limit: Some(2),
            // The operator itself deletes pods that are made from something older, all at once: a rolling update
            // waits for a pod that cannot become ready, so a correction would never reach the others.
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("OnDelete".into()),
                rolling_update: None,
            }),
            // Volumes go when the operator has seen that they are not needed any more, never by themselves.
            persistent_volume_claim_retention_policy: Some(StatefulSetPersistentVolumeClaimRetentionPolicy {
                when_deleted: Some("Retain".into()),
                when_scaled: Some("Retain".into()),
            }),
            selector: LabelSelector { match_labels: Some(selector), match_expressions: None },
            template: pod_template(world, revision)?,
            volume_claim_templates: Some(vec![claim_template(world)]),
            ..StatefulSetSpec::default()
        }),
        status: None,
    })))
}

/// What the pods of a revision have as [`ANNOTATION_MANIFEST`] when they are as they should be.
pub(crate) fn workers_made_from(world: &World, revision: &KnownRevision) -> Result<String, PlanError> {
    made_from(world, revision, &worker_pod(world, revision))
}

fn pod_template(world: &World, revision: &KnownRevision) -> Result<PodTemplateSpec, PlanError> {
    let spec = worker_pod(world, revision);
    Ok(PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels(world.name(), Component::Worker, Some(&revision.name))),
            annotations: Some(BTreeMap::from([(
                ANNOTATION_MANIFEST.to_owned(),
                made_from(world, revision, &spec)?,
            )])),
            ..ObjectMeta::default()
        }),
        spec: Some(spec),
    })
}

fn worker_pod(world: &World, revision: &KnownRevision) -> PodSpec {
    let selector = names::worker_selector(world.name(), Some(&revision.name));
    let mut spec = pod_spec(world, revision, worker_container(world, revision));
    mount_mask_keys(&mut spec, revision);
    spec.volumes.get_or_insert_default().push(secret_volume(
        CONTROL,
        &names::control_secret(world.name()),
        &["token", "ca.crt", "tls.crt", "tls.key"],
    ));
    spec.termination_grace_period_seconds = Some(GRACE_PERIOD_SECONDS);
    spec.topology_spread_constraints = Some(vec![TopologySpreadConstraint {
        max_skew: 1,
        topology_key: "kubernetes.io/hostname".into(),
        when_unsatisfiable: "ScheduleAnyway".into(),
        label_selector: Some(LabelSelector { match_labels: Some(selector), match_expressions: None }),
        ..TopologySpreadConstraint::default()
    }]);
    spec
}

fn worker_container(world: &World, revision: &KnownRevision) -> Container {
    let mut args = vec!["run".to_owned()];
    args.extend(folder_arguments());
    let own = [
        ("--revision", revision.name.to_string()),
        ("--revision-number", revision.number.to_string()),
        ("--state-dir", DIR_STATE.into()),
        ("--control-dir", DIR_CONTROL.into()),
        ("--health-address", format!("0.0.0.0:{PORT_HEALTH}")),
        ("--control-address", format!("0.0.0.0:{PORT_CONTROL}")),
    ];
    args.extend(own.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]));
    args.extend(lineage_arguments(revision));

    let mut container = container(world, "worker", &revision.minted.image, args);
    container.env = Some(vec![EnvVar {
        name: "PENSTOCK_SHARD".into(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: format!("metadata.labels['{LABEL_POD_INDEX}']"),
                api_version: None,
            }),
            ..EnvVarSource::default()
        }),
        value: None,
    }]);
    container.ports = Some(vec![port("health", PORT_HEALTH), port(CONTROL, PORT_CONTROL)]);
    container.startup_probe = Some(probe("/healthz", 2, 60));
    container.liveness_probe = Some(probe("/healthz", 10, 6));
    container.readiness_probe = Some(probe("/readyz", 5, 3));
    container.resources.get_or_insert_with(default_resources);
    container.volume_mounts.get_or_insert_default().extend([
        read_only(CONTROL, DIR_CONTROL.into()),
        VolumeMount {
            name: names::state_volume(&world.uid),
            mount_path: DIR_STATE.into(),
            ..VolumeMount::default()
        },
    ]);
    container
}

/// What a worker of the default batch bounds needs. No limit: one that is too low ends a worker in the
/// middle of a large transaction, again and again.
fn default_resources() -> ResourceRequirements {
    let requests = [("cpu", "100m"), ("memory", "128Mi")];
    ResourceRequirements {
        requests: Some(
            requests.into_iter().map(|(name, size)| (name.into(), Quantity(size.into()))).collect(),
        ),
        ..ResourceRequirements::default()
    }
}

fn port(name: &str, number: u16) -> ContainerPort {
    ContainerPort {
        name: Some(name.into()),
        container_port: number.into(),
        protocol: Some("TCP".into()),
        ..ContainerPort::default()
    }
}

fn probe(path: &str, period_seconds: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.into()),
            port: IntOrString::String("health".into()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        failure_threshold: Some(failures),
        timeout_seconds: Some(5),
        ..Probe::default()
    }
}

/// Made of what never changes in a pipeline: Kubernetes refuses an edit of claim templates.
fn claim_template(world: &World) -> PersistentVolumeClaim {
    let storage = &world.pipeline.spec.worker.storage;
    let size = BTreeMap::from([("storage".to_owned(), Quantity(storage.size.clone()))]);
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(names::state_volume(&world.uid)),
            labels: Some(BTreeMap::from([(LABEL_UID.to_owned(), world.uid.clone())])),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".into()]),
            storage_class_name: storage.storage_class_name.clone(),
            resources: Some(VolumeResourceRequirements { requests: Some(size), limits: None }),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}
