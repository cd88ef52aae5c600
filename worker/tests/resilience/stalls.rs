//! A database that stands still for more than a minute: the source in the middle of a transaction, the sink in the
//! middle of a commit.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use penstock_e2e::postgres::{Server, TextRow, Version};
use penstock_e2e::proxy::{Mode, Proxy};
use penstock_worker::failpoint::Point;
use serde_json::json;

use crate::cell::{PATIENCE, STREAMING};
use crate::common::{DATABASE, Rig};
use crate::witness::Witness;

/// The sink ends a session of the worker's in which a transaction waits for longer than 60 s.
const LONGER_THAN_AN_IDLE_TRANSACTION_LIVES: Duration = Duration::from_secs(75);

/// What of the sink stands still.
#[derive(Clone, Copy, Debug)]
enum Frozen {
    /// All of it: connections are taken by the kernel, and nothing is answered.
    Server,
    /// The sessions that there are; new ones are opened and work.
    Sessions,
}

/// The COMMIT that is in a socket by then happens when the sink wakes up, after the worker has given it up, or never.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_sink_is_noticed_and_what_it_commits_late_is_not_doubled() -> Result<()> {
    // Both wait for more than a minute.
    tokio::try_join!(freezes(Frozen::Server), freezes(Frozen::Sessions)).map(drop)
}

async fn freezes(frozen: Frozen) -> Result<()> {
    let rig = Rig::new(Version::V15, &["public.journal"]).await?;
    rig.on_source("CREATE TABLE journal (step int); ALTER TABLE journal REPLICA IDENTITY FULL").await?;
    let go_on = rig.state_dir(0).with_extension("go-on");
    let worker = rig.start_with_failpoints(&format!(
        "{:?}=1*return(pause:{})",
        Point::BeforeSinkCommit,
        go_on.display()
    ))?;
    worker.wait_for_output(STREAMING).await?;
    let witness = Witness::start(&rig).await?;
    rig.on_source("INSERT INTO journal SELECT generate_series(1, 10)").await?;
    worker.wait_for_output("failpoint acts").await?;
    // The worker's own question must have been asked before.
    let watched = "SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'penstock watch'";
    rig.wait_for(watched, "t").await?;
    let sessions = rig.sink.connect(DATABASE).await?.rows(SESSIONS_OF_THE_WORKER).await?;
    match frozen {
        Frozen::Server => rig.sink.freeze(),
        Frozen::Sessions => signal("-STOP", &sessions)?,
    }
    std::fs::write(&go_on, "")?;
    let noticed = worker.wait_for_output_within("has not answered for 60 s", PATIENCE).await;
    match frozen {
        Frozen::Server => rig.sink.thaw(),
        Frozen::Sessions => signal("-CONT", &sessions)?,
    }
    noticed.with_context(|| format!("{frozen:?}"))?;
    let output = worker.output()?;
    let said = output.lines().find(|line| line.contains("has not answered")).unwrap_or_default();
    ensure!(said.contains("\"reason\":\"SinkUnreachable\""), "{said}");

    rig.on_source("INSERT INTO journal SELECT generate_series(11, 20)").await?;
    rig.wait_for("SELECT count(*) FROM journal", "20").await?;
    rig.assert_equal(&["journal"]).await?;
    let counted = witness.changes_after(&rig, "0/0").await?.to_string();
    ensure!(rig.sink_value("SELECT sequence FROM penstock.checkpoint").await? == counted, "miscounted");
    Ok(())
}

const SESSIONS_OF_THE_WORKER: &str =
    "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'penstock%'";

fn signal(kind: &str, sessions: &[TextRow]) -> Result<()> {
    for pid in sessions.iter().flatten().flatten() {
        ensure!(Command::new("kill").args([kind, pid]).status()?.success(), "kill {kind} {pid}");
    }
    Ok(())
}

/// The transaction is written as it arrives, and the sink's own stays open while nothing arrives.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_outlives_a_source_that_says_nothing_for_longer_than_a_minute() -> Result<()> {
    // The source waits for us, and we for it.
    let source = Server::builder(Version::V15).setting("wal_sender_timeout", "0").start().await?;
    let proxy = Proxy::start(source.port).await?;
    let sink = Server::start(Version::V15).await?;
    let mut rig = Rig::on(Arc::new(source), Arc::new(sink), DATABASE, &["public.wide"]).await?;
    rig.manifest["spec"]["source"]["postgres"]["connection"]["port"] = json!(proxy.port());
    rig.manifest["spec"]["sink"]["postgres"]["batch"] = json!({"maxBytes": 65_536});
    rig.on_source("CREATE TABLE wide (id int PRIMARY KEY, body text NOT NULL)").await?;
    let worker = rig.start(0)?;
    worker.wait_for_output(STREAMING).await?;
    rig.on_source("INSERT INTO wide SELECT g, repeat(md5(g::text), 32) FROM generate_series(1, 100000) g")
        .await?;

    // A transaction that has written has an id.
    rig.wait_for(
        "SELECT count(backend_xid) > 0 FROM pg_stat_activity WHERE application_name LIKE 'penstock%'",
        "t",
    )
    .await?;
    proxy.set(Mode::Stall);
    tokio::time::sleep(LONGER_THAN_AN_IDLE_TRANSACTION_LIVES).await;
    ensure!(rig.sink_value("SELECT count(*) FROM wide").await? == "0", "it was over before it stalled");
    proxy.set(Mode::Pass);
    let began = Instant::now();
    while rig.sink_value("SELECT count(*) FROM wide").await? != "100000" {
        ensure!(began.elapsed() < PATIENCE, "{}", worker.tail()?);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    rig.assert_equal(&["wide"]).await?;
    ensure!(!worker.output()?.contains("retry_in_seconds"), "it began again; {}", worker.tail()?);
    Ok(())
}
