//! `compare --source` reads the source through the transforms, by means of its own: what is wrong in the sink is found.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::kit::*;

#[tokio::test(flavor = "multi_thread")]
async fn comparison_through_transforms_finds_one_altered_byte_and_a_row_too_many() -> Result<()> {
    let rig = people(json!([people_transform()])).await?;
    let _worker = streaming(&rig).await?;
    rig.wait_until_caught_up().await?;
    let (code, said) = compare(&rig, KEY)?;
    ensure!(code == 0 && said["verdict"] == "equal", "{said:#}");
    for (column, alter) in [
        ("mail", "overlay(mail placing 'x' from 9)"),
        ("token", "overlay(token placing 'x' from 64)"),
        ("phone", "'**'"),
        ("body", "left(body, 1)"),
        ("height", "height + 1"),
    ] {
        let before = format!("CREATE TABLE kept AS SELECT {column} AS value FROM persons WHERE id = 200");
        rig.on_sink(&format!("{before}; UPDATE persons SET {column} = {alter} WHERE id = 200")).await?;
        let (code, said) = compare(&rig, KEY)?;
        let difference = &said["differences"][0];
        ensure!(code == 1 && said["differences"].as_array().map(Vec::len) == Some(1), "{column}: {said:#}");
        ensure!(
            difference["key"]["id"] == "200" && difference["columns"] == json!([column]),
            "{column}: {said:#}"
        );
        ensure!(!said.to_string().contains(CLEAR), "{column}: a value in the clear: {said:#}");
        rig.on_sink(&format!(
            "UPDATE persons SET {column} = value FROM kept WHERE id = 200; DROP TABLE kept"
        ))
        .await?;
    }
    rig.on_sink(
        "INSERT INTO persons (id, mail, height) VALUES (9999, 'x', 1); DELETE FROM persons WHERE id = 3",
    )
    .await?;
    let (code, said) = compare(&rig, KEY)?;
    ensure!(code == 1 && said["tables"][0]["differingRows"] == 2, "{said:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_with_a_hashed_key_and_one_without_a_key_are_compared() -> Result<()> {
    let mut rig = rig(&["public.*"]).await?;
    rig.on_source(
        "CREATE TABLE keyed (mail text PRIMARY KEY, n int);
         INSERT INTO keyed SELECT 'clear' || g, g FROM generate_series(1, 500) g;
         CREATE TABLE loose (who text, n int, gone int); ALTER TABLE loose REPLICA IDENTITY FULL;
         INSERT INTO loose SELECT 'clear' || g % 5, g % 7, g FROM generate_series(1, 500) g",
    )
    .await?;
    rig.manifest["spec"]["transforms"] = json!([
        {"tables": ["public.keyed"], "maskColumns": [{"columns": ["mail"], "hash": {"keySecret": "pii"}}]},
        {"tables": ["public.loose"], "dropColumns": ["gone"], "maskColumns": [{"columns": ["who"], "truncate": {"length": 5}}]},
    ]);
    let _worker = streaming(&rig).await?;
    rig.wait_until_caught_up().await?;
    let (code, said) = compare(&rig, KEY)?;
    ensure!(code == 0 && said["tables"].as_array().map(Vec::len) == Some(2), "{said:#}");
    let key = rig.source_value("SELECT masked('clear77')").await?;
    rig.on_sink(&format!("UPDATE keyed SET n = 0 WHERE mail = '{key}'")).await?;
    rig.on_sink("UPDATE loose SET n = 8 WHERE ctid = (SELECT min(ctid) FROM loose)").await?;
    let (code, said) = compare(&rig, KEY)?;
    ensure!(code == 1 && said["differences"][0]["key"]["mail"] == json!(key), "{said:#}");
    ensure!(said["tables"][1]["verdict"] == "different" && !said.to_string().contains(CLEAR), "{said:#}");
    Ok(())
}

/// Rows that change between the snapshot and the barrier are compared as the stream says, through the same masks.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_change_while_they_are_compared_are_no_difference() -> Result<()> {
    let rig = people(json!([people_transform()])).await?;
    let _worker = streaming(&rig).await?;
    let client = rig.source.connect(&rig.database).await?;
    let load = tokio::spawn(async move {
        for round in 0..400 {
            let sql = format!(
                "UPDATE people SET mail = 'clear {round} ' || id, size = {round} WHERE id % 50 = {round} % 50;
                 UPDATE people SET id = -id WHERE id = {0} OR id = -{0}; DELETE FROM people WHERE id = {round};
                 INSERT INTO people (id, size, phone) VALUES (100000 + {round}, 1, 'clear')",
                round % 300
            );
            if client.run(&sql).await.is_err() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    });
    for _ in 0..3 {
        let (code, said) = compare(&rig, KEY)?;
        ensure!(code == 0, "{said:#}");
    }
    load.abort();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn with_another_key_or_other_transforms_nothing_is_called_equal_or_different() -> Result<()> {
    let mut rig = people(json!([people_transform()])).await?;
    let _worker = streaming(&rig).await?;
    rig.wait_until_caught_up().await?;
    let (code, said) = compare(&rig, "another key, of enough bytes")?;
    let why = said["tables"][0]["reason"].as_str().unwrap_or_default();
    ensure!(code == 2 && why.contains("other transforms (or keys of masks)"), "{said:#}");
    rig.manifest["spec"]["transforms"][0]["maskColumns"][2]["truncate"]["length"] = json!(3);
    let (code, said) = compare(&rig, KEY)?;
    ensure!(code == 2 && said["tables"][0]["verdict"] == "unknown", "{said:#}");
    Ok(())
}
