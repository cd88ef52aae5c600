//! `penstock-worker clean-up`: removes what a pipeline left in its databases. The copied tables stay.

use crate::failure::Failure;
use crate::settings::Pipeline;
use crate::{sink, source};

/// Drops the pipeline's slots and managed publication at the source, then its state in the sink. What is gone
/// already is no error, so it can be interrupted and run again.
///
/// # Errors
/// A database does not answer or refuses.
pub async fn clean_up(pipeline: &Pipeline) -> Result<(), Failure> {
    let is_managed = pipeline.manifest.spec.source.postgres.publication.is_none();
    // Adopted state keeps the names it was made with.
    let names_uid =
        sink::names_uid(&pipeline.sink, &pipeline.uid).await?.unwrap_or_else(|| pipeline.uid.clone());
    source::clean_up(&pipeline.source, &names_uid, is_managed).await?;
    sink::clean_up(&pipeline.sink, &pipeline.uid).await?;
    tracing::info!(pipeline = %pipeline.name, "slots, publication and sink state are removed");
    Ok(())
}
