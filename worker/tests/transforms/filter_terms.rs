//! What may stand in a filter means the same to the worker, which asks CEL, and to the comparison, which asks SQL.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::kit::*;

/// Filters, and the same as somebody would write it in SQL.
const TERMS: [(&str, &str); 24] = [
    ("yes", "yes"),
    ("!yes", "NOT yes"),
    ("yes == (small > 3)", "yes = (small > 3)"),
    ("yes != true || n == null", "NOT yes OR n IS NULL"),
    ("n == 5", "n = 5"),
    ("n != 5", "n IS DISTINCT FROM 5"),
    ("n == small", "n = small"),
    ("n in [1, 5, null, small]", "n IN (1, 5, small) OR n IS NULL"),
    ("n in []", "false"),
    ("n != null && n >= -5", "n >= -5"),
    ("n < 5 && n != null", "n < 5"),
    ("n == null || n > 5", "n IS NULL OR n > 5"),
    ("true || n > 5", "true"),
    ("!(n != null && (n <= 1 || n > 6)) && yes", "NOT coalesce(n <= 1 OR n > 6, false) AND yes"),
    ("wide > 4000000000 && wide != -9223372036854775807", "wide > 4000000000"),
    ("word == null", "word IS NULL"),
    ("word != 'Ä\\'b'", "word IS DISTINCT FROM 'Ä''b'"),
    ("word != null && word > 'Z'", "word COLLATE \"C\" > 'Z'"),
    ("word != null && word.startsWith('Ä') && !word.endsWith('x')", "word LIKE 'Ä%' AND word NOT LIKE '%x'"),
    ("word != null && (word.contains('_') || word.contains('')) && size(word) == 3", "length(word) = 3"),
    ("code == 'ab' || code == 'ab '", "code = 'ab'"),
    ("id_text == '00000000-0000-0000-0000-000000000005'", "id_text = '00000000-0000-0000-0000-000000000005'"),
    ("mood in ['sky', 'rain'] && letter != 'l3'", "mood IN ('sky', 'rain') AND letter <> 'l3'"),
    ("(word != null && word.size() > 2) == yes", "coalesce(length(word) > 2, false) = yes"),
];

const COLUMNS: &str = "id, yes, small, n, wide, word, code, id_text, mood, letter";

fn table(place: usize) -> String {
    format!("t{place:02}")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_term_of_a_filter_means_the_same_to_worker_and_comparison() -> Result<()> {
    let mut rig = rig(&["public.t*"]).await?;
    rig.on_source("CREATE TYPE mood AS ENUM ('sky', 'night', 'rain'); CREATE DOMAIN letter AS varchar(5)")
        .await?;
    let mut transforms: Vec<Value> = Vec::new();
    let rows = |from: u32, to: u32| {
        format!(
            "SELECT g, g % 3 = 0, (g % 7)::smallint, nullif(g % 9, 0), g * 1000000000::bigint,
                (ARRAY['Ä''b', 'a', 'Zx', 'zax', NULL, '', 'Äx', 'a_b', 'ÄÖÜ', E'\\\\t'])[g % 10 + 1], (ARRAY['ab', 'AB', ' ab', 'abc'])[g % 4 + 1],
                ('00000000-0000-0000-0000-00000000000' || g % 10)::uuid, (ARRAY['sky', 'night', 'rain']::mood[])[g % 3 + 1], 'l' || g % 5
             FROM generate_series({from}, {to}) g"
        )
    };
    for (place, (filter, _)) in TERMS.iter().enumerate() {
        let table = table(place);
        rig.on_source(&format!(
            "CREATE TABLE {table} (id int PRIMARY KEY, yes boolean NOT NULL, small smallint, n int, wide bigint, word text, code char(4),
                id_text uuid, mood mood, letter letter); ALTER TABLE {table} REPLICA IDENTITY FULL; INSERT INTO {table} {}",
            rows(1, 300)
        ))
        .await?;
        transforms.push(json!({"tables": [format!("public.{table}")], "filter": filter}));
    }
    rig.manifest["spec"]["transforms"] = json!(transforms);
    let _worker = streaming(&rig).await?;
    rig.wait_until_caught_up().await?;
    for place in 0..TERMS.len() {
        let table = table(place);
        rig.on_source(&format!(
            "INSERT INTO {table} {}; UPDATE {table} SET n = nullif(small, 3), word = code, small = coalesce(n, 4) WHERE id % 2 = 0", rows(301, 400)
        ))
        .await?;
    }
    for (place, (filter, sql)) in TERMS.iter().enumerate() {
        let table = table(place);
        let expected = format!("SELECT {COLUMNS} FROM {table} WHERE {sql}");
        assert_is(&rig, &expected, &table).await.map_err(|error| error.context(*filter))?;
    }
    let (code, said) = compare(&rig, KEY)?;
    ensure!(code == 0 && said["tables"].as_array().map(Vec::len) == Some(TERMS.len()), "{said:#}");
    Ok(())
}

/// A row too many, a row too few, and a row that should not be there.
#[tokio::test(flavor = "multi_thread")]
async fn comparison_tells_rows_that_the_filter_should_have_kept_out_or_let_in() -> Result<()> {
    let mut rig =
        people(json!([{"tables": ["public.people"], "filter": "id > 100", "dropColumns": ["body"]}])).await?;
    let _worker = streaming(&rig).await?;
    rig.wait_until_caught_up().await?;
    let (code, said) = compare(&rig, KEY)?;
    ensure!(code == 0, "{said:#}");
    rig.on_sink("DELETE FROM people WHERE id = 150; INSERT INTO people (id, mail, size) VALUES (50, 'x', 1)")
        .await?;
    let (code, said) = compare(&rig, KEY)?;
    let keys: Vec<_> =
        said["differences"].as_array().into_iter().flatten().map(|one| one["key"]["id"].clone()).collect();
    ensure!(code == 1 && keys.len() == 2, "{said:#}");
    rig.manifest["spec"]["transforms"][0]["filter"] = json!("id > 101");
    let (code, said) = compare(&rig, KEY)?;
    ensure!(code == 2 && said["tables"][0]["verdict"] == "unknown", "{said:#}");
    Ok(())
}
