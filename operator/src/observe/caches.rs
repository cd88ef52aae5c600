//! What watches bring: every object that the operator made, of all pipelines. Of kinds whose content does
//! not matter only the metadata is kept.

use std::fmt::Debug;
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt as _, select_all};
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::{WatchStreamExt as _, reflector, watcher};
use kube::{Api, Client, Resource, ResourceExt as _};
use penstock_crds::CdcPipeline;
use penstock_crds::names::LABEL_PIPELINE;
use serde::de::DeserializeOwned;

use super::objects::Objects;
use super::{Identity, ObserveError};
use crate::names::{LABEL_MANAGED_BY, MANAGED_BY};

/// How long a pass waits for the first answer of the watches.
const PATIENCE: Duration = Duration::from_secs(20);

/// Pipelines whose objects changed.
pub(super) type Touched = BoxStream<'static, ObjectRef<DeserializeGuard<CdcPipeline>>>;

/// What watches bring.
#[derive(Clone, Debug)]
pub(crate) struct Caches {
    sets: Store<StatefulSet>,
    pods: Store<Pod>,
    jobs: Store<Job>,
    revisions: Store<ControllerRevision>,
    claims: Store<PartialObjectMeta<PersistentVolumeClaim>>,
    config_maps: Store<PartialObjectMeta<ConfigMap>>,
    services: Store<PartialObjectMeta<Service>>,
    service_accounts: Store<PartialObjectMeta<ServiceAccount>>,
}

impl Caches {
    /// Caches, and the stream that fills them while it is polled.
    pub(crate) fn new(client: &Client) -> (Self, Touched) {
        let (sets, touched_sets) = cached(client);
        let (pods, touched_pods) = cached(client);
        let (jobs, touched_jobs) = cached(client);
        let (revisions, touched_revisions) = cached(client);
        let (claims, touched_claims) = cached(client);
        let (config_maps, touched_config_maps) = cached(client);
        let (services, touched_services) = cached(client);
        let (service_accounts, touched_service_accounts) = cached(client);
        let caches = Self { sets, pods, jobs, revisions, claims, config_maps, services, service_accounts };
        let touched = select_all([
            touched_sets,
            touched_pods,
            touched_jobs,
            touched_revisions,
            touched_claims,
            touched_config_maps,
            touched_services,
            touched_service_accounts,
        ]);
        (caches, touched.boxed())
    }

    /// Waits until every watch has brought what exists.
    pub(super) async fn wait_until_filled(&self) -> Result<(), ObserveError> {
        let filled = async {
            tokio::try_join!(
                self.sets.wait_until_ready(),
                self.pods.wait_until_ready(),
                self.jobs.wait_until_ready(),
                self.revisions.wait_until_ready(),
                self.claims.wait_until_ready(),
                self.config_maps.wait_until_ready(),
                self.services.wait_until_ready(),
                self.service_accounts.wait_until_ready(),
            )
        };
        match tokio::time::timeout(PATIENCE, filled).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(ObserveError::NotSynced),
        }
    }

    /// The objects of one pipeline.
    pub(super) fn objects(&self, identity: &Identity) -> Objects {
        Objects {
            sets: of_pipeline(&self.sets, identity),
            pods: of_pipeline(&self.pods, identity),
            jobs: of_pipeline(&self.jobs, identity),
            revisions: of_pipeline(&self.revisions, identity),
            claims: of_pipeline(&self.claims, identity),
            config_maps: of_pipeline(&self.config_maps, identity),
            services: of_pipeline(&self.services, identity),
            service_accounts: of_pipeline(&self.service_accounts, identity),
        }
    }
}

fn of_pipeline<K>(store: &Store<K>, identity: &Identity) -> Vec<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let of_pipeline = |object: &K| {
        object.namespace().as_ref() == Some(&identity.namespace)
            && object.labels().get(LABEL_PIPELINE) == Some(&identity.name)
    };
    store.state_filter(of_pipeline).iter().map(|object| object.as_ref().clone()).collect()
}

fn selected() -> watcher::Config {
    watcher::Config::default().labels(&format!("{LABEL_MANAGED_BY}={MANAGED_BY},{LABEL_PIPELINE}"))
}

/// A cache of one kind, and the stream that fills it. One watch serves both.
fn cached<K>(client: &Client) -> (Store<K>, Touched)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let touched = watcher(Api::<K>::all(client.clone()), selected())
        .default_backoff()
        .modify(|object| object.managed_fields_mut().clear())
        .reflect(writer)
        .touched_objects()
        .filter_map(async |object| match object {
            Ok(object) => pipeline_of(&object),
            Err(error) => {
                tracing::warn!(kind = %K::kind(&()), %error, "a watch was interrupted; it starts again");
                None
            }
        });
    (store, touched.boxed())
}

fn pipeline_of<K: Resource<DynamicType = ()>>(
    object: &K,
) -> Option<ObjectRef<DeserializeGuard<CdcPipeline>>> {
    let pipeline = object.labels().get(LABEL_PIPELINE)?;
    Some(ObjectRef::new(pipeline).within(&object.namespace()?))
}
