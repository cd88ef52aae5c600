//! The tables change places, and no row goes astray.

use std::time::Duration;

use anyhow::{Result, ensure};
use penstock_e2e::postgres::Version;
use penstock_worker::failpoint::Point;
use serde_json::json;

use crate::common::{Rig, Worker};
use crate::stage::{ALL_SUMS, ALL_SUMS_THROUGH_VIEWS, Load, Reader, SCHEMA, STREAMING, Stage};

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_is_promoted_and_rolled_back_under_load_and_readers_see_nothing_of_it() -> Result<()> {
    let stage = Stage::new().await?;
    ensure!(stage.shadow.starts_with("penstock_") && stage.shadow.ends_with("_public"), "{}", stage.shadow);
    let first = stage.stable_key().await?;
    let load = Load::start(&stage.rig).await?;
    stage
        .rig
        .on_sink("CREATE VIEW through AS SELECT * FROM accounts; CREATE VIEW lines AS SELECT * FROM journal")
        .await?;
    let reader = Reader::start(&stage.rig, ALL_SUMS).await?;
    let through_views = [(); 3].map(|()| Reader::start(&stage.rig, ALL_SUMS_THROUGH_VIEWS));
    let through_views = futures::future::try_join_all(through_views).await?;
    for round in 1..=3 {
        println!("round {round}: {}", stage.must(&["promote"])?.trim());
        ensure!(stage.stable_key().await? != first, "round {round}: not promoted");
        println!("round {round}: back. {}", stage.must(&["roll-back"])?.trim());
        ensure!(stage.stable_key().await? == first, "round {round}: not rolled back");
    }
    load.stop().await?;
    let looks = reader.stop().await?;
    ensure!(looks > 100, "only {looks} looks");
    for reader in through_views {
        reader.stop().await?;
    }
    stage.assert_both_equal().await
}

/// It has come to the hold, and when it wakes up nothing of the hold is left that could tell it. Its statements are prepared for
/// tables whose names others have by now.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_slept_through_the_exchange_writes_into_no_wrong_table() -> Result<()> {
    let stage = Stage::new().await?;
    let rig = &stage.rig;
    let load = Load::start(rig).await?;
    let go_on = rig.state_dir(7).with_extension("go-on");
    let pause = format!("{:?}=1*return(pause:{})", Point::AtHold, go_on.display());
    let coordinator = rig.spawn_with_failpoints(&["promote", "--hold", "120"], &pause)?;
    let held = "SELECT count(*) FROM penstock.barrier_arrival JOIN penstock.barrier USING (uid, nonce) WHERE kind = 'hold'";
    rig.wait_for(held, "2").await?;
    stage.stable.signal("-STOP")?;
    std::fs::write(&go_on, "")?;
    let output = tokio::task::block_in_place(|| coordinator.wait_with_output())?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    rig.on_sink("DELETE FROM penstock.barrier").await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = stage.stable.output()?.len();
    stage.stable.signal("-CONT")?;
    stage.stable.wait_for_output("\"reason\":\"Fenced\"").await?;
    let said = stage.stable.output()?.split_off(before);
    ensure!(said.contains("and no table was exchanged"), "it was told: {said}");
    load.stop().await?;
    stage.assert_both_equal().await?;
    stage.must(&["roll-back"])?;
    stage.assert_both_equal().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_may_have_another_number_of_shards() -> Result<()> {
    let mut rig = Rig::new(Version::V17, &["public.accounts", "public.journal"]).await?;
    rig.on_source(SCHEMA).await?;
    let stable = rig.start(0)?;
    stable.wait_for_output(STREAMING).await?;
    rig.manifest["spec"]["worker"] = json!({"shards": 2});
    let file = rig.manifest_file()?;
    let canary = [0, 1]
        .map(|shard| Worker::start_with(&file, &rig.state_dir(shard + 1), shard, &["--canary".to_owned()]));
    for worker in canary.iter().flatten() {
        worker.wait_for_output(STREAMING).await?;
    }
    let load = Load::start(&rig).await?;
    for direction in ["promote", "roll-back", "promote"] {
        let output = tokio::task::block_in_place(|| rig.command(&[direction, "--hold", "120"]))?;
        ensure!(output.status.success(), "{direction}: {}", String::from_utf8_lossy(&output.stderr));
    }
    load.stop().await?;
    rig.wait_until_caught_up().await?;
    rig.assert_equal(&["accounts", "journal"]).await?;
    // Each table is of the lineage that is stable, whichever shard writes it.
    let owners = "SELECT string_agg(DISTINCT lineage.role, ',') FROM penstock.ownership JOIN penstock.lineage ON lineage.key = ownership.uid \
                  WHERE sink_schema = 'public'";
    ensure!(rig.sink_value(owners).await? == "stable", "a table that readers know is of another lineage");
    Ok(())
}
