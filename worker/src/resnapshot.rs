//! `penstock-worker resnapshot`: has tables copied again while the pipeline runs.

use penstock_crds::report::Reason;
use penstock_crds::source::SnapshotMode;
use penstock_crds::table_pattern::TablePattern;

use crate::failure::Failure;
use crate::settings::Pipeline;
use crate::sink;

/// Notes in the sink that the tables are to be copied from their beginning. Workers that run see it within seconds,
/// others at their next start.
///
/// # Errors
/// `ManifestInvalid`: no table is meant, or rows are never copied. The sink does not answer or refuses.
pub async fn resnapshot(pipeline: &Pipeline, patterns: &[TablePattern]) -> Result<(), Failure> {
    if pipeline.manifest.spec.source.postgres.snapshot.mode == SnapshotMode::Never {
        let message = "source.postgres.snapshot.mode is Never, so no rows are ever copied. To have a table copied, take it out of \
                       source.postgres.tables, empty it in the sink, and give it to a CdcPipeline of its own.";
        return Err(Failure::new(Reason::ManifestInvalid, message));
    }
    let (meant, known) = sink::resnapshot(&pipeline.sink, &pipeline.uid, patterns).await?;
    if meant.is_empty() {
        let patterns: Vec<String> = patterns.iter().map(ToString::to_string).collect();
        let known: Vec<String> = known.iter().map(ToString::to_string).collect();
        let has = if known.is_empty() { "has none yet".into() } else { format!("has {}", known.join(", ")) };
        let message = format!("No table of the pipeline is meant by {}; it {has}.", patterns.join(", "));
        return Err(Failure::new(Reason::ManifestInvalid, message));
    }
    for table in meant {
        tracing::info!(%table, "copied again from its beginning");
    }
    Ok(())
}
