//! The crash matrix: every failpoint in every scenario. The worker dies there, once and again, is started again, and
//! at the end both sides are equal and every change is counted once.

use anyhow::{Context as _, Result, bail, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use penstock_worker::failpoint::Point;

use crate::cell::{Cell, Reached, Servers};
use crate::scenario::Scenario;

/// Cells of one scenario that run at the same time.
const CELLS_AT_ONCE: usize = 3;
/// What a worker comes by again and again while it streams. The rest comes once per start, or once per table, which may
/// be done when the successor of one that died there comes by.
const REPEATED: [Point; 11] = [
    Point::BeforeDdl,
    Point::AfterDdl,
    Point::BeforeSinkStatement,
    Point::AfterSinkStatement,
    Point::BeforeSinkCommit,
    Point::AfterSinkCommit,
    Point::BeforeVolumeWrite,
    Point::BeforeVolumeFsync,
    Point::AfterVolumeFsync,
    Point::BeforeAcknowledge,
    Point::AfterAcknowledge,
];

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_anywhere_in_the_first_load_loses_and_doubles_nothing() -> Result<()> {
    dies_everywhere(Scenario::Snapshot).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_anywhere_while_it_streams_loses_and_doubles_nothing() -> Result<()> {
    dies_everywhere(Scenario::Streaming).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_anywhere_in_a_large_transaction_loses_and_doubles_nothing() -> Result<()> {
    let reached = dies_everywhere(Scenario::LargeTransaction).await?;
    let statements = reached.statements_in_a_commit;
    ensure!(statements > 4, "{statements} statements in a commit: the transactions are not large");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_anywhere_while_it_takes_tables_in_loses_and_doubles_nothing() -> Result<()> {
    dies_everywhere(Scenario::TablesAdded).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_anywhere_while_columns_change_loses_and_doubles_nothing() -> Result<()> {
    dies_everywhere(Scenario::Ddl).await.map(drop)
}

/// Runs the scenario undisturbed, to see which points it comes by, then once for each of them.
async fn dies_everywhere(scenario: Scenario) -> Result<Reached> {
    let servers = Servers::start().await?;
    let undisturbed = Cell::prepare(scenario, &servers).await?;
    let reached = undisturbed.finish(None).await.context("undisturbed")?;
    check_list_of_unreached(scenario, &reached)?;
    let points = Point::ALL.iter().copied().filter(|point| reached.times(*point) > 0);
    futures::stream::iter(points.map(|point| dies_at(scenario, point, &servers)))
        .buffer_unordered(CELLS_AT_ONCE)
        .try_collect::<Vec<()>>()
        .await?;
    Ok(reached)
}

/// The first worker dies at its first time by the point, where there is one the second at its second; the last one
/// fails there, and goes on by itself.
async fn dies_at(scenario: Scenario, point: Point, servers: &Servers) -> Result<()> {
    let is_repeated = REPEATED.contains(&point);
    let cell = Cell::prepare(scenario, servers).await?;
    let run = async {
        cell.die_at(point, 1).await.context("first time")?;
        if is_repeated {
            cell.die_at(point, 2).await.context("second time")?;
        }
        let reached = cell.finish(Some(point)).await?;
        ensure!(!is_repeated || reached.failures == 1, "the last worker failed {} times", reached.failures);
        Ok(())
    };
    run.await.with_context(|| format!("{scenario:?}, {point:?}"))
}

fn check_list_of_unreached(scenario: Scenario, reached: &Reached) -> Result<()> {
    let unreached = scenario.unreached();
    for point in Point::ALL {
        let listed = unreached.iter().find(|(listed, _)| listed == point);
        match (reached.times(*point), listed) {
            (0, None) => bail!(
                "{scenario:?} does not come by {point:?}: mend the scenario, or list the point with the reason"
            ),
            (times, Some((_, why))) if times > 0 => {
                bail!("{scenario:?} came by {point:?} {times} times, and the list says `{why}`")
            }
            (_, Some(_) | None) => {}
        }
    }
    Ok(())
}
