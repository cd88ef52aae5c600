//! The Job that compares the sink with the source.

use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{PodTemplateSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use penstock_crds::names::ANNOTATION_COMPARE_SOURCE;
use penstock_crds::report::Decisions;

use super::config::compared_spec;
use super::pod::{container, folder_arguments, lineage_arguments, mount_mask_keys, pod_spec};
use super::{Manifest, labels, metadata};
use crate::names::{ANNOTATION_DECISIONS, ANNOTATION_SPEC, Component};
use crate::plan::PlanError;
use crate::world::{KnownRevision, World};

/// Where Kubernetes looks for a container's last words.
pub(super) const TERMINATION_MESSAGE: &str = "/dev/termination-log";
/// How long a Job that has ended is kept, if no other comparison begins: its log names the rows that differ.
pub(super) const KEPT_SECONDS: i32 = 3600;

/// The Job that compares the sink with the source, for this token of the annotation if there is one. It keeps what was
/// decided about dead ends before it began.
///
/// One pod and one attempt: what it found is its exit code, too, and a second attempt would read every row again.
pub(crate) fn comparison_job(
    world: &World,
    revision: &KnownRevision,
    name: &str,
    token: Option<&str>,
    decisions: &[Decisions],
) -> Result<Manifest, PlanError> {
    let mut args: Vec<String> = ["compare", "--source", "--format", "json"].map(str::to_owned).into();
    args.extend(["--termination-message".to_owned(), TERMINATION_MESSAGE.to_owned()]);
    args.extend(folder_arguments());
    args.extend(lineage_arguments(revision));
    let mut container = container(world, "compare", &revision.minted.image, args);
    container.termination_message_path = Some(TERMINATION_MESSAGE.into());
    container.resources.get_or_insert_with(default_resources);
    let mut pod = pod_spec(world, revision, container);
    mount_mask_keys(&mut pod, revision);
    pod.restart_policy = Some("Never".into());
    // It has nothing to finish: its snapshots go with its connections, and a slot that is not made yet is ended.
    pod.termination_grace_period_seconds = Some(10);

    let mut metadata = metadata(world, name.to_owned(), Component::Comparison, Some(&revision.name));
    let mut annotations = BTreeMap::from([(ANNOTATION_SPEC.to_owned(), compared_spec(world, revision)?)]);
    annotations.extend(token.map(|token| (ANNOTATION_COMPARE_SOURCE.to_owned(), token.to_owned())));
    if !decisions.is_empty() {
        annotations.insert(ANNOTATION_DECISIONS.to_owned(), serde_json::to_string(decisions)?);
    }
    metadata.annotations = Some(annotations);
    Ok(Manifest::Comparison(Box::new(Job {
        metadata,
        spec: Some(JobSpec {
            backoff_limit: Some(0),
            active_deadline_seconds: Some(world.pipeline.spec.source_comparison.timeout().as_secs()),
            ttl_seconds_after_finished: Some(KEPT_SECONDS),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels(world.name(), Component::Comparison, Some(&revision.name))),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod),
            },
            ..JobSpec::default()
        }),
        status: None,
    })))
}

/// What it needs with the changes of one table in memory, and some room.
pub(super) fn default_resources() -> ResourceRequirements {
    let sizes = |sizes: &[(&str, &str)]| {
        Some(sizes.iter().map(|(name, size)| ((*name).to_owned(), Quantity((*size).to_owned()))).collect())
    };
    ResourceRequirements {
        requests: sizes(&[("cpu", "100m"), ("memory", "64Mi")]),
        limits: sizes(&[("memory", "512Mi")]),
        ..ResourceRequirements::default()
    }
}
