//! Names and labels of the objects that the operator makes for a pipeline.

use std::collections::BTreeMap;

use penstock_crds::names::{LABEL_PIPELINE, LABEL_REVISION, uid8};
use penstock_crds::revision::RevisionName;

/// Value of `app.kubernetes.io/managed-by`, and what every list and watch selects.
pub(crate) const MANAGED_BY: &str = "penstock-operator";
/// Label: who made an object.
pub(crate) const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Label: which part of a pipeline an object is.
pub(crate) const LABEL_COMPONENT: &str = "app.kubernetes.io/component";
/// Label of Kubernetes: ordinal of a StatefulSet's pod, which is the shard.
pub(crate) const LABEL_POD_INDEX: &str = "apps.kubernetes.io/pod-index";
/// Annotation: hash of what a worker's pod or the clean-up Job was made from.
pub(crate) const ANNOTATION_MANIFEST: &str = "penstock.dev/manifest";
/// Annotation of a comparison's Job: hash of the spec that it compares.
pub(crate) const ANNOTATION_SPEC: &str = "penstock.dev/compared-spec";
/// Annotation of a comparison's Job: what was decided about dead ends before it began.
pub(crate) const ANNOTATION_DECISIONS: &str = "penstock.dev/decisions";
/// Annotation of a rollout's Job: what it does.
pub(crate) const ANNOTATION_TASK: &str = "penstock.dev/task";
/// Annotation of a `ControllerRevision`: what became of the revision, as JSON.
pub(crate) const ANNOTATION_COURSE: &str = "penstock.dev/course";
/// Annotation of the control Secret: when its certificate is renewed.
pub(crate) const ANNOTATION_RENEW_AT: &str = "penstock.dev/renew-at";

/// Which part of a pipeline an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Component {
    /// It moves the changes.
    Worker,
    /// It removes what deletion leaves in the databases.
    CleanUp,
    /// It compares the sink with the source.
    Comparison,
    /// It carries out a step of a rollout.
    Rollout,
}

impl Component {
    /// Value of the label.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::CleanUp => "clean-up",
            Self::Comparison => "comparison",
            Self::Rollout => "rollout",
        }
    }
}

/// Name of what belongs to one revision: its `ControllerRevision`, ConfigMap and StatefulSet.
pub(crate) fn of_revision(pipeline: &str, revision: &RevisionName) -> String {
    format!("{pipeline}-{revision}")
}

/// Name of the workers' headless Service and `ServiceAccount`. Not the pipeline's own name, which is
/// likely to be a Service already.
pub(crate) fn of_workers(pipeline: &str) -> String {
    format!("{pipeline}-worker")
}

/// Name of the Secret that operator and workers share.
pub(crate) fn control_secret(pipeline: &str) -> String {
    format!("{pipeline}-control")
}

/// Name of the clean-up Job.
pub(crate) fn clean_up_job(pipeline: &str) -> String {
    format!("{pipeline}-clean-up")
}

/// Name of the Job of one comparison. No two have the same, so that none is taken for another.
pub(crate) fn comparison_job(pipeline: &str, key: &str) -> String {
    format!("{pipeline}-compare-{key}")
}

/// Name of the Job of one step of a rollout.
pub(crate) fn rollout_job(pipeline: &str, key: &str) -> String {
    format!("{pipeline}-rollout-{key}")
}

/// Name of the volume in a worker's pod, and the beginning of its claim's name. It holds the UID, so that
/// a pipeline never gets the volume that a deleted namesake retained.
pub(crate) fn state_volume(uid: &str) -> String {
    format!("state-{}", uid8(uid))
}

/// The labels that select a pipeline's workers; with a revision, only its.
pub(crate) fn worker_selector(pipeline: &str, revision: Option<&RevisionName>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([
        (LABEL_MANAGED_BY.to_owned(), MANAGED_BY.to_owned()),
        (LABEL_COMPONENT.to_owned(), Component::Worker.label().to_owned()),
        (LABEL_PIPELINE.to_owned(), pipeline.to_owned()),
    ]);
    if let Some(revision) = revision {
        labels.insert(LABEL_REVISION.to_owned(), revision.to_string());
    }
    labels
}

/// Labels as a selector is written.
pub(crate) fn selector_text(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(label, value)| format!("{label}={value}")).collect::<Vec<_>>().join(",")
}
