//! Transforms of a pipeline that change: its tables are copied again, or it stops and says so; never are rows of two
//! transforms in one table.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::common::{Rig, Worker};
use crate::kit::*;

fn masking(column: &str) -> Value {
    json!([{"tables": ["public.people"], "maskColumns": [{"columns": [column], "hash": {"keySecret": "pii"}}]}])
}

/// Starts again with other transforms, and with changes in the log that were sent before.
async fn restart(rig: &mut Rig, mut worker: Worker, transforms: Value) -> Result<(Worker, usize)> {
    rig.wait_until_caught_up().await?;
    worker.terminate()?;
    let from = worker.output()?.len();
    rig.on_source("UPDATE people SET size = size + 1 WHERE id % 3 = 0; DELETE FROM people WHERE id % 4 = 0")
        .await?;
    rig.manifest["spec"]["transforms"] = transforms;
    Ok((rig.start_as(&WITH_KEY)?, from))
}

const ALL: &str = "SELECT id, mail, phone, size, token, note, body FROM people";

#[tokio::test(flavor = "multi_thread")]
async fn a_table_whose_transforms_changed_is_copied_again_and_never_a_mixture() -> Result<()> {
    let mut rig = people(json!([])).await?;
    rig.on_source("ALTER TABLE people ALTER COLUMN mail DROP DEFAULT").await?;
    let worker = streaming(&rig).await?;
    assert_is(&rig, ALL, "people").await?;
    let (worker, from) = restart(&mut rig, worker, masking("mail")).await?;
    let expected = "SELECT id, masked(mail) AS mail, phone, size, token, note, body FROM people";
    rig.wait_for("SELECT count(*) FROM people WHERE mail LIKE 'clear%'", "0").await?;
    assert_is(&rig, expected, "people").await?;
    ensure!(since(&worker, from)?.contains("its transforms are others"), "nobody was told why");
    let (worker, _) = restart(&mut rig, worker, json!([])).await?;
    rig.wait_for("SELECT count(*) = count(*) FILTER (WHERE mail LIKE 'clear%') FROM people", "t").await?;
    assert_is(&rig, ALL, "people").await?;
    drop(worker);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_in_the_secret_copies_the_table_again() -> Result<()> {
    let rig = people(masking("mail")).await?;
    let mut worker = streaming(&rig).await?;
    rig.wait_until_caught_up().await?;
    let before = rig.sink_value("SELECT mail FROM people WHERE id = 1").await?;
    worker.terminate()?;
    let _worker = rig.start_as(&[("PENSTOCK_MASK_KEY_PII", "another key, of enough bytes")])?;
    rig.wait_for(&format!("SELECT mail <> '{before}' FROM people WHERE id = 1"), "t").await?;
    rig.wait_until_caught_up().await?;
    let all_new = format!("SELECT count(*) FROM people WHERE mail = '{before}' OR length(mail) <> 64");
    ensure!(rig.sink_value(&all_new).await? == "0");
    ensure!(rig.sink_value("SELECT count(DISTINCT mail) FROM people").await? == "300");
    assert_nothing_of(&rig, "mail").await
}

async fn assert_nothing_of(rig: &Rig, column: &str) -> Result<()> {
    let clear = rig.sink_value(&format!("SELECT count(*) FROM people WHERE {column} LIKE '%clear%'")).await?;
    ensure!(clear == "0", "{clear} values in the clear");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_is_written_in_another_way_copies_nothing() -> Result<()> {
    let drop = json!([{"tables": ["public.people"], "dropColumns": ["note", "mail"]}]);
    let mut rig = people(drop).await?;
    let worker = streaming(&rig).await?;
    let select = json!([{"tables": ["public.*"], "selectColumns": ["id", "phone", "size", "token", "body"]}]);
    let (worker, from) = restart(&mut rig, worker, select.clone()).await?;
    let expected = "SELECT id, phone, size, token, body FROM people";
    assert_is(&rig, expected, "people").await?;
    ensure!(!since(&worker, from)?.contains(COPIED_AGAIN), "it was copied again for nothing");
    // What is kept is what was done last: the column that comes now was not selected.
    rig.on_source("ALTER TABLE people ADD COLUMN late int DEFAULT 5").await?;
    let (worker, from) = restart(&mut rig, worker, select).await?;
    assert_is(&rig, expected, "people").await?;
    ensure!(!since(&worker, from)?.contains(COPIED_AGAIN), "it was copied again for nothing");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mask_that_is_added_later_leaves_no_default_of_the_source_in_the_sink() -> Result<()> {
    for how in ["Stop", "Apply", "Ignore"] {
        let mut rig = people(json!([])).await?;
        policy(&mut rig, how);
        let worker = streaming(&rig).await?;
        let (worker, _) = restart(&mut rig, worker, masking("mail")).await?;
        if how != "Apply" {
            halted(&worker, "SinkTableMismatch").await?;
            let told = told(&worker, "SinkTableMismatch")?;
            ensure!(told == "ALTER TABLE \"public\".\"people\" ALTER COLUMN \"mail\" DROP DEFAULT", "{told}");
            rig.on_sink(&told).await?;
        }
        assert_is(
            &rig,
            "SELECT id, masked(mail) AS mail, phone, size, token, note, body FROM people",
            "people",
        )
        .await?;
        let default = "SELECT count(*) FROM pg_attrdef WHERE adrelid = 'people'::regclass";
        ensure!(rig.sink_value(default).await? == "0", "{how}: the default is still there");
        assert_nothing_of(&rig, "mail").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_statements_that_are_told_when_a_mask_is_removed_can_be_run() -> Result<()> {
    for how in ["Stop", "Apply", "Ignore"] {
        let mut rig = people(masking("token")).await?;
        policy(&mut rig, how);
        let worker = streaming(&rig).await?;
        let (worker, _) = restart(&mut rig, worker, json!([])).await?;
        halted(&worker, "SinkTableMismatch").await?;
        rig.on_sink(&told(&worker, "SinkTableMismatch")?).await?;
        rig.wait_for("SELECT pg_typeof(token)::text FROM people LIMIT 1", "uuid").await?;
        assert_is(&rig, ALL, "people").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_is_carried_again_is_never_left_out_without_a_word_under_ignore() -> Result<()> {
    let renamed = json!([{"tables": ["public.people"], "renameColumns": {"note": "remark"}}]);
    let dropped = json!([{"tables": ["public.people"], "dropColumns": ["note"]}]);
    for before in [dropped, renamed] {
        let mut rig = people(before).await?;
        policy(&mut rig, "Ignore");
        let worker = streaming(&rig).await?;
        let (worker, _) = restart(&mut rig, worker, json!([])).await?;
        halted(&worker, "SinkTableMismatch").await?;
        let message = message(&worker, "SinkTableMismatch")?;
        ensure!(message.contains("column note is missing"), "{message}");
        rig.on_sink(&told(&worker, "SinkTableMismatch")?).await?;
        assert_is(&rig, ALL, "people").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_is_not_carried_any_more_is_not_emptied_without_a_word() -> Result<()> {
    for how in ["Apply", "Ignore"] {
        let mut rig = people(json!([])).await?;
        policy(&mut rig, how);
        let worker = streaming(&rig).await?;
        let drop_note = json!([{"tables": ["public.people"], "dropColumns": ["note"]}]);
        let (worker, _) = restart(&mut rig, worker, drop_note).await?;
        halted(&worker, "SinkTableMismatch").await?;
        ensure!(rig.sink_value("SELECT count(note) FROM people").await? == "300", "its values are gone");
        rig.on_sink(&told(&worker, "SinkTableMismatch")?).await?;
        assert_is(&rig, "SELECT id, mail, phone, size, token, body FROM people", "people").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_may_be_copied_changed_transforms_stop_the_pipeline_and_touch_nothing() -> Result<()> {
    let mut rig = people(json!([])).await?;
    rig.manifest["spec"]["source"]["postgres"]["snapshot"] = json!({"mode": "Never"});
    let worker = streaming(&rig).await?;
    rig.on_source("INSERT INTO people (id, size) VALUES (1000, 1)").await?;
    rig.wait_for("SELECT count(*) FROM people", "1").await?;
    let (worker, from) = restart_unchanged(&mut rig, worker, masking("mail"))?;
    halted(&worker, "SinkDiverged").await?;
    let message = message(&worker, "SinkDiverged")?;
    ensure!(message.contains("The transforms of public.people are others"), "{message}");
    ensure!(rig.sink_value("SELECT mail FROM people").await? == "clear default");
    let (worker, _) = restart_unchanged(&mut rig, worker, json!([]))?;
    rig.on_source("INSERT INTO people (id, size) VALUES (1001, 1)").await?;
    rig.wait_for("SELECT count(*) FROM people", "2").await?;
    ensure!(!since(&worker, from)?.contains(COPIED_AGAIN));
    Ok(())
}

fn restart_unchanged(rig: &mut Rig, mut worker: Worker, transforms: Value) -> Result<(Worker, usize)> {
    worker.terminate()?;
    let from = worker.output()?.len();
    rig.manifest["spec"]["transforms"] = transforms;
    Ok((rig.start_as(&WITH_KEY)?, from))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_key_of_a_mask_is_told_and_nothing_is_carried() -> Result<()> {
    let rig = people(masking("mail")).await?;
    let worker = rig.start(0)?;
    halted(&worker, "CredentialsMissing").await?;
    let message = message(&worker, "CredentialsMissing")?;
    ensure!(message.contains("Create the Secret pii with the key key"), "{message}");
    let made = "SELECT count(*) FROM pg_tables WHERE schemaname IN ('public', 'penstock')";
    ensure!(rig.sink_value(made).await? == "0", "something was made");
    // Cleaning up needs no key.
    let cleaned = tokio::task::block_in_place(|| rig.command(&["clean-up"]))?;
    ensure!(cleaned.status.success(), "{}", String::from_utf8_lossy(&cleaned.stderr));
    Ok(())
}
