//! What a comparison leaves for whoever started it: a short document of its own, whatever it came to.

use anyhow::{Result, ensure};
use penstock_crds::comparison::{ComparisonResult, ComparisonVerdict};
use penstock_e2e::postgres::Version;

use crate::common::Rig;
use crate::kit::{SLOTS, compare, streaming, waiting_for_its_slot};

#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_that_is_told_to_stop_leaves_no_slot_that_is_still_being_made() -> Result<()> {
    let rig = Rig::new(Version::V15, &["public.*"]).await?;
    rig.on_source("CREATE TABLE a (id int PRIMARY KEY)").await?;
    let _worker = streaming(&rig).await?;
    let (mut comparison, client) = waiting_for_its_slot(&rig).await?;
    std::process::Command::new("kill").args(["-TERM", &comparison.id().to_string()]).status()?;
    let code = tokio::task::block_in_place(|| comparison.wait())?.code();
    ensure!(code == Some(2), "it ended with {code:?}");
    ensure!(rig.source_value(SLOTS).await? == "0", "a slot was left");
    ensure!(rig.sink_value("SELECT count(*) FROM penstock.barrier").await? == "0", "a barrier was left");
    client.run("COMMIT").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_termination_message_says_what_was_found_or_why_nobody_knows() -> Result<()> {
    let rig = Rig::new(Version::V15, &["public.*"]).await?;
    rig.on_source(
        "CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a SELECT generate_series(1, 10);
         CREATE TABLE b (id int PRIMARY KEY); INSERT INTO b SELECT generate_series(1, 10)",
    )
    .await?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("termination-log");
    // As a container has it: there, and empty.
    std::fs::write(&file, "")?;
    let path = file.display().to_string();
    let ask = |arguments: &[&str]| -> Result<(i32, ComparisonResult)> {
        let said = compare(&rig, &[&["--termination-message", path.as_str()], arguments].concat())?;
        Ok((said.code, serde_json::from_str(&std::fs::read_to_string(&file)?)?))
    };

    let (code, result) = ask(&["--timeout", "1"])?;
    ensure!(
        code == 2 && result.verdict == ComparisonVerdict::Unknown && result.reason.is_some(),
        "{result:?}"
    );

    let _worker = streaming(&rig).await?;
    let (code, result) = ask(&[])?;
    ensure!(code == 0 && result.verdict == ComparisonVerdict::Equal && result.tables == 2, "{result:?}");
    ensure!(result.position.is_some() && result.reason.is_none(), "{result:?}");

    rig.on_sink("DELETE FROM b WHERE id > 7").await?;
    let (code, result) = ask(&[])?;
    ensure!(code == 1 && result.verdict == ComparisonVerdict::Different, "{result:?}");
    let [different] = result.different.as_slice() else { anyhow::bail!("{result:?}") };
    ensure!(different.table == "public.b" && different.rows == 3, "{result:?}");

    let nowhere = compare(&rig, &["--termination-message", "/nowhere/at/all"])?;
    ensure!(nowhere.code == 2 && nowhere.errors.contains("/nowhere/at/all"), "{nowhere:?}");
    Ok(())
}
