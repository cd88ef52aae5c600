//! The objects of one pipeline, and what a decision wants to know of them.

use std::collections::HashMap;
use std::fmt::Debug;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use kube::api::ListParams;
use kube::core::{NamespaceResourceScope, PartialObjectMeta};
use kube::{Api, Client, Resource, ResourceExt as _};
use penstock_crds::names::{LABEL_PIPELINE, LABEL_REVISION, LABEL_UID};
use penstock_crds::revision::{MintedRevision, RevisionName};
use serde::de::DeserializeOwned;

use super::Identity;
use super::comparison::{comparison_job, rollout_job};
use super::pods::{self, RunningPod};
use crate::call::{CallError, call};
use crate::names::{
    self, ANNOTATION_COURSE, ANNOTATION_MANIFEST, Component, LABEL_COMPONENT, LABEL_MANAGED_BY, MANAGED_BY,
};
use crate::world::{CleanUpJob, ComparisonJob, KnownRevision, Owned, RevisionCourse, RolloutJob, WorkerSet};

/// The objects of one pipeline, by label. Objects of a namesake that is gone may be among them.
#[derive(Debug)]
pub(super) struct Objects {
    pub(super) sets: Vec<StatefulSet>,
    pub(super) pods: Vec<Pod>,
    pub(super) jobs: Vec<Job>,
    pub(super) revisions: Vec<ControllerRevision>,
    pub(super) claims: Vec<PartialObjectMeta<PersistentVolumeClaim>>,
    pub(super) config_maps: Vec<PartialObjectMeta<ConfigMap>>,
    pub(super) services: Vec<PartialObjectMeta<Service>>,
    pub(super) service_accounts: Vec<PartialObjectMeta<ServiceAccount>>,
}

impl Objects {
    /// Reads anew what must be gone before something is done that cannot be undone.
    pub(super) async fn read_anew(&mut self, client: &Client, identity: &Identity) -> Result<(), CallError> {
        let selector = ListParams::default()
            .labels(&format!("{LABEL_MANAGED_BY}={MANAGED_BY},{LABEL_PIPELINE}={}", identity.name));
        let namespace = &identity.namespace;
        let sets: Api<StatefulSet> = Api::namespaced(client.clone(), namespace);
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
        let (sets, pods, claims) = tokio::try_join!(
            call("listing StatefulSets", sets.list(&selector)),
            call("listing pods", pods.list(&selector)),
            call("listing volume claims", claims.list_metadata(&selector)),
        )?;
        (self.sets, self.pods, self.claims) = (sets.items, pods.items, claims.items);
        Ok(())
    }

    /// Kept revisions, and what is wrong with those that cannot be read.
    pub(super) fn known_revisions(&self, identity: &Identity) -> (Vec<KnownRevision>, Vec<String>) {
        let (mut known, mut unreadable) = (Vec::new(), Vec::new());
        for revision in self.revisions.iter().filter(|revision| is_owned(*revision, identity)) {
            match known_revision(revision) {
                Ok(revision) => known.push(revision),
                Err(error) => {
                    unreadable.push(format!("ControllerRevision {}: {error}", revision.name_any()));
                }
            }
        }
        unreadable.sort_unstable();
        (known, unreadable)
    }

    pub(super) fn worker_sets(&self, identity: &Identity) -> Vec<WorkerSet> {
        self.sets.iter().filter(|set| is_owned(*set, identity)).filter_map(worker_set).collect()
    }

    pub(super) fn clean_up_pods(&self) -> Vec<String> {
        self.pods_of(Component::CleanUp).map(Pod::name_any).collect()
    }

    pub(super) fn worker_pods(&self, identity: &Identity, now: Timestamp) -> Vec<RunningPod> {
        let workers = self.pods_of(Component::Worker);
        workers.filter_map(|pod| pods::running_pod(pod, identity, now)).collect()
    }

    /// Comparisons that run or are kept for their log, oldest first.
    pub(super) fn comparisons(&self, identity: &Identity, now: Timestamp) -> Vec<ComparisonJob> {
        let jobs = self.jobs_of(Component::Comparison, identity);
        let mut jobs: Vec<ComparisonJob> =
            jobs.filter_map(|job| comparison_job(job, &self.pods, now)).collect();
        jobs.sort_by(|one, other| (one.created, &one.name).cmp(&(other.created, &other.name)));
        jobs
    }

    /// Jobs of rollouts that run or are kept for their log, oldest first.
    pub(super) fn rollout_jobs(&self, identity: &Identity, now: Timestamp) -> Vec<RolloutJob> {
        let jobs = self.jobs_of(Component::Rollout, identity);
        let mut jobs: Vec<RolloutJob> = jobs.filter_map(|job| rollout_job(job, &self.pods, now)).collect();
        jobs.sort_by(|one, other| (one.created, &one.name).cmp(&(other.created, &other.name)));
        jobs
    }

    /// Pods of such Jobs that have not ended.
    pub(super) fn rollout_pods(&self) -> Vec<String> {
        let under_way = self.pods_of(Component::Rollout).filter(|pod| pods::terminated(pod).is_none());
        under_way.map(Pod::name_any).collect()
    }

    pub(super) fn comparison_pods(&self) -> Vec<String> {
        self.pods_of(Component::Comparison).map(Pod::name_any).collect()
    }

    fn pods_of(&self, part: Component) -> impl Iterator<Item = &Pod> {
        self.pods.iter().filter(move |pod| component(*pod) == Some(part.label()))
    }

    fn jobs_of(&self, part: Component, identity: &Identity) -> impl Iterator<Item = &Job> {
        self.jobs.iter().filter(move |job| component(*job) == Some(part.label()) && is_owned(*job, identity))
    }

    pub(super) fn claims(&self, identity: &Identity) -> Vec<Owned> {
        let own = self.claims.iter().filter(|claim| claim.labels().get(LABEL_UID) == Some(&identity.uid));
        own.filter_map(owned).collect()
    }

    pub(super) fn config_maps(&self, identity: &Identity) -> Vec<Owned> {
        self.config_maps
            .iter()
            .filter(|config_map| is_owned(*config_map, identity))
            .filter_map(owned)
            .collect()
    }

    pub(super) fn clean_up_job(&self, identity: &Identity, now: Timestamp) -> Option<CleanUpJob> {
        let job = self.jobs_of(Component::CleanUp, identity).next()?;
        let conditions = job.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let is = |kind: &str| {
            conditions.clone().any(|condition| condition.type_ == kind && condition.status == "True")
        };
        let failure = self.pods_of(Component::CleanUp).find_map(|pod| pods::last_failure(pod, now));
        let failed = is("Failed").then(|| "the Job has given up".to_owned());
        Some(CleanUpJob {
            uid: job.uid().unwrap_or_default(),
            made_from: job.annotations().get(ANNOTATION_MANIFEST).cloned().unwrap_or_default(),
            is_deleting: job.metadata.deletion_timestamp.is_some(),
            is_complete: is("Complete"),
            failure: failure.or(failed),
        })
    }

    /// Kind and name of each object to the version in which its content was last changed.
    pub(super) fn versions(&self) -> HashMap<(&'static str, String), String> {
        let mut versions = HashMap::new();
        versions.extend(self.sets.iter().map(|set| (("StatefulSet", set.name_any()), generation(set))));
        versions.extend(self.jobs.iter().map(|job| (("Job", job.name_any()), generation(job))));
        versions.extend(
            self.revisions
                .iter()
                .map(|object| (("ControllerRevision", object.name_any()), resource_version(object))),
        );
        versions.extend(
            self.config_maps
                .iter()
                .map(|object| (("ConfigMap", object.name_any()), resource_version(object))),
        );
        versions.extend(
            self.services.iter().map(|object| (("Service", object.name_any()), resource_version(object))),
        );
        versions.extend(
            self.service_accounts
                .iter()
                .map(|object| (("ServiceAccount", object.name_any()), resource_version(object))),
        );
        versions
    }

    /// Objects with a name that the pipeline needs and another owner. Only what the caches do not show as
    /// the pipeline's own is asked for, so at rest nothing is.
    pub(super) async fn taken(
        &self,
        client: &Client,
        identity: &Identity,
        target: &RevisionName,
        is_deleting: bool,
    ) -> Result<Vec<String>, CallError> {
        let of_workers = names::of_workers(&identity.name);
        let of_revision = names::of_revision(&identity.name, target);
        let job = names::clean_up_job(&identity.name);
        let taken = if is_deleting {
            let (account, job) = tokio::try_join!(
                foreign(client, identity, &self.service_accounts, &of_workers),
                foreign(client, identity, &self.jobs, &job),
            )?;
            vec![account, job]
        } else {
            let (account, service, config_map, set, revision) = tokio::try_join!(
                foreign(client, identity, &self.service_accounts, &of_workers),
                foreign(client, identity, &self.services, &of_workers),
                foreign(client, identity, &self.config_maps, &of_revision),
                foreign(client, identity, &self.sets, &of_revision),
                foreign(client, identity, &self.revisions, &of_revision),
            )?;
            vec![account, service, config_map, set, revision]
        };
        Ok(taken.into_iter().flatten().collect())
    }
}

/// The kind whose metadata or whole content a cache holds.
pub(super) trait Cached: Resource<DynamicType = ()> {
    /// The kind itself.
    type Kind: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug;
}

macro_rules! cached {
    (whole: $($whole:ty),*; metadata: $($metadata:ty),*) => {
        $(impl Cached for $whole { type Kind = $whole; })*
        $(impl Cached for PartialObjectMeta<$metadata> { type Kind = $metadata; })*
    };
}

cached!(whole: StatefulSet, Job, ControllerRevision; metadata: ConfigMap, Service, ServiceAccount);

async fn foreign<C: Cached>(
    client: &Client,
    identity: &Identity,
    cached: &[C],
    name: &str,
) -> Result<Option<String>, CallError> {
    if cached.iter().any(|object| object.name_any() == name && is_owned(object, identity)) {
        return Ok(None);
    }
    let api: Api<C::Kind> = Api::namespaced(client.clone(), &identity.namespace);
    let kind = C::Kind::kind(&());
    let found = call(format!("reading the {kind} {name}"), api.get_metadata_opt(name)).await?;
    let is_foreign = found.is_some_and(|object| !is_owned(&object, identity));
    Ok(is_foreign.then(|| format!("{kind} {name}")))
}

/// Whether the pipeline, this very one, owns the object.
pub(super) fn is_owned<K: Resource>(object: &K, identity: &Identity) -> bool {
    object.owner_references().iter().any(|owner| owner.uid == identity.uid)
}

fn component<K: Resource>(object: &K) -> Option<&str> {
    object.labels().get(LABEL_COMPONENT).map(String::as_str)
}

fn generation<K: Resource>(object: &K) -> String {
    object.meta().generation.unwrap_or_default().to_string()
}

fn resource_version<K: Resource>(object: &K) -> String {
    object.resource_version().unwrap_or_default()
}

fn owned<K: Resource>(object: &K) -> Option<Owned> {
    let revision = RevisionName(object.labels().get(LABEL_REVISION)?.clone());
    Some(Owned { name: object.name_any(), uid: object.uid()?, revision })
}

fn known_revision(revision: &ControllerRevision) -> Result<KnownRevision, serde_json::Error> {
    let lacks = <serde_json::Error as serde::de::Error>::missing_field;
    let object = owned(revision).ok_or_else(|| lacks(LABEL_REVISION))?;
    let data = serde_json::to_value(revision.data.as_ref().ok_or_else(|| lacks("data"))?)?;
    let minted: MintedRevision = serde_json::from_value(data)?;
    let course = match revision.annotations().get(ANNOTATION_COURSE) {
        Some(course) => serde_json::from_str(course)?,
        None => RevisionCourse::default(),
    };
    Ok(KnownRevision { name: object.revision, number: revision.revision, minted, uid: object.uid, course })
}

fn worker_set(set: &StatefulSet) -> Option<WorkerSet> {
    let spec = set.spec.as_ref()?;
    let status = set.status.as_ref();
    let replicas_wanted = spec.replicas.unwrap_or(1);
    let is_current = status.is_some_and(|status| status.observed_generation >= set.metadata.generation);
    let is_empty = status.is_some_and(|status| status.replicas == 0);
    Some(WorkerSet {
        object: owned(set)?,
        replicas_wanted,
        is_observed: is_current,
        is_observed_empty: replicas_wanted == 0 && is_current && is_empty,
        is_deleting: set.metadata.deletion_timestamp.is_some(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn revision(name: &str, data: &serde_json::Value) -> ControllerRevision {
        serde_json::from_value(json!({
            "metadata": {
                "name": format!("inventory-{name}"), "uid": format!("uid-{name}"), "labels": {LABEL_REVISION: name},
                "ownerReferences": [{"apiVersion": "a", "kind": "b", "name": "inventory", "uid": "uid"}],
            },
            "data": data, "revision": 3,
        }))
        .unwrap()
    }

    #[test]
    fn a_stored_revision_that_cannot_be_read_is_told_and_not_forgotten() {
        let minted = json!({"data": {"tables": ["public.a"], "shards": 1}, "image": "worker:1"});
        let objects = Objects {
            revisions: vec![
                revision("r1a2b3c4d", &minted),
                revision("r00000000", &json!({"data": {"tables": "public.a"}, "image": "worker:1"})),
                revision("r11111111", &serde_json::Value::Null),
            ],
            sets: Vec::new(),
            pods: Vec::new(),
            jobs: Vec::new(),
            claims: Vec::new(),
            config_maps: Vec::new(),
            services: Vec::new(),
            service_accounts: Vec::new(),
        };
        let identity = Identity { namespace: "shop".into(), name: "inventory".into(), uid: "uid".into() };
        let (known, unreadable) = objects.known_revisions(&identity);
        assert_eq!(known.iter().map(|known| known.name.0.as_str()).collect::<Vec<_>>(), ["r1a2b3c4d"]);
        assert_eq!(unreadable.len(), 2, "{unreadable:?}");
        assert!(
            unreadable[0].starts_with("ControllerRevision inventory-r00000000: invalid type"),
            "{unreadable:?}"
        );
        assert_eq!(unreadable[1], "ControllerRevision inventory-r11111111: missing field `data`");
    }
}
