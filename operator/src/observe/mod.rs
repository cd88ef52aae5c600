//! All reads, into one [`World`]. Objects that are made for pipelines come from caches that watches keep;
//! for a deletion they are read anew, because what follows cannot be undone.

mod absence;
mod caches;
mod comparison;
mod objects;
mod pods;
mod secrets;
mod worker_api;

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};
use penstock_crds::CdcPipeline;
use penstock_crds::directive::Directive;

pub(crate) use caches::Caches;
pub(crate) use secrets::{ControlMaterial, SecretReader};
pub(crate) use worker_api::{WorkerApi, WorkerLine};

use self::absence::Absences;
use crate::call::{CallError, call};
use crate::plan::{PlanError, target_revision};
use crate::world::{WorkerPod, World};

/// Everything that is needed to look at pipelines.
pub(crate) struct Observer {
    client: Client,
    caches: Caches,
    secrets: SecretReader,
    workers: WorkerApi,
    absences: Absences,
    default_image: String,
}

/// A world, and what carrying out a plan needs besides.
#[derive(Debug)]
pub(crate) struct Observed {
    /// What a decision may look at.
    pub world: World,
    /// Kind and name of each object to the version it was seen in.
    pub versions: HashMap<(&'static str, String), String>,
    /// Token and certificate authority of the workers, where they are issued.
    pub control: Option<ControlMaterial>,
    /// How to speak to workers, by the name of the pod.
    pub lines: HashMap<String, WorkerLine>,
}

impl Observed {
    /// Tells a worker what is wanted of it. One that does not take it is told again at the next pass.
    pub(crate) async fn direct(&self, pod: &str, directive: &Directive) {
        let Some((line, control)) = self.lines.get(pod).zip(self.control.as_ref()) else { return };
        match line.direct(&control.token, directive).await {
            Ok(()) => tracing::info!(pod, ?directive, "directed a worker"),
            Err(error) => tracing::warn!(pod, %error, "a worker did not take what it was told"),
        }
    }
}

/// What the API server said when it refused something.
#[derive(Clone, Debug, Default)]
pub(crate) struct Refusals {
    /// An object that the pipeline needs.
    pub object: Option<String>,
    /// The Job of a comparison.
    pub comparison: Option<String>,
}

/// A world that could not be observed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ObserveError {
    /// The API server did not answer, or not as it should.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The caches are not filled yet.
    #[error("the watches have not brought the existing objects yet")]
    NotSynced,
    /// The spec has no revision name.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

impl Observer {
    /// An observer.
    pub(crate) fn new(client: Client, caches: Caches, default_image: String) -> Self {
        let secrets = SecretReader::new(client.clone());
        Self {
            client,
            caches,
            secrets,
            workers: WorkerApi::default(),
            absences: Absences::default(),
            default_image,
        }
    }

    /// Everything there is to know about a pipeline now. `refusals` are what the API server said at the last
    /// attempt.
    pub(crate) async fn observe(
        &self,
        pipeline: &CdcPipeline,
        refusals: Refusals,
    ) -> Result<Observed, ObserveError> {
        // 1. the objects that were made for it
        self.caches.wait_until_filled().await?;
        let identity = Identity::of(pipeline);
        let is_deleting = pipeline.metadata.deletion_timestamp.is_some();
        let mut objects = self.caches.objects(&identity);
        if is_deleting {
            objects.read_anew(&self.client, &identity).await?;
        }
        // 2. what only deletion needs to know
        let namespace_terminating = is_deleting && self.namespace_terminating(&identity.namespace).await?;
        // 3. names that somebody else has
        let target = target_revision(pipeline)?;
        let mut taken = objects.taken(&self.client, &identity, &target, is_deleting).await?;
        // 4. Secrets, by name
        let secrets = self.secrets.named_in(pipeline, &identity).await?;
        let (control, material) = self.secrets.control(&identity, &mut taken).await?;
        // 5. what the workers say
        let now = Timestamp::now();
        let mut pods = objects.worker_pods(&identity, now);
        self.workers.ask(&identity, &mut pods, material.as_ref()).await;
        let lines = self.workers.lines(&identity.uid, &pods);

        let (revisions, unreadable) = objects.known_revisions(&identity);
        let sets = objects.worker_sets(&identity);
        let pods: Vec<WorkerPod> = pods.into_iter().map(|pod| pod.worker).collect();
        let (clean_up, clean_up_pods) = (objects.clean_up_job(&identity, now), objects.clean_up_pods());
        let is_lacking = absence::is_lacking(&sets, &pods, clean_up.as_ref(), &clean_up_pods);
        let world = World {
            now: Timestamp::now(),
            default_image: self.default_image.clone(),
            pipeline: pipeline.clone(),
            uid: identity.uid.clone(),
            namespace_terminating,
            revisions,
            unreadable,
            sets,
            pods,
            pods_lack_since: self.absences.note(&identity.uid, now, is_lacking),
            claims: objects.claims(&identity),
            config_maps: objects.config_maps(&identity),
            secrets,
            control,
            clean_up,
            clean_up_pods,
            comparisons: objects.comparisons(&identity, now),
            comparison_pods: objects.comparison_pods(),
            comparison_refused: refusals.comparison,
            rollout_jobs: objects.rollout_jobs(&identity, now),
            rollout_pods: objects.rollout_pods(),
            taken,
            refused: refusals.object,
        };
        Ok(Observed { world, versions: objects.versions(), control: material, lines })
    }

    /// Forgets what was remembered about Secrets of a pipeline, after one was written.
    pub(crate) fn forget_control(&self, uid: &str) {
        self.secrets.forget(uid);
    }

    /// Forgets a pipeline that is gone.
    pub(crate) fn forget(&self, uid: &str) {
        self.secrets.forget(uid);
        self.workers.forget(uid);
        self.absences.forget(uid);
    }

    async fn namespace_terminating(&self, name: &str) -> Result<bool, CallError> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let namespace = call(format!("reading the namespace {name}"), api.get_metadata_opt(name)).await?;
        Ok(namespace.is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_some()))
    }
}

/// Which pipeline is meant: not only its name, which another may have had before.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

impl Identity {
    pub(crate) fn of(pipeline: &CdcPipeline) -> Self {
        let metadata = &pipeline.metadata;
        Self {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
        }
    }
}
