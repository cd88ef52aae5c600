//! Looks for secrets in everything about a pipeline that can be read without the right to read Secrets.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::{ControllerRevision, Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Pod, Secret};
use kube::api::{Api, ListParams, LogParams};
use kube::core::NamespaceResourceScope;
use kube::{Resource, ResourceExt as _};
use penstock_crds::CdcPipeline;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Cluster, OPERATOR_NAMESPACE};

/// Keys of Secrets that hold nothing secret.
const PUBLIC_KEYS: [&str; 3] = ["username", "ca.crt", "tls.crt"];
/// Where a pipeline that runs is seen. A search that does not find its name there has not searched.
const SEEN_IN: [&str; 7] =
    ["CdcPipeline", "Event", "ConfigMap", "Pod", "StatefulSet", "ControllerRevision", "log"];

/// Texts by what they are of: a kind, or `log`.
type Texts = BTreeMap<String, Vec<String>>;

/// Makes sure that no value of a Secret in the pipeline's namespace, and none of `others`, is in an object, an
/// Event or a log of that namespace or of the operator's.
///
/// # Errors
/// One is, or the search has not seen the pipeline where it must be.
pub async fn ensure_secrets_are_hidden(
    cluster: &Cluster,
    namespace: &str,
    pipeline: &str,
    others: &[&str],
) -> Result<()> {
    let mut secrets = secrets(cluster, namespace).await?;
    secrets.extend(others.iter().map(|secret| (*secret).to_owned()));
    let mut texts = Texts::new();
    for namespace in [namespace, OPERATOR_NAMESPACE] {
        read::<CdcPipeline>(cluster, namespace, &mut texts).await?;
        read::<Event>(cluster, namespace, &mut texts).await?;
        read::<ConfigMap>(cluster, namespace, &mut texts).await?;
        read::<Pod>(cluster, namespace, &mut texts).await?;
        read::<StatefulSet>(cluster, namespace, &mut texts).await?;
        read::<ControllerRevision>(cluster, namespace, &mut texts).await?;
        read::<Deployment>(cluster, namespace, &mut texts).await?;
        read::<Job>(cluster, namespace, &mut texts).await?;
        logs(cluster, namespace, &mut texts).await?;
    }
    for kind in SEEN_IN {
        let is_seen = texts.get(kind).into_iter().flatten().any(|text| text.contains(pipeline));
        ensure!(is_seen, "the search for secrets has not seen {pipeline} in any {kind}");
    }
    for (kind, texts) in &texts {
        for text in texts {
            let shown = secrets.iter().find(|secret| text.contains(secret.as_str()));
            ensure!(shown.is_none(), "{kind} shows the secret {}: {text}", shown.map_or("", String::as_str));
        }
    }
    Ok(())
}

/// What must not be shown: values as they are and as Kubernetes writes them, in base64. Of a key in PEM, whose line
/// ends are written in many ways, its longest line.
async fn secrets(cluster: &Cluster, namespace: &str) -> Result<Vec<String>> {
    let api: Api<Secret> = Api::namespaced(cluster.client.clone(), namespace);
    let stored = api.list(&ListParams::default()).await?.into_iter().filter_map(|secret| secret.data);
    let mut secrets = Vec::new();
    for (key, value) in stored.flatten() {
        if PUBLIC_KEYS.contains(&key.as_str()) {
            continue;
        }
        let text = String::from_utf8(value.0.clone()).with_context(|| format!("the value of {key}"))?;
        let longest = text.lines().max_by_key(|line| line.len()).unwrap_or_default();
        ensure!(
            longest.len() >= 16,
            "the value of {key} is too short to be looked for: give it 16 characters"
        );
        secrets.push(longest.to_owned());
        secrets.push(serde_json::to_value(&value)?.as_str().context("base64")?.to_owned());
    }
    ensure!(secrets.iter().any(|secret| !secret.is_empty()), "there is no Secret in {namespace}");
    Ok(secrets)
}

async fn read<K>(cluster: &Cluster, namespace: &str, texts: &mut Texts) -> Result<()>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    K: Clone + std::fmt::Debug + DeserializeOwned + Serialize,
{
    let api: Api<K> = Api::namespaced(cluster.client.clone(), namespace);
    for object in api.list(&ListParams::default()).await? {
        texts.entry(K::kind(&()).into_owned()).or_default().push(serde_json::to_string(&object)?);
    }
    Ok(())
}

/// Of each container what it logs, and what it logged before it was started again.
async fn logs(cluster: &Cluster, namespace: &str, texts: &mut Texts) -> Result<()> {
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    for pod in api.list(&ListParams::default()).await? {
        for previous in [false, true] {
            // A container that has not been started (again) has no log.
            let log = api.logs(&pod.name_any(), &LogParams { previous, ..LogParams::default() }).await;
            texts.entry("log".into()).or_default().extend(log.ok());
        }
    }
    Ok(())
}
