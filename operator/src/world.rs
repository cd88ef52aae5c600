//! What is: everything a decision about one pipeline may look at. `observe` fills it, `plan` reads it.
//! Plain values; no client, no clock.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use penstock_crds::CdcPipeline;
use penstock_crds::comparison::ComparisonResult;
use penstock_crds::names::FINALIZER;
use penstock_crds::report::{Decisions, Report};
use penstock_crds::revision::{MintedRevision, RevisionName};
use penstock_crds::rollout::RolloutTask;
use serde::{Deserialize, Serialize};

/// How long a worker's last report counts after the worker stopped answering.
const REPORT_VALID: SignedDuration = SignedDuration::from_secs(15);
/// How long Kubernetes may take to make a pod before something refuses it.
const PODS_ARE_MADE_WITHIN: SignedDuration = SignedDuration::from_secs(30);

/// Everything that is known about one pipeline at one time.
#[derive(Clone, Debug)]
pub struct World {
    /// The time of the observation.
    pub now: Timestamp,
    /// Image of workers whose manifest names none, and of the clean-up Job.
    pub default_image: String,
    /// The pipeline as it is stored.
    pub pipeline: CdcPipeline,
    /// The pipeline's UID.
    pub uid: String,
    /// The namespace is being deleted: nothing can be created in it.
    pub namespace_terminating: bool,
    /// Kept revisions, in no order.
    pub revisions: Vec<KnownRevision>,
    /// Kept revisions that cannot be read, as `ControllerRevision inventory-r1a2b3c4d: missing field data`.
    pub unreadable: Vec<String>,
    /// Worker `StatefulSets`, one per revision.
    pub sets: Vec<WorkerSet>,
    /// Worker pods, ending ones too.
    pub pods: Vec<WorkerPod>,
    /// Volume claims of this very pipeline (by UID).
    pub claims: Vec<Owned>,
    /// `ConfigMaps` of revisions.
    pub config_maps: Vec<Owned>,
    /// The Secrets that the manifest names.
    pub secrets: BTreeMap<String, SecretKeys>,
    /// The Secret that operator and workers share.
    pub control: ControlSecret,
    /// Since when pods that a StatefulSet or the clean-up Job should have are not there; absent when none lacks.
    pub pods_lack_since: Option<Timestamp>,
    /// The clean-up Job.
    pub clean_up: Option<CleanUpJob>,
    /// Pods of the clean-up Job, ending ones too.
    pub clean_up_pods: Vec<String>,
    /// Jobs that compare the sink with the source, or did so lately, oldest first.
    pub comparisons: Vec<ComparisonJob>,
    /// Pods of such Jobs, ending ones too.
    pub comparison_pods: Vec<String>,
    /// What the API server said when it refused such a Job at the last attempt.
    pub comparison_refused: Option<String>,
    /// Jobs of a rollout that run or did so lately, oldest first.
    pub rollout_jobs: Vec<RolloutJob>,
    /// Pods of such Jobs that have not ended.
    pub rollout_pods: Vec<String>,
    /// Objects that have a name the pipeline needs and belong to somebody else, as `Service inventory-worker`.
    pub taken: Vec<String>,
    /// What the API server said when it refused an object at the last attempt.
    pub refused: Option<String>,
}

impl World {
    /// Name of the pipeline.
    pub fn name(&self) -> &str {
        self.pipeline.metadata.name.as_deref().unwrap_or_default()
    }

    /// Namespace of the pipeline.
    pub fn namespace(&self) -> &str {
        self.pipeline.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// Whether somebody deleted the object.
    pub fn is_deleting(&self) -> bool {
        self.pipeline.metadata.deletion_timestamp.is_some()
    }

    /// Whether the object waits for the operator before it goes.
    pub fn has_finalizer(&self) -> bool {
        self.pipeline.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
    }

    /// Whether pods that should be there have not been made for so long that something refuses them.
    pub fn are_pods_refused(&self) -> bool {
        self.pods_lack_since.is_some_and(|since| self.now.duration_since(since) > PODS_ARE_MADE_WITHIN)
    }

    /// The StatefulSet of a revision.
    pub fn set(&self, revision: &RevisionName) -> Option<&WorkerSet> {
        self.sets.iter().find(|set| set.object.revision == *revision)
    }
}

/// An object of the pipeline that belongs to one revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Owned {
    /// Its name.
    pub name: String,
    /// Its UID, so that a deletion never meets a namesake.
    pub uid: String,
    /// The revision it belongs to.
    pub revision: RevisionName,
}

/// A kept revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownRevision {
    /// Its name.
    pub name: RevisionName,
    /// Grows with every minting; the highest is the newest.
    pub number: i64,
    /// What it means.
    pub minted: MintedRevision,
    /// UID of the `ControllerRevision`.
    pub uid: String,
    /// What became of it.
    pub course: RevisionCourse,
}

/// What became of a revision. Kept with it, as an annotation: what it was minted from never changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RevisionCourse {
    /// Whose state its workers move: that which a canary of this name began; absent: that which the pipeline began with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lineage: Option<String>,
    /// How its rollout ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<RevisionOutcome>,
    /// It was rejected or rolled back, and the spec has meant it ever since: it is not tried again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_barred: bool,
    /// Its workers, its state in the databases and its tables beside the live ones are being removed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_leaving: bool,
}

/// How the rollout of a revision ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RevisionOutcome {
    /// How.
    pub outcome: OutcomeKind,
    /// Why.
    pub reason: String,
    /// When it was seen, in whole seconds.
    pub at: Timestamp,
}

/// How a rollout can end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutcomeKind {
    /// It writes the tables that readers know. Next: `RolledBack`, or it stays.
    Promoted,
    /// It was found wrong, or a person ended it.
    Rejected,
    /// The tables were given back to the revision before it.
    RolledBack,
    /// The spec means another revision.
    Abandoned,
}

/// The StatefulSet of a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerSet {
    /// Name, UID, revision.
    pub object: Owned,
    /// `spec.replicas`.
    pub replicas_wanted: i32,
    /// The controller has seen `spec` as it is.
    pub is_observed: bool,
    /// It has, and says that no pod is left.
    pub is_observed_empty: bool,
    /// It is being deleted.
    pub is_deleting: bool,
}

/// A worker's pod.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerPod {
    /// Its name.
    pub name: String,
    /// The revision it runs.
    pub revision: RevisionName,
    /// Its shard.
    pub shard: u16,
    /// Its UID, so that a deletion never meets its successor.
    pub uid: String,
    /// Hash of what it was made from; empty when it does not say.
    pub made_from: String,
    /// It is being deleted.
    pub is_deleting: bool,
    /// What keeps it from running.
    pub trouble: Option<PodTrouble>,
    /// What its worker said.
    pub answer: Answer,
}

impl WorkerPod {
    /// The worker's word, if it still counts at `now`.
    pub fn report(&self, now: Timestamp) -> Option<&Report> {
        match &self.answer {
            Answer::Report { report, at } => (now.duration_since(*at) <= REPORT_VALID).then_some(report),
            Answer::NotRunning | Answer::Silent { .. } => None,
        }
    }
}

/// What a worker said when it was asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Its container does not run (yet).
    NotRunning,
    /// Its container runs and it has not answered, for this reason.
    Silent {
        /// Why the last attempt failed.
        error: String,
    },
    /// Its last report, and when it came.
    Report {
        /// What it said.
        report: Box<Report>,
        /// When.
        at: Timestamp,
    },
}

/// What keeps a pod from running, in the words of its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodTrouble {
    /// No node takes it.
    Unschedulable(String),
    /// Its image cannot be pulled.
    ImagePull(String),
    /// Its container ends again and again; what it said last.
    Crashing(String),
    /// Its container cannot be made.
    Container(String),
}

/// The keys of a Secret that a manifest names. Never its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretKeys {
    /// There is no such Secret.
    Missing,
    /// It has these keys.
    Present(BTreeSet<String>),
}

/// The Secret that operator and workers share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlSecret {
    /// There is none, or it lacks a key.
    Missing,
    /// It is whole; its certificate is renewed from this time on.
    Issued {
        /// When two thirds of the certificate's life are over.
        renew_at: Timestamp,
    },
}

/// The clean-up Job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CleanUpJob {
    /// UID of the Job.
    pub uid: String,
    /// Hash of the manifest it was made from.
    pub made_from: String,
    /// It is being deleted.
    pub is_deleting: bool,
    /// It has succeeded.
    pub is_complete: bool,
    /// What its pod said when it failed last, or what keeps the pod from running.
    pub failure: Option<String>,
}

/// A Job of a rollout.
#[derive(Clone, Debug, PartialEq)]
pub struct RolloutJob {
    /// Its name, which no other of the same rollout ever has.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// What it does.
    pub task: RolloutTask,
    /// When it was made.
    pub created: Timestamp,
    /// It is being deleted.
    pub is_deleting: bool,
    /// How far it is.
    pub progress: ComparisonProgress,
}

/// A Job that compares the sink with the source.
#[derive(Clone, Debug, PartialEq)]
pub struct ComparisonJob {
    /// Its name, which no other ever has.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// The revision whose tables it compares.
    pub revision: RevisionName,
    /// Hash of the spec that it compares.
    pub spec: String,
    /// The token that asked for it; without one the schedule did.
    pub token: Option<String>,
    /// What was decided about dead ends before it was made, by shard; nothing about those that are not in it.
    pub decisions: Vec<Decisions>,
    /// When it was made.
    pub created: Timestamp,
    /// How long it may take.
    pub timeout: Option<SignedDuration>,
    /// It is being deleted.
    pub is_deleting: bool,
    /// How far it is.
    pub progress: ComparisonProgress,
}

/// How far a comparison is.
#[derive(Clone, Debug, PartialEq)]
pub enum ComparisonProgress {
    /// Its container has not started. Next: `Running`.
    Waiting {
        /// What keeps it from starting.
        trouble: Option<String>,
    },
    /// Its container runs, or has ended a moment ago. Next: `Ended`.
    Running,
    /// It said what it found, or died.
    Ended {
        /// When.
        at: Timestamp,
        /// What it found.
        result: ComparisonResult,
    },
}
