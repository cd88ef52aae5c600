//! A disk that fails under a worker that runs: it says so while it lasts, tells the source nothing, and goes on by itself.

use anyhow::{Result, ensure};
use penstock_e2e::volume::FileFault;

use crate::kit::{STREAMING, Stage};

/// How often the worker tries, and fails, before the disk is well again.
const ATTEMPTS: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_acknowledged_while_the_volume_cannot_be_written() -> Result<()> {
    fails_while_streaming(FileFault::Write, "VolumeFailed").await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_acknowledged_while_the_volume_cannot_be_synced() -> Result<()> {
    fails_while_streaming(FileFault::Sync, "VolumeFailed").await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_acknowledged_while_the_volume_is_full() -> Result<()> {
    fails_while_streaming(FileFault::Full, "VolumeFull").await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_acknowledged_while_the_volume_takes_half_of_each_write() -> Result<()> {
    fails_while_streaming(FileFault::TornWrite { percent: 50 }, "VolumeFailed").await
}

async fn fails_while_streaming(fault: FileFault, reason: &str) -> Result<()> {
    let mut stage = Stage::new().await?;
    for _ in 0..2 {
        stage.volume.set(fault)?;
        let (place, said) = (stage.end_of_log().await?, stage.said(reason)?);
        stage.change().await?;
        stage.wait_until_said(reason, said, ATTEMPTS).await?;
        ensure!(stage.volume.acted() > 0, "nothing failed, this proves nothing");
        ensure!(!stage.is_acknowledged_after(&place).await?, "the source was told that it may forget");
        stage.volume.set(FileFault::None)?;
        stage.is_well().await?;
        stage.wait_until_acknowledged_after(&place).await?;
    }
    let output = stage.worker.output()?;
    ensure!(!output.contains("was damaged"), "a sound checkpoint was set aside");
    Ok(())
}

/// A worker that runs does not read its volume; one that starts does.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_cannot_be_read_is_said_and_kept() -> Result<()> {
    let mut stage = Stage::new().await?;
    for operations in [0, 1, 4, 9] {
        stage.kill()?;
        stage.volume.set_after(operations, FileFault::Read)?;
        let (place, said) = (stage.end_of_log().await?, stage.said("VolumeFailed")?);
        stage.change().await?;
        stage.start()?;
        stage.wait_until_said("VolumeFailed", said, ATTEMPTS).await?;
        ensure!(!stage.is_acknowledged_after(&place).await?, "the source was told that it may forget");
        stage.volume.set(FileFault::None)?;
        stage.worker.wait_for_output(STREAMING).await?;
        stage.is_well().await?;
        stage.wait_until_acknowledged_after(&place).await?;
    }
    let output = stage.worker.output()?;
    for word in ["was damaged", "VolumeRebuilt"] {
        ensure!(!output.contains(word), "what cannot be read for a while was taken for damaged");
    }
    Ok(())
}
