//! Every type, between different versions, and tables as they come: equal rows look equal.

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use penstock_e2e::postgres::{Server, Version};
use serde_json::json;

use crate::common::Rig;
use crate::kit::{assert_equal, compare, streaming};
use crate::samples::{BUILT_IN, MADE, MAKE, Sample};

/// What only travels as text, and then makes everything do so.
const TEXT_ONLY: [&str; 3] = ["tsquery", "int2vector", "oidvector"];

/// A table with a key, and one without, of each value, alone and in an array.
fn fill(number: usize, sample: &Sample) -> String {
    let type_sql = sample.type_sql;
    let mut sql = format!(
        "CREATE TABLE types.t{number} (id serial PRIMARY KEY, v {type_sql}, a {type_sql}[]);
         CREATE TABLE types.f{number} (v {type_sql}, n int); ALTER TABLE types.f{number} REPLICA IDENTITY FULL;"
    );
    let null = if sample.is_nullable { "NULL, " } else { "" };
    for value in sample.values {
        let _infallible = write!(
            sql,
            "INSERT INTO types.t{number} (v, a) SELECT x, ARRAY[{null}x]::{type_sql}[] FROM (SELECT ({value})::{type_sql}) AS s (x);"
        );
    }
    let _infallible = write!(sql, "INSERT INTO types.f{number} SELECT v, id FROM types.t{number};");
    if sample.is_nullable {
        let _infallible = write!(sql, "INSERT INTO types.t{number} (v, a) VALUES (NULL, NULL);");
    }
    sql
}

/// One table per type: a column, an array, and a row that is changed while comparisons begin.
async fn every_type_between(source: Version, sink: Version) -> Result<()> {
    let mut rig = Rig::between(source, sink, &["types.*"]).await?;
    rig.manifest["spec"]["sink"]["postgres"]["schemaMap"] = json!({"types": "copies"});
    // Where somebody likes values written in another way.
    for setting in [
        "datestyle = 'SQL, DMY'",
        "intervalstyle = 'iso_8601'",
        "extra_float_digits = -15",
        "bytea_output = 'escape'",
    ] {
        rig.on_sink(&format!("ALTER DATABASE {} SET {setting}", rig.database)).await?;
    }
    let oldest = source.min(sink);
    let client = rig.source.connect(&rig.database).await?;
    client
        .run("CREATE SCHEMA types; CREATE TYPE types.filler AS (a int); SET search_path = pg_catalog, types")
        .await?;
    client.run(MAKE).await?;
    let mut count = 0;
    for sample in BUILT_IN.iter().chain(MADE) {
        let is_char = sample.type_sql == "\"char\"" && oldest < Version::V16;
        if sample.since > oldest || TEXT_ONLY.contains(&sample.type_sql) || is_char {
            continue;
        }
        client.run(&fill(count, sample)).await.map_err(|error| error.context(sample.type_sql))?;
        count += 1;
    }
    let _worker = streaming(&rig).await?;
    let all = assert_equal(&rig)?;
    ensure!(all.json["tables"].as_array().map_or(0, Vec::len) == 2 * count, "{all:#?}");
    // The same as changes: a row comes, goes, changes, or gets another key between a snapshot and its barrier.
    let load = tokio::spawn(async move {
        loop {
            for number in 0..count {
                client
                    .run(&format!(
                        "UPDATE types.t{number} SET a = a; UPDATE types.t{number} SET id = -id; \
                         INSERT INTO types.f{number} SELECT v, 0 FROM types.t{number} LIMIT 1; \
                         DELETE FROM types.f{number} WHERE ctid = (SELECT min(ctid) FROM types.f{number})"
                    ))
                    .await?;
            }
            if false {
                return anyhow::Ok(());
            }
        }
    });
    let mut changed = 0;
    for _ in 0..2 {
        let said = assert_equal(&rig)?;
        let tables = said.json["tables"].as_array().cloned().unwrap_or_default();
        changed += tables.iter().filter(|table| table["changedRows"] != 0).count();
    }
    load.abort();
    ensure!(changed > 0, "no row changed between a snapshot and its barrier: nothing was tried");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_every_type_look_the_same_from_14_to_18() -> Result<()> {
    every_type_between(Version::V14, Version::V18).await
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_every_type_look_the_same_from_18_to_15() -> Result<()> {
    every_type_between(Version::V18, Version::V15).await
}

#[tokio::test(flavor = "multi_thread")]
async fn only_carried_columns_are_compared_and_odd_names_and_keys_are_taken() -> Result<()> {
    let mut rig = Rig::new(Version::V16, &["public.*", "\"Odd\".*"]).await?;
    rig.manifest["spec"]["source"]["postgres"]["tables"] = json!(["public.*", "Odd.*"]);
    rig.manifest["spec"]["sink"]["postgres"]["schemaMap"] = json!({"Odd": "even"});
    rig.on_source(
        "CREATE SCHEMA \"Odd\";
         CREATE TABLE \"Odd\".\"a \"\"b\" (\"K 1\" character(5), \"k,2\" numeric, \"v'\" text, PRIMARY KEY (\"K 1\", \"k,2\"));
         INSERT INTO \"Odd\".\"a \"\"b\" VALUES ('a', 1.0, '\\'), ('it''s', 'NaN', NULL), ('', 1.00, '');
         CREATE TABLE made (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED);
         INSERT INTO made VALUES (1), (2);
         CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child (more int) INHERITS (parent);
         INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2, 3); ALTER TABLE child REPLICA IDENTITY FULL;
         CREATE TABLE empty (id int PRIMARY KEY);
         CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (100);
         INSERT INTO parted SELECT generate_series(0, 99)",
    )
    .await?;
    // The sink computes another value, and has a column of its own: neither is carried.
    rig.on_sink(
        "CREATE TABLE made (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 3) STORED, own text DEFAULT 'x')",
    )
    .await?;
    let worker = rig.start(0)?;
    if worker.wait_for_output_within(crate::kit::STREAMING, std::time::Duration::from_secs(40)).await.is_err()
    {
        anyhow::bail!("{}", worker.tail()?);
    }
    assert_equal(&rig)?;
    rig.on_sink("UPDATE even.\"a \"\"b\" SET \"v'\" = 'other' WHERE \"K 1\" = 'a'").await?;
    let said = compare(&rig, &[])?;
    let found = &said.json["differences"][0];
    ensure!(
        said.code == 1
            && found["key"] == json!({"K 1": "a    ", "k,2": "1.0"})
            && found["columns"] == json!(["v'"]),
        "{said:#?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_of_different_encodings_are_compared_by_their_characters() -> Result<()> {
    let source = Server::builder(Version::V15).setting("wal_sender_timeout", "10s").start().await?;
    let sink = Server::start(Version::V15).await?;
    source.run("postgres", "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0").await?;
    sink.create_database("latin").await?;
    let mut rig = Rig::on(source.into(), sink.into(), "other", &["public.*"]).await?;
    rig.database = "latin".into();
    for end in ["source", "sink"] {
        rig.manifest["spec"][end]["postgres"]["connection"]["database"] = json!("latin");
    }
    rig.on_source("CREATE TABLE t (id text PRIMARY KEY, v text); INSERT INTO t SELECT 'kü' || g, repeat('ä', g) FROM generate_series(1, 300) g").await?;
    let _worker = streaming(&rig).await?;
    assert_equal(&rig)?;
    rig.on_sink("UPDATE t SET v = 'a' WHERE id = 'kü7'").await?;
    let said = compare(&rig, &[])?;
    ensure!(said.code == 1 && said.json["differences"][0]["key"] == json!({"id": "kü7"}), "{said:#?}");
    Ok(())
}

/// A snapshot reads no rows of a table that was rewritten since.
#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_truncated_and_altered_all_the_time_are_equal_or_unknown() -> Result<()> {
    let rig = Rig::new(Version::V15, &["public.*"]).await?;
    rig.on_source(
        "CREATE TABLE cut (id int PRIMARY KEY, body text); CREATE TABLE rewritten (id int PRIMARY KEY, body text);
         INSERT INTO cut SELECT g, 'x' FROM generate_series(1, 2000) g; INSERT INTO rewritten SELECT * FROM cut",
    )
    .await?;
    let _worker = streaming(&rig).await?;
    let (client, sink) = (rig.source.connect(&rig.database).await?, rig.sink.connect(&rig.database).await?);
    let load = tokio::spawn(async move {
        for round in 0..60 {
            client.run("BEGIN; TRUNCATE cut; INSERT INTO cut SELECT g, 'y' FROM generate_series(1, 2000) g; COMMIT").await?;
            let (at_source, at_sink) =
                (client.run("VACUUM FULL rewritten"), sink.run("VACUUM FULL rewritten"));
            let (at_source, at_sink) = tokio::join!(at_source, at_sink);
            at_source?;
            at_sink?;
            tokio::time::sleep(std::time::Duration::from_millis(50 + round)).await;
        }
        anyhow::Ok(())
    });
    while !load.is_finished() {
        let said = compare(&rig, &[])?;
        ensure!(said.code == 0 || said.code == 2, "{said:#?}");
    }
    load.await??;
    assert_equal(&rig).map(drop)
}
