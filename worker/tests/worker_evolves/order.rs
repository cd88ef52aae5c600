//! Changes that come close together, in several shards, and beside a copy.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::support::{COPIED_AGAIN, STREAMING, empty_rig, rig, wait_until_equal};

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_comes_and_goes_before_the_stream_is_there_ends_in_equal_tables() -> Result<()> {
    let (rig, mut worker) = rig("Apply").await?;
    worker.kill()?;
    rig.on_source(
        "ALTER TABLE things ADD COLUMN a int DEFAULT 1; INSERT INTO things (id, a) VALUES (301, 5);
         ALTER TABLE things DROP COLUMN a; INSERT INTO things (id) VALUES (302);
         ALTER TABLE things ADD COLUMN a int DEFAULT 2; INSERT INTO things (id, a) VALUES (303, 6);
         ALTER TABLE things RENAME a TO b; ALTER TABLE things ADD COLUMN a int DEFAULT 3;
         INSERT INTO things (id, a) VALUES (304, 7)",
    )
    .await?;
    let _worker = rig.start(0)?;
    rig.wait_for("SELECT b || ',' || a FROM things WHERE id = 304", "2,7").await?;
    wait_until_equal(&rig, &["things"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_last_column_that_was_dropped_and_made_anew_is_not_taken_for_the_old_one() -> Result<()> {
    let (rig, worker) = rig("Apply").await?;
    rig.on_source("ALTER TABLE things DROP COLUMN size; ALTER TABLE things ADD COLUMN size int DEFAULT 5")
        .await?;
    worker.wait_for_output(COPIED_AGAIN).await?;
    wait_until_equal(&rig, &["things"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_shard_changes_its_own_tables() -> Result<()> {
    let mut rig = empty_rig("Apply").await?;
    rig.manifest["spec"]["worker"] = json!({"shards": 2});
    let tables = ["t0", "t1", "t2", "t3"];
    for table in tables {
        rig.on_source(&format!("CREATE TABLE {table} (id int PRIMARY KEY); INSERT INTO {table} VALUES (1)"))
            .await?;
    }
    let workers = [rig.start(0)?, rig.start(1)?];
    for worker in &workers {
        worker.wait_for_output(STREAMING).await?;
    }
    for table in tables {
        rig.on_source(&format!(
            "ALTER TABLE {table} ADD COLUMN a int DEFAULT 3; INSERT INTO {table} VALUES (2, 4);
             ALTER TABLE {table} ALTER a TYPE int USING a * 10"
        ))
        .await?;
    }
    for table in tables {
        rig.wait_for(&format!("SELECT string_agg(a::text, ',' ORDER BY id) FROM {table}"), "30,40").await?;
    }
    wait_until_equal(&rig, &tables).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_changes_while_it_is_copied_beside_the_stream_ends_equal() -> Result<()> {
    let mut rig = empty_rig("Apply").await?;
    rig.manifest["spec"]["source"]["postgres"]["tables"] = json!(["public.small"]);
    rig.on_source(
        "CREATE TABLE small (id int PRIMARY KEY);
         CREATE TABLE things (id int PRIMARY KEY, body text, size int);
         INSERT INTO things SELECT g, repeat('x', 200), g FROM generate_series(1, 120000) g",
    )
    .await?;
    let mut worker = rig.start(0)?;
    worker.wait_for_output(STREAMING).await?;
    worker.terminate()?;
    rig.manifest["spec"]["source"]["postgres"]["tables"] = json!(["public.*"]);
    let _worker = rig.start(0)?;
    rig.wait_for("SELECT count(*) > 0 FROM things", "t").await?;
    rig.on_source("ALTER TABLE things ADD COLUMN a int DEFAULT 5").await?;
    rig.on_source(
        "UPDATE things SET a = 6 WHERE id % 1000 = 0; INSERT INTO things VALUES (200000, 'new', 1, 7)",
    )
    .await?;
    rig.on_source("ALTER TABLE things ALTER size TYPE int USING -size").await?;
    rig.on_source("INSERT INTO things VALUES (200001, 'new', 1, 8)").await?;
    rig.wait_for("SELECT size FROM things WHERE id = 1", "-1").await?;
    wait_until_equal(&rig, &["things"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_looked_at_one_by_one() -> Result<()> {
    let mut rig = empty_rig("Apply").await?;
    rig.manifest["spec"]["source"]["postgres"]["tables"] = json!(["public.things"]);
    rig.on_source(
        "CREATE TABLE things (id int PRIMARY KEY, size int) PARTITION BY RANGE (id);
         CREATE TABLE low PARTITION OF things FOR VALUES FROM (0) TO (100);
         CREATE TABLE high (size int, id int NOT NULL); ALTER TABLE things ATTACH PARTITION high FOR VALUES FROM (100) TO (200);
         INSERT INTO things SELECT g, g FROM generate_series(50, 150) g",
    )
    .await?;
    let worker = rig.start(0)?;
    worker.wait_for_output(STREAMING).await?;
    rig.on_source(
        "ALTER TABLE things ADD COLUMN a int DEFAULT 5; UPDATE things SET a = 6 WHERE id IN (60, 160, 140)",
    )
    .await?;
    rig.wait_for(
        "SELECT count(*) FILTER (WHERE a = 5) || ',' || count(*) FILTER (WHERE a = 6) FROM things",
        "99,2",
    )
    .await?;
    ensure!(!worker.output()?.contains(COPIED_AGAIN), "rows were copied although their values are known");
    rig.on_source("VACUUM FULL low").await?;
    rig.on_source("ALTER TABLE things ALTER size TYPE int USING size + 1000").await?;
    rig.wait_for("SELECT min(size) FROM things", "1050").await?;
    wait_until_equal(&rig, &["things"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_a_key_in_another_schema_gets_its_columns_too() -> Result<()> {
    let mut rig = empty_rig("Apply").await?;
    rig.manifest["spec"]["sink"]["postgres"]["schemaMap"] = json!({"public": "Co\"py"});
    rig.on_source(
        "CREATE TABLE things (name text); ALTER TABLE things REPLICA IDENTITY FULL;
         INSERT INTO things SELECT 'twice' FROM generate_series(1, 2); INSERT INTO things VALUES ('once')",
    )
    .await?;
    let worker = rig.start(0)?;
    worker.wait_for_output(STREAMING).await?;
    rig.on_source(
        "BEGIN; INSERT INTO things VALUES ('before'); CREATE TYPE mood AS ENUM ('sad', 'ok');
         ALTER TABLE things ADD COLUMN \"Mo\"\"od\" mood DEFAULT 'ok', ADD COLUMN n int; DELETE FROM things WHERE ctid = (SELECT min(ctid) FROM things);
         UPDATE things SET n = 1 WHERE name = 'once'; INSERT INTO things VALUES ('after', 'sad', 2); COMMIT",
    )
    .await?;
    let rows = "SELECT string_agg(t::text, ';' ORDER BY t::text) FROM {} t";
    let expected = rig.source_value(&rows.replace("{}", "things")).await?;
    rig.wait_for(&rows.replace("{}", "\"Co\"\"py\".things"), &expected).await?;
    ensure!(!worker.output()?.contains(COPIED_AGAIN), "rows were copied although their values are known");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_made_anew_with_more_columns_is_copied_into_them() -> Result<()> {
    let (rig, _worker) = rig("Apply").await?;
    rig.on_source("DROP TABLE things; CREATE TABLE things (id int PRIMARY KEY, body varchar(10), price numeric(6,2), size int, more text); \
                   INSERT INTO things VALUES (1, 'new', 1, 1, 'columns')").await?;
    rig.wait_for("SELECT more FROM things", "columns").await?;
    wait_until_equal(&rig, &["things"]).await
}
