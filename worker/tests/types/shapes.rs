//! Tables as they come: many columns, odd names, constraints that are checked late, and what hangs on a sink table.

use anyhow::Result;
use penstock_e2e::postgres::Version;

use crate::common::Rig;

/// The most that PostgreSQL has.
const COLUMNS_MAX: usize = 1600;

async fn rig(tables: &[&str]) -> Result<Rig> {
    Rig::new(Version::V15, tables).await
}

async fn streaming(rig: &Rig) -> Result<crate::common::Worker> {
    let worker = rig.start(0)?;
    worker.wait_for_output("\"message\":\"streaming\"").await?;
    Ok(worker)
}

async fn assert_equal_after(rig: &Rig, changes: &str, tables: &[&str]) -> Result<()> {
    rig.on_source(changes).await?;
    rig.wait_until_caught_up().await?;
    rig.assert_equal(tables).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_1600_columns_arrives_with_a_key_and_without() -> Result<()> {
    let rig = rig(&["public.*"]).await?;
    let columns: Vec<String> = (1..COLUMNS_MAX).map(|place| format!("c{place} smallint")).collect();
    let columns = columns.join(", ");
    rig.on_source(&format!(
        "CREATE TABLE keyed (id integer PRIMARY KEY, {columns}); CREATE TABLE keyless (id integer, {columns});
         ALTER TABLE keyless REPLICA IDENTITY FULL;
         INSERT INTO keyed (id, c1, c1599) SELECT g, g, -g FROM generate_series(1, 20) AS g;
         INSERT INTO keyless (id, c1, c1599) SELECT g % 5, 1, NULL FROM generate_series(1, 20) AS g"
    ))
    .await?;
    let _worker = streaming(&rig).await?;
    rig.assert_equal(&["keyed", "keyless"]).await?;
    let set: Vec<String> = (1..COLUMNS_MAX).map(|place| format!("c{place} = {place}")).collect();
    let changes = format!(
        "UPDATE keyed SET {set} WHERE id > 10; UPDATE keyed SET id = id + 100 WHERE id < 5; DELETE FROM keyed WHERE id = 7;
         INSERT INTO keyed SELECT id + 1000 FROM keyed;
         UPDATE keyless SET {set} WHERE id = 3; DELETE FROM keyless WHERE ctid IN (SELECT ctid FROM keyless WHERE id = 4 LIMIT 2)",
        set = set.join(", ")
    );
    assert_equal_after(&rig, &changes, &["keyed", "keyless"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_taken_as_they_are() -> Result<()> {
    // 63 bytes each, with everything that SQL and formats could trip over.
    let name = |start: &str| {
        let mut name = format!("{start} Ünï\"'\\%$1.;--");
        while name.len() < 63 {
            name.push('x');
        }
        format!("\"{}\"", name.replace('"', "\"\""))
    };
    let (schema, table, keyless) = ("\"Mixed\"\"Schema\"", name("T"), name("F"));
    let (key, column, mood, pair) = (name("K"), name("C"), name("E"), name("P"));
    let mut rig = rig(&["Mixed\"Schema.*"]).await?;
    rig.manifest["spec"]["sink"]["postgres"]["schemaMap"] =
        serde_json::json!({"Mixed\"Schema": "Another 'one' \\"});
    rig.on_source(&format!(
        "CREATE SCHEMA {schema}; SET search_path = {schema};
         CREATE TYPE {mood} AS ENUM ({label}); CREATE TYPE {pair} AS ({column} {mood}, \"NULL\" text);
         CREATE TABLE {table} ({key} text, \"ctid \" int, {column} {pair}, \"select\" {mood}[], g int GENERATED ALWAYS AS (length({key})) STORED,
             PRIMARY KEY ({key}, \"ctid \"));
         CREATE TABLE {keyless} ({column} {pair}, \"same\" int, \"target\" int); ALTER TABLE {keyless} REPLICA IDENTITY FULL;
         INSERT INTO {table} VALUES ('one', 1, ROW({label}, 'x'), ARRAY[{label}]::{mood}[]), ('two', 2, NULL, '{{}}');
         INSERT INTO {keyless} VALUES (ROW({label}, 'x'), 1, 2), (NULL, NULL, NULL)",
        label = format!("'{}'", name("L").trim_matches('"').replace("\"\"", "\"").replace('\'', "''")),
    ))
    .await?;
    let _worker = streaming(&rig).await?;
    rig.on_source(&format!(
        "SET search_path = {schema};
         UPDATE {table} SET {key} = 'three' WHERE {key} = 'one'; UPDATE {table} SET {column} = ROW(NULL, '');
         DELETE FROM {table} WHERE {key} = 'two'; INSERT INTO {table} ({key}, \"ctid \") VALUES ('four', 4);
         UPDATE {keyless} SET same = 7; DELETE FROM {keyless} WHERE {column} IS NULL"
    ))
    .await?;
    rig.wait_until_caught_up().await?;
    for table in [table, keyless] {
        let rows = |schema: &str| {
            format!("SELECT string_agg(t::text, '; ' ORDER BY t::text) FROM {schema}.{table} AS t")
        };
        let (source, sink) =
            (rig.source_value(&rows(schema)).await?, rig.sink_value(&rows("\"Another 'one' \\\"")).await?);
        assert_eq!(source, sink);
        assert!(!source.is_empty());
    }
    Ok(())
}

/// The stream has a row at a time what the source checked at the end of a statement or of the transaction.
#[tokio::test(flavor = "multi_thread")]
async fn keys_that_the_source_exchanges_within_a_transaction_are_exchanged_in_the_sink() -> Result<()> {
    let rig = rig(&["public.*"]).await?;
    rig.on_source(
        "CREATE TABLE late_key (id integer PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, note text);
         ALTER TABLE late_key REPLICA IDENTITY FULL;
         CREATE TABLE late_unique (id integer PRIMARY KEY, place integer UNIQUE DEFERRABLE);
         INSERT INTO late_key SELECT g, 'n' || g FROM generate_series(1, 50) AS g;
         INSERT INTO late_unique SELECT g, g FROM generate_series(1, 50) AS g",
    )
    .await?;
    // The pipeline makes the key; the other constraint is the user's, in the sink as in the source.
    rig.on_sink("CREATE TABLE late_unique (id integer PRIMARY KEY, place integer UNIQUE DEFERRABLE)").await?;
    let _worker = streaming(&rig).await?;
    let deferrable = "SELECT condeferrable AND condeferred FROM pg_constraint WHERE conrelid = 'late_key'::regclass AND contype = 'p'";
    assert_eq!(rig.sink_value(deferrable).await?, "t");
    let changes = "
        BEGIN; UPDATE late_key SET id = 2, note = 'was 1' WHERE note = 'n1'; UPDATE late_key SET id = 1 WHERE note = 'n2'; COMMIT;
        UPDATE late_key SET id = 51 - id; UPDATE late_unique SET place = 51 - place;
        UPDATE late_unique SET place = place + 1; UPDATE late_unique SET place = place - 1;";
    assert_equal_after(&rig, changes, &["late_key", "late_unique"]).await
}

/// An index that is checked row by row sees the source's rows in the source's order.
#[tokio::test(flavor = "multi_thread")]
async fn values_of_a_second_unique_index_move_between_rows_in_order() -> Result<()> {
    let rig = rig(&["public.*"]).await?;
    let table = "CREATE TABLE t (id integer PRIMARY KEY, email text UNIQUE, note text)";
    rig.on_source(&format!("{table}; INSERT INTO t SELECT g, 'e' || g FROM generate_series(1, 9) AS g"))
        .await?;
    rig.on_sink(table).await?;
    let _worker = streaming(&rig).await?;
    let changes = "
        BEGIN; DELETE FROM t WHERE id = 1; INSERT INTO t VALUES (11, 'e1'); UPDATE t SET email = 'free' WHERE id = 2;
        UPDATE t SET email = 'e2' WHERE id = 3; UPDATE t SET email = 'e3' WHERE id = 2; DELETE FROM t WHERE id = 11;
        UPDATE t SET email = 'e1' WHERE id = 4; INSERT INTO t VALUES (1, 'e4'); COMMIT;
        DELETE FROM t WHERE id = 5; INSERT INTO t VALUES (12, 'e5'); UPDATE t SET id = 5 WHERE id = 12; UPDATE t SET note = email";
    assert_equal_after(&rig, changes, &["t"]).await
}

/// The way to have them on the sink: the role's sessions act as those of a replica.
#[tokio::test(flavor = "multi_thread")]
async fn foreign_keys_and_triggers_of_the_sink_rest_for_a_role_that_acts_as_a_replica() -> Result<()> {
    let rig = rig(&["public.*"]).await?;
    let tables = "CREATE TABLE parent (id integer PRIMARY KEY);
                  CREATE TABLE child (id integer PRIMARY KEY, parent integer REFERENCES parent)";
    rig.on_source(&format!(
        "{tables}; INSERT INTO parent SELECT generate_series(1, 1000); INSERT INTO child SELECT g, g FROM generate_series(1, 1000) AS g"
    ))
    .await?;
    rig.on_sink(&format!(
        "{tables}; CREATE TABLE seen (id integer);
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.seen VALUES (NEW.id); RETURN NEW; END $$;
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
         CREATE TRIGGER refuse BEFORE INSERT OR UPDATE OR DELETE ON child FOR EACH ROW EXECUTE FUNCTION refuse();
         CREATE TRIGGER note AFTER INSERT ON parent FOR EACH ROW EXECUTE FUNCTION note();
         ALTER TABLE parent ENABLE ALWAYS TRIGGER note;
         ALTER ROLE postgres SET session_replication_role = replica"
    ))
    .await?;
    let _worker = streaming(&rig).await?;
    let changes = "BEGIN; INSERT INTO parent VALUES (2000); INSERT INTO child VALUES (2000, 2000); UPDATE child SET parent = 2000 WHERE id < 10;
                   DELETE FROM child WHERE parent = 11; DELETE FROM parent WHERE id = 11; COMMIT";
    assert_equal_after(&rig, changes, &["parent", "child"]).await?;
    assert_eq!(
        rig.sink_value("SELECT count(*) FROM seen").await?,
        "1001",
        "those that are ENABLE ALWAYS still act"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn generated_and_identity_columns_hold_what_the_source_has() -> Result<()> {
    let rig = rig(&["public.*"]).await?;
    let table = "CREATE TABLE t (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, by_default integer GENERATED BY DEFAULT AS IDENTITY,
                     twice bigint GENERATED ALWAYS AS (by_default * 2) STORED, words tsvector GENERATED ALWAYS AS (to_tsvector('simple', note)) STORED,
                     note text DEFAULT 'none')";
    rig.on_source(&format!(
        "{table}; CREATE TABLE made (LIKE t INCLUDING ALL); INSERT INTO t (note) SELECT 'a b ' || g FROM generate_series(1, 20) AS g;
         INSERT INTO made (note) SELECT 'c ' || g FROM generate_series(1, 20) AS g"
    ))
    .await?;
    rig.on_sink(table).await?;
    let _worker = streaming(&rig).await?;
    // An UPDATE of a GENERATED ALWAYS key is what a sink table of the user's cannot follow.
    let changes = [("t", "note = 'y'"), ("made", "id = DEFAULT")].map(|(table, set)| {
        format!(
            "UPDATE {table} SET by_default = by_default + 100, note = NULL WHERE id % 2 = 0; DELETE FROM {table} WHERE id = 3;
             INSERT INTO {table} (id, by_default) OVERRIDING SYSTEM VALUE VALUES (500, -1); UPDATE {table} SET {set} WHERE id = 4;
             INSERT INTO {table} (note) SELECT 'x' FROM generate_series(1, 20);"
        )
    });
    assert_equal_after(&rig, &changes.concat(), &["t", "made"]).await
}
