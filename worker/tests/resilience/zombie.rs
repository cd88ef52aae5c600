//! A worker that stood still while another one took its place.

use anyhow::{Result, ensure};
use penstock_e2e::postgres::Version;
use penstock_worker::failpoint::Point;

use crate::cell::STREAMING;
use crate::common::{Rig, Worker};
use crate::witness::Witness;

/// It has everything in the sink but the commit when it is stopped; when it wakes up, the other one has committed the same.
#[tokio::test(flavor = "multi_thread")]
async fn the_commit_of_a_worker_that_was_stopped_and_replaced_fails() -> Result<()> {
    let rig = Rig::new(Version::V15, &["public.journal"]).await?;
    rig.on_source("CREATE TABLE journal (step int); ALTER TABLE journal REPLICA IDENTITY FULL").await?;
    let go_on = rig.state_dir(0).with_extension("go-on");
    let pause = format!("{:?}=1*return(pause:{})", Point::BeforeSinkCommit, go_on.display());
    let stopped = rig.start_with_failpoints(&pause)?;
    stopped.wait_for_output(STREAMING).await?;
    let witness = Witness::start(&rig).await?;
    rig.on_source("INSERT INTO journal SELECT generate_series(1, 10)").await?;
    stopped.wait_for_output("failpoint acts").await?;
    stopped.signal("-STOP")?;

    let mut replacement = Worker::start(&rig.manifest_file()?, &rig.state_dir(1), 0)?;
    rig.wait_for("SELECT count(*) FROM journal", "10").await?;
    std::fs::write(&go_on, "")?;
    let before = stopped.output()?.len();
    stopped.signal("-CONT")?;
    stopped.wait_for_output("retry_in_seconds").await?;
    let said = stopped.output()?.split_off(before);
    replacement.kill()?;
    let failed = said.lines().find(|line| line.contains("retry_in_seconds")).unwrap_or_default();
    ensure!(
        ["Fenced", "SinkUnreachable"]
            .iter()
            .any(|reason| failed.contains(&format!("\"reason\":\"{reason}\""))),
        "its commit did not fail: {said}"
    );

    // By itself again, it goes on where the other one stopped.
    rig.on_source("INSERT INTO journal SELECT generate_series(11, 20)").await?;
    rig.wait_for("SELECT count(*) FROM journal", "20").await?;
    rig.assert_equal(&["journal"]).await?;
    let counted = witness.changes_after(&rig, "0/0").await?.to_string();
    ensure!(rig.sink_value("SELECT sequence FROM penstock.checkpoint").await? == counted, "miscounted");
    Ok(())
}
