//! Decides. `World -> Plan`, total, deterministic and pure: no client, no clock, no async. A plan leaves
//! whoever carries it out no choice, and says what it waits for.

mod comparison;
mod decisions;
mod deletion;
mod directive;
mod events;
mod live;
pub(crate) mod manifests;
mod revision;
mod rollout;
mod schedule;
mod secrets;
mod shards;
mod stage;
mod status;
mod verdict;

use std::time::Duration;

use jiff::Timestamp;
use penstock_crds::directive::Directive;
use penstock_crds::revision::RevisionName;
use penstock_crds::{CdcPipeline, CdcPipelineStatus};
use serde::Serialize;

pub use events::{EventKind, PlannedEvent};
pub use manifests::Manifest;
pub(crate) use secrets::{MASK_KEYS, required as secrets_required};

use self::events::LEFT_BEHIND;
use crate::world::World;

/// How often a pipeline is looked at when nothing happens: workers are asked that often.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// What to do about one pipeline.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// What to do, in this order. The first failure ends the pass.
    pub steps: Vec<Step>,
    /// What has to be observed before there is more to do.
    pub waits_for: Option<String>,
    /// What the status should say; absent when the object goes.
    pub status: Option<CdcPipelineStatus>,
    /// When to look again, if nothing happens.
    pub look_again: Option<Duration>,
}

impl Plan {
    /// Nothing to do until the object changes.
    fn nothing() -> Self {
        Self { steps: Vec::new(), waits_for: None, status: None, look_again: None }
    }

    /// Whether it lets a pipeline go whose `deletionPolicy: Delete` cannot be carried out.
    pub(crate) fn leaves_something_behind(&self) -> bool {
        let is_left_behind = |step: &Step| matches!(step, Step::Emit(event) if event.reason == LEFT_BEHIND);
        self.steps.iter().any(is_left_behind)
    }
}

/// One thing to do. Each can be repeated without harm.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Step {
    /// Make the object wait for the operator before it goes.
    AddFinalizer,
    /// Let the object go.
    RemoveFinalizer,
    /// Server-side apply.
    Apply(Manifest),
    /// Make or renew the control Secret; a token that is there is kept.
    IssueControlSecret,
    /// Delete, with what it owns, in the background.
    Delete(Doomed),
    /// Tell the worker in this pod what is wanted of it.
    Direct {
        /// The pod.
        pod: String,
        /// What is wanted.
        directive: Directive,
    },
    /// Tell people.
    Emit(PlannedEvent),
}

/// An object to delete. Its UID is a precondition, so that a namesake survives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Doomed {
    /// What it is.
    pub kind: DoomedKind,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// What the operator deletes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum DoomedKind {
    /// The workers of a replaced revision, or of a deleted pipeline.
    StatefulSet,
    /// The volume of such a worker.
    PersistentVolumeClaim,
    /// The manifest of a replaced revision.
    ConfigMap,
    /// A revision beyond the number that is kept.
    ControllerRevision,
    /// A worker that was made from something older; the StatefulSet makes it anew.
    Pod,
    /// A Job that is not needed or not as it should be.
    Job,
}

/// A plan that cannot be made. Tests make it impossible; it is an error and not a panic all the same.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// An object cannot be written as JSON.
    #[error("an object of the pipeline cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A manifest cannot be written as YAML.
    #[error("the workers' manifest cannot be written as YAML: {0}")]
    Yaml(#[from] serde_yaml::Error),
}

/// What to do about a pipeline in this world.
///
/// # Errors
/// Never for a world that was observed; see [`PlanError`].
pub fn plan(world: &World) -> Result<Plan, PlanError> {
    if world.is_deleting() { deletion::plan(world) } else { live::plan(world) }
}

/// The revision that the spec means now.
///
/// # Errors
/// Never for a spec that was stored; see [`PlanError`].
pub fn target_revision(pipeline: &CdcPipeline) -> Result<RevisionName, PlanError> {
    Ok(penstock_crds::revision::DataAffecting::from(&pipeline.spec).name()?)
}

/// The status of a pipeline that could not be observed, again and again, because of this.
pub(crate) fn unobserved(pipeline: &CdcPipeline, now: Timestamp, error: &str) -> CdcPipelineStatus {
    let before = pipeline.status.as_ref().and_then(|status| status.phase);
    status::unobserved(pipeline, now, &verdict::unobserved(before, error))
}

#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use tests::scene as scene_for_tests;
