//! Columns of the source that change under transforms: what is hidden never comes to light by another name.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::kit::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_masked_column_that_gets_another_name_stops_the_pipeline_under_every_policy() -> Result<()> {
    for how in ["Stop", "Apply", "Ignore"] {
        let mut rig = people(json!([people_transform()])).await?;
        policy(&mut rig, how);
        let mut worker = streaming(&rig).await?;
        rig.wait_until_caught_up().await?;
        rig.on_source(
            "ALTER TABLE people RENAME COLUMN mail TO letter; UPDATE people SET letter = 'clear letter'",
        )
        .await?;
        halted(&worker, "TransformUnsuitable").await?;
        let message = message(&worker, "TransformUnsuitable")?;
        ensure!(message.contains("public.people, column mail: maskColumns names it"), "{how}: {message}");
        assert_nothing_is_clear(&rig).await?;
        // Its name in the entry follows, and the sink's keeps.
        worker.terminate()?;
        let mut transform = people_transform();
        transform["maskColumns"][0]["columns"] = json!(["letter", "token"]);
        transform["renameColumns"] = json!({"size": "height", "letter": "mail"});
        rig.manifest["spec"]["transforms"] = json!([transform]);
        let _worker = rig.start_as(&WITH_KEY)?;
        let expected = EXPECTED.replace("masked(mail)", "masked(letter)");
        assert_is(&rig, &expected, "persons").await?;
        assert_nothing_is_clear(&rig).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_takes_the_name_of_a_masked_one_is_never_beside_it() -> Result<()> {
    let mut rig = people(json!([people_transform()])).await?;
    policy(&mut rig, "Apply");
    rig.on_source("ALTER TABLE people ADD COLUMN nick text; UPDATE people SET nick = 'n' || id").await?;
    let worker = streaming(&rig).await?;
    rig.wait_until_caught_up().await?;
    rig.on_source(
        "BEGIN; ALTER TABLE people DROP COLUMN phone; ALTER TABLE people RENAME COLUMN nick TO phone; UPDATE people SET size = 1; COMMIT",
    )
    .await?;
    worker.wait_for_output("the transforms do something else to it").await?;
    assert_is(&rig, EXPECTED, "persons").await
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_are_added_to_a_selection_are_nothing_to_the_sink() -> Result<()> {
    let select = json!([{"tables": ["public.people"], "selectColumns": ["id", "size"], "renameColumns": {"size": "height"}}]);
    let rig = people(select).await?;
    let worker = streaming(&rig).await?;
    rig.on_source("ALTER TABLE people ADD COLUMN late text DEFAULT 'clear late'; UPDATE people SET size = 0 WHERE id < 9").await?;
    rig.on_source("ALTER TABLE people DROP COLUMN note; ALTER TABLE people RENAME COLUMN body TO text; UPDATE people SET size = 5 WHERE id > 290").await?;
    assert_is(&rig, "SELECT id, size AS height FROM people", "people").await?;
    let output = worker.output()?;
    ensure!(
        !output.contains("SinkTableMismatch") && !output.contains(COPIED_AGAIN),
        "it stopped for nothing"
    );
    assert_nothing_is_clear(&rig).await
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_are_added_renamed_and_dropped_beside_masks_in_the_names_of_the_sink() -> Result<()> {
    let mut rig = people(json!([people_transform()])).await?;
    policy(&mut rig, "Apply");
    let worker = streaming(&rig).await?;
    rig.on_source("ALTER TABLE people ADD COLUMN born int DEFAULT 1970; INSERT INTO people (id, size, born) VALUES (2000, 1, 2)").await?;
    let expected = EXPECTED.replace(" FROM", ", born FROM");
    rig.wait_for("SELECT count(*) FROM persons WHERE born = 2", "1").await?;
    assert_is(&rig, &expected, "persons").await?;
    rig.on_source("ALTER TABLE people RENAME COLUMN born TO year; UPDATE people SET year = 3 WHERE id = 1")
        .await?;
    halted(&worker, "SinkTableMismatch").await?;
    let statement = told(&worker, "SinkTableMismatch")?;
    ensure!(
        statement == "ALTER TABLE \"public\".\"persons\" RENAME COLUMN \"born\" TO \"year\"",
        "{statement}"
    );
    rig.on_sink(&statement).await?;
    rig.wait_for("SELECT year FROM persons WHERE id = 1", "3").await?;
    rig.on_source("ALTER TABLE people ALTER COLUMN size TYPE bigint").await?;
    rig.on_source("UPDATE people SET size = 5000000000 WHERE id = 2").await?;
    rig.wait_for("SELECT height FROM persons WHERE id = 2", "5000000000").await?;
    assert_is(&rig, &expected.replace("born", "year"), "persons").await?;
    assert_nothing_is_clear(&rig).await
}

/// What rows from before an added column hold is noted beside the rows, as long as nobody rewrote them.
#[tokio::test(flavor = "multi_thread")]
async fn a_secret_default_of_a_hidden_column_is_not_noted_in_the_sink() -> Result<()> {
    let mut transform = people_transform();
    transform["dropColumns"] = json!(["note", "pin"]);
    let rig = people(json!([transform])).await?;
    rig.on_source("ALTER TABLE people ADD COLUMN pin text DEFAULT 'clear pin'").await?;
    let mut worker = streaming(&rig).await?;
    assert_is(&rig, EXPECTED, "persons").await?;
    assert_nothing_is_clear(&rig).await?;
    // And it is known to be the same table by the next run.
    worker.terminate()?;
    let from = worker.output()?.len();
    let worker = rig.start_as(&WITH_KEY)?;
    rig.on_source("UPDATE people SET size = 1 WHERE id = 1").await?;
    assert_is(&rig, EXPECTED, "persons").await?;
    ensure!(!since(&worker, from)?.contains(COPIED_AGAIN));
    assert_nothing_is_clear(&rig).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_table_that_its_entry_does_not_fit_stops_nobody() -> Result<()> {
    let mut rig = rig(&["public.*"]).await?;
    rig.on_source(
        "CREATE TABLE a_one (id int PRIMARY KEY, mail text); INSERT INTO a_one VALUES (1, 'clear')",
    )
    .await?;
    rig.manifest["spec"]["transforms"] = json!([{"tables": ["public.a_*"], "dropColumns": ["mail"]}]);
    let worker = streaming(&rig).await?;
    rig.on_source(
        "CREATE TABLE a_two (id int PRIMARY KEY, letter text); INSERT INTO a_two VALUES (1, 'clear')",
    )
    .await?;
    worker.wait_for_output("NewTableUnsuitable").await?;
    rig.on_source("INSERT INTO a_one VALUES (2, 'clear')").await?;
    rig.wait_for("SELECT count(*) FROM a_one", "2").await?;
    ensure!(rig.sink_value("SELECT count(*) FROM pg_tables WHERE tablename = 'a_two'").await? == "0");
    rig.on_source("ALTER TABLE a_two RENAME COLUMN letter TO mail").await?;
    rig.wait_for("SELECT count(*) FROM pg_tables WHERE tablename = 'a_two'", "1").await?;
    assert_is(&rig, "SELECT id FROM a_two", "a_two").await?;
    assert_nothing_is_clear(&rig).await
}
