//! The machine under the worker loses power. A disk that kept its word has at least what the source was told to forget; one
//! that did not has anything, and no row is wrong for it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use penstock_e2e::volume::{FileFault, Loss, Survival, Volume};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rusqlite::{Connection, OptionalExtension as _};

use crate::kit::Stage;

const ROUNDS: u32 = 8;

#[tokio::test(flavor = "multi_thread")]
async fn what_the_source_may_forget_outlives_a_loss_of_power() -> Result<()> {
    let mut stage = Stage::new().await?;
    let mut random = seeded();
    for round in 0..ROUNDS {
        write_for_a_while(&mut stage, &mut random).await?;
        stage.kill()?;
        stage.volume.lose_power(Loss::Ordered, &mut random)?;
        let kept = on_the_volume(&stage.volume)?.context("the checkpoint is gone")?;
        ensure!(!stage.is_acknowledged_after(&kept).await?, "round {round}: the volume has only {kept}");
        stage.start()?;
        stage.is_well().await.with_context(|| format!("round {round}"))?;
    }
    ensure!(!stage.worker.output()?.contains("VolumeRebuilt"), "a disk that kept its word lost a checkpoint");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_tears_at_a_loss_of_power_never_makes_a_wrong_row() -> Result<()> {
    let mut stage = Stage::new().await?;
    let mut random = seeded();
    let mut made_anew = 0;
    for round in 0..ROUNDS {
        stage.kill()?;
        stage.volume.mark()?;
        stage.start()?;
        write_for_a_while(&mut stage, &mut random).await?;
        stage.kill()?;
        made_anew += u32::from(stage.volume.lose_power(Loss::Torn, &mut random)? == Survival::MadeAnew);
        stage.start()?;
        stage.is_well().await.with_context(|| format!("round {round}"))?;
    }
    println!("{made_anew} of {ROUNDS} file systems had to be made anew");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_lies_never_makes_a_wrong_row() -> Result<()> {
    let mut stage = Stage::new().await?;
    let mut random = seeded();
    for round in 0..ROUNDS {
        let lies = round % 2 == 0;
        let percent = random.random_range(0..100);
        stage.volume.set(if lies { FileFault::LyingSync } else { FileFault::PowerFailing { percent } })?;
        write_for_a_while(&mut stage, &mut random).await?;
        stage.kill()?;
        ensure!(stage.volume.acted() > 0, "nothing was synced, this proves nothing");
        if lies {
            stage.volume.lose_what_was_not_synced(&mut random)?;
        }
        stage.volume.set(FileFault::None)?;
        stage.start()?;
        stage.is_well().await.with_context(|| format!("round {round}, lies: {lies}"))?;
    }
    Ok(())
}

/// The last change may be on its way when this returns.
async fn write_for_a_while(stage: &mut Stage, random: &mut StdRng) -> Result<()> {
    for _ in 0..random.random_range(5..25) {
        stage.change().await?;
        tokio::time::sleep(Duration::from_millis(random.random_range(1..80))).await;
    }
    Ok(())
}

/// The end of the log that the next worker would find, told from a copy.
fn on_the_volume(volume: &Volume) -> Result<Option<String>> {
    let copy = tempfile::TempDir::new()?;
    for (name, bytes) in volume.content()? {
        std::fs::write(copy.path().join(name), bytes)?;
    }
    end_of(&copy.path().join("checkpoint.sqlite"))
}

fn end_of(file: &Path) -> Result<Option<String>> {
    Ok(Connection::open(file)?.query_row("SELECT end_lsn FROM record", [], |row| row.get(0)).optional()?)
}

fn seeded() -> StdRng {
    let seed: u64 = rand::rng().random();
    println!("seed {seed}");
    StdRng::seed_from_u64(seed)
}
