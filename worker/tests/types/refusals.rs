//! What cannot be carried stops the pipeline with a sentence, before the source keeps its log for it.

use anyhow::{Result, ensure};
use penstock_e2e::postgres::Version;

use crate::common::Rig;
use crate::samples::{MAKE, MAKE_BASE};

const NO_SLOT: &str = "SELECT count(*) FROM pg_replication_slots";

/// Starts a worker, which must say all of that and make no slot.
async fn says(rig: &Rig, words: &[&str]) -> Result<()> {
    let worker = rig.start(0)?;
    for word in words {
        worker.wait_for_output(word).await?;
    }
    assert_eq!(rig.source_value(NO_SLOT).await?, "0");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_extension_is_told_and_then_taken_wherever_it_is() -> Result<()> {
    let rig = Rig::new(Version::V15, &["public.*"]).await?;
    rig.on_source(
        "CREATE EXTENSION citext; CREATE EXTENSION hstore; CREATE TABLE t (id citext PRIMARY KEY, more hstore[]);
         INSERT INTO t VALUES ('Key', ARRAY['a=>1'::hstore])",
    )
    .await?;
    let words = ["SinkTableMismatch", "of the extension citext", "CREATE EXTENSION \\\"hstore\\\" CASCADE"];
    says(&rig, &words).await?;
    rig.on_sink(
        "CREATE SCHEMA extensions; CREATE EXTENSION citext SCHEMA extensions; CREATE EXTENSION hstore",
    )
    .await?;
    let worker = rig.start(0)?;
    worker.wait_for_output("\"message\":\"streaming\"").await?;
    // The key in other letters is the same key, and is written as it is now.
    rig.on_source(
        "UPDATE t SET id = 'KEY'; INSERT INTO t VALUES ('other'); DELETE FROM t WHERE id = 'OTHER'",
    )
    .await?;
    rig.wait_until_caught_up().await?;
    assert_eq!(rig.sink_value("SELECT id || more::text FROM t").await?, "KEY{\"\\\"a\\\"=>\\\"1\\\"\"}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn types_that_the_pipeline_cannot_make_are_told() -> Result<()> {
    let rig = Rig::new(Version::V15, &["types.*"]).await?;
    rig.on_source("CREATE SCHEMA types").await?;
    rig.on_source(MAKE_BASE).await?;
    rig.on_source(
        "CREATE TYPE types.words AS RANGE (subtype = text, collation = \"C\"); CREATE TABLE types.other (a int PRIMARY KEY);
         CREATE TABLE types.t (id int PRIMARY KEY, n types.number[], w types.words, o types.other); DROP TABLE IF EXISTS nothing",
    )
    .await?;
    let words = [
        "the type types.number is missing, and it has functions of its own",
        "the type types.words is missing, and it has functions, operators or a collation of its own",
        "the type types.other is missing, and it is that of the rows of a table",
    ];
    says(&rig, &words).await
}

#[tokio::test(flavor = "multi_thread")]
async fn types_of_the_sink_that_are_not_the_sources_are_told_with_their_statements() -> Result<()> {
    let rig = Rig::new(Version::V15, &["types.*"]).await?;
    rig.on_source("CREATE SCHEMA types").await?;
    rig.on_source(MAKE).await?;
    rig.on_source("CREATE TABLE types.t (id int PRIMARY KEY, n types.nested[], p types.couple)").await?;
    rig.on_sink(
        "CREATE SCHEMA types; CREATE TYPE types.mood AS ENUM ('sad', 'ünï\\');
         CREATE TYPE types.pair AS (a integer, \"B \"\"b\" text, mood types.mood, price numeric(10,2))",
    )
    .await?;
    let statements = [
        "ALTER TYPE types.mood ADD VALUE 'it''s \"ok\", {really}'",
        "ALTER TYPE \"types\".\"pair\" ADD ATTRIBUTE \"short\" character varying(5)",
    ];
    let told: Vec<String> =
        statements.iter().map(|statement| statement.replace('\\', "\\\\").replace('"', "\\\"")).collect();
    says(&rig, &told.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    for statement in statements {
        rig.on_sink(statement).await?;
    }
    let worker = rig.start(0)?;
    worker.wait_for_output("\"message\":\"streaming\"").await?;
    let renamed = Rig::new(Version::V15, &["types.*"]).await?;
    renamed.on_source("CREATE SCHEMA types; CREATE TYPE types.pair AS (a integer, b text); CREATE TABLE types.t (id int PRIMARY KEY, p types.pair)").await?;
    renamed.on_sink("CREATE SCHEMA types; CREATE TYPE types.pair AS (a integer, c text)").await?;
    says(&renamed, &["is (a integer, c text), the source's is (a integer, b text)"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_char_beside_what_must_travel_as_text_is_refused_before_anything_is_copied() -> Result<()> {
    let rig = Rig::new(Version::V15, &["public.*"]).await?;
    rig.on_source(
        "CREATE TABLE a (id int PRIMARY KEY, c \"char\"); CREATE TABLE b (id int PRIMARY KEY, q tsquery)",
    )
    .await?;
    says(&rig, &["UnsupportedColumnType", "public.a, column c"]).await
}

/// Version 15 would take its bytes for 178956970 years.
#[tokio::test(flavor = "multi_thread")]
async fn an_infinite_interval_never_becomes_a_number_of_years() -> Result<()> {
    let rig = Rig::between(Version::V17, Version::V15, &["public.*"]).await?;
    rig.on_source("CREATE TABLE t (id int PRIMARY KEY, v interval); INSERT INTO t VALUES (1, '1 day')")
        .await?;
    let worker = rig.start(0)?;
    worker.wait_for_output("\"message\":\"streaming\"").await?;
    rig.on_source("INSERT INTO t VALUES (2, 'infinity')").await?;
    worker.wait_for_output("SinkRejectedRow").await?;
    ensure!(rig.sink_value("SELECT count(*) FROM t").await? == "1");
    Ok(())
}
