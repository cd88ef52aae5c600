//! Filters: the sink holds the rows of which the expression is true, whatever happens to them, and no others at any time.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::common::Rig;
use crate::kit::*;

/// By a column that is not carried, one that is masked, and one whose large value mostly does not change.
const FILTER: &str = "size >= 700 && phone == null && note.startsWith('cle') && note.contains('ar note') && (mail != 'nobody' || size(body) > 0)";
const IN_FILTER: &str = "size >= 700 AND phone IS NULL AND starts_with(note, 'clear note')";

/// Rows that come into the filter, leave it, stay in it and stay out of it, some of them under another key.
const CHANGES: &str = "
    INSERT INTO people SELECT g, 'clear new ' || g, NULL, g, NULL, 'clear note', 'clear ' || repeat(md5(g::text), 100)
        FROM generate_series(601, 800) g;
    UPDATE people SET size = size + 300 WHERE id % 2 = 0;
    UPDATE people SET phone = CASE WHEN phone IS NULL THEN 'clear' END WHERE id % 5 = 0;
    UPDATE people SET id = -id WHERE id % 7 = 0;
    UPDATE people SET id = -id - 10000, size = 1400 - size WHERE id % 9 = 0;
    UPDATE people SET note = 'clear other' WHERE id % 11 = 0;
    UPDATE people SET body = 'x' || body WHERE id % 13 = 0;
    DELETE FROM people WHERE id % 17 = 0";

/// Everything that can be done to a table, and a filter.
async fn filtered() -> Result<Rig> {
    let mut transform = people_transform();
    transform["filter"] = json!(FILTER);
    let rig = people(json!([transform])).await?;
    rig.on_source("ALTER TABLE people REPLICA IDENTITY FULL").await?;
    Ok(rig)
}

fn expected() -> String {
    format!("{EXPECTED} WHERE {IN_FILTER}")
}

fn only(filter: &str) -> Value {
    json!([{"tables": ["public.people"], "filter": filter}])
}

const ALL: &str = "SELECT id, mail, phone, size, token, note, body FROM people";

async fn follows(rig: &Rig) -> Result<()> {
    let _worker = streaming(rig).await?;
    assert_is(rig, &expected(), "persons").await?;
    rig.on_source(CHANGES).await?;
    assert_is(rig, &expected(), "persons").await?;
    let (came, went) = (
        "SELECT count(*) > 20 FROM people WHERE id % 2 = 0 AND size BETWEEN 700 AND 999 AND phone IS NULL",
        "SELECT count(*) > 5 FROM people WHERE size >= 700 AND phone = 'clear'",
    );
    ensure!(rig.source_value(came).await? == "t" && rig.source_value(went).await? == "t", "nothing moved");
    let (code, said) = compare(rig, KEY)?;
    ensure!(code == 0 && said["tables"][0]["verdict"] == "equal", "{said:#}");
    rig.on_source("TRUNCATE people; INSERT INTO people (id, size, note) VALUES (1, 700, 'clear note'), (2, 699, 'clear note')")
        .await?;
    assert_is(rig, &expected(), "persons").await?;
    assert_nothing_is_clear(rig).await
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_come_into_a_filter_and_leave_it_in_binary() -> Result<()> {
    follows(&filtered().await?).await
}

/// A column that cannot travel in binary makes the whole stream text.
#[tokio::test(flavor = "multi_thread")]
async fn rows_come_into_a_filter_and_leave_it_as_text() -> Result<()> {
    let mut rig = filtered().await?;
    rig.on_source("ALTER TABLE people ADD COLUMN words tsquery; UPDATE people SET words = 'clear'::tsquery")
        .await?;
    rig.manifest["spec"]["transforms"][0]["dropColumns"] = json!(["note", "words"]);
    follows(&rig).await
}

/// Changes that are not carried are read all the same: the position and the count of changes move on.
#[tokio::test(flavor = "multi_thread")]
async fn changes_outside_of_a_filter_are_counted_and_let_the_source_free_its_log() -> Result<()> {
    let rig = people(only("id > 1000000")).await?;
    let _worker = streaming(&rig).await?;
    rig.wait_until_caught_up().await?;
    let count = "SELECT sum(sequence) FROM penstock.checkpoint";
    let before: i64 = rig.sink_value(count).await?.parse()?;
    rig.on_source("UPDATE people SET size = size + 1; DELETE FROM people WHERE id <= 50").await?;
    rig.wait_until_caught_up().await?;
    rig.wait_for(count, &(before + 350).to_string()).await?;
    ensure!(rig.sink_value("SELECT count(*) FROM people").await? == "0");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_by_the_key_needs_no_whole_rows_and_copies_again_what_comes_in_without_its_large_values()
-> Result<()> {
    let rig = people(only("id > 100 && id <= 200")).await?;
    let worker = streaming(&rig).await?;
    let expected = format!("{ALL} WHERE id > 100 AND id <= 200");
    assert_is(&rig, &expected, "people").await?;
    rig.on_source(
        "UPDATE people SET size = 0; DELETE FROM people WHERE id % 10 = 0; UPDATE people SET id = id + 1000 WHERE id % 10 = 1;
         UPDATE people SET id = 100 + id / 10 * 10, body = 'small' WHERE id % 10 = 2 AND id < 100",
    )
    .await?;
    assert_is(&rig, &expected, "people").await?;
    ensure!(!worker.output()?.contains("TableRewritten"), "it was copied again for nothing");
    rig.on_source("UPDATE people SET id = 191 WHERE id = 5").await?;
    worker.wait_for_output("came into the filter, and a large value was not sent").await?;
    rig.wait_for("SELECT length(body) FROM people WHERE id = 191", "3211").await?;
    assert_is(&rig, &expected, "people").await
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_without_a_key_come_and_go_one_by_one() -> Result<()> {
    let mut rig = rig(&["public.visits"]).await?;
    rig.on_source(
        "CREATE TABLE visits (page text, n int); ALTER TABLE visits REPLICA IDENTITY FULL;
         INSERT INTO visits SELECT 'p' || g % 3, g % 4 FROM generate_series(1, 120) g",
    )
    .await?;
    rig.manifest["spec"]["transforms"] =
        json!([{"tables": ["public.visits"], "filter": "n != 2 && page != 'p1'"}]);
    let _worker = streaming(&rig).await?;
    let expected = "SELECT page, n FROM visits WHERE n <> 2 AND page <> 'p1'";
    assert_is(&rig, expected, "visits").await?;
    rig.on_source(
        "UPDATE visits SET n = 2 WHERE ctid IN (SELECT ctid FROM visits WHERE n = 3 LIMIT 7);
         UPDATE visits SET page = 'p0' WHERE ctid IN (SELECT ctid FROM visits WHERE page = 'p1' LIMIT 11);
         DELETE FROM visits WHERE ctid IN (SELECT ctid FROM visits WHERE n = 1 LIMIT 13)",
    )
    .await?;
    assert_is(&rig, expected, "visits").await?;
    let (code, said) = compare(&rig, KEY)?;
    ensure!(code == 0, "{said:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partitioned_table_is_filtered_by_its_primary_key() -> Result<()> {
    let mut rig = rig(&["public.parted"]).await?;
    rig.on_source(
        "CREATE TABLE parted (id int, region text, note text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
         CREATE TABLE parted_eu PARTITION OF parted FOR VALUES IN ('eu'); CREATE TABLE parted_us PARTITION OF parted DEFAULT;
         INSERT INTO parted SELECT g, CASE WHEN g % 2 = 0 THEN 'eu' ELSE 'us' END, 'n' || g FROM generate_series(1, 100) g",
    )
    .await?;
    rig.manifest["spec"]["transforms"] = json!([{"tables": ["public.parted"], "filter": "region == 'eu'"}]);
    let _worker = streaming(&rig).await?;
    let expected = "SELECT id, region, note FROM parted WHERE region = 'eu'";
    assert_is(&rig, expected, "parted").await?;
    rig.on_source(
        "UPDATE parted SET region = 'eu' WHERE id % 10 = 1; UPDATE parted SET region = 'us' WHERE id % 10 = 2;
         UPDATE parted SET note = 'other' WHERE id % 3 = 0; DELETE FROM parted WHERE id % 7 = 0",
    )
    .await?;
    assert_is(&rig, expected, "parted").await
}

/// Tables that are added are copied in ranges while their changes are streamed.
#[tokio::test(flavor = "multi_thread")]
async fn ranges_bring_the_rows_of_the_filter_and_no_others() -> Result<()> {
    let mut rig = filtered().await?;
    rig.on_source(
        "CREATE TABLE late (id bigint PRIMARY KEY, n int NOT NULL, body text); ALTER TABLE late REPLICA IDENTITY FULL;
         INSERT INTO late SELECT g, g % 10, repeat(md5(g::text), 20) FROM generate_series(1, 30000) g; ANALYZE late",
    )
    .await?;
    let mut worker = streaming(&rig).await?;
    rig.wait_until_caught_up().await?;
    worker.terminate()?;
    rig.manifest["spec"]["source"]["postgres"]["tables"] = json!(["public.people", "public.late"]);
    let late = json!({"tables": ["public.late"], "filter": "n in [3, 4]"});
    rig.manifest["spec"]["transforms"].as_array_mut().context("transforms")?.push(late);
    let mut worker = rig.start_as(&[WITH_KEY[0], ("FAILPOINTS", "AfterRangeNoted=1*return(abort)")])?;
    ensure!(worker.ended().await?.is_some(), "no range was noted");
    rig.on_source(
        "UPDATE late SET n = n + 1 WHERE id % 100 < 50; DELETE FROM late WHERE id % 77 = 0;
         INSERT INTO late SELECT -g, g % 10, '' FROM generate_series(1, 100) g",
    )
    .await?;
    let _worker = streaming(&rig).await?;
    rig.on_source("UPDATE late SET n = (n + 5) % 10 WHERE id % 13 = 0; UPDATE late SET id = id + 100000 WHERE id % 500 = 3").await?;
    assert_is(&rig, "SELECT id, n, body FROM late WHERE n IN (3, 4)", "late").await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_filter_copies_the_table_again_and_leaves_no_row_of_the_one_before() -> Result<()> {
    let mut rig = people(only("id <= 100")).await?;
    let mut worker = streaming(&rig).await?;
    assert_is(&rig, &format!("{ALL} WHERE id <= 100"), "people").await?;
    for (filter, rows) in [(only("id > 90"), "id > 90"), (json!([]), "true")] {
        worker.terminate()?;
        rig.on_source("UPDATE people SET size = size + 1; DELETE FROM people WHERE id % 50 = 3").await?;
        rig.manifest["spec"]["transforms"] = filter;
        worker = rig.start_as(&WITH_KEY)?;
        worker.wait_for_output("its transforms are others").await?;
        worker.wait_for_output(STREAMING).await?;
        assert_is(&rig, &format!("{ALL} WHERE {rows}"), "people").await?;
    }
    Ok(())
}

/// In the first load and in the stream: no row is left out because nobody could say whether it is to be.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_cannot_be_decided_halts_the_pipeline_and_is_carried_by_a_better_filter() -> Result<()> {
    let mut rig = people(only("phone > 'a'")).await?;
    rig.on_source("ALTER TABLE people REPLICA IDENTITY FULL").await?;
    let mut worker = rig.start_as(&WITH_KEY)?;
    let why = "The filter cannot decide a row of public.people: `phone > 'a'` is neither true nor false where phone is NULL";
    worker.wait_for_output(why).await?;
    ensure!(message(&worker, "TransformFailed")?.contains("Nothing of its transaction was carried"));
    worker.terminate()?;
    rig.on_source("UPDATE people SET phone = 'b' WHERE phone IS NULL").await?;
    let mut worker = streaming(&rig).await?;
    let in_filter = format!("{ALL} WHERE phone COLLATE \"C\" > 'a'");
    assert_is(&rig, &in_filter, "people").await?;
    rig.on_source("UPDATE people SET phone = NULL WHERE id = 7").await?;
    worker.wait_for_output(why).await?;
    worker.terminate()?;
    rig.manifest["spec"]["transforms"] = only("phone != null && phone > 'a'");
    let _worker = streaming(&rig).await?;
    assert_is(&rig, &in_filter, "people").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_does_not_fit_stops_before_anything_is_written() -> Result<()> {
    for (filter, why) in [
        ("size > 5", "column size: the filter names it, and it is not in the replica identity"),
        ("seize > 5", "the table has no column seize"),
        ("token > 5", "take two ints or two strings"),
        ("id >", "it is no CEL expression"),
    ] {
        let rig = people(only(filter)).await?;
        let worker = rig.start_as(&WITH_KEY)?;
        halted(&worker, "TransformUnsuitable").await?;
        let message = message(&worker, "TransformUnsuitable")?;
        ensure!(message.contains("public.people") && message.contains(why), "{message}");
        ensure!(rig.sink_value("SELECT to_regclass('public.people') IS NULL").await? == "t", "it was made");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_whose_column_or_identity_changes_stops_the_pipeline_under_every_policy() -> Result<()> {
    for (how, statement, why) in [
        ("Stop", "ALTER TABLE people RENAME COLUMN size TO height", "column size: filter names it"),
        ("Apply", "ALTER TABLE people DROP COLUMN size", "column size: filter names it"),
        ("Ignore", "ALTER TABLE people ALTER COLUMN size TYPE numeric", "column size"),
        (
            "Stop",
            "ALTER TABLE people REPLICA IDENTITY DEFAULT",
            "column size: the filter names it, and it is not in the replica",
        ),
    ] {
        let mut rig = people(only("size > 700")).await?;
        rig.on_source("ALTER TABLE people REPLICA IDENTITY FULL").await?;
        policy(&mut rig, how);
        let worker = streaming(&rig).await?;
        rig.wait_until_caught_up().await?;
        rig.on_source(&format!("{statement}; UPDATE people SET note = 'n' WHERE id > 50")).await?;
        halted(&worker, "TransformUnsuitable").await?;
        let message = message(&worker, "TransformUnsuitable")?;
        ensure!(message.contains("public.people") && message.contains(why), "{statement}: {message}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_takes_the_place_of_one_in_a_filter_is_never_beside_it() -> Result<()> {
    let mut rig = people(only("size > 700")).await?;
    policy(&mut rig, "Apply");
    rig.on_source("ALTER TABLE people REPLICA IDENTITY FULL, ADD COLUMN other int NOT NULL DEFAULT 0; UPDATE people SET other = 1000 WHERE id < 50")
        .await?;
    let worker = streaming(&rig).await?;
    rig.wait_until_caught_up().await?;
    rig.on_source(
        "BEGIN; ALTER TABLE people DROP COLUMN size; ALTER TABLE people RENAME COLUMN other TO size; UPDATE people SET note = 'n' WHERE id = 1; COMMIT",
    )
    .await?;
    worker.wait_for_output("is copied again").await?;
    assert_is(&rig, "SELECT id, mail, phone, token, note, body, size FROM people WHERE size > 700", "people")
        .await
}
