//! What a pod's status says, in words that stay the same while the pod's trouble does. Pure.

use std::net::{IpAddr, SocketAddr};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod};
use kube::ResourceExt as _;
use penstock_crds::names::{LABEL_REVISION, PORT_CONTROL};
use penstock_crds::revision::RevisionName;
use serde_json::Value;

use super::Identity;
use crate::names::{self, ANNOTATION_MANIFEST, LABEL_POD_INDEX};
use crate::world::{Answer, PodTrouble, WorkerPod};

/// Restarts after which a container that is not ready counts as crashing. One is an accident.
const CRASHES: i32 = 2;

/// How long the placing of a pod may take, for example while its volume is made.
const PLACING: SignedDuration = SignedDuration::from_secs(10);

/// How long a worker may take until it answers for the first time.
const STARTING: SignedDuration = SignedDuration::from_secs(15);

/// A worker's pod, and where it can be asked.
#[derive(Debug)]
pub(super) struct RunningPod {
    pub(super) worker: WorkerPod,
    pub(super) uid: String,
    /// The name in its certificate.
    pub(super) host: String,
    /// Its container started so lately that nobody expects an answer yet.
    pub(super) is_young: bool,
    /// Where its control API listens, while its container runs.
    pub(super) address: Option<SocketAddr>,
}

pub(super) fn running_pod(pod: &Pod, identity: &Identity, now: Timestamp) -> Option<RunningPod> {
    let name = pod.name_any();
    let shard =
        pod.labels().get(LABEL_POD_INDEX).cloned().or_else(|| name.rsplit('-').next().map(str::to_owned))?;
    let running = container(pod).and_then(|container| container.state.as_ref()?.running.as_ref());
    let is_running = running.is_some();
    let started = running.and_then(|running| running.started_at.as_ref()).map_or(now, |time| time.0);
    let address =
        pod.status.as_ref().and_then(|status| status.pod_ip.as_ref()).and_then(|ip| ip.parse().ok());
    Some(RunningPod {
        uid: pod.uid()?,
        is_young: now.duration_since(started) < STARTING,
        host: format!("{name}.{}.{}.svc", names::of_workers(&identity.name), identity.namespace),
        address: address.filter(|_| is_running).map(|ip: IpAddr| SocketAddr::new(ip, PORT_CONTROL)),
        worker: WorkerPod {
            revision: RevisionName(pod.labels().get(LABEL_REVISION)?.clone()),
            shard: shard.parse().ok()?,
            uid: pod.uid()?,
            made_from: pod.annotations().get(ANNOTATION_MANIFEST).cloned().unwrap_or_default(),
            is_deleting: pod.metadata.deletion_timestamp.is_some(),
            trouble: trouble(pod, now),
            answer: if is_running {
                Answer::Silent { error: "it was not asked yet".into() }
            } else {
                Answer::NotRunning
            },
            name,
        },
    })
}

/// What a pod's container said when it failed last, or what keeps it from running.
pub(super) fn last_failure(pod: &Pod, now: Timestamp) -> Option<String> {
    let words =
        |terminated: &ContainerStateTerminated| (terminated.exit_code != 0).then(|| last_words(terminated));
    let container = container(pod);
    let this_time = terminated(pod).and_then(words);
    let last_time =
        container.and_then(|container| container.last_state.as_ref()?.terminated.as_ref()).and_then(words);
    this_time.or(last_time).or_else(|| obstacle(pod, now))
}

/// What keeps a pod from running.
pub(super) fn obstacle(pod: &Pod, now: Timestamp) -> Option<String> {
    trouble(pod, now).map(|trouble| match trouble {
        PodTrouble::Unschedulable(words)
        | PodTrouble::ImagePull(words)
        | PodTrouble::Crashing(words)
        | PodTrouble::Container(words) => words,
    })
}

/// How a pod's container ended, if it has.
pub(super) fn terminated(pod: &Pod) -> Option<&ContainerStateTerminated> {
    container(pod)?.state.as_ref()?.terminated.as_ref()
}

/// Whether a pod's container runs, or did.
pub(super) fn has_started(pod: &Pod) -> bool {
    let state = container(pod).and_then(|container| container.state.as_ref());
    state.is_some_and(|state| state.running.is_some() || state.terminated.is_some())
}

fn container(pod: &Pod) -> Option<&ContainerStatus> {
    pod.status.as_ref()?.container_statuses.as_ref()?.first()
}

fn trouble(pod: &Pod, now: Timestamp) -> Option<PodTrouble> {
    let name = pod.name_any();
    container(pod)
        .and_then(|container| container_trouble(&name, container))
        .or_else(|| unschedulable(pod, &name, now))
}

fn unschedulable(pod: &Pod, name: &str, now: Timestamp) -> Option<PodTrouble> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let placed = conditions.iter().find(|condition| condition.type_ == "PodScheduled")?;
    let since = placed.last_transition_time.as_ref().map_or(now, |time| time.0);
    let is_refused = placed.status == "False" && placed.reason.as_deref() == Some("Unschedulable");
    (is_refused && now.duration_since(since) >= PLACING).then(|| {
        let message = placed.message.as_deref().unwrap_or("no reason is given");
        PodTrouble::Unschedulable(format!("No node takes the pod {name}: {message}"))
    })
}

fn container_trouble(pod: &str, container: &ContainerStatus) -> Option<PodTrouble> {
    let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
    let said = waiting.and_then(|waiting| waiting.message.as_deref()).unwrap_or_default();
    match waiting.and_then(|waiting| waiting.reason.as_deref()) {
        Some("ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull") => {
            Some(PodTrouble::ImagePull(image_trouble(pod, &container.image, said)))
        }
        Some("CreateContainerConfigError" | "CreateContainerError" | "RunContainerError") => {
            Some(PodTrouble::Container(format!("The container of the pod {pod} cannot be made: {said}")))
        }
        Some("CrashLoopBackOff") => Some(crashing(pod, container)),
        Some(_) | None if !container.ready && container.restart_count >= CRASHES => {
            Some(crashing(pod, container))
        }
        Some(_) | None => None,
    }
}

/// The two messages that Kubernetes shows in turn are brought to one, so that the condition keeps still.
fn image_trouble(pod: &str, image: &str, said: &str) -> String {
    let cause = said.split_once("ErrImagePull: ").map_or(said, |(_, cause)| cause);
    let cause = if cause.starts_with("Back-off") { "" } else { cause };
    let cause = if cause.is_empty() { String::new() } else { format!(": {cause}") };
    format!(
        "The pod {pod} cannot pull the image {image}{cause}. Correct worker.image or --worker-image, or name a Secret in worker.imagePullSecrets"
    )
}

fn crashing(pod: &str, container: &ContainerStatus) -> PodTrouble {
    let last = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let words = last.map_or_else(|| "nothing is known about the last time".into(), last_words);
    PodTrouble::Crashing(format!("The worker in the pod {pod} ends again and again: {words}"))
}

/// How a container ended, in its own last words if there are any.
pub(super) fn last_words(terminated: &ContainerStateTerminated) -> String {
    if terminated.reason.as_deref() == Some("OOMKilled") {
        return "it used more memory than worker.resources.limits.memory allows".into();
    }
    let text = terminated.message.as_deref().unwrap_or_default();
    match text.lines().rev().find(|line| !line.trim().is_empty()) {
        Some(line) => sentence_of(line),
        None => format!("it ended with code {} and said nothing", terminated.exit_code),
    }
}

/// The sentence in a line of a log.
fn sentence_of(line: &str) -> String {
    let Ok(record) = serde_json::from_str::<Value>(line) else { return line.trim().to_owned() };
    let fields = [record.pointer("/fields/message"), record.pointer("/message")];
    fields.into_iter().flatten().find_map(Value::as_str).map_or_else(|| line.trim().to_owned(), str::to_owned)
}

#[cfg(test)]
#[path = "pods_tests.rs"]
mod tests;
