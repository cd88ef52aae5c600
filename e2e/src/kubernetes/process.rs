//! Signals to processes of pods from outside: SIGKILL is what a crash is.

use std::fs;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;

use super::Cluster;

/// Sends SIGKILL to the process of a pod's container. The kubelet restarts it in the same pod.
///
/// # Errors
/// The pod or its process is not there: the cluster must run on this machine.
pub async fn kill_container(cluster: &Cluster, namespace: &str, pod: &str, container: &str) -> Result<()> {
    let pid = pid_of_container(cluster, namespace, pod, container).await?;
    send_signal(pid, "KILL").await.with_context(|| format!("{namespace}/{pod}/{container}"))
}

/// Sends a signal, such as `TERM`, to a process of this machine.
///
/// # Errors
/// There is no such process.
pub async fn send_signal(pid: u32, signal: &str) -> Result<()> {
    let status =
        tokio::process::Command::new("kill").args([format!("-{signal}"), pid.to_string()]).status().await?;
    if !status.success() {
        bail!("kill -{signal} {pid} failed");
    }
    Ok(())
}

/// Whether there is a process of that id.
pub fn is_running(pid: u32) -> bool {
    fs::exists(format!("/proc/{pid}")).unwrap_or(false)
}

/// Id, on this machine, of the first process of a pod's container.
///
/// # Errors
/// The container is not running, or its cgroup is not on this machine.
pub async fn pid_of_container(cluster: &Cluster, namespace: &str, pod: &str, container: &str) -> Result<u32> {
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let status = api.get(pod).await?.status.context("the pod has no status")?;
    let containers = status.container_statuses.unwrap_or_default();
    let id = containers
        .iter()
        .find(|status| status.name == container)
        .and_then(|status| status.container_id.as_deref())
        .and_then(|id| id.rsplit('/').next())
        .with_context(|| format!("{namespace}/{pod} has no running container {container}"))?;
    first_process_in_cgroup(id)
}

/// The oldest process whose cgroup names the container.
fn first_process_in_cgroup(container_id: &str) -> Result<u32> {
    let pids = fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            fs::read_to_string(format!("/proc/{pid}/cgroup"))
                .is_ok_and(|cgroup| cgroup.contains(container_id))
        });
    // Not the lowest id: they begin anew at some 32,000.
    pids.filter_map(|pid| Some((started_at(pid)?, pid)))
        .min()
        .map(|(_, pid)| pid)
        .with_context(|| format!("no process of container {container_id} on this machine"))
}

/// When a process was started, in ticks since the machine was: field 22 of its `stat`, counted after the name, which may
/// hold anything.
fn started_at(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}
