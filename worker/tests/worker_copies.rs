//! The incremental snapshot: tables that come later, or whose first load was cut short, are copied while the stream
//! runs, go on where they stopped, and miss nothing that happens to them meanwhile.

mod common;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use common::{Rig, Worker};
use penstock_e2e::postgres::Version;
use serde_json::json;

const STREAMING: &str = "\"message\":\"streaming\"";
const ROWS: u32 = 150_000;
/// A machine may be busy with other tests.
const PATIENCE: Duration = Duration::from_mins(3);
const COPIED: &str =
    "SELECT coalesce(sum(rows_copied), 0) FROM penstock.table_state WHERE source_table = 'big'";
const STATE: &str = "SELECT state FROM penstock.table_state WHERE source_table = 'big'";

/// One range, so that the table is copied at once where nothing is waited for.
const FEW: &str = "DELETE FROM big WHERE b > 500";

/// A pipeline that streams `small`; then `big` is added to it.
async fn rig() -> Result<Rig> {
    let mut rig = Rig::new(Version::V15, &["public.small"]).await?;
    rig.on_source(&format!(
        "CREATE TABLE small (id int PRIMARY KEY);
         CREATE TABLE big (a numeric, b bigint, body text, PRIMARY KEY (a, b));
         INSERT INTO big SELECT g % 10 - 5, g, repeat('x', 200) FROM generate_series(1, {ROWS}) g"
    ))
    .await?;
    let mut worker = rig.start(0)?;
    worker.wait_for_output(STREAMING).await?;
    worker.terminate()?;
    rig.manifest["spec"]["source"]["postgres"]["tables"] = json!(["public.small", "public.big"]);
    Ok(rig)
}

async fn wait_until_copied(rig: &Rig, rows: u32) -> Result<()> {
    rig.wait_for(&format!("SELECT ({COPIED}) >= {rows}"), "t").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_while_a_table_is_copied_redoes_no_range_that_was_finished() -> Result<()> {
    let rig = rig().await?;
    // Ranges grow with each: a run that ends with its fourth has brought a quarter of the rows.
    for (point, ranges) in [("AfterWatermark", 2), ("BeforeRangeNoted", 3), ("AfterRangeNoted", 3)] {
        let mut worker = rig.start_with_failpoints(&format!("{point}={ranges}*off->1*return(abort)"))?;
        ensure!(worker.ended().await?.is_some(), "it should have died at {point}");
    }
    ensure!(rig.sink_value(STATE).await? == "incremental", "killed too late");
    let before: u32 = rig.sink_value(COPIED).await?.parse()?;
    ensure!(
        rig.sink_value("SELECT count(*) FROM big").await? == before.to_string(),
        "the sink has other rows"
    );
    let _worker = rig.start(0)?;
    rig.wait_for(STATE, "ready").await?;
    ensure!(rig.sink_value(COPIED).await? == ROWS.to_string(), "rows were copied twice");
    rig.assert_equal(&["big", "small"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn other_tables_stream_on_while_one_is_copied_and_changes_of_it_are_kept() -> Result<()> {
    let rig = rig().await?;
    let _worker = rig.start(0)?;
    wait_until_copied(&rig, 1).await?;
    let mut round = 0;
    let mut small_came_first = false;
    while rig.sink_value(STATE).await? != "ready" {
        round += 1;
        rig.on_source(&format!(
            "INSERT INTO small VALUES ({round});
             UPDATE big SET body = body || '{round}' WHERE b % 997 = {round} % 997;
             DELETE FROM big WHERE b % 1999 = {round} % 1999;
             UPDATE big SET a = -a WHERE b % 4001 = {round} % 4001;
             INSERT INTO big SELECT g % 10 - 5, {ROWS} + {round} * 100 + g, 'new' FROM generate_series(1, 50) g"
        ))
        .await?;
        let arrived = rig.sink_value(&format!("SELECT count(*) FROM small WHERE id = {round}")).await?;
        small_came_first |= arrived == "1" || rig.sink_value("SELECT count(*) FROM small").await? != "0";
        ensure!(round < 2000, "the copy does not end under changes");
    }
    ensure!(small_came_first, "nothing was streamed while rows were copied");
    rig.wait_until_caught_up().await?;
    rig.assert_equal(&["big", "small"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_load_that_was_killed_goes_on_beside_the_stream() -> Result<()> {
    let rig = Rig::new(Version::V17, &["public.*"]).await?;
    rig.on_source(
        "CREATE TABLE big (id uuid PRIMARY KEY, body text);
         INSERT INTO big SELECT gen_random_uuid(), repeat('x', 500) FROM generate_series(1, 200000)",
    )
    .await?;
    let mut worker = rig.start_with_failpoints("AfterChunkCommit=1*off->1*return(abort)")?;
    ensure!(worker.ended().await?.is_some(), "it should have died");
    ensure!(rig.sink_value("SELECT count(*) > 0 FROM big").await? == "t", "killed too early");
    ensure!(rig.sink_value(STATE).await? == "copying", "killed too late");
    rig.on_source(
        "UPDATE big SET body = 'changed' WHERE id::text LIKE '7%'; DELETE FROM big WHERE id::text LIKE 'c%'",
    )
    .await?;
    let worker = rig.start(0)?;
    worker.wait_for_output(STREAMING).await?;
    rig.wait_for(STATE, "ready").await?;
    rig.wait_until_caught_up().await?;
    rig.assert_equal(&["big"]).await
}

/// A first load of one table of about 12 chunks by two readers that dies with 9 chunks in the sink.
async fn cut_short() -> Result<(Rig, u64)> {
    let mut rig = Rig::new(Version::V17, &["public.attic", "public.big"]).await?;
    rig.manifest["spec"]["source"]["postgres"]["snapshot"] = json!({"parallelism": 2});
    rig.on_source(
        "CREATE TABLE attic (id int PRIMARY KEY);
         INSERT INTO attic SELECT generate_series(1, 1000);
         CREATE TABLE big (id bigint PRIMARY KEY, body text);
         ALTER TABLE big ALTER body SET STORAGE plain;
         INSERT INTO big SELECT g * 2, repeat(md5(g::text), 60) FROM generate_series(1, 100000) g",
    )
    .await?;
    // One of them is that of the small table.
    let mut worker = rig.start_with_failpoints("AfterChunkCommit=9*off->1*return(abort)")?;
    ensure!(worker.ended().await?.is_some(), "it should have died");
    let rows: u64 = rig.sink_value("SELECT count(*) FROM big").await?.parse()?;
    ensure!((60_000..100_000).contains(&rows), "{rows} rows were there when it died");
    Ok((rig, rows))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_load_that_is_killed_late_redoes_at_most_one_chunk_per_reader() -> Result<()> {
    let (rig, before) = cut_short().await?;
    let state = rig
        .sink_value("SELECT string_agg(state, ' ' ORDER BY source_table) FROM penstock.table_state")
        .await?;
    ensure!(state == "ready copying", "the table that was finished is not ready: {state}");
    let mark = rig.sink_value("SELECT pg_current_xact_id()").await?;
    rig.on_source(
        "UPDATE big SET body = 'changed' WHERE id % 700 = 0; DELETE FROM big WHERE id % 1100 = 0;
         UPDATE big SET id = 200001 - id WHERE id % 1300 = 0; INSERT INTO big SELECT g * 2 + 1, 'new' FROM generate_series(1, 100000, 77) g
         ON CONFLICT DO NOTHING; INSERT INTO attic VALUES (0)",
    )
    .await?;
    let _worker = rig.start(0)?;
    rig.wait_for(STATE, "ready").await?;
    rig.wait_until_caught_up().await?;
    rig.assert_equal(&["attic", "big"]).await?;
    let kept = format!("SELECT count(*) FROM big WHERE xmin::text::bigint < {mark}");
    let kept: u64 = rig.sink_value(&kept).await?.parse()?;
    // Two readers; chunks are about as large as each other, and some hundred rows of the kept ones were changed since.
    let chunk = 100_000 / 12 * 5 / 4;
    ensure!(kept + 2 * chunk + 400 > before, "of {before} rows only {kept} were kept");
    ensure!(
        rig.sink_value(&format!("SELECT count(*) >= 1000 FROM attic WHERE xmin::text::bigint < {mark}"))
            .await?
            == "t",
        "a table that was finished was copied again"
    );
    ensure!(rig.sink_value("SELECT count(*) FROM penstock.copied_chunk").await? == "0");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_of_a_first_load_is_followed_from_where_it_was_read() -> Result<()> {
    let (rig, _) = cut_short().await?;
    // It dies again and again before and after what is beyond the last key is removed.
    for point in ["BeforeTableEmptied", "AfterTableEmptied", "BeforeRangeRead", "AfterRangeNoted"] {
        rig.on_source("UPDATE big SET body = body || 'x' WHERE id % 990 = 0; DELETE FROM big WHERE id IN (SELECT min(id) FROM big)")
            .await?;
        let mut worker = rig.start_with_failpoints(&format!("{point}=1*return(abort)"))?;
        ensure!(worker.ended().await?.is_some(), "it should have died at {point}");
    }
    rig.on_source("TRUNCATE attic; UPDATE big SET id = -id WHERE id % 500 = 0").await?;
    let _worker = rig.start(0)?;
    rig.wait_for(STATE, "ready").await?;
    rig.wait_until_caught_up().await?;
    rig.assert_equal(&["attic", "big"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_of_somebody_else_throws_nothing_of_a_first_load_away() -> Result<()> {
    let (rig, before) = cut_short().await?;
    let mark = rig.sink_value("SELECT pg_current_xact_id()").await?;
    rig.on_source("CREATE PUBLICATION of_somebody_else FOR TABLE big").await?;
    let _worker = rig.start(0)?;
    rig.wait_for(STATE, "ready").await?;
    rig.wait_until_caught_up().await?;
    rig.assert_equal(&["attic", "big"]).await?;
    let kept = format!("SELECT count(*) FROM big WHERE xmin::text::bigint < {mark}");
    let kept: u64 = rig.sink_value(&kept).await?.parse()?;
    ensure!(kept > before / 2, "of {before} rows only {kept} were kept");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_rewritten_since_its_load_was_cut_short_is_copied_from_its_beginning() -> Result<()>
{
    let (rig, _) = cut_short().await?;
    rig.on_source("ALTER TABLE big ALTER body TYPE text USING upper(body)").await?;
    let _worker = rig.start(0)?;
    rig.wait_until_caught_up().await?;
    rig.assert_equal(&["big", "attic"]).await
}

/// The server takes a moment until it makes commits wait.
async fn insert_that_waits(rig: &Rig) -> Result<tokio::task::JoinHandle<Result<()>>> {
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE 'INSERT%'";
    for attempt in 0..100 {
        let client = rig.source.connect(common::DATABASE).await?;
        let sql = format!("INSERT INTO big VALUES (100, {attempt}, 'waits')");
        let insert = tokio::spawn(async move { client.run(&sql).await });
        while !insert.is_finished() {
            if rig.source_value(waits).await? == "1" {
                return Ok(insert);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        insert.await??;
    }
    anyhow::bail!("no commit waits for the standby")
}

/// From now on commits wait for a standby that there is not; the first of them.
async fn commit_that_waits(rig: &Rig) -> Result<tokio::task::JoinHandle<Result<()>>> {
    rig.on_source("ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await?;
    rig.on_source("SELECT pg_reload_conf()").await?;
    insert_that_waits(rig).await
}

/// Waits until a worker says that it waits.
async fn waits_since(worker: &Worker, from: usize, text: &str) -> Result<()> {
    let began = Instant::now();
    while !worker.output()?.get(from..).is_some_and(|said| said.contains(text)) {
        ensure!(began.elapsed() < PATIENCE, "it does not wait; {}", worker.tail()?);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// No range can be believed while the commit is invisible; when it is seen, it is copied.
async fn not_copied_without(rig: &Rig, commit: tokio::task::JoinHandle<Result<()>>) -> Result<()> {
    ensure!(
        rig.sink_value(STATE).await? == "incremental",
        "a range was read without the commit that was passed"
    );
    rig.on_source("ALTER SYSTEM RESET synchronous_standby_names").await?;
    rig.on_source("SELECT pg_reload_conf()").await?;
    commit.await??;
    copied_and_equal(rig).await
}

async fn copied_and_equal(rig: &Rig) -> Result<()> {
    rig.wait_for(STATE, "ready").await?;
    rig.wait_until_caught_up().await?;
    rig.assert_equal(&["big"]).await
}

/// A commit that waits for a synchronous standby is in the stream long before any snapshot sees it.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_the_stream_passed_before_it_was_visible_is_not_lost() -> Result<()> {
    let rig = rig().await?;
    let go_on = rig.state_dir(0).with_extension("go-on");
    let worker =
        rig.start_with_failpoints(&format!("BeforeRangeRead=1*off->return(pause:{})", go_on.display()))?;
    worker.wait_for_output("failpoint acts").await?;
    let commit = commit_that_waits(&rig).await?;
    rig.wait_for("SELECT sequence > 0 FROM penstock.checkpoint", "t").await?;
    std::fs::write(&go_on, "")?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    not_copied_without(&rig, commit).await
}

/// The same, and the worker that passed the commit is killed before any other transaction ends: the next one has nothing but
/// the source to tell it that there is something to wait for. One that ends in between shows the way to it, so it is tried
/// again.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_an_earlier_run_passed_before_it_was_visible_is_not_lost() -> Result<()> {
    for _ in 0..5 {
        let rig = rig().await?;
        rig.on_source(FEW).await?;
        let mut worker = rig.start_with_failpoints("BeforeWatermark=return(pause:/nowhere)")?;
        worker.wait_for_output("failpoint acts").await?;
        let commit = commit_that_waits(&rig).await?;
        rig.wait_for("SELECT sequence > 0 FROM penstock.checkpoint", "t").await?;
        worker.kill()?;
        let is_beyond = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint <= max(backend_xid::text::bigint) FROM pg_stat_activity";
        if rig.source_value(is_beyond).await? != "t" {
            continue;
        }
        let from = worker.output()?.len();
        let worker = rig.start(0)?;
        waits_since(&worker, from, "rows are copied when the transactions").await?;
        return not_copied_without(&rig, commit).await;
    }
    anyhow::bail!("another transaction ended each time: this proves nothing")
}

/// What is written before the publication has the table is not in the stream, so it must be in the copy: whoever wrote
/// it is waited for, also if it began after the transaction that changes the publication.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_wrote_a_table_while_it_was_being_published_is_waited_for() -> Result<()> {
    let rig = rig().await?;
    rig.on_source(FEW).await?;
    let go_on = rig.state_dir(0).with_extension("go-on");
    let worker =
        rig.start_with_failpoints(&format!("BeforePublication=return(pause:{})", go_on.display()))?;
    worker.wait_for_output("failpoint acts").await?;
    let open = rig.source.connect(common::DATABASE).await?;
    open.run("BEGIN; INSERT INTO big VALUES (100, 1, 'before')").await?;
    std::fs::write(&go_on, "")?;
    waits_since(&worker, 0, "tables were added: waiting for transactions that began before").await?;
    let state = rig.sink_value(STATE).await.unwrap_or_default();
    ensure!(state != "ready", "it was copied without what was written before");
    open.run("COMMIT").await?;
    copied_and_equal(&rig).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_moves_to_a_copied_key_without_its_large_value_is_not_left_without_it() -> Result<()> {
    let rig = rig().await?;
    rig.on_source("ALTER TABLE big ALTER COLUMN body SET STORAGE EXTERNAL").await?;
    rig.on_source("INSERT INTO big VALUES (1000, 1, repeat('large', 10000))").await?;
    let worker: Worker = rig.start(0)?;
    wait_until_copied(&rig, 1).await?;
    rig.on_source("UPDATE big SET a = -1000 WHERE a = 1000").await?;
    worker.wait_for_output("got another key while the table was copied").await?;
    rig.wait_for(STATE, "ready").await?;
    rig.wait_until_caught_up().await?;
    rig.assert_equal(&["big"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_and_a_new_column_in_the_middle_of_a_copy_end_in_equal_tables() -> Result<()> {
    let rig = rig().await?;
    let worker = rig.start(0)?;
    wait_until_copied(&rig, 1).await?;
    rig.on_source("TRUNCATE big; INSERT INTO big SELECT 1, g, 'again' FROM generate_series(1, 30000) g")
        .await?;
    rig.on_source("ALTER TABLE big ADD COLUMN size int DEFAULT 7; INSERT INTO big VALUES (2, 1, 'wider', 8)")
        .await?;
    worker.wait_for_output("\"reason\":\"SinkTableMismatch\"").await?;
    rig.on_sink("DROP TABLE big").await?;
    rig.wait_for(STATE, "ready").await?;
    rig.wait_until_caught_up().await?;
    rig.assert_equal(&["big"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_copied_again_on_demand_while_the_others_are_streamed() -> Result<()> {
    let rig = Rig::new(Version::V15, &["public.*"]).await?;
    rig.on_source("CREATE TABLE a (id int PRIMARY KEY, body text); CREATE TABLE b (id int PRIMARY KEY)")
        .await?;
    rig.on_source("INSERT INTO a SELECT g, 'x' FROM generate_series(1, 1000) g; INSERT INTO b VALUES (1)")
        .await?;
    let worker = rig.start(0)?;
    worker.wait_for_output(STREAMING).await?;
    rig.on_sink(
        "UPDATE a SET body = 'somebody else wrote this' WHERE id % 7 = 0; DELETE FROM a WHERE id % 5 = 0",
    )
    .await?;
    let refused = rig.command(&["resnapshot", "public.nothing"])?;
    ensure!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        said.contains("No table of the pipeline is meant by public.nothing; it has public.a, public.b"),
        "{said}"
    );
    let copy_of_b = "SELECT ready_lsn FROM penstock.table_state WHERE source_table = 'b'";
    let before = rig.sink_value(copy_of_b).await?;
    let done = rig.command(&["resnapshot", "public.a"])?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    rig.on_source("INSERT INTO a VALUES (1001, 'new'); INSERT INTO b VALUES (2)").await?;
    rig.wait_for("SELECT count(*) FROM a", "1001").await?;
    rig.wait_until_caught_up().await?;
    rig.assert_equal(&["a", "b"]).await?;
    ensure!(rig.sink_value(copy_of_b).await? == before, "another table was copied, too");
    Ok(())
}

/// Included columns, generated ones, a second unique index, partitions, and keys that are copied as a whole.
#[tokio::test(flavor = "multi_thread")]
async fn tables_of_every_shape_are_taken_in_under_changes() -> Result<()> {
    let rig = Rig::new(Version::V16, &["public.*"]).await?;
    rig.on_source("CREATE TABLE small (id int PRIMARY KEY)").await?;
    let worker = rig.start(0)?;
    worker.wait_for_output(STREAMING).await?;
    let tables = ["included", "generated", "second", "parted", "named", "keyless", "empty"];
    rig.on_source(
        "CREATE TABLE included (id int, x int, PRIMARY KEY (id) INCLUDE (x));
         CREATE TABLE generated (id int, twice int GENERATED ALWAYS AS (id * 2) STORED, x int, PRIMARY KEY (id, twice));
         ALTER TABLE generated REPLICA IDENTITY FULL;
         CREATE TABLE second (id int PRIMARY KEY, x int UNIQUE DEFERRABLE INITIALLY DEFERRED);
         CREATE TABLE parted (id int PRIMARY KEY, x int) PARTITION BY HASH (id);
         CREATE TABLE parted_0 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 0);
         CREATE TABLE parted_1 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 1);
         CREATE TABLE named (id text PRIMARY KEY, x int);
         CREATE TABLE keyless (id int, x int);
         ALTER TABLE keyless REPLICA IDENTITY FULL;
         CREATE TABLE empty (id int PRIMARY KEY, x int)",
    )
    .await?;
    for table in tables.iter().filter(|table| **table != "empty") {
        rig.on_source(&format!("INSERT INTO {table} (id, x) SELECT g, g FROM generate_series(1, 5000) g"))
            .await?;
    }
    let ready = "SELECT count(*) FROM penstock.table_state WHERE state = 'ready'";
    let mut round = 0;
    while rig.sink_value(ready).await? != "8" {
        round += 1;
        ensure!(round < 1000, "the copy does not end under changes");
        for table in tables {
            rig.on_source(&format!(
                "INSERT INTO {table} (id, x) VALUES (10000 + {round}, -{round});
                 UPDATE {table} SET x = -x WHERE id::int % 500 = {round} % 500;
                 DELETE FROM {table} WHERE id::int % 3001 = {round}"
            ))
            .await?;
        }
        rig.on_source("UPDATE second SET x = 10001 - x WHERE id IN (1, 5000)").await?;
    }
    rig.wait_until_caught_up().await?;
    rig.assert_equal(&tables).await
}

/// The connections of a first load to the source: that which made the slot and keeps its snapshot, that which keeps the tables
/// from being rewritten, and those that read rows.
const CONNECTIONS: [&str; 3] = [
    "backend_type = 'walsender'",
    "state = 'idle in transaction' AND query NOT LIKE 'COPY%'",
    "query LIKE 'COPY%'",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_cut_in_a_first_load_loses_nothing() -> Result<()> {
    for connection in CONNECTIONS {
        let rig = Rig::new(Version::V15, &["public.big", "public.more"]).await?;
        rig.on_source(&format!(
            "CREATE TABLE big (id int PRIMARY KEY, body text); CREATE TABLE more (id text PRIMARY KEY, body text);
             INSERT INTO big SELECT g, repeat('x', 300) FROM generate_series(1, {ROWS}) g;
             INSERT INTO more SELECT id::text, body FROM big"
        ))
        .await?;
        let _worker = rig.start(0)?;
        rig.wait_for("SELECT coalesce(sum(rows_copied), 0) > 0 FROM penstock.table_state", "t").await?;
        let cut = format!(
            "SELECT count(pg_terminate_backend(pid)) > 0 FROM pg_stat_activity \
             WHERE application_name LIKE 'penstock%' AND datname = current_database() AND {connection}"
        );
        ensure!(rig.source_value(&cut).await? == "t", "no such connection: {connection}");
        rig.on_source(
            "UPDATE big SET body = 'changed' WHERE id % 100 = 1; DELETE FROM more WHERE id::int % 100 = 2; \
             INSERT INTO more VALUES ('new', 'row')",
        )
        .await?;
        rig.wait_until_caught_up().await?;
        rig.assert_equal(&["big", "more"]).await?;
    }
    Ok(())
}
