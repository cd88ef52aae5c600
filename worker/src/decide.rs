//! `penstock-worker begin-anew` and `accept-loss`: what a person decides where a pipeline cannot go on by itself.
//!
//! Written down in the sink; the workers carry it out, under their fence, when they look again.

use penstock_crds::report::Reason;
use penstock_crds::source::SnapshotMode;

use crate::failure::Failure;
use crate::settings::Pipeline;
use crate::sink::{self, DeadEnd, Decision};

/// Writes the decision down for every shard that stands at a dead end.
///
/// # Errors
/// `ManifestInvalid`: there is nothing to decide, or this cannot be decided. The sink does not answer or refuses.
pub async fn decide(pipeline: &Pipeline, decision: Decision, why: &str, by: &str) -> Result<(), Failure> {
    let mode = pipeline.manifest.spec.source.postgres.snapshot.mode;
    let refuse = |dead_end: &DeadEnd| refuse(decision, mode, dead_end);
    if why.trim().is_empty() {
        return Err(refused("--reason is empty: say why, for whoever reads penstock.accepted_loss later."));
    }
    let found = sink::decide(&pipeline.sink, pipeline.lineage.key(), decision, (why, by), refuse).await?;
    if found.is_empty() {
        return Err(refused(
            "There is nothing to decide: no worker of this pipeline stands at a dead end (SlotMissing, SlotInvalidated, \
             SinkLostCommits, SourceChanged, or a publication that was dropped). To have single tables copied again, run \
             penstock-worker resnapshot.",
        ));
    }
    for DeadEnd { shard, reason, .. } in &found {
        tracing::info!(shard, reason, decision = ?decision, "decided; the worker carries it out when it looks again");
    }
    Ok(())
}

fn refuse(decision: Decision, mode: SnapshotMode, dead_end: &DeadEnd) -> Result<(), Failure> {
    match decision {
        Decision::BeginAnew if mode == SnapshotMode::Never => Err(refused(
            "source.postgres.snapshot.mode is Never, so no rows are ever copied. Make the sink's rows equal to the source's \
             while nobody writes it, then run penstock-worker accept-loss.",
        )),
        Decision::AcceptLoss if dead_end.reason == format!("{:?}", Reason::PublicationUnsuitable) => {
            Err(refused(
                "The publication was dropped, so the changes of its tables cannot be told apart any more, and they are copied again \
             in any case. Run penstock-worker begin-anew.",
            ))
        }
        Decision::AcceptLoss if dead_end.is_other_system => Err(refused(
            "The source is another server than before, so nobody can say what would be lost. Run penstock-worker begin-anew, \
             which copies all tables, or point source.postgres.connection back.",
        )),
        Decision::AcceptLoss if dead_end.is_sink_empty => Err(refused(
            "The sink knows nothing of this pipeline, so there is nothing to go on from. Run penstock-worker begin-anew, which \
             copies all tables, or point sink.postgres.connection back.",
        )),
        Decision::BeginAnew | Decision::AcceptLoss => Ok(()),
    }
}

fn refused(message: &str) -> Failure {
    Failure::new(Reason::ManifestInvalid, message)
}
