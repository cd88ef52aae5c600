//! First load and stream: the same comes of every row, however it arrives.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::common::{Rig, Worker};
use crate::kit::*;

/// Every kind of change, with large values that are not sent again, and keys that change.
const CHANGES: &str = "
    INSERT INTO people SELECT g, 'clear new ' || g, NULL, g, NULL, 'clear', 'clear ' || repeat(md5(g::text), 100)
        FROM generate_series(1001, 1050) g;
    UPDATE people SET size = size + 1 WHERE id % 2 = 0;
    UPDATE people SET mail = 'clear changed ' || id, phone = 'clear' WHERE id % 5 = 0;
    UPDATE people SET id = -id WHERE id % 7 = 0;
    UPDATE people SET note = 'clear other' WHERE id % 11 = 0;
    UPDATE people SET body = 'x' || body WHERE id % 13 = 0;
    DELETE FROM people WHERE id % 17 = 0";

async fn loads_and_streams(rig: &Rig) -> Result<()> {
    let worker = streaming(rig).await?;
    assert_is(rig, EXPECTED, "persons").await?;
    rig.on_source(CHANGES).await?;
    assert_is(rig, EXPECTED, "persons").await?;
    rig.on_source("TRUNCATE people; INSERT INTO people (id, size) VALUES (1, 2)").await?;
    assert_is(rig, EXPECTED, "persons").await?;
    assert_nothing_is_clear(rig).await?;
    ensure!(!worker.output()?.contains(KEY), "the key of the masks was logged");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn first_load_and_stream_bring_what_the_transforms_give_in_binary() -> Result<()> {
    let rig = people(json!([people_transform()])).await?;
    loads_and_streams(&rig).await
}

/// A column that cannot travel in binary makes the whole stream text.
#[tokio::test(flavor = "multi_thread")]
async fn first_load_and_stream_bring_what_the_transforms_give_as_text() -> Result<()> {
    let mut transform = people_transform();
    transform["dropColumns"] = json!(["note", "words"]);
    let rig = people(json!([transform])).await?;
    rig.on_source(
        "ALTER TABLE people ADD COLUMN words tsquery; UPDATE people SET words = 'clear'::tsquery;
         UPDATE people SET body = E'tab\\there, line\\nend \\\\ ' || body WHERE id < 50;
         UPDATE people SET mail = E'\\\\N' WHERE id = 7",
    )
    .await?;
    loads_and_streams(&rig).await
}

#[tokio::test(flavor = "multi_thread")]
async fn sink_tables_are_made_with_the_columns_names_and_types_of_the_transforms() -> Result<()> {
    let mut rig = people(json!([people_transform()])).await?;
    rig.manifest["spec"]["sink"]["postgres"]["schemaMap"] = json!({"public": "copy"});
    let _worker = streaming(&rig).await?;
    let made = rig
        .sink_value(
            "SELECT string_agg(format('%s %s %s %s', attname, format_type(atttypid, atttypmod), attnotnull, atthasdef), ', ' ORDER BY attnum) \
             FROM pg_attribute WHERE attrelid = 'copy.persons'::regclass AND attnum > 0",
        )
        .await?;
    ensure!(
        made == "id integer t f, mail text t f, phone text f f, height integer t f, token text f f, body text f f",
        "{made}"
    );
    let key = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'copy.persons'::regclass";
    ensure!(rig.sink_value(key).await? == "PRIMARY KEY (id)");
    assert_is(&rig, EXPECTED, "copy.persons").await
}

/// The stream names such types by numbers of the source, and a domain by another one than what it is over.
#[tokio::test(flavor = "multi_thread")]
async fn columns_of_enums_domains_and_every_width_of_number_are_masked_alike_however_they_come() -> Result<()>
{
    let mut rig = rig(&["public.odd"]).await?;
    rig.on_source(
        "CREATE TYPE mood AS ENUM ('sky', 'night'); CREATE DOMAIN letter AS varchar(40); CREATE DOMAIN number AS int;
         CREATE TABLE odd (id bigint PRIMARY KEY, mood mood, letter letter, number number, small smallint, wide bigint, code char(12),
             day date, tags text[]);
         INSERT INTO odd SELECT g, CASE WHEN g % 2 = 0 THEN 'sky'::mood ELSE 'night' END, 'clear' || g, -g, g, g * 5000000000,
             'clear' || g, current_date, ARRAY['clear'] FROM generate_series(1, 200) g",
    )
    .await?;
    rig.manifest["spec"]["transforms"] = json!([{"tables": ["public.odd"], "maskColumns": [
        {"columns": ["mood", "letter", "number", "small", "wide", "code"], "hash": {"keySecret": "pii"}},
        {"columns": ["day", "tags"], "redact": {"with": "hidden"}},
    ]}]);
    let _worker = streaming(&rig).await?;
    let expected = "SELECT id, masked(mood::text) AS mood, masked(letter) AS letter, masked(number::text) AS number, \
        masked(small::text) AS small, masked(wide::text) AS wide, masked(format('%s', code)) AS code, 'hidden'::text AS day, \
        'hidden'::text AS tags FROM odd";
    assert_is(&rig, expected, "odd").await?;
    rig.on_source(
        "UPDATE odd SET mood = 'night', letter = 'clear other', number = 2147483647, small = -32768, wide = -1, code = 'clear'
            WHERE id % 3 = 0;
         INSERT INTO odd SELECT g, 'sky', 'clear', g, 1, g, 'clear', current_date, '{clear}' FROM generate_series(1001, 1020) g",
    )
    .await?;
    assert_is(&rig, expected, "odd").await?;
    let (code, said) = compare(&rig, KEY)?;
    ensure!(code == 0, "{said:#}");
    assert_nothing_is_clear(&rig).await
}

/// Without a key the whole row names it, as it is in the sink; equal rows there are as many as in the source.
#[tokio::test(flavor = "multi_thread")]
async fn rows_without_a_key_stay_as_many_as_they_are_although_masks_make_them_equal() -> Result<()> {
    let mut rig = rig(&["public.visits"]).await?;
    rig.on_source(
        "CREATE TABLE visits (who text, page text, n int); ALTER TABLE visits REPLICA IDENTITY FULL;
         INSERT INTO visits SELECT 'clear' || g, 'p' || g % 3, g FROM generate_series(1, 100) g",
    )
    .await?;
    rig.manifest["spec"]["transforms"] = json!([{"tables": ["public.visits"], "dropColumns": ["n"], "maskColumns": [{"columns": ["who"], "redact": {"with": ""}}]}]);
    let _worker = streaming(&rig).await?;
    let expected = "SELECT ''::text AS who, page FROM visits";
    assert_is(&rig, expected, "visits").await?;
    rig.on_source(
        "DELETE FROM visits WHERE n % 4 = 0; UPDATE visits SET page = 'q' WHERE n % 5 = 0;
         UPDATE visits SET who = 'clear other' WHERE n % 6 = 0; INSERT INTO visits VALUES ('clear', 'p1', 1)",
    )
    .await?;
    assert_is(&rig, expected, "visits").await?;
    assert_nothing_is_clear(&rig).await
}

/// Rows of about twelve chunks, some of which are in the sink when the worker dies.
async fn big(transforms: serde_json::Value) -> Result<Rig> {
    let mut rig = rig(&["public.big"]).await?;
    rig.on_source(
        "CREATE TABLE big (id bigint PRIMARY KEY, body text, mail text); ALTER TABLE big ALTER body SET STORAGE plain;
         INSERT INTO big SELECT g * 2, repeat(md5(g::text), 60), 'clear' || g FROM generate_series(1, 60000) g; ANALYZE big",
    )
    .await?;
    rig.manifest["spec"]["source"]["postgres"]["snapshot"] = json!({"parallelism": 2});
    rig.manifest["spec"]["transforms"] = transforms;
    Ok(rig)
}

/// Dies with some chunks in the sink, and again where the rest is brought; what is there then is masked already.
async fn survives_kills(rig: &Rig, expected: &str) -> Result<Worker> {
    for failpoints in [
        "AfterChunkCommit=3*off->1*return(abort)",
        "BeforeTableReady=1*return(abort);AfterRangeNoted=1*return(abort)",
    ] {
        let mut worker = rig.start_as(&[WITH_KEY[0], ("FAILPOINTS", failpoints)])?;
        ensure!(worker.ended().await?.is_some(), "it did not come to {failpoints}");
        assert_nothing_is_clear(rig).await?;
        rig.on_source(
            "UPDATE big SET mail = 'clear again' WHERE id % 300 = 2; DELETE FROM big WHERE id % 500 = 6;
             INSERT INTO big SELECT max(id) + 1, 'b', 'clear' FROM big",
        )
        .await?;
    }
    let worker = streaming(rig).await?;
    assert_is(rig, expected, "big").await?;
    assert_nothing_is_clear(rig).await?;
    Ok(worker)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_load_with_masks_that_is_killed_goes_on_and_holds_nothing_in_the_clear() -> Result<()> {
    let transform = json!([{"tables": ["public.big"], "renameColumns": {"id": "number"}, "maskColumns": [
        {"columns": ["mail"], "hash": {"keySecret": "pii"}}]}]);
    let rig = big(transform).await?;
    survives_kills(&rig, "SELECT id AS number, body, masked(mail) AS mail FROM big").await.map(drop)
}

/// How far such a table is copied would be noted in the sink, as values of its key.
#[tokio::test(flavor = "multi_thread")]
async fn a_hashed_key_is_nowhere_in_the_sink_though_its_first_load_is_killed() -> Result<()> {
    let transform = json!([{"tables": ["public.big"], "dropColumns": ["mail"], "maskColumns": [
        {"columns": ["id"], "hash": {"keySecret": "pii"}}]}]);
    let rig = big(transform).await?;
    let _worker = survives_kills(&rig, "SELECT masked(id::text) AS id, body FROM big").await?;
    let noted = "SELECT (SELECT count(*) FROM penstock.copied_chunk) || ' ' || \
                 (SELECT count(*) FROM penstock.table_state WHERE copied_to IS NOT NULL)";
    ensure!(rig.sink_value(noted).await? == "0 0", "a key is noted");
    rig.on_source("UPDATE big SET id = -id WHERE id % 100 = 2; DELETE FROM big WHERE id % 100 = 4").await?;
    assert_is(&rig, "SELECT masked(id::text) AS id, body FROM big", "big").await
}
