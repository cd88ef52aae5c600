//! Tables that were UNLOGGED for a while: what was written then is in no log. The server refuses that only for what a
//! publication names itself.

use anyhow::{Context as _, Result, ensure};
use penstock_e2e::postgres::Version;
use serde_json::json;

use crate::common::{Rig, Worker};
use crate::support::{
    COPIED_AGAIN, STREAMING, TABLE, empty_rig, rig_on, start_servers, wait_until_equal, wait_until_halted,
};

const PARTITIONED: &str = "
    CREATE TABLE things (id int PRIMARY KEY, body text) PARTITION BY RANGE (id);
    CREATE TABLE low PARTITION OF things FOR VALUES FROM (0) TO (1000);
    CREATE TABLE high PARTITION OF things FOR VALUES FROM (1000) TO (2000);
    INSERT INTO things SELECT g, 'row ' || g FROM generate_series(1, 10) g";
const SHAPE: &str = "SELECT md5(shape) FROM penstock.table_state WHERE source_table = 'things'";

/// The usual way to load many rows.
fn load(part: &str) -> [String; 3] {
    [
        format!("ALTER TABLE {part} SET UNLOGGED"),
        format!("INSERT INTO {part} SELECT g FROM generate_series(501, 600) g"),
        format!("ALTER TABLE {part} SET LOGGED"),
    ]
}

async fn streaming(rig: &mut Rig, tables: &str, publication: Option<&str>) -> Result<Worker> {
    rig.on_source(tables).await?;
    rig.manifest["spec"]["source"]["postgres"]["tables"] = json!(["public.things"]);
    if let Some(publication) = publication {
        rig.on_source(publication).await?;
        rig.manifest["spec"]["source"]["postgres"]["publication"] = json!("given");
    }
    let worker = rig.start(0)?;
    worker.wait_for_output(STREAMING).await?;
    rig.wait_until_caught_up().await?;
    Ok(worker)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_was_unlogged_for_a_moment_is_copied_again() -> Result<()> {
    for version in [Version::V14, Version::V18] {
        let mut rig = rig_on(start_servers(version, Version::V15).await?, "Apply").await?;
        let mut worker = streaming(&mut rig, PARTITIONED, None).await?;
        rig.on_source(&load("low").join(";")).await?;
        rig.wait_for("SELECT count(*) FROM things", "110").await.context(version)?;
        wait_until_equal(&rig, &["things"]).await?;
        // And while nobody looks.
        worker.terminate()?;
        rig.on_source("DELETE FROM low WHERE id > 500").await?;
        rig.on_source(&load("low").join(";")).await?;
        rig.on_source("DELETE FROM low WHERE id > 590").await?;
        let _worker = rig.start(0)?;
        wait_until_equal(&rig, &["things"]).await.context(version)?;
    }
    Ok(())
}

/// The usual way to bring a month in: nobody ever saw it UNLOGGED.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_was_made_unlogged_and_filled_before_anybody_looked_is_copied() -> Result<()> {
    let month = |from: u32| {
        let to = from + 1000;
        format!(
            "CREATE UNLOGGED TABLE of_{from} PARTITION OF things FOR VALUES FROM ({from}) TO ({to});
             INSERT INTO of_{from} SELECT g FROM generate_series({from}, {from} + 99) g;
             ALTER TABLE of_{from} SET LOGGED"
        )
    };
    for version in [Version::V14, Version::V18] {
        let mut rig = rig_on(start_servers(version, Version::V15).await?, "Apply").await?;
        let mut worker = streaming(&mut rig, PARTITIONED, None).await?;
        rig.on_source(&month(2000)).await?;
        rig.wait_for("SELECT count(*) FROM things", "110").await.context(version)?;
        wait_until_equal(&rig, &["things"]).await?;
        // And while nobody looks.
        worker.terminate()?;
        rig.on_source(&month(3000)).await?;
        let mut worker = rig.start(0)?;
        rig.wait_for("SELECT count(*) FROM things", "210").await.context(version)?;
        wait_until_equal(&rig, &["things"]).await?;
        // One that was never anything else causes no copy.
        worker.terminate()?;
        let before = worker.output()?.len();
        rig.on_source("CREATE TABLE of_4000 PARTITION OF things FOR VALUES FROM (4000) TO (5000)").await?;
        rig.on_source("INSERT INTO things SELECT g FROM generate_series(4000, 4099) g").await?;
        let worker = rig.start(0)?;
        rig.wait_for("SELECT count(*) FROM things", "310").await.context(version)?;
        let part = rig.source_value("SELECT 'of_4000'::regclass::oid").await?;
        rig.wait_for(&format!("SELECT shape LIKE '%\"id\":{part},%' FROM penstock.table_state"), "t").await?;
        wait_until_equal(&rig, &["things"]).await?;
        ensure!(!worker.output()?[before..].contains(COPIED_AGAIN), "{version}: a copy for nothing");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_unlogged_under_a_publication_of_all_or_of_its_schema_is_copied_again() -> Result<()>
{
    for selection in ["FOR ALL TABLES", "FOR TABLES IN SCHEMA public"] {
        let mut rig = empty_rig("Apply").await?;
        let _worker =
            streaming(&mut rig, TABLE, Some(&format!("CREATE PUBLICATION given {selection}"))).await?;
        rig.on_source(&load("things").join(";")).await?;
        rig.wait_for("SELECT count(*) FROM things", "200").await.context(selection)?;
        wait_until_equal(&rig, &["things"]).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_leaves_rows_alone_causes_no_copy_where_unlogged_is_possible() -> Result<()> {
    let with_toast = format!("{TABLE}; ALTER TABLE things ADD COLUMN note text");
    for (tables, publication) in
        [(PARTITIONED, None), (with_toast.as_str(), Some("CREATE PUBLICATION given FOR ALL TABLES"))]
    {
        let mut rig = empty_rig("Apply").await?;
        let worker = streaming(&mut rig, tables, publication).await?;
        let part = if publication.is_none() { "low" } else { "things" };
        let vacuum = format!("VACUUM FULL {part}");
        let cluster = format!("CLUSTER {part} USING {part}_pkey");
        for statement in [vacuum.as_str(), cluster.as_str(), "TRUNCATE things"] {
            let before = rig.sink_value(SHAPE).await?;
            rig.on_source(statement).await?;
            rig.wait_for(&format!("SELECT ({SHAPE}) <> '{before}'"), "t")
                .await
                .with_context(|| statement.to_owned())?;
        }
        rig.on_source("INSERT INTO things VALUES (1, 'again')").await?;
        wait_until_equal(&rig, &["things"]).await?;
        ensure!(!worker.output()?.contains(COPIED_AGAIN), "a copy for nothing");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_asks_for_a_copy_of_a_partition_that_was_unlogged_for_a_moment() -> Result<()> {
    let mut rig = empty_rig("Stop").await?;
    let worker = streaming(&mut rig, PARTITIONED, None).await?;
    rig.on_source(&load("low").join(";")).await?;
    wait_until_halted(&worker, "SinkDiverged").await?;
    ensure!(worker.output()?.contains("penstock-worker resnapshot public.things"), "{}", worker.tail()?);
    ensure!(rig.command(&["resnapshot", "public.things"])?.status.success());
    rig.wait_for("SELECT count(*) FROM things", "110").await?;
    wait_until_equal(&rig, &["things"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_partition_with_another_replica_identity_is_noticed_and_told_under_the_stream() -> Result<()> {
    let mut rig = empty_rig("Stop").await?;
    let identity =
        "ALTER TABLE things REPLICA IDENTITY FULL; ALTER TABLE low REPLICA IDENTITY FULL; DROP TABLE high";
    let worker = streaming(&mut rig, &format!("{PARTITIONED}; {identity}"), None).await?;
    rig.on_source("CREATE TABLE high PARTITION OF things FOR VALUES FROM (1000) TO (2000)").await?;
    wait_until_halted(&worker, "ReplicaIdentityMissing").await?;
    let statement = "ALTER TABLE \\\"public\\\".\\\"high\\\" REPLICA IDENTITY FULL";
    ensure!(worker.output()?.contains(statement), "{}", worker.tail()?);
    rig.on_source("ALTER TABLE high REPLICA IDENTITY FULL; INSERT INTO things VALUES (1001)").await?;
    rig.on_source("DELETE FROM things WHERE id = 1; UPDATE things SET body = 'high' WHERE id = 1001").await?;
    rig.wait_for("SELECT body FROM things WHERE id = 1001", "high").await?;
    wait_until_equal(&rig, &["things"]).await
}

/// Also one that nobody saw before: it was made UNLOGGED.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_is_seen_unlogged_stops_the_pipeline_and_is_copied_with_every_policy() -> Result<()>
{
    for made in [
        "ALTER TABLE high SET UNLOGGED",
        "DROP TABLE high; CREATE UNLOGGED TABLE high PARTITION OF things FOR VALUES FROM (1000) TO (2000)",
    ] {
        let mut rig = empty_rig("Stop").await?;
        let worker = streaming(&mut rig, PARTITIONED, None).await?;
        rig.on_source(made).await?;
        rig.on_source("INSERT INTO things SELECT g FROM generate_series(1001, 1100) g").await?;
        wait_until_halted(&worker, "TableMissing").await?;
        ensure!(worker.output()?.contains("public.high, an unlogged table"), "{}", worker.tail()?);
        rig.on_source("ALTER TABLE high SET LOGGED").await?;
        rig.wait_for("SELECT count(*) FROM things", "110").await.context(made)?;
        wait_until_equal(&rig, &["things"]).await?;
    }
    Ok(())
}
