//! Two operators: one leads, the other takes over; and an object that cannot be read stops neither.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::{Event, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, PostParams};
use penstock_e2e::kubernetes::{
    Cluster, OPERATOR_NAMESPACE, Pipeline, apply, eventually, is_running, leader, logs_of_operators,
    pid_of_container, send_signal,
};
use serde_json::{Value, json};

use crate::manifests::paused;
use crate::stage::{ALONE, MINUTE};

#[tokio::test]
async fn a_second_operator_takes_over_when_the_first_is_asked_to_stop() -> Result<()> {
    let _alone = ALONE.lock().await;
    let cluster = Cluster::connect().await?;
    let operators: Vec<Pod> = cluster.list(OPERATOR_NAMESPACE, "app.kubernetes.io/name=penstock").await?;
    ensure!(operators.len() >= 2, "the operator is installed with two replicas for this test");
    let first = leader(&cluster).await?;
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), OPERATOR_NAMESPACE);
    pods.delete(&first, &DeleteParams::default()).await?;
    let began = Instant::now();
    eventually("another operator leads", Duration::from_secs(30), || async {
        let now = leader(&cluster).await?;
        Ok((now != first).then_some(()))
    })
    .await?;
    let took = began.elapsed();
    ensure!(took < Duration::from_secs(14), "handing over took {took:?}: the lease was not released");
    Ok(())
}

#[tokio::test]
async fn an_object_that_cannot_be_read_is_told_of_and_stops_no_other_whoever_leads() -> Result<()> {
    let _alone = ALONE.lock().await;
    let cluster = Cluster::connect().await?;
    let namespace = cluster.namespace("malformed").await?;
    let before = Pipeline::apply(&cluster, paused(&namespace, "before")).await?;
    before.wait_for("Ready", "False", Some("Paused"), MINUTE).await?;

    let malformed = store_malformed(&cluster, &namespace).await?;
    let note = eventually("the operator tells of it", MINUTE, || async {
        let events: Vec<Event> = cluster.list(&namespace, "").await?;
        let is_meant = |event: &Event| {
            event.reason.as_deref() == Some("Malformed")
                && event.involved_object.name.as_deref() == Some(malformed.name.as_str())
        };
        Ok(events.into_iter().find(is_meant).and_then(|event| event.message))
    })
    .await?;
    ensure!(note.contains("Unknown variant Archive") && note.contains("kubectl edit"), "{note}");

    // The next leader finds it among the objects that it begins with.
    stop_leader(&cluster).await?;
    let after = Pipeline::apply(&cluster, paused(&namespace, "after")).await?;
    after.wait_for("Ready", "False", Some("Paused"), MINUTE).await?;
    before.patch(json!({"spec": {"worker": {"log": "debug"}}})).await?;
    before.wait_for("Ready", "False", Some("Paused"), MINUTE).await?;

    malformed.patch(json!({"spec": {"deletionPolicy": "Delete"}})).await?;
    malformed.wait_for("Ready", "False", Some("Paused"), MINUTE).await?;
    cluster.remove_namespace(&namespace).await
}

/// SIGTERM to the operator that leads; another may lead afterwards, or the same when it was started again.
async fn stop_leader(cluster: &Cluster) -> Result<()> {
    // One that was killed a moment ago holds the lease still, and is not running.
    let pid = eventually("an operator that runs leads", MINUTE, || async {
        let leader = leader(cluster).await?;
        Ok(pid_of_container(cluster, OPERATOR_NAMESPACE, &leader, "operator").await.ok())
    })
    .await?;
    let began = Instant::now();
    send_signal(pid, "TERM").await?;
    while is_running(pid) {
        ensure!(began.elapsed() < Duration::from_secs(5), "the operator takes more than 5 s to exit");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    eventually("it says that it gave the lease back", MINUTE, || async {
        Ok(logs_of_operators(cluster).await?.contains("gave the lease back").then_some(()))
    })
    .await
}

/// Stores an object as an older `CustomResourceDefinition` would have let it: with a deletion policy that this version
/// does not know.
async fn store_malformed(cluster: &Cluster, namespace: &str) -> Result<Pipeline> {
    let mut manifest = paused(namespace, "malformed");
    manifest["spec"]["deletionPolicy"] = json!("Archive");
    let Err(refusal) = apply(cluster, manifest.clone()).await else { bail!("the policy is known") };
    ensure!(format!("{refusal:#}").contains("Unsupported value: \"Archive\""), "{refusal:#}");

    set_policies(cluster, &["Retain", "Delete", "Archive"]).await?;
    let stored = eventually("the loosened definition is in force", MINUTE, || async {
        Ok(Some(Pipeline::apply(cluster, manifest.clone()).await?))
    })
    .await;
    set_policies(cluster, &["Retain", "Delete"]).await?;
    stored
}

/// Says which deletion policies the API server takes.
async fn set_policies(cluster: &Cluster, policies: &[&str]) -> Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let mut definition = serde_json::to_value(api.get("cdcpipelines.penstock.dev").await?)?;
    let accepted = definition
        .pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/deletionPolicy/enum")
        .context("deletionPolicy is an enum")?;
    *accepted = policies.iter().copied().map(Value::from).collect();
    api.replace("cdcpipelines.penstock.dev", &PostParams::default(), &serde_json::from_value(definition)?)
        .await?;
    Ok(())
}
