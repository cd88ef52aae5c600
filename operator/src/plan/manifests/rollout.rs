//! The Jobs that carry out the steps of a rollout.

use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use penstock_crds::rollout::RolloutTask;

use super::comparison::{KEPT_SECONDS, TERMINATION_MESSAGE, default_resources};
use super::pod::{container, folder_arguments, lineage_arguments, mount_mask_keys, pod_spec};
use super::{Manifest, labels, metadata};
use crate::names::{ANNOTATION_TASK, Component};
use crate::world::{KnownRevision, World};

/// How long a step may take. It holds a snapshot of both sides, which keeps vacuum from removing rows.
const DEADLINE_SECONDS: i64 = 6 * 3600;

/// The Job that carries out a step of the rollout of a revision, which is beside the stable one.
///
/// One pod and one attempt: whoever made it decides whether there is another. It runs the operator's own worker image: an
/// exchange concerns two revisions, and a canary's image may be the reason for its removal.
pub(crate) fn rollout_job(
    world: &World,
    revision: &KnownRevision,
    task: RolloutTask,
    name: &str,
) -> Manifest {
    let mut args = arguments(world, revision, task);
    args.extend(["--termination-message".to_owned(), TERMINATION_MESSAGE.to_owned()]);
    args.extend(folder_arguments());
    let mut container = container(world, "rollout", &world.default_image, args);
    container.termination_message_path = Some(TERMINATION_MESSAGE.into());
    container.resources.get_or_insert_with(default_resources);
    let mut pod = pod_spec(world, revision, container);
    if task != RolloutTask::CleanUp {
        mount_mask_keys(&mut pod, revision);
    }
    pod.restart_policy = Some("Never".into());
    pod.termination_grace_period_seconds = Some(10);
    let mut metadata = metadata(world, name.to_owned(), Component::Rollout, Some(&revision.name));
    metadata.annotations = Some(BTreeMap::from([(ANNOTATION_TASK.to_owned(), format!("{task:?}"))]));
    Manifest::Job(Box::new(Job {
        metadata,
        spec: Some(JobSpec {
            backoff_limit: Some(0),
            active_deadline_seconds: Some(DEADLINE_SECONDS),
            ttl_seconds_after_finished: Some(KEPT_SECONDS),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels(world.name(), Component::Rollout, Some(&revision.name))),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod),
            },
            ..JobSpec::default()
        }),
        status: None,
    }))
}

fn arguments(world: &World, revision: &KnownRevision, task: RolloutTask) -> Vec<String> {
    let words: &[&str] = match task {
        RolloutTask::Compare => &["compare", "--stable", "--format", "json"],
        RolloutTask::Promote => &["promote"],
        RolloutTask::RollBack => &["roll-back"],
        RolloutTask::CleanUp => &["clean-up"],
    };
    let mut arguments: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    let leave_out = &world.pipeline.spec.rollout.comparison.leave_out;
    if matches!(task, RolloutTask::Compare | RolloutTask::Promote) && !leave_out.is_empty() {
        arguments.extend(["--leave-out".to_owned(), leave_out.join(",")]);
    }
    if task == RolloutTask::CleanUp && revision.course.lineage.is_none() {
        // The pipeline began with it, so without a word everything would be meant.
        arguments.push("--previous".to_owned());
    }
    arguments.extend(lineage_arguments(revision));
    arguments
}
