//! Each way in which a sink can be wrong is found, with its key and its columns.

use anyhow::{Result, ensure};
use penstock_e2e::postgres::Version;
use serde_json::{Value, json};

use crate::common::Rig;
use crate::kit::{assert_equal, compare, streaming};

const TABLES: &str = "
    CREATE TABLE things (id int PRIMARY KEY, body text, exact numeric, scaled numeric(30, 15), f float8, a int, b int, doc text);
    ALTER TABLE things ALTER COLUMN doc SET STORAGE EXTERNAL;
    INSERT INTO things SELECT g, 'body ' || g, g + 1.0, 0.123456789012345 + g, 0, g, -g,
        CASE WHEN g % 100 = 0 THEN repeat('large ' || g, 2000) END FROM generate_series(1, 5000) g;
    CREATE TABLE pairs (a text, b bigint, note text, PRIMARY KEY (b, a));
    INSERT INTO pairs SELECT 'ä, \"' || g, g % 7, 'n' FROM generate_series(1, 500) g;
    CREATE TABLE visits (who int, what text);
    ALTER TABLE visits REPLICA IDENTITY FULL;
    INSERT INTO visits SELECT g % 50, 'same' FROM generate_series(1, 1000) g;";

/// What is done to the sink, in which table, and what must be said of it.
struct Damage {
    name: &'static str,
    sql: &'static str,
    table: &'static str,
    kind: &'static str,
    key: Value,
    columns: Value,
}

fn damage(name: &'static str, sql: &'static str, kind: &'static str, key: Value, columns: &[&str]) -> Damage {
    let table = ["pairs", "visits"].into_iter().find(|table| sql.contains(table)).unwrap_or("things");
    Damage { name, sql, table, kind, key, columns: json!(columns) }
}

fn damages() -> Vec<Damage> {
    let id = |id: &str| json!({ "id": id });
    let differs = |name, sql, key: &str, columns: &[&str]| damage(name, sql, "differs", id(key), columns);
    vec![
        damage("a lost row", "DELETE FROM things WHERE id = 77", "missingInSink", id("77"), &[]),
        damage("an extra row", "INSERT INTO things (id) VALUES (9999)", "extraInSink", id("9999"), &[]),
        damage(
            "a missed delete",
            "INSERT INTO things SELECT * FROM saved.deleted",
            "extraInSink",
            id("5001"),
            &[],
        ),
        differs("one byte", "UPDATE things SET body = 'bodY 12' WHERE id = 12", "12", &["body"]),
        differs(
            "one byte of a large value",
            "UPDATE things SET doc = overlay(doc PLACING 'X' FROM 9000) WHERE id = 200",
            "200",
            &["doc"],
        ),
        differs("NULL for a large value", "UPDATE things SET doc = NULL WHERE id = 300", "300", &["doc"]),
        differs("an empty text for NULL", "UPDATE things SET doc = '' WHERE id = 301", "301", &["doc"]),
        differs(
            "a rounded 15th digit",
            "UPDATE things SET scaled = round(scaled, 14) WHERE id = 4",
            "4",
            &["scaled"],
        ),
        differs("a trailing space", "UPDATE things SET body = body || ' ' WHERE id = 5", "5", &["body"]),
        differs("swapped columns", "UPDATE things SET a = b, b = a WHERE id = 6", "6", &["a", "b"]),
        differs("-0 for 0", "UPDATE things SET f = '-0' WHERE id = 7", "7", &["f"]),
        differs("1.00 for 1.0", "UPDATE things SET exact = 9.00 WHERE id = 8", "8", &["exact"]),
        damage(
            "a value under a composite key",
            "UPDATE pairs SET note = 'm' WHERE a = 'ä, \"33'",
            "differs",
            json!({"a": "ä, \"33", "b": "5"}),
            &["note"],
        ),
        damage(
            "a doubled row without key",
            "INSERT INTO visits VALUES (3, 'same')",
            "extraInSink",
            json!({}),
            &[],
        ),
        damage(
            "a lost row without key",
            "DELETE FROM visits WHERE ctid = (SELECT min(ctid) FROM visits WHERE who = 9)",
            "missingInSink",
            json!({}),
            &[],
        ),
    ]
}

async fn rig() -> Result<Rig> {
    let rig = Rig::new(Version::V15, &["public.*"]).await?;
    rig.on_source(TABLES).await?;
    Ok(rig)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_damage_of_the_sink_is_found_with_its_key_and_its_columns() -> Result<()> {
    let rig = rig().await?;
    let _worker = streaming(&rig).await?;
    rig.on_sink(
        "CREATE SCHEMA saved; CREATE TABLE saved.things AS TABLE things; CREATE TABLE saved.pairs AS TABLE pairs; \
         CREATE TABLE saved.visits AS TABLE visits; \
         CREATE TABLE saved.deleted AS SELECT * FROM things WHERE id = 5000; UPDATE saved.deleted SET id = 5001",
    )
    .await?;
    assert_equal(&rig)?;
    for Damage { name, sql, table, kind, key, columns } in damages() {
        rig.on_sink(sql).await?;
        let said = compare(&rig, &[])?;
        ensure!(said.code == 1 && said.json["verdict"] == "different", "{name}: {said:#?}");
        let differences = said.json["differences"].as_array().cloned().unwrap_or_default();
        ensure!(differences.len() == 1, "{name}: {said:#?}");
        let found = &differences[0];
        ensure!(
            found["table"] == format!("public.{table}")
                && found["kind"] == kind
                && found["key"] == key
                && found["columns"] == columns,
            "{name}: {found:#}"
        );
        ensure!(found.get("values").is_none(), "{name}: values were shown without being asked for");
        if key == json!({}) {
            ensure!(found["place"].as_str().is_some_and(|place| place.starts_with("ctid (")), "{found:#}");
        }
        rig.on_sink(&format!("TRUNCATE {table}; INSERT INTO {table} SELECT * FROM saved.{table}")).await?;
    }
    assert_equal(&rig)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_wrong_row_of_two_hundred_thousand_is_named_and_its_values_on_request() -> Result<()> {
    let rig = Rig::new(Version::V17, &["public.*"]).await?;
    rig.on_source(
        "CREATE TABLE big (id bigint PRIMARY KEY, body text);
         INSERT INTO big SELECT g, md5(g::text) FROM generate_series(1, 200000) g",
    )
    .await?;
    let _worker = streaming(&rig).await?;
    rig.on_sink("UPDATE big SET body = 'wrong' WHERE id = 123456").await?;
    let said = compare(&rig, &["--values"])?;
    let found = &said.json["differences"][0];
    ensure!(said.code == 1 && found["key"] == json!({"id": "123456"}), "{said:#?}");
    let body = rig.source_value("SELECT md5('123456')").await?;
    ensure!(found["values"] == json!([{"column": "body", "source": body, "sink": "wrong"}]), "{found:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_lost_everything_is_told_of_with_as_many_rows_as_were_asked_for() -> Result<()> {
    let rig = rig().await?;
    let _worker = streaming(&rig).await?;
    rig.on_sink("DELETE FROM things").await?;
    let said = compare(&rig, &["--limit", "3", "public.things"])?;
    let tables = said.json["tables"].as_array().cloned().unwrap_or_default();
    ensure!(said.code == 1 && tables.len() == 1, "{said:#?}");
    ensure!(tables[0]["sourceRows"] == 5000 && tables[0]["sinkRows"] == 0, "{tables:#?}");
    ensure!(tables[0]["differingRows"] == 5000 && tables[0]["isAtLeast"] == false, "{tables:#?}");
    ensure!(said.json["differences"].as_array().is_some_and(|rows| rows.len() == 3), "{said:#?}");
    Ok(())
}
