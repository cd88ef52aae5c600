//! A real cluster under test: namespaces, databases in pods, pipelines, processes to kill.

mod content;
mod database;
mod exposure;
mod operator;
mod pipeline;
mod process;

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

pub use content::ensure_equal_when_caught_up;
pub use database::{Certificate, Database, PASSWORD, apply};
pub use exposure::ensure_secrets_are_hidden;
pub use operator::{kill_leader, leader, logs_of_operators, metrics_of_leader};
pub use pipeline::{Pipeline, manifest};
pub use process::{is_running, kill_container, pid_of_container, send_signal};

/// Environment variable with the path of the kubeconfig of the cluster under test.
pub const KUBECONFIG_VARIABLE: &str = "PENSTOCK_E2E_KUBECONFIG";
/// Namespace that the operator was installed into.
pub const OPERATOR_NAMESPACE: &str = "penstock-system";

/// The cluster under test.
#[derive(Clone)]
pub struct Cluster {
    /// A client with every right.
    pub client: Client,
}

impl Cluster {
    /// Connects to the cluster that the environment names.
    ///
    /// # Errors
    /// The variable is not set, or the API server does not answer.
    pub async fn connect() -> Result<Self> {
        let path = std::env::var(KUBECONFIG_VARIABLE).with_context(|| {
            format!("{KUBECONFIG_VARIABLE} is not set: run `make test-e2e`, which starts a cluster")
        })?;
        let kubeconfig = Kubeconfig::read_from(&path).with_context(|| format!("reading {path}"))?;
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        config.read_timeout = Some(Duration::from_mins(1));
        Ok(Self { client: Client::try_from(config)? })
    }

    /// Makes a namespace of its own for a test. It is removed by [`Self::remove_namespace`], or with the cluster.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn namespace(&self, name: &str) -> Result<String> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let unique = format!("{name}-{:04x}", rand::random::<u16>());
        let metadata = ObjectMeta { name: Some(unique.clone()), ..ObjectMeta::default() };
        api.create(&PostParams::default(), &Namespace { metadata, ..Namespace::default() }).await?;
        Ok(unique)
    }

    /// Removes a namespace and waits until it is gone.
    ///
    /// # Errors
    /// It is not gone in time.
    pub async fn remove_namespace(&self, name: &str) -> Result<()> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        api.delete(name, &DeleteParams::background()).await?;
        eventually("the namespace is gone", Duration::from_mins(2), || async {
            Ok(api.get_opt(name).await?.is_none().then_some(()))
        })
        .await
    }

    /// Objects of a kind in a namespace.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn list<K>(&self, namespace: &str, labels: &str) -> Result<Vec<K>>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope> + Clone + std::fmt::Debug,
        K: serde::de::DeserializeOwned,
        K::DynamicType: Default,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        Ok(api.list(&ListParams::default().labels(labels)).await?.items)
    }
}

/// Asks until there is an answer; an error counts as none, and the last one is told when the time is over.
///
/// # Errors
/// No answer in time.
pub async fn eventually<T, F, Fut>(what: &str, patience: Duration, mut ask: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Option<T>>>,
{
    let began = Instant::now();
    let mut last = None;
    while began.elapsed() < patience {
        match tokio::time::timeout(Duration::from_secs(20), ask()).await {
            Ok(Ok(Some(answer))) => return Ok(answer),
            Ok(Ok(None)) => last = None,
            Ok(Err(error)) => last = Some(error),
            Err(_) => last = Some(anyhow::anyhow!("no answer within 20 s")),
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let last = last.map(|error| format!(": {error:#}")).unwrap_or_default();
    bail!("not seen within {} s: {what}{last}", patience.as_secs())
}
