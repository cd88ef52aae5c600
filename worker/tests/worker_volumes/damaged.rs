//! A volume that is really full, and files that are not what the worker left.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::common::Worker;
use crate::kit::{STREAMING, change, every_change_counted_once, rig};

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_fills_up_stops_the_worker_and_lets_it_go_on_when_there_is_space() -> Result<()> {
    let rig = rig().await?;
    let worker = Worker::start_on_tmpfs(&rig.manifest_file()?, &rig.state_dir(0), "256k")?;
    worker.wait_for_output(STREAMING).await?;
    change(&rig).await?;
    rig.wait_until_caught_up().await?;
    // The file system is in the worker's own mount namespace.
    let inside = Path::new("/proc").join(worker.pid().to_string()).join("root");
    let ballast = inside.join(rig.state_dir(0).strip_prefix("/")?).join("ballast");
    ensure!(std::fs::write(&ballast, vec![0; 1 << 20]).is_err(), "the volume is not small");
    let mut rounds = 1;
    for _ in 0..200 {
        change(&rig).await?;
        rounds += 1;
        if worker.output()?.contains("\"reason\":\"VolumeFull\"") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    worker.wait_for_output("\"reason\":\"VolumeFull\"").await?;
    std::fs::remove_file(&ballast).context("making space")?;
    change(&rig).await?;
    every_change_counted_once(&rig, rounds + 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_garbled_or_lost_volume_never_makes_a_wrong_row() -> Result<()> {
    let rig = rig().await?;
    let seed: u64 = rand::rng().random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut set_aside = 0;
    let mut first = rig.start(0)?;
    first.wait_for_output(STREAMING).await?;
    first.kill()?;
    for round in 1..=12 {
        let mut worker = rig.start(0)?;
        change(&rig).await?;
        rig.wait_until_caught_up().await?;
        worker.kill()?;
        let word = damage(&mut random, &rig.state_dir(0), round)?;
        let mut worker = rig.start(0)?;
        change(&rig).await?;
        every_change_counted_once(&rig, round * 2)
            .await
            .with_context(|| format!("seed {seed}, round {round}: {word}"))?;
        let output = worker.output()?;
        set_aside = output.matches("is damaged").count() + output.matches("was damaged").count();
        worker.kill()?;
    }
    let worker = rig.start(0)?;
    worker.wait_for_output("VolumeRebuilt").await?;
    ensure!(set_aside > 0, "seed {seed}: no damage was noticed, this proves nothing");
    Ok(())
}

/// What a machine that lost power, a bad disk or a person leaves.
fn damage(random: &mut StdRng, folder: &Path, round: i64) -> Result<&'static str> {
    let (file, wal) = (folder.join("checkpoint.sqlite"), folder.join("checkpoint.sqlite-wal"));
    // The log has every page that the file should have: with it whole, the file does not matter.
    if matches!(round % 6, 2..=4) {
        std::fs::File::options().write(true).open(&wal)?.set_len(0)?;
    }
    let length = |path: &Path| std::fs::metadata(path).map_or(0, |found| found.len());
    Ok(match round % 6 {
        1 => {
            std::fs::File::options()
                .write(true)
                .open(&wal)?
                .set_len(random.random_range(0..=length(&wal)))?;
            "the log is torn"
        }
        2 => {
            let mut bytes = std::fs::read(&file)?;
            let at = random.random_range(0..bytes.len() / 512) * 512;
            bytes[at..at + 512].fill(0);
            std::fs::write(&file, bytes)?;
            "a block was not written"
        }
        3 => {
            let mut bytes = std::fs::read(&file)?;
            bytes.fill_with(|| random.random());
            std::fs::write(&file, bytes)?;
            "the file is noise"
        }
        4 => {
            let kept = random.random_range(1..length(&file));
            std::fs::File::options().write(true).open(&file)?.set_len(kept)?;
            "the file is cut"
        }
        5 => {
            std::fs::remove_file(&file)?;
            "the file is gone, and its log is there"
        }
        _ => {
            std::fs::remove_dir_all(folder)?;
            "all is gone"
        }
    })
}
