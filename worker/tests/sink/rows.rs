//! Changes of rows.

use penstock_crds::report::Reason;
use penstock_worker::batch::Operation;
use penstock_worker::change::{OldRow, ReplicaIdentity, Value};

use crate::support::*;

const FULL: ReplicaIdentity = ReplicaIdentity::Full;

#[tokio::test]
async fn rows_are_inserted_changed_and_deleted_in_order() {
    let database = Database::with(CREATE_ID_AND_NOTE).await;
    let (_sink, mut writer) = database.writer(&id_and_note()).await;
    let many = 0..5_000;
    writer.write(vec![insert(many.clone().map(|id| note(id, "new")))]).await.unwrap();
    writer
        .write(vec![
            update(many.clone().map(|id| (key(id), note(id, "changed")))),
            // The same row again and again: the last one wins.
            update((0..1_000).map(|step| (key(1), note(1, &format!("step {step}"))))),
            delete((2..4_999).map(key)),
            insert([note(7, "again")]),
        ])
        .await
        .unwrap();
    writer.commit(&after(1)).await.unwrap();
    assert_eq!(
        database.lines("SELECT * FROM t ORDER BY id").await,
        ["0|changed", "1|step 999", "7|again", "4999|changed"]
    );
}

#[tokio::test]
async fn unchanged_toast_is_never_nulled() {
    let database = Database::with(
        "CREATE TABLE t (id bigint PRIMARY KEY, big text, small text);
         INSERT INTO t SELECT id, repeat('x', 100000), 'old' FROM generate_series(1, 3) AS id",
    )
    .await;
    let columns = [("id", INT8), ("big", TEXT), ("small", TEXT)];
    let (_sink, mut writer) = database.writer(&relation(ReplicaIdentity::Default, &columns)).await;
    let key = |id| OldRow::Key(row([int8(id), Value::Null, Value::Null]));
    writer
        .write(vec![update([
            (key(1), row([int8(1), Value::Unchanged, text("new")])),
            (key(2), row([int8(2), text("short"), Value::Unchanged])),
            (key(3), row([int8(30), Value::Unchanged, Value::Unchanged])),
            (key(1), row([int8(1), Value::Unchanged, Value::Unchanged])),
        ])])
        .await
        .unwrap();
    writer.commit(&after(1)).await.unwrap();
    assert_eq!(
        database.lines("SELECT id, length(big), small FROM t ORDER BY id").await,
        ["1|100000|new", "2|5|old", "30|100000|old"]
    );
}

#[tokio::test]
async fn duplicate_rows_without_key_are_changed_one_at_a_time() {
    let database = Database::with(
        "CREATE TABLE t (a integer, b json);
         INSERT INTO t VALUES (1, '{\"x\": 1}'), (1, '{\"x\": 1}'), (1, '{\"x\": 1}'), (NULL, NULL), (NULL, NULL)",
    )
    .await;
    let (_sink, mut writer) = database.writer(&relation(FULL, &[("a", INT4), ("b", JSON)])).await;
    let same = || OldRow::Full(row([int4(1), text("{\"x\": 1}")]));
    let null = || OldRow::Full(row([Value::Null, Value::Null]));
    writer
        .write(vec![
            update([(same(), row([int4(2), text("{}")])), (null(), row([int4(3), Value::Null]))]),
            delete([same()]),
        ])
        .await
        .unwrap();
    writer.commit(&after(1)).await.unwrap();
    assert_eq!(
        database.lines("SELECT a, b FROM t ORDER BY a").await,
        ["1|{\"x\": 1}", "2|{}", "3|NULL", "NULL|NULL"]
    );
}

/// A ctid is unique within one partition only.
#[tokio::test]
async fn partitioned_sink_tables_take_changes() {
    let database = Database::with(
        "CREATE TABLE t (id bigint, note text) PARTITION BY LIST (note);
         CREATE TABLE t_a PARTITION OF t FOR VALUES IN ('a'); CREATE TABLE t_b PARTITION OF t DEFAULT",
    )
    .await;
    let (_sink, mut writer) = database.writer(&relation(FULL, &[("id", INT8), ("note", TEXT)])).await;
    let old = |id, text| OldRow::Full(note(id, text));
    writer
        .write(vec![
            insert((0..10).flat_map(|_| [note(1, "a"), note(1, "b")])),
            update([(old(1, "a"), note(2, "c")), (old(1, "b"), note(2, "a"))]),
            delete([old(1, "a"), old(1, "b")]),
        ])
        .await
        .unwrap();
    writer.commit(&after(1)).await.unwrap();
    let counts = "SELECT id, note, count(*) FROM t GROUP BY 1, 2 ORDER BY 1, 2";
    assert_eq!(database.lines(counts).await, ["1|a|8", "1|b|8", "2|a|1", "2|c|1"]);
    writer
        .write(vec![Operation::Truncate { relations: vec![T], cascade: false, restart_identity: false }])
        .await
        .unwrap();
    writer.commit(&after(2)).await.unwrap();
    assert_eq!(database.value("SELECT count(*) FROM t").await, "0");
}

/// `1.0 = 1.00` in SQL, but they are different rows of a table without a key.
#[tokio::test]
async fn rows_without_key_are_found_by_their_exact_value() {
    let database =
        Database::with("CREATE TABLE t (a numeric); INSERT INTO t VALUES (1.00), (1.0), (1)").await;
    let (_sink, mut writer) = database.writer(&relation(FULL, &[("a", NUMERIC)])).await;
    // 1.0 in numeric's send format: one digit, weight 0, positive, one decimal shown.
    let one = Value::Binary(bytes::Bytes::from_static(&[0, 1, 0, 0, 0, 0, 0, 1, 0, 1]));
    writer.write(vec![delete([OldRow::Full(row([one]))])]).await.unwrap();
    writer.commit(&after(1)).await.unwrap();
    assert_eq!(database.lines("SELECT a FROM t ORDER BY a::text").await, ["1", "1.00"]);
}

#[tokio::test]
async fn full_identity_uses_the_sinks_key_where_there_is_one() {
    let database = Database::with(
        "CREATE TABLE t (id bigint PRIMARY KEY, note text); INSERT INTO t VALUES (1, 'trimmed')",
    )
    .await;
    let (sink, _) = database.start(owner()).await;
    let mut writer = sink.writer(0).await.unwrap();
    let traits = writer.describe(&relation(FULL, &[("id", INT8), ("note", TEXT)])).await.unwrap();
    assert_eq!((traits.key.as_slice(), traits.order_matters), ([0].as_slice(), false));
    let old = || OldRow::Full(note(1, "before"));
    writer.write(vec![update([(old(), note(1, "after"))])]).await.unwrap();
    writer.commit(&after(1)).await.unwrap();
    assert_eq!(database.lines("SELECT * FROM t").await, ["1|after"]);
}

#[tokio::test]
async fn update_of_missing_row_is_divergence() {
    let database =
        Database::with("CREATE TABLE t (id bigint PRIMARY KEY, note text); INSERT INTO t VALUES (1, 'one')")
            .await;
    let (_sink, mut writer) = database.writer(&id_and_note()).await;
    for operation in [
        update([(key(1), note(1, "changed")), (key(4711), note(4711, "secret"))]),
        update([(key(4711), row([int8(4711), Value::Unchanged]))]),
        delete([key(1), key(4711)]),
    ] {
        let message = assert_failed(writer.write(vec![operation]).await, Reason::SinkDiverged);
        assert!(message.contains("public.t") && message.contains("\"id\""), "{message}");
        assert!(!message.contains("4711") && !message.contains("secret"), "{message}");
    }
    assert_eq!(database.lines("SELECT * FROM t").await, ["1|one"]);
}

#[tokio::test]
async fn whole_row_that_is_missing_is_divergence() {
    let database = Database::with("CREATE TABLE t (a integer)").await;
    let (_sink, mut writer) = database.writer(&relation(FULL, &[("a", INT4)])).await;
    assert_failed(writer.write(vec![delete([OldRow::Full(row([int4(1)]))])]).await, Reason::SinkDiverged);
}

#[tokio::test]
async fn row_that_is_there_already_is_divergence() {
    let database = Database::with(
        "CREATE TABLE t (id bigint PRIMARY KEY, note text); INSERT INTO t VALUES (4711, 'foreign')",
    )
    .await;
    let (_sink, mut writer) = database.writer(&id_and_note()).await;
    // By COPY and by INSERT.
    for ids in [4_700..4_800, 4_711..4_712] {
        let message = assert_failed(
            writer.write(vec![insert(ids.map(|id| note(id, "new")))]).await,
            Reason::SinkDiverged,
        );
        assert!(message.contains("t_pkey") && !message.contains("4711"), "{message}");
    }
    assert_eq!(database.lines("SELECT * FROM t").await, ["4711|foreign"]);
}

#[tokio::test]
async fn changed_key_moves_the_row() {
    let database = Database::with(
        "CREATE TABLE t (id bigint PRIMARY KEY, note text); INSERT INTO t VALUES (1, 'one'), (2, 'two')",
    )
    .await;
    let (_sink, mut writer) = database.writer(&id_and_note()).await;
    writer.write(vec![update([(key(2), note(3, "three")), (key(1), note(2, "was one"))])]).await.unwrap();
    writer.commit(&after(1)).await.unwrap();
    assert_eq!(database.lines("SELECT * FROM t ORDER BY id").await, ["2|was one", "3|three"]);
}

#[tokio::test]
async fn rows_that_the_sink_refuses_are_told_without_their_values() {
    let database = Database::new().await;
    for (definition, told) in [
        ("note text CHECK (note <> 'secret')", "check constraint t_note_check"),
        ("note varchar(3)", "SQLSTATE 22001"),
        (
            "note text NOT NULL, other text GENERATED ALWAYS AS (nullif(note, 'secret')) STORED NOT NULL",
            "column other is NOT NULL",
        ),
    ] {
        database
            .sql
            .run(&format!("DROP TABLE IF EXISTS t; CREATE TABLE t (id bigint PRIMARY KEY, {definition})"))
            .await
            .unwrap();
        let (sink, _) = database.start(owner()).await;
        let mut writer = sink.writer(0).await.unwrap();
        let type_oid = if definition.contains("varchar") { 16_500 } else { TEXT };
        writer
            .describe(&relation(ReplicaIdentity::Default, &[("id", INT8), ("note", type_oid)]))
            .await
            .unwrap();
        for rows in [1, 100] {
            let rows = (0..rows).map(|id| note(id, "secret"));
            let message = assert_failed(writer.write(vec![insert(rows)]).await, Reason::SinkRejectedRow);
            assert!(message.contains(told) && message.contains("public.t"), "{message}");
            assert!(!message.contains("secret"), "{message}");
        }
    }
}

#[tokio::test]
async fn triggers_and_foreign_keys_that_refuse_are_told() {
    let database = Database::with(
        "CREATE TABLE parent (id bigint PRIMARY KEY);
         CREATE TABLE t (id bigint PRIMARY KEY, note text, CONSTRAINT to_parent FOREIGN KEY (id) REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
         INSERT INTO parent VALUES (1), (2);
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN IF NEW.id = 2 THEN RAISE EXCEPTION ''no % here'', NEW.note; END IF; IF NEW.id = 1 THEN RETURN NULL; END IF; RETURN NEW; END';
         CREATE TRIGGER refuse BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    .await;
    let (_sink, mut writer) = database.writer(&id_and_note()).await;
    let message =
        assert_failed(writer.write(vec![insert([note(2, "secret")])]).await, Reason::SinkRejectedRow);
    assert!(message.contains("trigger") && !message.contains("secret"), "{message}");
    for rows in [1, 10] {
        let operation = insert((10..9 + rows).map(|id| note(id, "")).chain([note(1, "")]));
        let message = assert_failed(writer.write(vec![operation]).await, Reason::SinkRejectedRow);
        assert!(message.contains("leaves rows out"), "{message}");
    }
    writer.write(vec![insert([note(3, "orphan")])]).await.unwrap();
    let message = assert_failed(writer.commit(&after(1)).await, Reason::SinkRejectedRow);
    assert!(message.contains("foreign key to_parent") && message.contains("public.t"), "{message}");
}

#[tokio::test]
async fn identity_columns_take_the_sources_values() {
    let database =
        Database::with("CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text)")
            .await;
    let (_sink, mut writer) = database.writer(&id_and_note()).await;
    writer
        .write(vec![insert([note(70, "inserted")]), insert((0..20).map(|id| note(id, "copied")))])
        .await
        .unwrap();
    writer.write(vec![update([(key(70), note(70, "changed"))]), delete((0..20).map(key))]).await.unwrap();
    writer.commit(&after(1)).await.unwrap();
    assert_eq!(database.lines("SELECT * FROM t").await, ["70|changed"]);
    let message = assert_failed(
        writer.write(vec![update([(key(70), note(71, "moved"))])]).await,
        Reason::SinkRejectedRow,
    );
    assert!(message.contains("SET GENERATED BY DEFAULT"), "{message}");
}

#[tokio::test]
async fn truncate_empties_exactly_the_tables_named() {
    let database = Database::with(
        "CREATE TABLE t (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, note text);
         CREATE TABLE child () INHERITS (t);
         INSERT INTO t (note) VALUES ('a'), ('b'); INSERT INTO child VALUES (9, 'kept')",
    )
    .await;
    let (_sink, mut writer) = database.writer(&id_and_note()).await;
    let truncate =
        |restart_identity| Operation::Truncate { relations: vec![T], cascade: true, restart_identity };
    writer
        .write(vec![
            truncate(false),
            insert([note(100, "after")]),
            truncate(true),
            insert([note(50, "last")]),
        ])
        .await
        .unwrap();
    writer.commit(&after(1)).await.unwrap();
    assert_eq!(database.lines("SELECT * FROM t ORDER BY id").await, ["9|kept", "50|last"]);
    assert_eq!(database.value("INSERT INTO t (note) VALUES ('next') RETURNING id").await, "1");

    database.sql.run("CREATE TABLE referring (id bigint REFERENCES t)").await.unwrap();
    let message = assert_failed(writer.write(vec![truncate(false)]).await, Reason::SinkRejectedRow);
    assert!(message.contains("foreign key"), "{message}");
}

/// TRUNCATE refuses a table of which something is still to be checked.
#[tokio::test]
async fn truncate_comes_after_rows_whose_constraints_are_checked_late() {
    let database = Database::with(
        "CREATE TABLE t (id bigint PRIMARY KEY, note text UNIQUE DEFERRABLE);
         ALTER TABLE t ADD parent bigint DEFAULT 1 REFERENCES t DEFERRABLE INITIALLY DEFERRED",
    )
    .await;
    let (_sink, mut writer) = database.writer(&id_and_note()).await;
    let truncate = Operation::Truncate { relations: vec![T], cascade: false, restart_identity: false };
    // Row 2 comes before the row that it refers to.
    let rows = || insert([note(2, "two"), note(1, "one")]);
    writer.write(vec![rows(), truncate, rows()]).await.unwrap();
    writer.commit(&after(1)).await.unwrap();
    assert_eq!(database.lines("SELECT id, note FROM t ORDER BY id").await, ["1|one", "2|two"]);
}

#[tokio::test]
async fn column_that_came_later_is_told_with_its_statement() {
    let database = Database::with("CREATE TABLE t (id bigint PRIMARY KEY, note text)").await;
    let (_sink, mut writer) = database.writer(&id_and_note()).await;
    let mut later = relation(ReplicaIdentity::Default, &[("id", INT8), ("note", TEXT), ("price", NUMERIC)]);
    later.columns[2].type_modifier = (10 << 16 | 2) + 4;
    writer.begin().await.unwrap();
    let message = assert_failed(writer.describe(&later).await, Reason::SinkTableMismatch);
    let statement = "ALTER TABLE \"public\".\"t\" ADD COLUMN \"price\" numeric(10,2)";
    assert!(message.contains(statement), "{message}");
    drop(writer);
    database.sql.run(statement).await.unwrap();
    let (_sink, mut writer) = database.writer(&later).await;
    writer.write(vec![insert([row([int8(1), text("one"), Value::Null])])]).await.unwrap();
}

#[tokio::test]
async fn column_of_another_type_is_never_filled() {
    // Both are four bytes: the sink could not tell.
    let database = Database::with("CREATE TABLE t (id bigint PRIMARY KEY, note real)").await;
    let (sink, _) = database.start(owner()).await;
    let mut writer = sink.writer(0).await.unwrap();
    let described =
        writer.describe(&relation(ReplicaIdentity::Default, &[("id", INT8), ("note", INT4)])).await;
    let message = assert_failed(described, Reason::SinkTableMismatch);
    assert!(message.contains("column note is real, the source's is integer"), "{message}");
    assert!(message.contains("ALTER COLUMN \"note\" TYPE integer"), "{message}");
}

#[tokio::test]
async fn table_that_is_gone_is_told() {
    let database = Database::with(CREATE_ID_AND_NOTE).await;
    let (_sink, mut writer) = database.writer(&id_and_note()).await;
    database.sql.run("DROP TABLE t").await.unwrap();
    assert_failed(writer.write(vec![insert([note(1, "one")])]).await, Reason::SinkTableMismatch);
    assert_failed(writer.describe(&id_and_note()).await, Reason::SinkTableMismatch);
}

#[tokio::test]
async fn order_is_asked_for_where_it_can_be_seen() {
    let database = Database::new().await;
    for (sql, order_matters) in [
        ("CREATE TABLE t (id bigint PRIMARY KEY, note text)", false),
        ("CREATE TABLE t (id bigint UNIQUE NOT NULL, note text); CREATE INDEX ON t (note)", false),
        ("CREATE TABLE t (id bigint PRIMARY KEY, note text UNIQUE)", true),
        ("CREATE TABLE t (id bigint PRIMARY KEY, note text); CREATE UNIQUE INDEX ON t (lower(note))", true),
        (
            "CREATE TABLE t (id bigint PRIMARY KEY, note text); CREATE UNIQUE INDEX ON t (id) WHERE note = ''",
            true,
        ),
        ("CREATE TABLE t (id bigint PRIMARY KEY, note text, EXCLUDE (note WITH =))", true),
        ("CREATE TABLE t (id bigint PRIMARY KEY, note text, up bigint REFERENCES t)", true),
        ("CREATE TABLE t (id bigint PRIMARY KEY, note text); CREATE TABLE u (id bigint REFERENCES t)", true),
        (
            "CREATE TABLE t (id bigint PRIMARY KEY, note text); CREATE TRIGGER x BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
            true,
        ),
    ] {
        database.sql.run(&format!("DROP TABLE IF EXISTS u; DROP TABLE IF EXISTS t; {sql}")).await.unwrap();
        let (sink, _) = database.start(owner()).await;
        let traits = sink.writer(0).await.unwrap().describe(&id_and_note()).await.unwrap();
        assert_eq!((traits.key.as_slice(), traits.order_matters), ([0].as_slice(), order_matters), "{sql}");
    }
}

#[tokio::test]
async fn statement_shapes_beyond_the_bound_still_work() {
    let columns: Vec<String> = (0..12).map(|number| format!("c{number}")).collect();
    let definition =
        columns.iter().map(|name| format!("{name} text DEFAULT 'kept'")).collect::<Vec<_>>().join(", ");
    let database = Database::with(&format!(
        "CREATE TABLE t (id bigint PRIMARY KEY, {definition}); INSERT INTO t VALUES (1)"
    ))
    .await;
    let described: Vec<_> =
        std::iter::once(("id", INT8)).chain(columns.iter().map(|name| (name.as_str(), TEXT))).collect();
    let (_sink, mut writer) = database.writer(&relation(ReplicaIdentity::Default, &described)).await;
    // 1,000 different sets of columns, more than are kept prepared.
    let rows = (1..=1_000_u32).map(|set| {
        let value = |bit: u32| if set & (1_u32 << bit) != 0 { text("set") } else { Value::Unchanged };
        let new = std::iter::once(int8(1)).chain((0..12).map(value)).collect();
        let old = std::iter::once(int8(1)).chain((0..12).map(|_| Value::Null)).collect();
        (OldRow::Key(penstock_worker::change::Row(old)), penstock_worker::change::Row(new))
    });
    writer.write(vec![update(rows)]).await.unwrap();
    writer.commit(&after(1)).await.unwrap();
    assert_eq!(database.lines("SELECT c0, c9, c10, c11 FROM t").await, ["set|set|kept|kept"]);
}
