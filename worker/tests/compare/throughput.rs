//! How fast rows are compared, and what goes on meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use penstock_e2e::postgres::Version;
use tokio::task::JoinHandle;

use crate::common::Rig;
use crate::kit::{compare, streaming};

/// `PENSTOCK_ROWS` says how many; the figure is printed.
#[tokio::test(flavor = "multi_thread")]
async fn rows_are_compared_by_the_hundred_thousand_while_changes_are_applied() -> Result<()> {
    let rows: u32 = std::env::var("PENSTOCK_ROWS").map_or(Ok(200_000), |rows| rows.parse())?;
    let rig = Rig::new(Version::V15, &["public.*"]).await?;
    rig.on_source(&format!(
        "CREATE TABLE big (id bigint PRIMARY KEY, name text, price numeric(12, 2), at timestamptz, body text);
         CREATE TABLE ticks (id int PRIMARY KEY); CREATE TABLE cut (id int PRIMARY KEY);
         INSERT INTO big SELECT g, 'name ' || g, g / 100.0, now(), repeat(md5(g::text), 3) FROM generate_series(1, {rows}) g"
    ))
    .await?;
    let _worker = streaming(&rig).await?;
    let client = rig.source.connect(&rig.database).await?;
    let longest = Arc::new(Mutex::new(Duration::ZERO));
    let waited = Arc::clone(&longest);
    let ticks = tokio::spawn(async move {
        for id in 0.. {
            let began = Instant::now();
            client
                .run(&format!("INSERT INTO ticks VALUES ({id}); TRUNCATE cut; INSERT INTO cut VALUES ({id})"))
                .await?;
            keep_longest(&waited, began.elapsed());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        anyhow::Ok(())
    });
    let stopping = Arc::new(AtomicBool::new(false));
    let locks = locks_of_comparisons(&rig, Arc::clone(&stopping)).await?;
    let before: u32 = rig.sink_value("SELECT count(*) FROM ticks").await?.parse()?;
    let began = Instant::now();
    let said = compare(&rig, &["--parallelism", "1", "public.big", "public.ticks"])?;
    let seconds = began.elapsed().as_secs_f64();
    let after: u32 = rig.sink_value("SELECT count(*) FROM ticks").await?.parse()?;
    ticks.abort();
    stopping.store(true, Ordering::Relaxed);
    let locks = locks.await??;
    ensure!(said.code == 0, "{said:#?}");
    let longest = longest.lock().unwrap().as_secs_f64();
    eprintln!(
        "{rows} rows of 150 bytes in {seconds:.1} s with one session at each end: {:.0} rows/s; {} ticks were applied \
         meanwhile, and none waited for more than {longest:.2} s at the source",
        f64::from(rows) / seconds,
        after - before
    );
    // A TRUNCATE needs its table alone, at both ends.
    let (of_big, of_cut) = locks;
    ensure!(of_big > 0, "nobody saw what the comparison locks");
    ensure!(of_cut == 0, "the comparison held a lock on a table that it does not compare");
    ensure!(after > before, "nothing was applied while tables were compared");
    Ok(())
}

/// How often a comparison was seen to lock the table that it compares, and the one that it does not.
async fn locks_of_comparisons(
    rig: &Rig,
    stopping: Arc<AtomicBool>,
) -> Result<JoinHandle<Result<(u32, u32)>>> {
    let clients = [rig.source.connect(&rig.database).await?, rig.sink.connect(&rig.database).await?];
    let locked = |table: &str| {
        format!(
            "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) \
             WHERE relation = to_regclass('{table}') AND application_name LIKE 'penstock compare%'"
        )
    };
    let (big, cut) = (locked("big"), locked("cut"));
    Ok(tokio::spawn(async move {
        let (mut of_big, mut of_cut) = (0, 0);
        while !stopping.load(Ordering::Relaxed) {
            for client in &clients {
                of_big += u32::from(client.value(&big).await? != "0");
                of_cut += u32::from(client.value(&cut).await? != "0");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok((of_big, of_cut))
    }))
}

fn keep_longest(longest: &Mutex<Duration>, took: Duration) {
    let mut longest = longest.lock().unwrap();
    *longest = took.max(*longest);
}
