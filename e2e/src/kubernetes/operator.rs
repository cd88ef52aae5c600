//! The operators under test: which one leads, what they log, and the death of one.

use std::time::Duration;

use anyhow::Result;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{Api, GetParams, LogParams};
use kube::core::Request;

use super::{Cluster, OPERATOR_NAMESPACE, eventually, kill_container};

const LEASE: &str = "penstock-operator";
const OPERATORS: &str = "app.kubernetes.io/name=penstock";

/// Name of the pod that leads, or that did until it died.
///
/// # Errors
/// No operator leads within a minute.
pub async fn leader(cluster: &Cluster) -> Result<String> {
    leader_since(cluster, Timestamp::MIN).await
}

/// SIGKILL to the operator that leads; returns when one leads again, the same after its restart or another.
///
/// # Errors
/// No operator leads within a minute.
pub async fn kill_leader(cluster: &Cluster) -> Result<()> {
    kill_container(cluster, OPERATOR_NAMESPACE, &leader(cluster).await?, "operator").await?;
    leader_since(cluster, Timestamp::now()).await.map(drop)
}

/// Name of a pod that has taken or renewed the lease after a time.
async fn leader_since(cluster: &Cluster, since: Timestamp) -> Result<String> {
    let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), OPERATOR_NAMESPACE);
    eventually("an operator leads", Duration::from_mins(1), || async {
        let Some(spec) = leases.get_opt(LEASE).await?.and_then(|lease| lease.spec) else { return Ok(None) };
        let is_fresh = spec.renew_time.is_some_and(|renewed| renewed.0 > since);
        Ok(spec.holder_identity.filter(|holder| is_fresh && !holder.is_empty()))
    })
    .await
}

/// What the operators log, and what they logged before their last restart.
///
/// # Errors
/// The API server refuses.
pub async fn logs_of_operators(cluster: &Cluster) -> Result<String> {
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), OPERATOR_NAMESPACE);
    let mut logs = String::new();
    for pod in cluster.list::<Pod>(OPERATOR_NAMESPACE, OPERATORS).await? {
        for previous in [true, false] {
            let parameters = LogParams { previous, ..LogParams::default() };
            logs += &api.logs(&pod.name_any(), &parameters).await.unwrap_or_default();
        }
    }
    Ok(logs)
}

/// What the leader's `/metrics` serves.
///
/// # Errors
/// It does not answer.
pub async fn metrics_of_leader(cluster: &Cluster) -> Result<String> {
    let pod = leader(cluster).await?;
    let proxy = format!("/api/v1/namespaces/{OPERATOR_NAMESPACE}/pods/{pod}:8080/proxy");
    let request = Request::new(proxy).get("metrics", &GetParams::default())?;
    Ok(cluster.client.request_text(request).await?)
}
