//! How fast rows are compared, and what goes on meanwhile.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use penstock_e2e::postgres::Version;

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
            // A TRUNCATE needs its table alone, at both ends: it must not wait for the comparison.
            let began = Instant::now();
            client
                .run(&format!("INSERT INTO ticks VALUES ({id}); TRUNCATE cut; INSERT INTO cut VALUES ({id})"))
                .await?;
            keep_longest(&waited, began.elapsed());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        anyhow::Ok(())
    });
    let before: u32 = rig.sink_value("SELECT count(*) FROM ticks").await?.parse()?;
    let began = Instant::now();
    let said = compare(&rig, &["--parallelism", "1", "public.big", "public.ticks"])?;
    let seconds = began.elapsed().as_secs_f64();
    let after: u32 = rig.sink_value("SELECT count(*) FROM ticks").await?.parse()?;
    ticks.abort();
    ensure!(said.code == 0, "{said:#?}");
    let longest = longest.lock().unwrap().as_secs_f64();
    eprintln!(
        "{rows} rows of 150 bytes in {seconds:.1} s with one session at each end: {:.0} rows/s; {} ticks were applied \
         meanwhile, and none waited for more than {longest:.2} s at the source",
        f64::from(rows) / seconds,
        after - before
    );
    ensure!(after > before, "nothing was applied while tables were compared");
    ensure!(longest < seconds / 2.0, "a change of another table waited for {longest:.1} s of {seconds:.1} s");
    Ok(())
}

fn keep_longest(longest: &Mutex<Duration>, took: Duration) {
    let mut longest = longest.lock().unwrap();
    *longest = took.max(*longest);
}
