//! A canary takes the place of the stable lineage, or the previous one takes it back. Like `pipeline.rs` this joins source and
//! sink; the workers that run hear of it by a barrier, and by the fence.

use std::time::{Duration, Instant};

use penstock_crds::report::Reason;
use tokio::time::sleep;

use crate::compare::{self, Comparison, Request, Since, Verdict, emit_barrier};
use crate::failpoint::{Point, reach};
use crate::failure::Failure;
use crate::lineage::Lineage;
use crate::settings::Pipeline;
use crate::sink::{self, BarrierId, BarrierKind, Exchange, HoldEnd, LineageFacts, Role};

const LOOK_FOR_ARRIVALS_EVERY: Duration = Duration::from_millis(5);

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The tables are exchanged.
    Exchanged {
        /// Milliseconds from the order to hold to the commit of the exchange.
        ms: u64,
        /// Rows that changed since the comparison, and were compared again while both sides stood still.
        compared_again: u64,
    },
    /// The canary's rows are others than the stable one's, or nobody knows: nothing was done.
    NotEqual(Box<Comparison>),
}

/// Promotes the canary that is meant, if its rows are those of the stable lineage: all of them at a barrier, and those that
/// changed since then once more at the hold, at which shards wait for `hold_max` at most.
///
/// # Errors
/// Nothing was exchanged; the message says why. `SinkUnreachable`: nobody knows.
pub async fn promote(pipeline: &Pipeline, request: &Request, hold_max: Duration) -> Result<Outcome, Failure> {
    let hold = (BarrierId::new(pipeline.lineage.uid()), hold_max);
    let (stable, canary) = sides(pipeline, Role::Canary, Role::Previous).await?;
    let exchange = Exchange {
        rises: pipeline.lineage.clone(),
        is: Role::Canary,
        falls: lineage_of(pipeline, &stable.key),
        becomes: Role::Previous,
    };
    if canary.key != *pipeline.lineage.key() {
        let message = format!(
            "The pipeline's canary is {}, and not {}: the manifest is that of another revision.",
            canary.key, pipeline.lineage
        );
        return Err(Failure::new(Reason::ManifestInvalid, message));
    }
    // What is exchanged, and what hangs on it, is known before anything takes long: no other tables than those that are compared.
    let prepared = sink::Prepared::look(&pipeline.sink, exchange).await?;
    let since = Since::begin(pipeline, request, (&stable, &canary), &hold.0).await?;
    let compared = compare::compare_revisions(pipeline, request).await?;
    if compared.verdict != Verdict::Equal {
        return Ok(Outcome::NotEqual(Box::new(compared)));
    }
    reach(Point::BeforeHold)?;
    at_hold(pipeline, hold, prepared, async || since.compare(pipeline, request).await.map(Some)).await
}

/// Gives the tables back to the lineage that was stable before.
///
/// # Errors
/// As [`promote`].
pub async fn roll_back(pipeline: &Pipeline, hold_max: Duration) -> Result<Outcome, Failure> {
    let (stable, previous) = sides(pipeline, Role::Previous, Role::Canary).await?;
    let exchange = Exchange {
        rises: lineage_of(pipeline, &previous.key),
        is: Role::Previous,
        falls: lineage_of(pipeline, &stable.key),
        becomes: Role::Canary,
    };
    let hold = (BarrierId::new(pipeline.lineage.uid()), hold_max);
    let prepared = sink::Prepared::look(&pipeline.sink, exchange).await?;
    at_hold(pipeline, hold, prepared, async || Ok(None)).await
}

/// The stable lineage, and the one that is to rise.
async fn sides(
    pipeline: &Pipeline,
    rising: Role,
    becomes: Role,
) -> Result<(LineageFacts, LineageFacts), Failure> {
    let lineages = sink::lineages_of(&pipeline.sink, pipeline.lineage.uid()).await?;
    if let Some(other) = lineages.iter().find(|lineage| lineage.role == becomes) {
        let message = format!(
            "The pipeline has a {} lineage already ({}), and the stable one would be another. Remove it first: penstock-worker clean-up --{0}.",
            becomes.word(),
            other.key
        );
        return Err(Failure::new(Reason::ManifestInvalid, message));
    }
    let of = |role: Role| {
        lineages.iter().find(|lineage| lineage.role == role).cloned().ok_or_else(|| {
            let message = format!(
                "The pipeline has no {} lineage in the sink, so there is nothing to exchange tables with.",
                role.word()
            );
            Failure::new(Reason::ManifestInvalid, message)
        })
    };
    Ok((of(Role::Stable)?, of(rising)?))
}

fn lineage_of(pipeline: &Pipeline, key: &str) -> Lineage {
    let uid = pipeline.lineage.uid();
    match key.strip_prefix(uid).and_then(|rest| rest.strip_prefix('/')) {
        Some(revision) => Lineage::of_canary(uid, revision),
        None => Lineage::first(uid),
    }
}

/// Has both lineages stand still at one place of the stream, compares what `compare` says, and exchanges their tables.
async fn at_hold(
    pipeline: &Pipeline,
    (hold, hold_max): (BarrierId, Duration),
    prepared: sink::Prepared,
    compare: impl AsyncFnOnce() -> Result<Option<Comparison>, Failure>,
) -> Result<Outcome, Failure> {
    let began = Instant::now();
    let mut different = None;
    let mut compared_again = 0;
    let carried_out = async {
        wait_at_hold(pipeline, (&hold, hold_max), &prepared).await?;
        if let Some(compared) = compare().await? {
            compared_again = compared.tables.iter().map(|table| table.changed_rows).sum();
            // Of nothing nobody knows anything.
            if compared.verdict != Verdict::Equal && !compared.tables.is_empty() {
                different = Some(Box::new(compared));
                return Ok(HoldEnd::Aborted);
            }
        }
        reach(Point::AtHold)?;
        prepared.carry_out(&pipeline.sink, &hold).await
    };
    let ended = carried_out.await;
    // The shards go on at once; and an exchange whose answer was lost has happened.
    let end = match ended {
        Ok(HoldEnd::Promoted) => HoldEnd::Promoted,
        Ok(HoldEnd::Aborted) | Err(_) => sink::outcome_of(&pipeline.sink, &hold).await?,
    };
    match (end, different, ended) {
        (HoldEnd::Promoted, _, _) => {
            let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            Ok(Outcome::Exchanged { ms, compared_again })
        }
        (HoldEnd::Aborted, Some(compared), _) => Ok(Outcome::NotEqual(compared)),
        (HoldEnd::Aborted, None, Err(failure)) => Err(failure),
        (HoldEnd::Aborted, None, Ok(_)) => {
            let message = "The tables were not exchanged: the shards did not wait any longer. Nothing has changed; try again.";
            Err(Failure::new(Reason::SinkUnreachable, message))
        }
    }
}

/// Until every shard of both lineages has settled everything before the hold, and waits.
async fn wait_at_hold(
    pipeline: &Pipeline,
    (hold, hold_max): (&BarrierId, Duration),
    prepared: &sink::Prepared,
) -> Result<(), Failure> {
    let registration = sink::register(&pipeline.sink, hold.clone(), BarrierKind::Hold, hold_max).await?;
    emit_barrier(&pipeline.source, &registration).await?;
    let began = Instant::now();
    while let Some(missing) = registration.first_missing(&[prepared.rises(), prepared.falls()]).await? {
        if began.elapsed() > hold_max {
            let message = format!(
                "Nothing was exchanged: {missing} has not come to the hold within {} s. Its worker does not run, or is that far \
                 behind.",
                hold_max.as_secs()
            );
            return Err(Failure::new(Reason::SinkUnreachable, message));
        }
        sleep(LOOK_FOR_ARRIVALS_EVERY).await;
    }
    Ok(())
}
