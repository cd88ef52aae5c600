//! `penstock-worker clean-up`: removes what a pipeline left in its databases. The tables that readers know stay.

use crate::failure::Failure;
use crate::settings::Pipeline;
use crate::sink::Role;
use crate::{sink, source};

/// What is to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remove {
    /// Everything of the pipeline.
    Pipeline,
    /// The canary that is meant, with its tables.
    Canary,
    /// The revision that was stable before, with its tables: there is no way back afterwards.
    Previous,
}

/// Drops slots and managed publications at the source, then the state in the sink. What is gone already is no error, so it can be
/// interrupted and run again.
///
/// # Errors
/// `ManifestInvalid`: the canary was promoted. A database does not answer or refuses.
pub async fn clean_up(pipeline: &Pipeline, what: Remove) -> Result<(), Failure> {
    let known = sink::lineage_keys(&pipeline.sink, pipeline.lineage.uid()).await?;
    // What an interrupted clean-up left goes first: there is only one retired lineage at a time.
    let retired = known.iter().filter(|(_, role)| *role == Role::Retired);
    let others = known.iter().filter(|(_, role)| *role != Role::Retired);
    for (key, role) in retired.chain(others) {
        let is_meant = match what {
            Remove::Pipeline => true,
            Remove::Canary => key == pipeline.lineage.key(),
            Remove::Previous => *role == Role::Previous,
        };
        if *role == Role::Retired || (is_meant && (what != Remove::Pipeline || *role != Role::Stable)) {
            remove_beside(pipeline, key).await?;
        }
    }
    if what == Remove::Pipeline {
        let stable = known.iter().find(|(_, role)| *role == Role::Stable).map(|(key, _)| key);
        remove_state(pipeline, stable.unwrap_or(pipeline.lineage.key())).await?;
    }
    tracing::info!(pipeline = %pipeline.name, ?what, "removed");
    Ok(())
}

/// Its workers are told first: a slot that is dropped under one would be made anew.
async fn remove_beside(pipeline: &Pipeline, key: &str) -> Result<(), Failure> {
    if let Some(names_uid) = sink::retire(&pipeline.sink, key).await? {
        source::clean_up(&pipeline.source, &names_uid, is_publication_managed(pipeline)).await?;
        sink::clean_up(&pipeline.sink, key).await?;
    }
    Ok(())
}

async fn remove_state(pipeline: &Pipeline, key: &str) -> Result<(), Failure> {
    // Adopted state keeps the names it was made with.
    let names_uid = sink::names_uid(&pipeline.sink, key).await?.unwrap_or_else(|| key.to_owned());
    source::clean_up(&pipeline.source, &names_uid, is_publication_managed(pipeline)).await?;
    sink::clean_up(&pipeline.sink, key).await
}

fn is_publication_managed(pipeline: &Pipeline) -> bool {
    pipeline.manifest.spec.source.postgres.publication.is_none()
}
