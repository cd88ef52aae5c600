//! Values that PostgreSQL makes up itself: what no list of samples thought of.

use anyhow::Result;
use penstock_e2e::postgres::Version;

use crate::common::Rig;

/// An expression for each type; each row gets another value of it. NULL in every seventh.
const MADE_UP: &[(&str, &str)] = &[
    ("numeric", "((random() - 0.5) * 10::numeric ^ (random() * 60 - 30)::int)::numeric * g"),
    ("numeric(20,6)", "(random() - 0.5) * 1e13"),
    ("double precision", "(random() - 0.5) * 10::float8 ^ (random() * 600 - 300)::int"),
    ("real", "(random() - 0.5) * 10::float8 ^ (random() * 60 - 30)::int"),
    ("bigint", "((random() - 0.5) * 18e18)::bigint"),
    ("timestamptz", "'4713-01-01 BC'::timestamptz + random() * 298988 * interval '1 year'"),
    ("date", "'4713-01-01 BC'::date + (random() * 2e9)::int"),
    (
        "timetz",
        "('00:00:00'::time + random() * interval '1 day')::timetz AT TIME ZONE make_interval(mins => (random() * 1800 - 900)::int)",
    ),
    (
        "interval",
        "make_interval((random() * 1e6 - 5e5)::int, (random() * 100 - 50)::int, 0, (random() * 1e6 - 5e5)::int, 0, 0, random() * 1e9 - 5e8)",
    ),
    (
        "text",
        "(SELECT string_agg(chr(CASE WHEN c BETWEEN 55296 AND 57343 THEN 92 ELSE c END), '') FROM (SELECT 1 + (random() * random() * random() * 1114110)::int AS c FROM generate_series(1, (g % 40))) AS made)",
    ),
    ("bytea", "(SELECT string_agg(sha256((g + i)::text::bytea), '') FROM generate_series(0, g % 5) AS i)"),
    (
        "jsonb",
        "jsonb_build_object(md5(g::text), random(), 'a', jsonb_build_array(g, NULL, repeat(E'\\\\\"\\n', g % 9)))",
    ),
    ("json", "(repeat(' ', g % 5) || to_json(repeat(E'\\\\\"\\n\\t', g % 9))::text)::json"),
    ("uuid", "gen_random_uuid()"),
    ("inet", "('10.0.0.0'::inet + (random() * 16777215)::int)"),
    ("bit varying", "substring((random() * 1e18)::bigint::bit(64)::varbit FROM 1 FOR g % 65)"),
    ("tsvector", "to_tsvector('simple', md5(g::text) || ' ' || md5(random()::text) || ' ' || g)"),
    (
        "numrange",
        "numrange(least(g, 500)::numeric / 7, greatest(g, 500)::numeric / 3, (ARRAY['[]', '()', '[)', '(]'])[1 + g % 4])",
    ),
    ("int8multirange", "int8multirange(int8range(g, g + (random() * 1000)::int), int8range(g + 2000, NULL))"),
    (
        "numeric[]",
        "(SELECT array_agg(CASE WHEN random() < 0.2 THEN NULL ELSE (random() * 1e6)::numeric END) FROM generate_series(1, g % 6))",
    ),
    ("text[]", "array_fill(md5(random()::text) || E'\",{}\\\\', ARRAY[1 + g % 3, 2], ARRAY[g % 5 - 2, -1])"),
    ("point", "point(random() * 1e10, -random() / 1e10)"),
    ("pair", "ROW(g, repeat(E'(\",\\\\)', g % 7), ARRAY[random(), NULL])::pair"),
];

/// Rows from one number to another, which differ from run to run of the expressions.
fn rows(from: u32, to: u32) -> String {
    let values: Vec<String> = MADE_UP
        .iter()
        .map(|(type_sql, value)| format!("CASE WHEN g % 7 > 0 THEN ({value})::{type_sql} END"))
        .collect();
    format!("SELECT g, {} FROM generate_series({from}, {to}) AS g", values.join(", "))
}

/// `more` makes the pipeline travel as text.
async fn made_up_values_arrive(more: &str) -> Result<()> {
    let rig = Rig::new(Version::V15, &["public.*"]).await?;
    let columns: Vec<String> =
        MADE_UP.iter().enumerate().map(|(number, (type_sql, _))| format!("c{number} {type_sql}")).collect();
    let columns = columns.join(", ");
    let list: Vec<String> = (0..MADE_UP.len()).map(|number| format!("c{number}")).collect();
    let list = list.join(", ");
    rig.on_source("CREATE TYPE pair AS (a integer, b text, c float8[])").await?;
    rig.on_source(&format!(
        "CREATE TABLE keyed (id integer PRIMARY KEY, {columns}); CREATE TABLE keyless (id integer, {columns}); {more};
         ALTER TABLE keyless REPLICA IDENTITY FULL; SELECT setseed(0.4711);
         INSERT INTO keyed {}; INSERT INTO keyless {}",
        rows(1, 2000),
        rows(1, 100)
    ))
    .await?;
    let worker = rig.start(0)?;
    worker.wait_for_output("\"message\":\"streaming\"").await?;
    rig.assert_equal(&["keyed", "keyless"]).await?;
    rig.on_source(&format!(
        "SELECT setseed(0.1234); INSERT INTO keyed {}; DELETE FROM keyed WHERE id % 5 = 1;
         UPDATE keyed SET ({list}) = (SELECT {list} FROM keyed AS o WHERE o.id = keyed.id + 1) WHERE id % 5 = 2;
         INSERT INTO keyless (id, {list}) {}; UPDATE keyless SET id = -id WHERE id % 2 = 0; DELETE FROM keyless WHERE id % 3 = 0",
        rows(5001, 7000),
        rows(201, 300)
    ))
    .await?;
    rig.wait_until_caught_up().await?;
    rig.assert_equal(&["keyed", "keyless"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_postgres_makes_up_arrive_in_binary() -> Result<()> {
    made_up_values_arrive("SELECT 1").await
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_postgres_makes_up_arrive_as_text() -> Result<()> {
    made_up_values_arrive("ALTER TABLE keyless ADD COLUMN q tsquery").await
}
