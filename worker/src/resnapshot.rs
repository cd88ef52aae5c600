//! `penstock-worker resnapshot`, and the directive of that name: tables are copied again while the pipeline runs.

use std::time::Duration;

use penstock_crds::directive::{Directive, Resnapshot};
use penstock_crds::report::{NoticeReason, Reason};
use penstock_crds::source::SnapshotMode;
use penstock_crds::table_pattern::TablePattern;
use tokio::sync::watch;

use crate::failure::Failure;
use crate::settings::Pipeline;
use crate::sink;
use crate::status::Status;

/// Pause after a directive that could not be carried out because the sink did not answer.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// Notes in the sink that the tables are to be copied from their beginning. Workers that run see it within seconds,
/// others at their next start. With a token once only: `false` when that token was carried out before.
///
/// # Errors
/// `ManifestInvalid`: no table is meant, or rows are never copied. The sink does not answer or refuses.
pub async fn resnapshot(
    pipeline: &Pipeline,
    patterns: &[TablePattern],
    token: Option<&str>,
) -> Result<bool, Failure> {
    if pipeline.manifest.spec.source.postgres.snapshot.mode == SnapshotMode::Never {
        let message = "source.postgres.snapshot.mode is Never, so no rows are ever copied. To have a table copied, take it out of \
                       source.postgres.tables, empty it in the sink, and give it to a CdcPipeline of its own.";
        return Err(Failure::new(Reason::ManifestInvalid, message));
    }
    let sink::Resnapshotted { meant, known, was_done } =
        sink::resnapshot(&pipeline.sink, pipeline.lineage.key(), patterns, token).await?;
    if was_done {
        return Ok(false);
    }
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
    Ok(true)
}

/// Carries out what the operator directs, each token once; ends with the channel.
pub async fn follow_directives(pipeline: Pipeline, status: Status, mut wanted: watch::Receiver<Directive>) {
    let mut settled = None;
    while wanted.changed().await.is_ok() {
        loop {
            let directive = wanted.borrow_and_update().resnapshot.clone();
            let Some(Resnapshot { token, tables }) =
                directive.filter(|asked| settled.as_ref() != Some(&asked.token))
            else {
                break;
            };
            let done = resnapshot(&pipeline, &tables, Some(&token)).await;
            if let Err(failure) = &done
                && failure.reason != Reason::ManifestInvalid
            {
                tracing::warn!(token, "tables cannot be copied again now: {failure}");
                tokio::time::sleep(TRY_AGAIN).await;
                continue;
            }
            tell(&status, &token, done);
            status.resnapshot_settled(token.clone());
            settled = Some(token);
        }
    }
}

fn tell(status: &Status, token: &str, done: Result<bool, Failure>) {
    match done {
        Ok(false) => {}
        Ok(true) => status.notice(
            NoticeReason::ResnapshotTaken,
            format!("Tables are copied again, as the token {token} asks"),
        ),
        Err(failure) => status.notice(
            NoticeReason::ResnapshotRefused,
            format!("What the token {token} asks for cannot be done: {failure}"),
        ),
    }
}
