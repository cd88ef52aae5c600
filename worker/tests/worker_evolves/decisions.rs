//! What a person decides, what is ignored, and how the pipeline goes on.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::support::{
    STATE, STREAMING, TABLE, empty_rig, rig, since, told, wait_until_equal, wait_until_halted,
};

/// What always needs a person, with the statement that is told.
const DESTRUCTIVE: [(&str, &str, &str); 3] = [
    (
        "ALTER TABLE things RENAME body TO \"Bo\"\"dy\"",
        "ALTER TABLE \"public\".\"things\" RENAME COLUMN \"body\" TO \"Bo\"\"dy\"",
        "INSERT INTO things (id, \"Bo\"\"dy\") VALUES (302, 'after')",
    ),
    (
        "ALTER TABLE things DROP COLUMN body",
        "ALTER TABLE \"public\".\"things\" DROP COLUMN \"body\"",
        "INSERT INTO things (id, size) VALUES (302, 5)",
    ),
    (
        "ALTER TABLE things ALTER size TYPE text USING 'size ' || size",
        "",
        "INSERT INTO things (id, size) VALUES (302, 'large')",
    ),
];

async fn a_person_decides(policy: &str, (change, statement, after): (&str, &str, &str)) -> Result<()> {
    let (rig, worker) = rig(policy).await?;
    rig.on_source(&format!(
        "BEGIN; INSERT INTO things VALUES (301, 'before'); UPDATE things SET body = 'both' WHERE id = 3;
         {change}; {after}; UPDATE things SET price = 2 WHERE id = 301; COMMIT"
    ))
    .await?;
    wait_until_halted(&worker, "SinkTableMismatch").await?;
    let told = told(&worker, "SinkTableMismatch")?;
    ensure!(told.starts_with(statement), "told: {told}");
    ensure!(rig.sink_value("SELECT count(*) FROM things WHERE id > 300").await? == "0", "half a transaction");
    rig.on_sink(&told).await?;
    rig.wait_for("SELECT count(*) FROM things WHERE id > 300", "2").await?;
    wait_until_equal(&rig, &["things"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_column_stops_and_goes_on_when_it_is_renamed_in_the_sink() -> Result<()> {
    for policy in ["Apply", "Stop", "Ignore"] {
        a_person_decides(policy, DESTRUCTIVE[0]).await.context(policy)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_column_stops_and_goes_on_when_it_is_dropped_in_the_sink() -> Result<()> {
    for policy in ["Apply", "Stop"] {
        a_person_decides(policy, DESTRUCTIVE[1]).await.context(policy)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_that_is_no_wider_one_stops_and_goes_on_when_it_is_changed_in_the_sink() -> Result<()> {
    a_person_decides("Apply", DESTRUCTIVE[2]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_tells_the_statements_and_goes_on_when_they_were_run() -> Result<()> {
    let (rig, worker) = rig("Stop").await?;
    rig.on_source(
        "BEGIN; INSERT INTO things VALUES (301, 'before');
         ALTER TABLE things ADD COLUMN colour text DEFAULT 'it''s red'; ALTER TABLE things ALTER colour DROP DEFAULT;
         INSERT INTO things (id, colour) VALUES (302, 'blue'); COMMIT",
    )
    .await?;
    wait_until_halted(&worker, "SinkTableMismatch").await?;
    let statements = told(&worker, "SinkTableMismatch")?;
    ensure!(
        statements
            == "ALTER TABLE \"public\".\"things\" ADD COLUMN \"colour\" text DEFAULT 'it''s red'; \
                ALTER TABLE \"public\".\"things\" ALTER COLUMN \"colour\" DROP DEFAULT",
        "told: {statements}"
    );
    tokio::time::sleep(Duration::from_secs(5)).await;
    let after_halt = worker.output()?.split_once("SinkTableMismatch").map(|(_, after)| after.to_owned());
    ensure!(
        !after_halt.unwrap_or_default().contains(STREAMING),
        "it says that it streams while it waits for a person"
    );
    rig.on_sink(&statements).await?;
    rig.wait_for("SELECT colour FROM things WHERE id = 302", "blue").await?;
    wait_until_equal(&rig, &["things"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_a_person_added_beforehand_gets_the_values_of_the_source() -> Result<()> {
    let (rig, worker) = rig("Stop").await?;
    rig.on_sink("ALTER TABLE things ADD COLUMN colour text DEFAULT 'wrong'").await?;
    rig.on_source(
        "INSERT INTO things VALUES (301, 'before'); ALTER TABLE things ADD COLUMN colour text DEFAULT 'red';
         INSERT INTO things (id, colour) VALUES (302, 'blue')",
    )
    .await?;
    rig.wait_for("SELECT colour FROM things WHERE id = 302", "blue").await?;
    wait_until_equal(&rig, &["things"]).await?;
    ensure!(!worker.output()?.contains("SinkTableMismatch"), "it stopped");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_asks_for_a_copy_of_rewritten_rows_and_goes_on_when_it_is_wanted() -> Result<()> {
    for policy in ["Stop", "Ignore"] {
        let (rig, worker) = rig(policy).await?;
        rig.on_source("ALTER TABLE things ALTER size TYPE int USING size + 1").await?;
        wait_until_halted(&worker, "SinkDiverged").await?;
        ensure!(worker.output()?.contains("penstock-worker resnapshot public.things"), "{}", worker.tail()?);
        let asked = rig.command(&["resnapshot", "public.things"])?;
        ensure!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
        rig.wait_for("SELECT size FROM things WHERE id = 7", "8").await?;
        wait_until_equal(&rig, &["things"]).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn ignore_leaves_added_columns_out_and_keeps_dropped_ones() -> Result<()> {
    let (rig, mut worker) = rig("Ignore").await?;
    rig.on_source(
        "BEGIN; INSERT INTO things VALUES (301, 'before'); ALTER TABLE things ADD COLUMN colour text DEFAULT 'red';
         INSERT INTO things (id, colour) VALUES (302, 'blue'); COMMIT;
         ALTER TABLE things DROP COLUMN body; INSERT INTO things (id, size) VALUES (303, 3)",
    )
    .await?;
    rig.wait_for("SELECT size FROM things WHERE id = 303", "3").await?;
    worker.wait_for_output("SchemaChangeIgnored").await?;
    ensure!(
        rig.sink_value("SELECT body FROM things WHERE id = 5").await? == "row 5",
        "what was there is gone"
    );
    let columns = "SELECT string_agg(column_name, ',' ORDER BY ordinal_position) FROM information_schema.columns WHERE table_name = 'things'";
    ensure!(rig.sink_value(columns).await? == "id,body,price,size");
    worker.kill()?;
    rig.on_source("UPDATE things SET colour = 'green', size = 9 WHERE id = 302").await?;
    let mut worker = rig.start(0)?;
    rig.wait_for("SELECT size FROM things WHERE id = 302", "9").await?;
    let asked = rig.command(&["resnapshot", "public.things"])?;
    ensure!(asked.status.success());
    rig.on_source("UPDATE things SET size = 10 WHERE id = 302").await?;
    rig.wait_for("SELECT size FROM things WHERE id = 302", "10").await?;
    rig.wait_for(STATE, "ready").await?;
    // What was left out comes with a copy, once it is wanted.
    worker.terminate()?;
    let mut rig = rig;
    rig.manifest["spec"]["sink"]["postgres"]["schemaChanges"] = json!("Apply");
    rig.on_source("UPDATE things SET size = 11 WHERE id = 302").await?;
    let _worker = rig.start(0)?;
    rig.wait_for("SELECT colour || size FROM things WHERE id = 302", "green11").await?;
    rig.wait_for("SELECT count(*) FROM things WHERE colour = 'red'", "102").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_was_left_out_and_is_made_by_hand_is_not_half_filled() -> Result<()> {
    let (rig, mut worker) = rig("Ignore").await?;
    rig.on_source(
        "ALTER TABLE things ADD COLUMN colour text; UPDATE things SET colour = 'red', size = 5 WHERE id = 7",
    )
    .await?;
    rig.wait_for("SELECT size FROM things WHERE id = 7", "5").await?;
    worker.wait_for_output("SchemaChangeIgnored").await?;
    worker.terminate()?;
    rig.on_sink("ALTER TABLE things ADD COLUMN colour text").await?;
    let worker = rig.start(0)?;
    wait_until_halted(&worker, "SinkDiverged").await?;
    ensure!(worker.output()?.contains("column colour now, which was left out"), "{}", worker.tail()?);
    ensure!(rig.command(&["resnapshot", "public.things"])?.status.success());
    rig.wait_for("SELECT colour FROM things WHERE id = 7", "red").await?;
    wait_until_equal(&rig, &["things"]).await
}

/// The manifest names another sink schema, in which somebody else has a table of that name.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_not_the_pipelines_is_never_altered() -> Result<()> {
    let (mut rig, mut worker) = rig("Apply").await?;
    wait_until_equal(&rig, &["things"]).await?;
    worker.terminate()?;
    rig.on_sink(
        "CREATE SCHEMA theirs; CREATE TABLE theirs.things (id int PRIMARY KEY, body varchar(10) NOT NULL, price numeric(6,2) NOT NULL, size int NOT NULL);
         INSERT INTO theirs.things VALUES (1, 'theirs', 1, 1)",
    )
    .await?;
    rig.manifest["spec"]["sink"]["postgres"]["schemaMap"] = json!({"public": "theirs"});
    let from = worker.output()?.len();
    let worker = rig.start(0)?;
    let began = Instant::now();
    while !since(&worker, from)?.contains("\"reason\":\"SinkTable") {
        ensure!(began.elapsed() < Duration::from_mins(1), "it was not refused");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let bound = "SELECT count(*) FROM pg_attribute WHERE attrelid = 'theirs.things'::regclass AND attnotnull AND attnum > 0";
    ensure!(rig.sink_value(bound).await? == "4", "somebody else's table was altered");
    ensure!(rig.sink_value("SELECT body FROM theirs.things").await? == "theirs");
    Ok(())
}

/// Neither is it said that a person should: where another pipeline owns it, that is said; where nobody does, nobody is told to drop
/// it, for its rows were not copied.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_not_the_pipelines_yet_is_neither_renamed_in_nor_told_to_be_dropped() -> Result<()> {
    for (is_owned, reason) in [(true, "SinkTableOwned"), (false, "SinkTableMismatch")] {
        let mut rig = empty_rig("Apply").await?;
        let mood = "CREATE TYPE mood AS ENUM ('sad', 'fine'); ALTER TABLE things ADD COLUMN mood mood";
        rig.on_source(&format!("{TABLE}; {mood}")).await?;
        let mut worker = rig.start(0)?;
        worker.wait_for_output(STREAMING).await?;
        wait_until_equal(&rig, &["things"]).await?;
        worker.terminate()?;
        rig.on_sink(
            "CREATE SCHEMA theirs; CREATE TYPE theirs.mood AS ENUM ('sad', 'fine');
             CREATE TABLE theirs.things (id int PRIMARY KEY, body varchar(10), price numeric(6,2) NOT NULL, mood theirs.mood)",
        )
        .await?;
        if is_owned {
            rig.on_sink(
                "INSERT INTO penstock.ownership (sink_schema, sink_table, uid, namespace, name, source_schema, source_table)
                 VALUES ('theirs', 'things', 'another', 'default', 'another', 'public', 'things')",
            )
            .await?;
        }
        rig.on_source("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'").await?;
        rig.manifest["spec"]["sink"]["postgres"]["schemaMap"] = json!({"public": "theirs"});
        let from = worker.output()?.len();
        let worker = rig.start(0)?;
        worker.wait_for_output("\"reason\":\"SinkTable").await?;
        let said = since(&worker, from)?;
        ensure!(said.contains(&format!("\"reason\":\"{reason}\"")), "{}", worker.tail()?);
        ensure!(!said.contains("DROP TABLE"), "{}", worker.tail()?);
        let labels = "SELECT string_agg(enumlabel, ' ' ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = 'theirs.mood'::regtype";
        ensure!(rig.sink_value(labels).await? == "sad fine", "somebody else's type was altered");
    }
    Ok(())
}
