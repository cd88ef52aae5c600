//! What the annotation `penstock.dev/resnapshot` asks for, until the worker reports that it is settled.

use penstock_crds::directive::{Directive, Resnapshot};
use penstock_crds::names::ANNOTATION_RESNAPSHOT;

use super::Step;
use super::events::PlannedEvent;
use super::shards::current_pod;
use super::stage::Stage;
use crate::world::World;

/// Tells shard 0, which speaks for all, or people what is wrong with the annotation.
pub(super) fn steps(world: &World, stage: &Stage<'_>) -> Vec<Step> {
    let annotations = world.pipeline.metadata.annotations.as_ref();
    let Some(text) =
        annotations.and_then(|all| all.get(ANNOTATION_RESNAPSHOT)).filter(|text| !text.is_empty())
    else {
        return Vec::new();
    };
    let resnapshot = match text.parse::<Resnapshot>() {
        Ok(resnapshot) => resnapshot,
        Err(error) => {
            return vec![Step::Emit(PlannedEvent::annotation_invalid(
                ANNOTATION_RESNAPSHOT,
                text,
                &error.to_string(),
            ))];
        }
    };
    let Some((revision, _)) = stage.running() else { return Vec::new() };
    let Some(pod) = current_pod(world, revision, 0) else { return Vec::new() };
    match pod.report(world.now) {
        Some(report) if report.resnapshot.as_ref() != Some(&resnapshot.token) => {
            let directive = Directive { resnapshot: Some(resnapshot) };
            vec![Step::Direct { pod: pod.name.clone(), directive }]
        }
        Some(_) | None => Vec::new(),
    }
}
