use serde_json::json;

use super::*;

fn pod(status: &serde_json::Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {
            "name": "inventory-r1-1", "uid": "pod-uid",
            "labels": {"penstock.dev/revision": "r1", "apps.kubernetes.io/pod-index": "1"},
        },
        "status": status,
    }))
    .unwrap()
}

fn with_container(container: &serde_json::Value) -> Pod {
    let mut status =
        json!({"name": "worker", "image": "worker:1", "imageID": "", "ready": false, "restartCount": 0});
    status.as_object_mut().unwrap().extend(container.as_object().unwrap().clone());
    pod(&json!({"podIP": "10.0.0.7", "containerStatuses": [status]}))
}

fn now() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

fn identity() -> Identity {
    Identity { namespace: "shop".into(), name: "inventory".into(), uid: "uid".into() }
}

#[test]
fn a_running_pod_is_asked_by_the_name_in_its_certificate() {
    let pod = with_container(&json!({"state": {"running": {}}}));
    let running = running_pod(&pod, &identity(), now()).unwrap();
    assert_eq!(running.host, "inventory-r1-1.inventory-worker.shop.svc");
    assert_eq!(running.address, Some("10.0.0.7:8443".parse().unwrap()));
    assert_eq!((running.worker.shard, running.worker.revision.0.as_str()), (1, "r1"));
    assert_eq!(running.worker.trouble, None);
}

#[test]
fn a_pod_that_does_not_run_is_not_asked() {
    let pod = with_container(&json!({"state": {"waiting": {"reason": "ContainerCreating"}}}));
    let running = running_pod(&pod, &identity(), now()).unwrap();
    assert_eq!(
        (running.address, running.worker.answer, running.worker.trouble),
        (None, Answer::NotRunning, None)
    );
}

#[test]
fn the_two_messages_of_a_failing_pull_become_one() {
    let said = |reason: &str, message: &str| {
        let pod = with_container(&json!({"state": {"waiting": {"reason": reason, "message": message}}}));
        trouble(&pod, now())
    };
    let first = said("ErrImagePull", "failed to resolve worker:1: not found");
    let then = said(
        "ImagePullBackOff",
        "Back-off pulling image \"worker:1\": ErrImagePull: failed to resolve worker:1: not found",
    );
    assert_eq!(first, then);
    let Some(PodTrouble::ImagePull(words)) = first else { panic!("{first:?}") };
    assert!(
        words.contains("cannot pull the image worker:1: failed to resolve worker:1: not found. Correct"),
        "{words}"
    );
}

#[test]
fn a_crash_is_told_in_the_workers_own_last_words() {
    let log = "{\"fields\":{\"message\":\"first\"}}\n{\"level\":\"ERROR\",\"fields\":{\"message\":\"bad flag\"}}\n\n";
    let last = json!({"terminated": {"exitCode": 2, "message": log}});
    let waiting =
        with_container(&json!({"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": last}));
    let words = "The worker in the pod inventory-r1-1 ends again and again: bad flag";
    assert_eq!(trouble(&waiting, now()), Some(PodTrouble::Crashing(words.into())));
    let between = with_container(&json!({"state": {"running": {}}, "restartCount": 3, "lastState": last}));
    assert_eq!(
        trouble(&between, now()),
        trouble(&waiting, now()),
        "the condition keeps still between two crashes"
    );
    let once = with_container(&json!({"state": {"running": {}}, "restartCount": 1, "lastState": last}));
    assert_eq!(trouble(&once, now()), None, "one restart is an accident");
}

#[test]
fn a_worker_without_memory_is_told_which_field_to_change() {
    let last = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}});
    let pod =
        with_container(&json!({"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": last}));
    let Some(PodTrouble::Crashing(words)) = trouble(&pod, now()) else { panic!() };
    assert!(words.contains("worker.resources.limits.memory"), "{words}");
}

#[test]
fn an_unschedulable_pod_says_why_when_placing_it_takes_long() {
    let condition = |since: &str| {
        json!({
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "lastTransitionTime": since,
            "message": "0/1 nodes are available",
        })
    };
    let long_ago = pod(&json!({"conditions": [condition("2026-03-01T11:59:50Z")]}));
    let words = "No node takes the pod inventory-r1-1: 0/1 nodes are available";
    assert_eq!(trouble(&long_ago, now()), Some(PodTrouble::Unschedulable(words.into())));
    let just_now = pod(&json!({"conditions": [condition("2026-03-01T11:59:51Z")]}));
    assert_eq!(trouble(&just_now, now()), None, "its volume may just be made");
}

#[test]
fn a_clean_up_that_failed_before_is_still_told_while_it_runs_again() {
    let last = json!({"terminated": {"exitCode": 1, "message": "connection refused"}});
    let pod = with_container(&json!({"state": {"running": {}}, "lastState": last}));
    assert_eq!(last_failure(&pod, now()).as_deref(), Some("connection refused"));
    let fresh = with_container(&json!({"state": {"running": {}}}));
    assert_eq!(last_failure(&fresh, now()), None);
}
