//! The Jobs of source comparisons, and what their pods said. Pure.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobCondition};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use penstock_crds::comparison::ComparisonResult;
use penstock_crds::names::{ANNOTATION_COMPARE_SOURCE, LABEL_REVISION};
use penstock_crds::revision::RevisionName;

use super::pods;
use crate::names::{ANNOTATION_DECISIONS, ANNOTATION_SPEC, ANNOTATION_TASK};
use crate::world::{ComparisonJob, ComparisonProgress, RolloutJob};

/// How long after a Job has ended its pod's last word may be on its way: two watches bring them.
const LAST_WORD: SignedDuration = SignedDuration::from_secs(15);

/// A Job as it is seen; absent when it is not one that the operator made.
pub(super) fn comparison_job(job: &Job, pods: &[Pod], now: Timestamp) -> Option<ComparisonJob> {
    let annotation = |name: &str| job.annotations().get(name).cloned();
    Some(ComparisonJob {
        name: job.name_any(),
        revision: RevisionName(job.labels().get(LABEL_REVISION)?.clone()),
        spec: annotation(ANNOTATION_SPEC)?,
        token: annotation(ANNOTATION_COMPARE_SOURCE),
        decisions: annotation(ANNOTATION_DECISIONS)
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default(),
        created: job.metadata.creation_timestamp.as_ref().map_or(now, |at| at.0),
        timeout: job
            .spec
            .as_ref()
            .and_then(|spec| spec.active_deadline_seconds)
            .map(SignedDuration::from_secs),
        is_deleting: job.metadata.deletion_timestamp.is_some(),
        progress: progress(job, pod_of(job, pods), now),
        uid: job.uid()?,
    })
}

/// A Job of a rollout as it is seen; absent when it is not one that the operator made.
pub(super) fn rollout_job(job: &Job, pods: &[Pod], now: Timestamp) -> Option<RolloutJob> {
    let task = job.annotations().get(ANNOTATION_TASK)?.clone();
    Some(RolloutJob {
        name: job.name_any(),
        task: serde_json::from_value(task.into()).ok()?,
        created: job.metadata.creation_timestamp.as_ref().map_or(now, |at| at.0),
        is_deleting: job.metadata.deletion_timestamp.is_some(),
        progress: progress(job, pod_of(job, pods), now),
        uid: job.uid()?,
    })
}

fn pod_of<'a>(job: &Job, pods: &'a [Pod]) -> Option<&'a Pod> {
    let uid = job.uid()?;
    let is_its = |pod: &&Pod| pod.owner_references().iter().any(|owner| owner.uid == uid);
    pods.iter().filter(is_its).max_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|at| at.0))
}

fn progress(job: &Job, pod: Option<&Pod>, now: Timestamp) -> ComparisonProgress {
    // A pod that is being deleted was told to stop: what it says then is not its own word.
    let ended = pod.filter(|pod| pod.metadata.deletion_timestamp.is_none()).and_then(pods::terminated);
    if let Some(ended) = ended {
        let said = ended.message.as_deref().and_then(|message| serde_json::from_str(message).ok());
        let at = ended.finished_at.as_ref().map_or(now, |at| at.0);
        let result = said.unwrap_or_else(|| {
            ComparisonResult::unknown(&format!("The comparison broke off: {}", pods::last_words(ended)))
        });
        return ComparisonProgress::Ended { at, result };
    }
    if let Some(ended) = end(job) {
        let at = ended.last_transition_time.as_ref().map_or(now, |at| at.0);
        return if now.duration_since(at) > LAST_WORD {
            ComparisonProgress::Ended { at, result: ComparisonResult::unknown(&without_word(job, ended)) }
        } else {
            ComparisonProgress::Running
        };
    }
    match pod {
        Some(pod) if pods::has_started(pod) => ComparisonProgress::Running,
        Some(pod) => ComparisonProgress::Waiting { trouble: pods::obstacle(pod, now) },
        None => ComparisonProgress::Waiting { trouble: None },
    }
}

/// The condition that says that a Job is over.
fn end(job: &Job) -> Option<&JobCondition> {
    let mut conditions = job.status.as_ref()?.conditions.iter().flatten();
    conditions.find(|found| ["Complete", "Failed"].contains(&found.type_.as_str()) && found.status == "True")
}

fn without_word(job: &Job, ended: &JobCondition) -> String {
    match ended.reason.as_deref() {
        Some("DeadlineExceeded") if job.annotations().contains_key(ANNOTATION_TASK) => {
            "It took longer than six hours".to_owned()
        }
        Some("DeadlineExceeded") => "It took longer than spec.sourceComparison.timeout allows".to_owned(),
        reason => format!(
            "The pod of the Job {} went before it said what it found ({}: {})",
            job.name_any(),
            reason.unwrap_or(&ended.type_),
            ended.message.as_deref().unwrap_or("no reason is given"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use penstock_crds::comparison::ComparisonVerdict;
    use penstock_crds::report::Decisions;
    use serde_json::{Value, json};

    use super::*;
    use crate::plan::scene_for_tests::now;

    fn job(status: &Value) -> Job {
        serde_json::from_value(json!({
            "metadata": {
                "name": "inventory-compare-1a2b3c4d", "uid": "job", "labels": {LABEL_REVISION: "r1a2b3c4d"},
                "annotations": {ANNOTATION_SPEC: "1a2b3c4d", ANNOTATION_COMPARE_SOURCE: "t-1"},
                "creationTimestamp": "2026-03-01T11:59:00Z",
            },
            "spec": {"activeDeadlineSeconds": 90, "template": {}},
            "status": status,
        }))
        .unwrap()
    }

    fn pod(owner: &str, deleted: bool, state: &Value) -> Pod {
        let mut pod = json!({
            "metadata": {
                "name": "inventory-compare-1a2b3c4d-xyz",
                "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "a", "uid": owner}],
            },
            "status": {"containerStatuses": [{
                "name": "compare", "image": "a", "imageID": "a", "ready": false, "restartCount": 0, "state": state,
            }]},
        });
        if deleted {
            pod["metadata"]["deletionTimestamp"] = json!("2026-03-01T12:00:00Z");
        }
        serde_json::from_value(pod).unwrap()
    }

    fn seen(status: &Value, pods: &[Pod]) -> ComparisonProgress {
        comparison_job(&job(status), pods, now()).unwrap().progress
    }

    fn ended(code: i32, message: &str) -> Value {
        json!({"terminated": {"exitCode": code, "message": message, "finishedAt": "2026-03-01T11:59:30Z"}})
    }

    fn over(kind: &str, reason: &str, at: &str) -> Value {
        json!({"conditions": [{"type": kind, "status": "True", "reason": reason, "lastTransitionTime": at}]})
    }

    fn reason(progress: ComparisonProgress) -> String {
        let ComparisonProgress::Ended { result, .. } = progress else { panic!("{progress:?}") };
        assert_eq!(result.verdict, ComparisonVerdict::Unknown);
        result.reason.unwrap()
    }

    #[test]
    fn the_word_of_the_jobs_own_pod_counts_and_no_other() {
        let said = ComparisonResult { verdict: ComparisonVerdict::Equal, ..ComparisonResult::unknown("so") };
        let message = said.termination_message().unwrap();
        let at = "2026-03-01T11:59:30Z".parse().unwrap();
        let own = pod("job", false, &ended(0, &message));
        assert_eq!(seen(&json!({}), &[own]), ComparisonProgress::Ended { at, result: said });
        let other = pod("another", false, &ended(0, &message));
        assert_eq!(seen(&json!({}), &[other]), ComparisonProgress::Waiting { trouble: None });
    }

    #[test]
    fn a_job_has_the_deadline_that_it_was_made_with() {
        let timeout = comparison_job(&job(&json!({})), &[], now()).unwrap().timeout;
        assert_eq!(timeout, Some(SignedDuration::from_secs(90)));
    }

    #[test]
    fn a_job_says_what_was_decided_before_it_was_made() {
        let mut job = job(&json!({}));
        assert_eq!(comparison_job(&job, &[], now()).unwrap().decisions, []);
        let text = r#"[{"count":0,"lastMicros":0},{"count":2,"lastMicros":1}]"#;
        job.annotations_mut().insert(ANNOTATION_DECISIONS.into(), text.into());
        let decisions = comparison_job(&job, &[], now()).unwrap().decisions;
        assert_eq!(decisions, [Decisions::default(), Decisions { count: 2, last_micros: 1 }]);
    }

    #[test]
    fn a_pod_that_dies_without_a_word_leaves_nobody_knowing_and_says_why() {
        let killed = pod("job", false, &json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}));
        assert!(reason(seen(&json!({}), &[killed])).contains("more memory"));
        let panicked = pod("job", false, &ended(101, "thread 'main' panicked"));
        assert!(reason(seen(&json!({}), &[panicked])).contains("thread 'main' panicked"));
        let silent = pod("job", false, &ended(0, ""));
        assert!(reason(seen(&json!({}), &[silent])).contains("said nothing"));
    }

    #[test]
    fn a_job_past_its_deadline_says_so_and_not_what_its_pod_says_when_it_is_stopped() {
        let stopped = || pod("job", true, &ended(137, ""));
        let late = over("Failed", "DeadlineExceeded", "2026-03-01T11:59:40Z");
        assert!(reason(seen(&late, &[stopped()])).contains("sourceComparison.timeout"));
        assert!(reason(seen(&late, &[])).contains("sourceComparison.timeout"));
        let just = over("Failed", "BackoffLimitExceeded", "2026-03-01T11:59:50Z");
        assert_eq!(seen(&just, &[]), ComparisonProgress::Running, "the pod's word may be on its way");
        let gone = over("Failed", "BackoffLimitExceeded", "2026-03-01T11:59:40Z");
        assert!(reason(seen(&gone, &[])).contains("went before it said"));
    }

    #[test]
    fn what_keeps_the_pod_from_starting_is_told() {
        let waiting =
            pod("job", false, &json!({"waiting": {"reason": "ErrImagePull", "message": "not found"}}));
        let ComparisonProgress::Waiting { trouble: Some(trouble) } = seen(&json!({}), &[waiting]) else {
            panic!("it has trouble")
        };
        assert!(trouble.contains("cannot pull the image"), "{trouble}");
        let mut unplaced = pod("job", false, &json!({}));
        unplaced.status = serde_json::from_value(json!({"conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "Insufficient cpu",
            "lastTransitionTime": "2026-03-01T11:59:00Z",
        }]}))
        .unwrap();
        let ComparisonProgress::Waiting { trouble: Some(trouble) } = seen(&json!({}), &[unplaced]) else {
            panic!("no node takes it")
        };
        assert!(
            trouble.contains("No node takes the pod") && trouble.ends_with("Insufficient cpu"),
            "{trouble}"
        );
        let running = pod("job", false, &json!({"running": {}}));
        assert_eq!(seen(&json!({}), &[running]), ComparisonProgress::Running);
    }
}
