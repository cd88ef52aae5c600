//! A `CdcPipeline` under test.

use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Event;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use penstock_crds::CdcPipeline;
use serde_json::{Value, json};

use super::database::apply;
use super::{Cluster, Database, eventually};

/// A pipeline in the cluster.
#[derive(Clone)]
pub struct Pipeline {
    cluster: Cluster,
    namespace: String,
    /// Name of the object.
    pub name: String,
}

/// A manifest that copies `tables` from `source` to `sink`.
pub fn manifest(namespace: &str, name: &str, source: &Database, sink: &Database, tables: &[&str]) -> Value {
    let connection = |database: &Database| {
        json!({
            "host": database.name, "database": "shop", "credentialsSecret": database.name,
            "tls": {"mode": "disable"},
        })
    };
    json!({
        "apiVersion": "penstock.dev/v1alpha1", "kind": "CdcPipeline",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "source": {"postgres": {"connection": connection(source), "tables": tables}},
            "sink": {"postgres": {"connection": connection(sink)}},
            "worker": {"storage": {"size": "64Mi"}},
            "deletionPolicy": "Delete",
        },
    })
}

impl Pipeline {
    /// Applies a manifest.
    ///
    /// # Errors
    /// The API server refuses it: its sentence is in the error.
    pub async fn apply(cluster: &Cluster, manifest: Value) -> Result<Self> {
        let applied = apply(cluster, manifest).await?;
        let name = applied.metadata.name.context("metadata.name")?;
        let namespace = applied.metadata.namespace.context("metadata.namespace")?;
        Ok(Self { cluster: cluster.clone(), namespace, name })
    }

    /// The object as it is.
    ///
    /// # Errors
    /// It is gone, or the API server does not answer.
    pub async fn get(&self) -> Result<CdcPipeline> {
        Ok(self.api().get(&self.name).await?)
    }

    /// Merges a patch into the object.
    ///
    /// # Errors
    /// The API server refuses: its sentence is in the error.
    pub async fn patch(&self, patch: Value) -> Result<CdcPipeline> {
        Ok(self.api().patch(&self.name, &PatchParams::default(), &Patch::Merge(patch)).await?)
    }

    /// Starts the deletion.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn delete(&self) -> Result<()> {
        self.delete_with(&DeleteParams::default()).await
    }

    /// Starts the deletion in a given way.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn delete_with(&self, parameters: &DeleteParams) -> Result<()> {
        self.api().delete(&self.name, parameters).await?;
        Ok(())
    }

    /// Waits for an Event about this very object whose reason is `reason`; returns its note.
    ///
    /// # Errors
    /// It is not seen in time.
    pub async fn wait_for_event(&self, uid: &str, reason: &str, patience: Duration) -> Result<String> {
        let what = format!("an Event {reason} about {}/{}", self.namespace, self.name);
        eventually(&what, patience, || async {
            let events: Vec<Event> = self.cluster.list(&self.namespace, "").await?;
            let found = events.into_iter().find(|event| {
                event.reason.as_deref() == Some(reason) && event.involved_object.uid.as_deref() == Some(uid)
            });
            Ok(found.and_then(|event| event.message))
        })
        .await
    }

    /// Waits until the object is gone.
    ///
    /// # Errors
    /// It is not in time.
    pub async fn wait_until_gone(&self, patience: Duration) -> Result<()> {
        eventually("the pipeline is gone", patience, || async {
            Ok(self.api().get_opt(&self.name).await?.is_none().then_some(()))
        })
        .await
    }

    /// Waits for a condition of this generation; returns its message.
    ///
    /// # Errors
    /// It is not seen in time: the error shows the status as it is.
    pub async fn wait_for(
        &self,
        condition: &str,
        status: &str,
        reason: Option<&str>,
        patience: Duration,
    ) -> Result<String> {
        let what = format!("condition {condition}={status} {}", reason.unwrap_or_default());
        let seen = eventually(&what, patience, || async {
            let object = self.get().await?;
            let is_current = object.status.as_ref().and_then(|status| status.observed_generation)
                == object.metadata.generation;
            let conditions = object.status.unwrap_or_default().conditions;
            let found = conditions.into_iter().find(|found| {
                found.type_ == condition
                    && found.status == status
                    && reason.is_none_or(|reason| found.reason == reason)
            });
            Ok(found.filter(|_| is_current).map(|found| found.message))
        })
        .await;
        match seen {
            Ok(message) => Ok(message),
            Err(error) => {
                let status = self.get().await.map(|object| serde_json::to_string_pretty(&object.status));
                Err(error.context(format!("status of {}/{}: {status:?}", self.namespace, self.name)))
            }
        }
    }

    /// Waits for `Ready=True`.
    ///
    /// # Errors
    /// It is not seen in time.
    pub async fn wait_until_ready(&self) -> Result<()> {
        self.wait_for("Ready", "True", None, Duration::from_mins(3)).await.map(drop)
    }

    fn api(&self) -> Api<CdcPipeline> {
        Api::namespaced(self.cluster.client.clone(), &self.namespace)
    }
}
