//! The Job that removes slots, a managed publication and sink state after a pipeline was deleted.

use std::collections::BTreeMap;

use super::config::made_from;
use super::pod::{container, folder_arguments, pod_spec};
use super::{Manifest, labels, metadata};
use crate::names::{self, ANNOTATION_MANIFEST, Component};
use crate::plan::PlanError;
use crate::world::{KnownRevision, World};
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// The clean-up Job, and the hash of what it is made from: a Job cannot be edited, so another hash means
/// another Job.
///
/// It runs the operator's own worker image, because the revision's may be the reason for the deletion. It
/// never gives up: its one pod is restarted with Kubernetes' backoff of at most five minutes.
pub(crate) fn clean_up_job(world: &World, revision: &KnownRevision) -> Result<(Manifest, String), PlanError> {
    let mut args = vec!["clean-up".to_owned()];
    args.extend(folder_arguments());
    let mut pod = pod_spec(world, revision, container(world, "clean-up", &world.default_image, args));
    pod.restart_policy = Some("OnFailure".into());

    let made_from = made_from(world, revision, &pod)?;
    let mut metadata = metadata(world, names::clean_up_job(world.name()), Component::CleanUp, None);
    metadata.annotations = Some(BTreeMap::from([(ANNOTATION_MANIFEST.to_owned(), made_from.clone())]));
    let job = Job {
        metadata,
        spec: Some(JobSpec {
            backoff_limit: Some(i32::MAX),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels(world.name(), Component::CleanUp, None)),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod),
            },
            ..JobSpec::default()
        }),
        status: None,
    };
    Ok((Manifest::Job(Box::new(job)), made_from))
}
