//! Whatever dies or stands still while tables are exchanged: they are, or they are not, and no row goes astray.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::stage::{ALL_SUMS, Load, Reader, Stage};

const ROUNDS: u32 = 24;

/// What happens to an exchange that is under way.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// SIGKILL of the process that carries it out.
    Coordinator,
    /// SIGSTOP of it, until the shards do not wait any longer; then it goes on.
    CoordinatorFrozen,
    /// SIGKILL of the worker of the first lineage, which is started again.
    First,
    /// SIGKILL of the canary's.
    Canary,
    /// SIGSTOP of the canary's, for as long.
    CanaryFrozen,
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_dies_or_freezes_the_tables_are_exchanged_or_they_are_not() -> Result<()> {
    let seed = rand::rng().random_range(0..1_000_000);
    println!("seed {seed}");
    run(seed).await.with_context(|| format!("seed {seed}"))
}

async fn run(seed: u64) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut stage = Stage::new().await?;
    let first = stage.stable_key().await?;
    let load = Load::start(&stage.rig).await?;
    let reader = Reader::start(&stage.rig, ALL_SUMS).await?;
    let (mut happened, mut did_not) = (0, 0);
    for round in 0..ROUNDS {
        let is_first = stage.stable_key().await? == first;
        let direction = if is_first { "promote" } else { "roll-back" };
        let mut coordinator = stage.rig.spawn(&[direction])?;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..450))).await;
        // Those that take as long as a hold come once each.
        let fault = match round {
            5 => Fault::CoordinatorFrozen,
            11 => Fault::CanaryFrozen,
            _ => [Fault::Coordinator, Fault::First, Fault::Canary][random.random_range(0..3)],
        };
        match fault {
            Fault::Coordinator => coordinator.kill()?,
            Fault::CoordinatorFrozen => {
                signal("-STOP", coordinator.id())?;
                tokio::time::sleep(Duration::from_secs(12)).await;
                signal("-CONT", coordinator.id())?;
            }
            Fault::First => {
                stage.stable.kill()?;
                stage.start_first()?;
            }
            Fault::Canary => {
                stage.canary.kill()?;
                stage.start_canary()?;
            }
            Fault::CanaryFrozen => {
                stage.canary.signal("-STOP")?;
                tokio::time::sleep(Duration::from_secs(12)).await;
                stage.canary.signal("-CONT")?;
            }
        }
        let said = tokio::task::block_in_place(|| coordinator.wait())?;
        let is_exchanged = (stage.stable_key().await? == first) != is_first;
        ensure!(
            said.success() == is_exchanged || (is_exchanged && matches!(fault, Fault::Coordinator)),
            "{direction}, {fault:?}: exchanged is {is_exchanged}, and what was said is {said}"
        );
        if is_exchanged { happened += 1 } else { did_not += 1 }
    }
    println!("{happened} exchanges happened, {did_not} did not");
    load.stop().await?;
    reader.stop().await?;
    stage.assert_both_equal().await?;
    let versions = "SELECT count(DISTINCT layout) FROM penstock.checkpoint";
    ensure!(stage.rig.sink_value(versions).await? == "1", "the two know of different exchanges");
    ensure!(happened > 0 && did_not > 0, "nothing was tried: {happened} happened, {did_not} did not");
    Ok(())
}

fn signal(kind: &str, pid: u32) -> Result<()> {
    let status = Command::new("kill").args([kind, &pid.to_string()]).status()?;
    ensure!(status.success(), "kill {kind} {pid}");
    Ok(())
}
