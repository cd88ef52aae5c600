//! What a canary, or a revision that was promoted over, leaves when it is removed: nothing.

use anyhow::{Result, ensure};

use crate::stage::{ALL_SUMS, Load, Reader, Stage};

const SLOTS: &str = "SELECT count(*) FROM pg_replication_slots";
const SCHEMAS: &str = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'penstock\\_%'";
const LINEAGES: &str = "SELECT string_agg(role, ',' ORDER BY role) FROM penstock.lineage";

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_that_is_removed_leaves_nothing_and_the_stable_revision_runs_on() -> Result<()> {
    let mut stage = Stage::new().await?;
    stage.canary.kill()?;
    let rig = &stage.rig;
    let load = Load::start(rig).await?;
    let reader = Reader::start(rig, ALL_SUMS).await?;
    stage.must(&["clean-up", "--canary"])?;
    for (found, expected) in [
        (rig.sink_value(SCHEMAS).await?, "0"),
        (rig.sink_value(LINEAGES).await?, "stable"),
        (rig.source_value(SLOTS).await?, "1"),
        (rig.source_value("SELECT count(*) FROM pg_publication").await?, "1"),
        (rig.sink_value("SELECT count(*) FROM penstock.checkpoint").await?, "1"),
    ] {
        ensure!(found == expected, "{found}, not {expected}");
    }
    load.stop().await?;
    reader.stop().await?;
    rig.wait_until_caught_up().await?;
    rig.assert_equal(&["accounts", "journal"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_previous_revision_is_removed_and_the_promoted_one_runs_on() -> Result<()> {
    let mut stage = Stage::new().await?;
    stage.must(&["promote"])?;
    let (code, said) = stage.command(&["clean-up", "--canary"])?;
    ensure!(code != 0 && said.contains("has the tables that readers know"), "{code}: {said}");
    stage.stable.kill()?;
    stage.must(&["clean-up", "--previous"])?;
    let rig = &stage.rig;
    ensure!(
        rig.sink_value(SCHEMAS).await? == "0" && rig.source_value(SLOTS).await? == "1",
        "something is left"
    );
    let (code, said) = stage.command(&["roll-back"])?;
    ensure!(code != 0 && said.contains("no previous lineage"), "{code}: {said}");
    rig.on_source("UPDATE accounts SET note = 'afterwards'").await?;
    rig.wait_for("SELECT count(*) FROM accounts WHERE note = 'afterwards'", "100").await?;
    // All of it.
    stage.canary.kill()?;
    stage.must(&["clean-up"])?;
    ensure!(rig.source_value(SLOTS).await? == "0", "a slot is left");
    ensure!(
        rig.sink_value("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'penstock%'").await? == "0",
        "a schema is left"
    );
    ensure!(rig.sink_value("SELECT count(*) FROM accounts").await? == "100", "the tables stay");
    Ok(())
}
