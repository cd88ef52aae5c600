//! Labels of enums that were renamed: every row that holds one shows the new name at once, and the stream says nothing.

use anyhow::{Context as _, Result, ensure};
use penstock_e2e::postgres::Version;

use crate::common::{Rig, Worker};
use crate::support::{STREAMING, rig_on, start_servers, told, wait_until_equal, wait_until_halted};

/// The type in all that a column can be made of.
const MOODS: &str = "
    CREATE TYPE mood AS ENUM ('a', 'b', 'c');
    CREATE DOMAIN feeling AS mood; CREATE TYPE pair AS (number int, mood mood); CREATE TYPE moods AS RANGE (SUBTYPE = mood);
    CREATE TABLE things (id int PRIMARY KEY, mood mood);
    CREATE TABLE others (id int PRIMARY KEY, moods feeling[], pair pair, range moods);
    INSERT INTO things SELECT g, 'a' FROM generate_series(1, 5) g;
    INSERT INTO others VALUES (1, '{a,b}', '(1,a)', '[a,b]')";
const TABLES: [&str; 2] = ["things", "others"];

async fn streaming(version: Version, policy: &str) -> Result<(Rig, Worker)> {
    let rig = rig_on(start_servers(version, Version::V15).await?, policy).await?;
    rig.on_source(MOODS).await?;
    let worker = rig.start(0)?;
    worker.wait_for_output(STREAMING).await?;
    rig.wait_until_caught_up().await?;
    Ok((rig, worker))
}

/// `text` of the rows, which is what a reader sees.
async fn wait_for_moods(rig: &Rig) -> Result<()> {
    let moods = "SELECT (SELECT string_agg(t::text, ' ' ORDER BY id) FROM things t) || (SELECT string_agg(o::text, ' ' ORDER BY id) FROM others o)";
    rig.wait_for(moods, &rig.source_value(moods).await?).await?;
    wait_until_equal(rig, &TABLES).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_label_reaches_rows_that_nobody_writes_to() -> Result<()> {
    for version in [Version::V14, Version::V18] {
        let (rig, mut worker) = streaming(version, "Apply").await?;
        rig.on_source("ALTER TYPE mood RENAME VALUE 'a' TO 'it''s z'").await?;
        wait_for_moods(&rig).await.context(version)?;
        let labels = "SELECT string_agg(enumlabel, ',' ORDER BY enumsortorder) FROM pg_enum JOIN pg_type t ON t.oid = enumtypid AND typname = 'mood'";
        ensure!(rig.sink_value(labels).await? == "it's z,b,c", "{}", rig.sink_value(labels).await?);
        // While no worker runs: one gets the name that another one had.
        worker.terminate()?;
        rig.on_source(
            "ALTER TYPE mood RENAME VALUE 'b' TO 'd'; ALTER TYPE mood RENAME VALUE 'it''s z' TO 'b'",
        )
        .await?;
        let _worker = rig.start(0)?;
        wait_for_moods(&rig).await.context(version)?;
        ensure!(rig.sink_value(labels).await? == "b,d,c", "{}", rig.sink_value(labels).await?);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_with_the_new_name_of_a_label_does_not_make_a_label_of_it() -> Result<()> {
    let (rig, _worker) = streaming(Version::V15, "Apply").await?;
    rig.on_source("INSERT INTO things VALUES (6, 'a'); ALTER TYPE mood RENAME VALUE 'a' TO 'z'").await?;
    rig.on_source("INSERT INTO things VALUES (7, 'z')").await?;
    wait_for_moods(&rig).await?;
    let labels = rig.sink_value("SELECT enum_range(NULL::mood)").await?;
    ensure!(labels == "{z,b,c}", "{labels}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_two_labels_exchanged_are_copied_again() -> Result<()> {
    let (rig, _worker) = streaming(Version::V15, "Apply").await?;
    // In the order of the labels, which the sink keeps, its bounds would be the wrong way round.
    rig.on_source("UPDATE others SET range = NULL").await?;
    rig.on_source(
        "BEGIN; ALTER TYPE mood RENAME VALUE 'a' TO 'x'; ALTER TYPE mood RENAME VALUE 'b' TO 'a'; \
         ALTER TYPE mood RENAME VALUE 'x' TO 'b'; COMMIT",
    )
    .await?;
    wait_for_moods(&rig).await
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_tells_the_copy_and_the_statement_for_a_renamed_label() -> Result<()> {
    for row in ["", "INSERT INTO things VALUES (7, 'z')"] {
        let (rig, worker) = streaming(Version::V15, "Stop").await?;
        rig.on_source("ALTER TYPE mood RENAME VALUE 'a' TO 'z'").await?;
        rig.on_source(row).await?;
        wait_until_halted(&worker, "SinkDiverged").await?;
        ensure!(rig.command(&["resnapshot", "public.things", "public.others"])?.status.success());
        wait_until_halted(&worker, "SinkTableMismatch").await?;
        let told = told(&worker, "SinkTableMismatch")?;
        ensure!(told == "ALTER TYPE \"public\".\"mood\" RENAME VALUE 'a' TO 'z'", "told: {told}");
        rig.on_sink(&told).await?;
        wait_for_moods(&rig).await?;
    }
    Ok(())
}
