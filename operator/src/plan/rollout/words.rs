//! What there is to say of a rollout.

use penstock_crds::comparison::{ComparisonResult, ComparisonVerdict};
use penstock_crds::conditions::OperatorReason;
use penstock_crds::names::{ANNOTATION_ABORT, ANNOTATION_PROMOTE, ANNOTATION_ROLL_BACK};
use penstock_crds::report::LineageRole;
use penstock_crds::rollout::{RolloutStatus, RolloutTask};

use super::{Beside, Rollout};
use crate::plan::revision::role;
use crate::plan::shards::all_stream;
use crate::plan::stage::{Crew, Lineup};
use crate::plan::verdict::Truth;
use crate::world::{KnownRevision, World};

/// How a canary that is tried stands, and what a person can do.
pub(in crate::plan) fn progress(world: &World, lineup: &Lineup<'_>, rollout: &Rollout) -> String {
    let (Some(beside), Some(status)) = (&lineup.beside, &rollout.status) else { return String::new() };
    let (name, pipeline) = (&beside.revision.name, world.name());
    let required = world.pipeline.spec.rollout.comparison.required_matches;
    let matches = status.matches.min(required);
    let last = status.last.as_ref().filter(|last| last.result.verdict == ComparisonVerdict::Unknown);
    let trouble = last.map_or_else(String::new, |last| {
        let what = match last.task {
            RolloutTask::Compare => "The last comparison could not be made",
            RolloutTask::Promote => "The last promotion did not come about",
            RolloutTask::RollBack => "The last rollback did not come about",
            RolloutTask::CleanUp => "The last clean-up failed",
        };
        format!(". {what}: {}", sentence(&last.result))
    });
    let next = if rollout.beside == Some(Beside::Canary { waits: true }) {
        format!(
            ". kubectl annotate cdc {pipeline} --overwrite {ANNOTATION_PROMOTE}={} promotes it",
            order(&beside.revision)
        )
    } else {
        String::new()
    };
    let stable = &lineup.stable.revision.name;
    format!(
        "Revision {stable} applies changes as they arrive. Beside it the canary {name} matched in {matches} of {required} \
         comparisons{next}{trouble}. {ANNOTATION_ABORT}={} ends it",
        order(&beside.revision)
    )
}

/// Whether the canary is as the stable revision, as it was compared last.
pub(in crate::plan) fn matching(
    world: &World,
    lineup: &Lineup<'_>,
    status: &RolloutStatus,
) -> (Truth, OperatorReason, String) {
    let compared =
        status.last.as_ref().filter(|last| matches!(last.task, RolloutTask::Compare | RolloutTask::Promote));
    if role(world, &lineup.stable.revision).is_none() && all_stream(&lineup.stable.shards) {
        let message = "The workers of the stable revision do not say what their tables are to the pipeline: their image is older than \
                       canaries. Set rollout.strategy to Recreate for this change";
        return (Truth::Unknown, OperatorReason::NoReport, message.to_owned());
    }
    match compared {
        None => (Truth::Unknown, OperatorReason::NeverCompared, "The canary was not compared yet".to_owned()),
        Some(last) => {
            let (truth, reason) = match last.result.verdict {
                ComparisonVerdict::Equal => (Truth::True, OperatorReason::Equal),
                ComparisonVerdict::Different => (Truth::False, OperatorReason::Different),
                ComparisonVerdict::Unknown => (Truth::Unknown, OperatorReason::ComparisonFailed),
            };
            let message = format!("The Job {} found: {}", last.job, sentence(&last.result));
            (truth, reason, message)
        }
    }
}

/// Whether there is a way back.
pub(in crate::plan) fn way_back(
    world: &World,
    lineup: &Lineup<'_>,
    previous: &Crew<'_>,
) -> (Truth, OperatorReason, String) {
    let (stable, name) = (&lineup.stable.revision, &previous.revision.name);
    let last = world.pipeline.status.as_ref().and_then(|status| status.rollout.as_ref()?.last.as_ref());
    let failed = last.filter(|last| {
        last.task == RolloutTask::RollBack && last.result.verdict == ComparisonVerdict::Unknown
    });
    if let Some(failed) = failed {
        let message = format!(
            "Giving the tables back to revision {name} failed and is tried again: {}",
            sentence(&failed.result)
        );
        return (Truth::False, OperatorReason::PreviousUnreachable, message);
    }
    if all_stream(&previous.shards) && role(world, &previous.revision) == Some(LineageRole::Previous) {
        let message = format!(
            "kubectl annotate cdc {} --overwrite {ANNOTATION_ROLL_BACK}={} gives the tables back to revision {name}",
            world.name(),
            order(stable)
        );
        return (Truth::True, OperatorReason::PreviousFollows, message);
    }
    let message = format!("The workers of revision {name} do not follow the source, or do not say so");
    (Truth::Unknown, OperatorReason::PreviousUnreachable, message)
}

/// How an annotation names a revision: with its number, so that what was asked for once is not asked for when it is tried again.
pub(in crate::plan) fn order(revision: &KnownRevision) -> String {
    format!("{}-{}", revision.name, revision.number)
}

/// What a step found, or why it failed.
pub(in crate::plan) fn sentence(result: &ComparisonResult) -> String {
    let reason = result.reason.as_deref().unwrap_or("no reason is given");
    match result.verdict {
        ComparisonVerdict::Equal => format!("the rows of all {} tables are the same", result.tables),
        ComparisonVerdict::Different => format!(
            "rows differ in {} of {} tables: {}",
            result.tables_different,
            result.tables,
            crate::plan::comparison::named(result)
        ),
        ComparisonVerdict::Unknown => reason.to_owned(),
    }
}
