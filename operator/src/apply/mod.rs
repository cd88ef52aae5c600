//! Carries a plan out: server-side apply with one field manager, deletions with the UID as a precondition.
//! No decisions; what was applied and has not changed since is left alone.

mod control_secret;
mod events;
mod status;

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Mutex;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt as _};
use penstock_crds::names::{FIELD_MANAGER, FINALIZER};
use penstock_crds::{CdcPipeline, CdcPipelineStatus};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use sha2::{Digest as _, Sha256};

pub(crate) use events::Publisher;

use crate::call::{CallError, call};
use crate::observe::Observed;
use crate::plan::{Doomed, DoomedKind, Manifest, Plan, Step};
use crate::world::World;

/// A step that could not be carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    /// The API server did not take it.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The API server did not take the Job of a comparison, which the pipeline does without.
    #[error(transparent)]
    Comparison(CallError),
    /// The control Secret's certificates cannot be made.
    #[error("making the certificates of the workers' control API: {0}")]
    Certificate(#[from] rcgen::Error),
    /// An object cannot be written as JSON.
    #[error("an object cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl ApplyError {
    /// What the API server said, if it will say the same again.
    pub(crate) fn refusal(&self) -> Option<String> {
        match self {
            Self::Call(error) => error.is_refusal().then(|| error.to_string()),
            Self::Comparison(_) | Self::Certificate(_) | Self::Json(_) => None,
        }
    }

    /// What the API server said of a comparison's Job, if it will say the same again.
    pub(crate) fn refusal_of_comparison(&self) -> Option<String> {
        match self {
            Self::Comparison(error) => error.is_refusal().then(|| error.to_string()),
            Self::Call(_) | Self::Certificate(_) | Self::Json(_) => None,
        }
    }
}

/// Carries plans out.
pub(crate) struct Applier {
    client: Client,
    publisher: Publisher,
    /// What was applied, by the pipeline's UID.
    applied: Mutex<HashMap<String, AppliedObjects>>,
}

/// Kind and name of an object to what was applied.
type AppliedObjects = HashMap<(&'static str, String), Applied>;

/// What was applied, and the version that the object got by it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Applied {
    content: [u8; 32],
    version: String,
}

impl Applier {
    /// An applier that has applied nothing yet.
    pub(crate) fn new(client: Client, publisher: Publisher) -> Self {
        Self { client, publisher, applied: Mutex::default() }
    }

    /// Carries the steps out in order, up to the first that fails, then writes the status. The status says
    /// what was observed, so it is written whether or not the steps succeeded.
    pub(crate) async fn carry_out(&self, observed: &Observed, plan: &Plan) -> Result<(), ApplyError> {
        let steps = self.steps(observed, &plan.steps).await;
        let status = match &plan.status {
            Some(status) => status::write(&self.client, &observed.world.pipeline, status).await,
            None => Ok(()),
        };
        steps?;
        Ok(status?)
    }

    /// Writes the status of a pipeline that could not be observed.
    pub(crate) async fn say(
        &self,
        pipeline: &CdcPipeline,
        status: &CdcPipelineStatus,
    ) -> Result<(), CallError> {
        status::write(&self.client, pipeline, status).await
    }

    /// Forgets a pipeline that is gone.
    pub(crate) fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }

    /// Tells people something about a pipeline.
    pub(crate) fn publisher(&self) -> &Publisher {
        &self.publisher
    }

    async fn steps(&self, observed: &Observed, steps: &[Step]) -> Result<(), ApplyError> {
        for step in steps {
            self.step(observed, step).await?;
        }
        Ok(())
    }

    async fn step(&self, observed: &Observed, step: &Step) -> Result<(), ApplyError> {
        let world = &observed.world;
        match step {
            Step::AddFinalizer => self.set_finalizer(world, true).await?,
            Step::RemoveFinalizer => self.set_finalizer(world, false).await?,
            Step::Apply(manifest) => self.manifest(observed, manifest).await?,
            Step::IssueControlSecret => self.issue_control_secret(observed).await?,
            Step::Delete(doomed) => self.delete(world, doomed).await?,
            Step::Direct { pod, directive } => observed.direct(pod, directive).await,
            Step::Emit(event) => self.publisher.publish(&world.pipeline, event).await?,
        }
        Ok(())
    }

    /// Adds or removes the finalizer, if nobody has written the object since it was observed.
    async fn set_finalizer(&self, world: &World, is_wanted: bool) -> Result<(), CallError> {
        let mut finalizers = world.pipeline.metadata.finalizers.clone().unwrap_or_default();
        finalizers.retain(|finalizer| finalizer != FINALIZER);
        if is_wanted {
            finalizers.push(FINALIZER.into());
        }
        let metadata =
            json!({"resourceVersion": world.pipeline.resource_version(), "finalizers": finalizers});
        let patch = Patch::Merge(json!({"metadata": metadata}));
        let api: Api<CdcPipeline> = Api::namespaced(self.client.clone(), world.namespace());
        let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        let outcome = call(
            "writing the finalizer of the pipeline",
            api.patch_metadata(world.name(), &parameters, &patch),
        )
        .await;
        match outcome {
            Err(error) if error.is_code(404) => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    async fn manifest(&self, observed: &Observed, manifest: &Manifest) -> Result<(), ApplyError> {
        match manifest {
            Manifest::ServiceAccount(object) => self.object(observed, object.as_ref()).await,
            Manifest::Service(object) => self.object(observed, object.as_ref()).await,
            Manifest::ConfigMap(object) => self.object(observed, object.as_ref()).await,
            Manifest::ControllerRevision(object) => self.object(observed, object.as_ref()).await,
            Manifest::StatefulSet(object) => self.object(observed, object.as_ref()).await,
            Manifest::Job(object) => self.object(observed, object.as_ref()).await,
            Manifest::Comparison(object) => {
                self.object(observed, object.as_ref()).await.map_err(|error| match error {
                    ApplyError::Call(error) => ApplyError::Comparison(error),
                    error
                    @ (ApplyError::Comparison(_) | ApplyError::Certificate(_) | ApplyError::Json(_)) => error,
                })
            }
        }
    }

    /// Server-side apply, unless the very same was applied before and the object is as it was after that.
    async fn object<K>(&self, observed: &Observed, object: &K) -> Result<(), ApplyError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + Serialize
            + DeserializeOwned,
    {
        let world = &observed.world;
        let kind = K::kind(&());
        let kind: &'static str = match kind {
            std::borrow::Cow::Borrowed(kind) => kind,
            std::borrow::Cow::Owned(_) => "object",
        };
        let place = (kind, object.name_any());
        let content: [u8; 32] = Sha256::digest(serde_json::to_vec(object)?).into();
        let seen = observed.versions.get(&place);
        let before = self.lock().get(&world.uid).and_then(|applied| applied.get(&place)).cloned();
        if before.is_some_and(|before| before.content == content && seen == Some(&before.version)) {
            return Ok(());
        }
        let api: Api<K> = Api::namespaced(self.client.clone(), world.namespace());
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let tried = format!("applying the {kind} {}", place.1);
        let stored = call(tried, api.patch(&place.1, &parameters, &Patch::Apply(object))).await?;
        let version = version(kind, &stored);
        if seen != Some(&version) {
            tracing::info!(kind, name = %place.1, "applied");
        }
        self.lock().entry(world.uid.clone()).or_default().insert(place, Applied { content, version });
        Ok(())
    }

    async fn issue_control_secret(&self, observed: &Observed) -> Result<(), ApplyError> {
        let secret = control_secret::issue(&observed.world, observed.control.as_ref(), Timestamp::now())?;
        let api: Api<Secret> = Api::namespaced(self.client.clone(), observed.world.namespace());
        let name = secret.name_any();
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        call(format!("applying the Secret {name}"), api.patch(&name, &parameters, &Patch::Apply(&secret)))
            .await?;
        tracing::info!(kind = "Secret", %name, "issued the certificates of the control API");
        Ok(())
    }

    async fn delete(&self, world: &World, doomed: &Doomed) -> Result<(), CallError> {
        match doomed.kind {
            DoomedKind::StatefulSet => self.delete_object::<StatefulSet>(world, doomed).await,
            DoomedKind::PersistentVolumeClaim => {
                self.delete_object::<PersistentVolumeClaim>(world, doomed).await
            }
            DoomedKind::ConfigMap => self.delete_object::<ConfigMap>(world, doomed).await,
            DoomedKind::ControllerRevision => self.delete_object::<ControllerRevision>(world, doomed).await,
            DoomedKind::Pod => self.delete_object::<Pod>(world, doomed).await,
            DoomedKind::Job => self.delete_object::<Job>(world, doomed).await,
        }
    }

    /// Gone already, or replaced by a namesake, is as good as deleted.
    async fn delete_object<K>(&self, world: &World, doomed: &Doomed) -> Result<(), CallError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), world.namespace());
        let parameters = DeleteParams::background()
            .preconditions(Preconditions { uid: Some(doomed.uid.clone()), resource_version: None });
        let tried = format!("deleting the {} {}", K::kind(&()), doomed.name);
        match call(tried, api.delete(&doomed.name, &parameters)).await {
            Err(error) if error.is_code(404) || error.is_code(409) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => {
                tracing::info!(kind = %K::kind(&()), name = %doomed.name, "deleted");
                Ok(())
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, AppliedObjects>> {
        self.applied.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The version in which an object's content was last changed: where the status is written by others, the
/// generation; else the resource version.
fn version<K: Resource>(kind: &str, object: &K) -> String {
    match kind {
        "StatefulSet" | "Job" => object.meta().generation.unwrap_or_default().to_string(),
        _ => object.resource_version().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests;

/// A control Secret as it is issued.
#[cfg(test)]
pub(crate) fn issue_for_tests(world: &World) -> Secret {
    control_secret::issue(world, None, Timestamp::now()).unwrap()
}
