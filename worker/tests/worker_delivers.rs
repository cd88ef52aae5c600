//! The worker's first promise, from outside: what is committed in the source arrives in the sink, once.

mod common;

use std::time::Duration;

use anyhow::Result;
use common::{PASSWORD, Rig};
use penstock_e2e::postgres::Version;

const TABLES: &str = "
    CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
    CREATE TABLE customers (id bigint PRIMARY KEY, name text NOT NULL, mood mood DEFAULT 'ok', born date, score numeric(12, 4),
        tags text[], extra jsonb, photo bytea, seen timestamptz DEFAULT now(), vip boolean NOT NULL DEFAULT false,
        label text GENERATED ALWAYS AS (upper(name)) STORED);
    CREATE TABLE \"Odd \"\"Name\" (\"a b\" int, \"C\" text, PRIMARY KEY (\"C\", \"a b\"));
    CREATE TABLE visits (at timestamp, who bigint);
    ALTER TABLE visits REPLICA IDENTITY FULL;
    INSERT INTO customers (id, name, mood, born, score, tags, extra, photo, vip)
        SELECT g, 'name ' || g, (ARRAY['sad', 'ok', 'happy', NULL])[1 + g % 4]::mood, date '2000-01-01' + g, g / 7.0,
            ARRAY['t' || g, NULL], jsonb_build_object('g', g), decode(md5(g::text), 'hex'), g % 2 = 0
        FROM generate_series(1, 20000) g;
    INSERT INTO \"Odd \"\"Name\" SELECT g, 'c' || g FROM generate_series(1, 100) g;
    INSERT INTO visits SELECT timestamp '2024-01-01', g % 3 FROM generate_series(1, 30) g;";

const CHANGES: &str = "
    UPDATE customers SET score = score + 1 WHERE id % 3 = 0;
    UPDATE customers SET id = id + 1000000 WHERE id <= 100;
    DELETE FROM customers WHERE id % 10 = 7;
    INSERT INTO customers (id, name) SELECT g, repeat('long ', 2000) || md5(g::text) FROM generate_series(30001, 30050) g;
    UPDATE customers SET vip = true WHERE id BETWEEN 30001 AND 30050;
    UPDATE \"Odd \"\"Name\" SET \"C\" = 'x' || \"C\" WHERE \"a b\" > 50;
    DELETE FROM visits WHERE ctid IN (SELECT ctid FROM visits WHERE who = 1 LIMIT 3);
    UPDATE visits SET who = NULL WHERE ctid IN (SELECT ctid FROM visits WHERE who = 2 LIMIT 4);";

const NAMES: [&str; 3] = ["customers", "\"Odd \"\"Name\"", "visits"];

async fn rows_and_changes_arrive_from(version: Version) -> Result<()> {
    let rig = Rig::new(version, &["public.*"]).await?;
    rig.on_source(TABLES).await?;
    let worker = rig.start(0)?;
    rig.wait_for("SELECT count(*) FROM customers", "20000").await?;
    worker.wait_for_output("streaming").await?;
    rig.on_source(CHANGES).await?;
    rig.wait_until_caught_up().await?;
    rig.assert_equal(&NAMES).await?;
    rig.on_source("TRUNCATE visits; INSERT INTO visits VALUES (now(), 9)").await?;
    rig.wait_until_caught_up().await?;
    rig.assert_equal(&NAMES).await?;
    assert!(!worker.output()?.contains(PASSWORD), "the password was printed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_and_changes_arrive_from_postgres_14() -> Result<()> {
    rows_and_changes_arrive_from(Version::V14).await
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_and_changes_arrive_from_postgres_15() -> Result<()> {
    rows_and_changes_arrive_from(Version::V15).await
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_and_changes_arrive_from_postgres_16() -> Result<()> {
    rows_and_changes_arrive_from(Version::V16).await
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_and_changes_arrive_from_postgres_17() -> Result<()> {
    rows_and_changes_arrive_from(Version::V17).await
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_and_changes_arrive_from_postgres_18() -> Result<()> {
    rows_and_changes_arrive_from(Version::V18).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_larger_than_the_byte_bound_becomes_visible_at_once_and_memory_stays_bounded()
-> Result<()> {
    let mut rig = Rig::new(Version::V15, &["public.wide"]).await?;
    rig.manifest["spec"]["sink"]["postgres"]["batch"] = serde_json::json!({"maxBytes": 1_048_576});
    rig.on_source("CREATE TABLE wide (id int PRIMARY KEY, body text NOT NULL)").await?;
    let worker = rig.start(0)?;
    worker.wait_for_output("streaming").await?;
    rig.on_source("INSERT INTO wide SELECT g, repeat(md5(g::text), 16) FROM generate_series(1, 300000) g")
        .await?;
    let mut seen = "0".to_owned();
    while seen == "0" {
        seen = rig.sink_value("SELECT count(*) FROM wide").await?;
    }
    assert_eq!(seen, "300000", "a reader saw a part of a transaction");
    let peak = worker.peak_rss_mib()?;
    assert!(peak < 96, "{peak} MiB for a transaction of 150 MiB with a bound of 1 MiB");
    rig.assert_equal(&["wide"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_pipeline_lets_the_source_free_its_log() -> Result<()> {
    let rig = Rig::new(Version::V15, &["public.quiet"]).await?;
    rig.on_source("CREATE TABLE quiet (id int PRIMARY KEY); CREATE TABLE busy (body text)").await?;
    let worker = rig.start(0)?;
    worker.wait_for_output("streaming").await?;
    rig.on_source("INSERT INTO busy SELECT repeat('x', 1000) FROM generate_series(1, 10000)").await?;
    let end = rig.source_value("SELECT pg_current_wal_flush_lsn()").await?;
    let query = format!("SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots");
    let began = std::time::Instant::now();
    while rig.source_value(&query).await? != "t" {
        assert!(began.elapsed() < Duration::from_mins(1), "the slot still keeps the log");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_divide_the_tables_and_join_what_foreign_keys_join() -> Result<()> {
    let mut rig = Rig::new(Version::V15, &["public.*"]).await?;
    rig.manifest["spec"]["worker"] = serde_json::json!({"shards": 2});
    rig.on_source(
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); CREATE TABLE c (id int PRIMARY KEY);
         CREATE TABLE d (id int PRIMARY KEY); CREATE TABLE child (id int PRIMARY KEY, a int REFERENCES a);
         INSERT INTO a SELECT generate_series(1, 10); INSERT INTO child SELECT g, g FROM generate_series(1, 10) g",
    )
    .await?;
    let workers = [rig.start(0)?, rig.start(1)?];
    for worker in &workers {
        worker.wait_for_output("\"message\":\"streaming\"").await?;
    }
    for table in ["a", "b", "c", "d"] {
        rig.on_source(&format!("INSERT INTO {table} SELECT generate_series(11, 500)")).await?;
    }
    rig.on_source("INSERT INTO child SELECT g, g FROM generate_series(11, 500) g").await?;
    rig.wait_until_caught_up().await?;
    rig.assert_equal(&["a", "b", "c", "d", "child"]).await?;
    let together =
        "SELECT count(DISTINCT shard) FROM penstock.assignment WHERE source_table IN ('a', 'child')";
    assert_eq!(rig.sink_value(together).await?, "1");
    assert_eq!(rig.sink_value("SELECT count(DISTINCT shard) FROM penstock.assignment").await?, "2");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_named_by_an_index_of_the_source_follow_it() -> Result<()> {
    let rig = Rig::new(Version::V15, &["public.t"]).await?;
    rig.on_source(
        "CREATE TABLE t (a int NOT NULL, body text, b text NOT NULL); CREATE UNIQUE INDEX t_named ON t (b, a);
         ALTER TABLE t REPLICA IDENTITY USING INDEX t_named; ALTER TABLE t ALTER body SET STORAGE EXTERNAL;
         INSERT INTO t SELECT g, repeat('large ' || g, 2000), 'b' || g % 7 FROM generate_series(1, 200) g",
    )
    .await?;
    let mut worker = rig.start(0)?;
    worker.wait_for_output("streaming").await?;
    rig.on_source(
        "UPDATE t SET b = 'moved' WHERE a % 10 = 1; UPDATE t SET a = a + 1000 WHERE a % 10 = 2; DELETE FROM t WHERE a % 10 = 3",
    )
    .await?;
    rig.wait_until_caught_up().await?;
    rig.assert_equal(&["t"]).await?;
    worker.kill()?;
    rig.on_source("UPDATE t SET body = 'small' WHERE a % 10 = 4; UPDATE t SET b = 'again' WHERE a % 10 = 5; DELETE FROM t WHERE b = 'moved'")
        .await?;
    let _worker = rig.start(0)?;
    rig.wait_until_caught_up().await?;
    rig.assert_equal(&["t"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn children_by_inheritance_are_tables_of_their_own() -> Result<()> {
    let rig = Rig::new(Version::V15, &["public.*"]).await?;
    rig.on_source(
        "CREATE TABLE parent (id int PRIMARY KEY, body text);
         CREATE TABLE child (more int, PRIMARY KEY (id)) INHERITS (parent);
         INSERT INTO parent SELECT g, 'parent' FROM generate_series(1, 10) g; INSERT INTO child VALUES (1, 'child', 1)",
    )
    .await?;
    let worker = rig.start(0)?;
    worker.wait_for_output("streaming").await?;
    // Of both tables, with one statement each.
    rig.on_source("UPDATE parent SET body = body || '!'; INSERT INTO child VALUES (2, 'child', 2); DELETE FROM parent WHERE id = 2")
        .await?;
    rig.wait_until_caught_up().await?;
    for table in ["parent", "child"] {
        let rows = |only: &str| format!("SELECT string_agg(t::text, ' ' ORDER BY id) FROM {only} {table} t");
        let (source, sink) = (rig.source_value(&rows("ONLY")).await?, rig.sink_value(&rows("")).await?);
        assert_eq!(source, sink, "{table}");
    }
    Ok(())
}
