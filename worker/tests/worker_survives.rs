//! Whatever is killed: no row lost, doubled or altered, and the sequence counts every change once.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use common::{DATABASE, Rig};
use penstock_e2e::postgres::Version;
use rand::RngExt as _;
use tokio::task::JoinHandle;

/// Accounts whose sum never changes, and a journal that only grows: a lost, doubled or torn transaction shows.
const SCHEMA: &str = "
    CREATE TABLE accounts (id int PRIMARY KEY, units bigint NOT NULL, version bigint NOT NULL DEFAULT 0, note text);
    CREATE TABLE journal (id bigint PRIMARY KEY, from_id int NOT NULL, to_id int NOT NULL);
    INSERT INTO accounts SELECT g, 1000 FROM generate_series(1, 200) g;
    CREATE SEQUENCE steps;";

/// One transaction that moves units, and now and then churns rows.
const STEP: &str = "
    WITH step AS (SELECT nextval('steps') AS n, 1 + floor(random() * 200)::int AS a, 1 + floor(random() * 200)::int AS b),
    taken AS (UPDATE accounts SET units = units - 1, version = version + 1 FROM step WHERE id = a AND a <> b RETURNING 1),
    given AS (UPDATE accounts SET units = units + 1, version = version + 1 FROM step WHERE id = b AND a <> b RETURNING 1)
    INSERT INTO journal SELECT n, a, b FROM step WHERE a <> b;
    DELETE FROM journal WHERE id < (SELECT last_value - 400 FROM steps);
    UPDATE accounts SET note = repeat(md5(random()::text), 200) WHERE id = 1 + floor(random() * 200)::int AND random() < 0.1;";

struct Load {
    stop: Arc<AtomicBool>,
    task: JoinHandle<u64>,
}

impl Load {
    /// Writes until stopped; goes on by itself when the source was away.
    fn start(rig: &Arc<Rig>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn({
            let (rig, stop) = (rig.clone(), stop.clone());
            async move {
                let mut steps = 0;
                while !stop.load(Ordering::Relaxed) {
                    let Ok(client) = rig.source.connect(DATABASE).await else {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    };
                    while !stop.load(Ordering::Relaxed) && client.run(STEP).await.is_ok() {
                        steps += 1;
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                }
                steps
            }
        });
        Self { stop, task }
    }

    async fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        Ok(self.task.await?)
    }
}

async fn rig() -> Result<Arc<Rig>> {
    let rig = Rig::new(Version::V15, &["public.accounts", "public.journal"]).await?;
    rig.on_source(SCHEMA).await?;
    Ok(Arc::new(rig))
}

/// A slot of another plugin that counts the changes independently of the worker; made while nothing is written.
async fn count_changes(rig: &Rig) -> Result<()> {
    rig.on_source("SELECT pg_create_logical_replication_slot('witness', 'test_decoding')").await
}

async fn assert_sequence_counts_every_change_once(rig: &Rig) -> Result<()> {
    let counted =
        "SELECT count(*) FROM pg_logical_slot_peek_changes('witness', NULL, NULL, 'skip-empty-xacts', '1')
        WHERE data LIKE 'table public.accounts: %' OR data LIKE 'table public.journal: %'";
    let sequence = rig.sink_value("SELECT sequence FROM penstock.checkpoint").await?;
    assert_eq!(rig.source_value(counted).await?, sequence);
    Ok(())
}

/// The sum never differs for any reader of the sink at any time.
fn watch_the_sum(rig: &Arc<Rig>, stop: &Arc<AtomicBool>) -> JoinHandle<Result<u64>> {
    let (rig, stop) = (rig.clone(), stop.clone());
    tokio::spawn(async move {
        let mut looked = 0;
        while !stop.load(Ordering::Relaxed) {
            if let Ok(sum) = rig.sink_value("SELECT coalesce(sum(units), -1) FROM accounts").await {
                anyhow::ensure!(sum == "200000", "a reader of the sink saw {sum} units");
                looked += 1;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(looked)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_again_and_again_under_load_loses_and_doubles_nothing() -> Result<()> {
    let rig = rig().await?;
    let mut worker = rig.start(0)?;
    worker.wait_for_output("\"message\":\"streaming\"").await?;
    count_changes(&rig).await?;
    let load = Load::start(&rig);
    let stop = Arc::new(AtomicBool::new(false));
    let readers = watch_the_sum(&rig, &stop);
    for _ in 0..15 {
        let pause = rand::rng().random_range(50..900);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        worker.kill()?;
        worker = rig.start(0)?;
    }
    let steps = load.stop().await?;
    rig.wait_until_caught_up().await?;
    stop.store(true, Ordering::Relaxed);
    let looked = readers.await??;
    assert!(steps > 100 && looked > 100, "{steps} transactions, {looked} looks prove nothing");
    rig.assert_equal(&["accounts", "journal"]).await?;
    assert_sequence_counts_every_change_once(&rig).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_and_a_source_killed_under_load_lose_and_double_nothing() -> Result<()> {
    let rig = rig().await?;
    let worker = rig.start(0)?;
    worker.wait_for_output("\"message\":\"streaming\"").await?;
    count_changes(&rig).await?;
    let load = Load::start(&rig);
    for server in [&rig.sink, &rig.source, &rig.sink] {
        tokio::time::sleep(Duration::from_millis(700)).await;
        server.kill9();
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.restart().await?;
    }
    tokio::time::sleep(Duration::from_millis(700)).await;
    load.stop().await?;
    rig.wait_until_caught_up().await?;
    rig.assert_equal(&["accounts", "journal"]).await?;
    assert_sequence_counts_every_change_once(&rig).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_during_the_first_load_copies_each_row_once() -> Result<()> {
    let rig = rig().await?;
    rig.on_source("INSERT INTO journal SELECT g, 1, 2 FROM generate_series(1000001, 1600000) g").await?;
    let load = Load::start(&rig);
    for _ in 0..4 {
        let mut worker = rig.start(0)?;
        let pause = rand::rng().random_range(150..900);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        worker.kill()?;
    }
    let worker = rig.start(0)?;
    worker.wait_for_output("\"message\":\"streaming\"").await?;
    rig.wait_for("SELECT bool_and(state = 'ready') FROM penstock.table_state", "t").await?;
    load.stop().await?;
    rig.wait_until_caught_up().await?;
    rig.assert_equal(&["accounts", "journal"]).await?;
    assert_eq!(
        rig.source_value("SELECT count(*) FROM pg_replication_slots").await?,
        "1",
        "a slot was left behind"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_asked_to_stop_finishes_its_batch_and_ends_well() -> Result<()> {
    let rig = rig().await?;
    let mut worker = rig.start(0)?;
    worker.wait_for_output("\"message\":\"streaming\"").await?;
    count_changes(&rig).await?;
    let load = Load::start(&rig);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (took, is_success) = worker.terminate()?;
    assert!(is_success && took < Duration::from_secs(25), "{took:?}");
    load.stop().await?;
    let _again = rig.start(0)?;
    rig.wait_until_caught_up().await?;
    rig.assert_equal(&["accounts", "journal"]).await?;
    assert_sequence_counts_every_change_once(&rig).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_volume_is_rebuilt_from_the_sink() -> Result<()> {
    let rig = rig().await?;
    let mut worker = rig.start(0)?;
    worker.wait_for_output("\"message\":\"streaming\"").await?;
    count_changes(&rig).await?;
    rig.on_source(STEP).await?;
    rig.wait_until_caught_up().await?;
    worker.kill()?;
    std::fs::remove_dir_all(rig.state_dir(0))?;
    rig.on_source(STEP).await?;
    let again = rig.start(0)?;
    rig.wait_until_caught_up().await?;
    again.wait_for_output("VolumeRebuilt").await?;
    rig.assert_equal(&["accounts", "journal"]).await?;
    assert_sequence_counts_every_change_once(&rig).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_lost_commits_stalls_the_worker_instead_of_skipping_them() -> Result<()> {
    let rig = rig().await?;
    let mut worker = rig.start(0)?;
    worker.wait_for_output("\"message\":\"streaming\"").await?;
    rig.on_sink("CREATE TABLE backup AS SELECT * FROM penstock.checkpoint").await?;
    for _ in 0..3 {
        rig.on_source(STEP).await?;
    }
    rig.wait_until_caught_up().await?;
    worker.terminate()?;
    rig.on_sink(
        "UPDATE penstock.checkpoint c SET sequence = b.sequence, commit_lsn = b.commit_lsn, end_lsn = b.end_lsn,
            xid = b.xid, ordinal = b.ordinal FROM backup b",
    )
    .await?;
    let again = rig.start(0)?;
    again.wait_for_output("SinkLostCommits").await?;
    Ok(())
}
