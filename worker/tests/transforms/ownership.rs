//! Renamed tables: none is touched that is not the pipeline's.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::kit::*;

const COLUMNS: &str = "SELECT string_agg(format('%s %s %s', attname, format_type(atttypid, atttypmod), attnotnull), ', ' ORDER BY attnum) \
    FROM pg_attribute WHERE attrelid = 'persons'::regclass AND attnum > 0 AND NOT attisdropped";

fn renamed() -> Value {
    json!([{"tables": ["public.people"], "renameTable": "persons"}])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_not_altered_before_it_is_known_to_be_ours() -> Result<()> {
    // One that holds rows of somebody's, and one that another pipeline writes.
    for is_owned in [false, true] {
        let mut rig = people(json!([])).await?;
        policy(&mut rig, "Apply");
        let mut worker = streaming(&rig).await?;
        rig.wait_until_caught_up().await?;
        worker.terminate()?;
        rig.on_sink(
            "CREATE TABLE persons (id int PRIMARY KEY, mail varchar(9), phone varchar(5) NOT NULL, size int NOT NULL DEFAULT 3,
                 token uuid, body text);
             INSERT INTO persons VALUES (1, 'theirs', 'p', 1)",
        )
        .await?;
        if is_owned {
            rig.on_sink(
                "INSERT INTO penstock.ownership (sink_schema, sink_table, uid, namespace, name, source_schema, source_table)
                 VALUES ('public', 'persons', 'another', 'default', 'other', 'public', 'persons')",
            )
            .await?;
        }
        let before = rig.sink_value(COLUMNS).await?;
        rig.manifest["spec"]["transforms"] = renamed();
        let worker = rig.start_as(&WITH_KEY)?;
        let reason = if is_owned { "SinkTableOwned" } else { "SinkTableMismatch" };
        halted(&worker, reason).await?;
        ensure!(!message(&worker, reason)?.contains("DROP TABLE"), "it is told to drop what is not ours");
        ensure!(rig.sink_value(COLUMNS).await? == before, "it was altered");
        ensure!(rig.sink_value("SELECT mail FROM persons").await? == "theirs", "its rows were touched");
        ensure!(rig.sink_value("SELECT count(*) FROM people").await? == "300", "and so were ours");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_gets_another_name_is_copied_there_and_the_old_one_is_let_go() -> Result<()> {
    let mut rig = people(json!([])).await?;
    let mut worker = streaming(&rig).await?;
    rig.wait_until_caught_up().await?;
    worker.terminate()?;
    rig.manifest["spec"]["transforms"] = renamed();
    let _worker = rig.start_as(&WITH_KEY)?;
    rig.wait_for("SELECT count(*) FROM pg_tables WHERE tablename = 'persons'", "1").await?;
    rig.on_source("DELETE FROM people WHERE id > 100").await?;
    assert_is(&rig, "SELECT * FROM people", "persons").await?;
    let owned = "SELECT string_agg(sink_table || ' ' || is_released, ', ' ORDER BY sink_table) FROM penstock.ownership";
    ensure!(rig.sink_value(owned).await? == "people true, persons false");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tables_that_would_be_written_into_one_are_refused_before_anything_is_made() -> Result<()> {
    let mut rig = people(renamed()).await?;
    rig.on_source("CREATE TABLE persons (id int PRIMARY KEY)").await?;
    rig.manifest["spec"]["source"]["postgres"]["tables"] = json!(["public.*"]);
    let worker = rig.start_as(&WITH_KEY)?;
    halted(&worker, "TransformUnsuitable").await?;
    let message = message(&worker, "TransformUnsuitable")?;
    ensure!(
        message.contains(
            "public.people and public.persons would both be written into the sink table public.persons"
        ),
        "{message}"
    );
    ensure!(
        rig.source_value("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()")
            .await?
            == "0"
    );
    ensure!(rig.sink_value("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").await? == "0");
    Ok(())
}
