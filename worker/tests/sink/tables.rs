//! The sink's tables: made, compared, claimed.

use penstock_crds::report::Reason;
use penstock_worker::change::table::{SourceColumn, SourceTable, TableName};
use penstock_worker::change::{ColumnType, Definition, Lsn, MadeType, TypeKind};
use penstock_worker::sink::{self, FirstCopy, Sink, TableMap, TableState};

use crate::support::*;

async fn try_ensure(
    sink: &mut Sink,
    table: &SourceTable,
) -> Result<TableState, penstock_worker::failure::Failure> {
    let tables = [table.clone()];
    let states = sink.ensure_tables(&tables, FirstCopy::Copied).await?;
    Ok(states[&table.name].clone())
}

fn with_enum() -> SourceTable {
    let mut source = table(
        "t",
        &[("id", INT8, "bigint"), ("mood", 16_500, "public.mood"), ("total", NUMERIC, "numeric(10,2)")],
    );
    source.columns[1] = SourceColumn {
        is_not_null: true,
        constant_default: Some("'it''s'".into()),
        ..source.columns[1].clone()
    };
    source.columns[1].column_type.kind = TypeKind::Made(Box::new(MadeType {
        name: TableName::new("public", "mood"),
        extension: None,
        modifier_sql: String::new(),
        definition: Definition::Enum(vec!["sad".into(), "it's".into()]),
    }));
    let double = SourceColumn {
        name: "double".into(),
        generated: Some("(total * 2)".into()),
        constant_default: None,
        ..source.columns[2].clone()
    };
    source.columns.push(double);
    source
}

#[tokio::test]
async fn missing_tables_are_made_like_the_source() {
    let database = Database::new().await;
    let map = TableMap::new([("public".to_owned(), "a \"copy\"".to_owned())].into());
    let (mut sink, _) = sink::start(database.endpoint().await, owner(), map, &source()).await.unwrap();
    assert_eq!(try_ensure(&mut sink, &with_enum()).await.unwrap(), TableState::Copying);
    assert_eq!(try_ensure(&mut sink, &with_enum()).await.unwrap(), TableState::Copying, "it fits itself");
    database
        .sql
        .run("SET search_path = 'a \"copy\"'; INSERT INTO t (id, total) VALUES (1, 1.5)")
        .await
        .unwrap();
    assert_eq!(database.lines("SELECT * FROM t").await, ["1|it's|1.50|3.00"]);
    let columns = "SELECT attname, format_type(atttypid, atttypmod), attnotnull FROM pg_attribute \
                   WHERE attrelid = 't'::regclass AND attnum > 0 ORDER BY attnum";
    assert_eq!(
        database.lines(columns).await,
        ["id|bigint|t", "mood|mood|t", "total|numeric(10,2)|f", "double|numeric(10,2)|f"]
    );
    assert_eq!(database.value("SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = 't'::regclass AND indisprimary").await,
        "CREATE UNIQUE INDEX t_pkey ON \"a \"\"copy\"\"\".t USING btree (id)");
}

#[tokio::test]
async fn shards_may_make_tables_at_once() {
    let database = Database::new().await;
    let map = || TableMap::new([("public".to_owned(), "copy".to_owned())].into());
    let shards = (0..4).map(|shard| {
        let database = &database;
        async move {
            let owner = sink::Owner { shard, ..owner() };
            let (mut sink, _) = sink::start(database.endpoint().await, owner, map(), &source()).await?;
            let mut table = with_enum();
            table.name.name = format!("t{shard}");
            try_ensure(&mut sink, &table).await
        }
    });
    for state in futures::future::join_all(shards).await {
        assert_eq!(state.unwrap(), TableState::Copying);
    }
}

#[tokio::test]
async fn existing_table_of_another_shape_is_refused_with_statements() {
    let database = Database::with(
        "CREATE TYPE mood AS ENUM ('sad');
         CREATE TABLE t (id integer, total numeric(8,2) NOT NULL, extra text NOT NULL, mood mood, double numeric(10,2))",
    )
    .await;
    let (mut sink, _) = database.start(owner()).await;
    let message = assert_failed(try_ensure(&mut sink, &with_enum()).await, Reason::SinkTableMismatch);
    for told in [
        "public.t",
        "column id is integer, the source's is bigint",
        "column total is numeric(8,2), the source's is numeric(10,2)",
        "column total is NOT NULL, the source's is not",
        "column extra is NOT NULL without a default",
        "column double is not generated",
        "lacks the label it's",
        "no unique index is on exactly the columns that name a row (id)",
    ] {
        assert!(message.contains(told), "{told}: {message}");
    }
    let (_, statements) = message.split_once("Run on the sink: ").unwrap();
    for statement in statements.split_terminator(';') {
        database.sql.run(statement).await.unwrap();
    }
    assert_eq!(
        try_ensure(&mut sink, &with_enum()).await.unwrap(),
        TableState::Copying,
        "the statements make it fit"
    );
}

#[tokio::test]
async fn missing_columns_are_told_with_their_statement() {
    let database = Database::with("CREATE TABLE t (id bigint PRIMARY KEY)").await;
    let (mut sink, _) = database.start(owner()).await;
    let message = assert_failed(try_ensure(&mut sink, &t()).await, Reason::SinkTableMismatch);
    assert!(message.contains("ALTER TABLE \"public\".\"t\" ADD COLUMN \"note\" text;"), "{message}");
}

#[tokio::test]
async fn a_copied_table_that_lacks_values_is_to_be_dropped_and_not_altered() {
    let database = Database::new().await;
    let (mut sink, _) = database.start(owner()).await;
    try_ensure(&mut sink, &table("t", &[("id", INT8, "bigint")])).await.unwrap();
    let message = assert_failed(try_ensure(&mut sink, &t()).await, Reason::SinkTableMismatch);
    assert!(!message.contains("DROP TABLE"), "its rows come anyway: {message}");
    sink.mark_ready(&t().name, after(1).end_lsn).await.unwrap();
    let message = assert_failed(try_ensure(&mut sink, &t()).await, Reason::SinkTableMismatch);
    assert!(
        message.contains("Run on the sink: DROP TABLE \"public\".\"t\"; A table that is dropped"),
        "{message}"
    );
    database.sql.run("DROP TABLE t").await.unwrap();
    assert_eq!(try_ensure(&mut sink, &t()).await.unwrap(), TableState::Stale);
    assert_eq!(database.lines("SELECT * FROM t").await, [""; 0]);
}

#[tokio::test]
async fn unlogged_tables_and_partitions_are_refused() {
    let database = Database::with(
        "CREATE UNLOGGED TABLE t (id bigint PRIMARY KEY, note text);
         CREATE TABLE p (id bigint PRIMARY KEY, note text) PARTITION BY RANGE (id);
         CREATE UNLOGGED TABLE p1 PARTITION OF p DEFAULT",
    )
    .await;
    let (mut sink, _) = database.start(owner()).await;
    for (name, statement) in
        [("t", "ALTER TABLE public.t SET LOGGED"), ("p", "ALTER TABLE public.p1 SET LOGGED")]
    {
        let source = table(name, &[("id", INT8, "bigint"), ("note", TEXT, "text")]);
        let message = assert_failed(try_ensure(&mut sink, &source).await, Reason::SinkTableMismatch);
        assert!(message.contains("is UNLOGGED") && message.contains(statement), "{message}");
        database.sql.run(statement).await.unwrap();
        assert_eq!(try_ensure(&mut sink, &source).await.unwrap(), TableState::Copying);
    }
}

#[tokio::test]
async fn a_first_position_forgets_what_was_copied_before_it() {
    let database = Database::new().await;
    let (mut sink, _) = database.start(owner()).await;
    sink.assign(&[(t().name, 0)].into()).await.unwrap();
    ensure(&mut sink, &[t()]).await;
    sink.mark_ready(&t().name, after(1).end_lsn).await.unwrap();
    sink.begin_at(&after(0)).await.unwrap();
    assert_eq!(try_ensure(&mut sink, &t()).await.unwrap(), TableState::Copying);
    let (_, again) = database.start(owner()).await;
    assert_eq!(again.checkpoint, Some(after(0)));
}

#[tokio::test]
async fn a_shard_that_gets_or_loses_a_table_loses_the_fence() {
    let database = Database::new().await;
    let (mut first, _) = database.start(owner()).await;
    let second = || sink::Owner { shard: 1, ..owner() };
    let (running, _) = database.start(second()).await;
    let mut writer = running.writer(0).await.unwrap();
    first.assign(&[(t().name, 1)].into()).await.unwrap();
    assert_failed(writer.commit(&after(1)).await, Reason::Fenced);

    let (mut running, _) = database.start(second()).await;
    ensure(&mut running, &[t()]).await;
    running.mark_ready(&t().name, after(1).end_lsn).await.unwrap();
    let mut writer = running.writer(0).await.unwrap();
    first.assign(&[(t().name, 1)].into()).await.unwrap();
    writer.commit(&after(1)).await.unwrap();
    first.copy_again(&[t().name]).await.unwrap();
    assert_failed(writer.commit(&after(2)).await, Reason::Fenced);
    let (mut running, _) = database.start(second()).await;
    assert_eq!(try_ensure(&mut running, &t()).await.unwrap(), TableState::Stale);
}

#[tokio::test]
async fn everything_that_does_not_fit_is_told_at_once() {
    let database = Database::with("CREATE TABLE t (id bigint); CREATE VIEW u AS SELECT 1 AS id").await;
    let (mut sink, _) = database.start(owner()).await;
    let u = table("u", &[("id", INT8, "bigint")]);
    let message =
        assert_failed(sink.ensure_tables(&[t(), u], FirstCopy::Copied).await, Reason::SinkTableMismatch);
    assert!(
        message.contains("public.t does not fit")
            && message.contains("public.u does not fit: it is not a table"),
        "{message}"
    );
}

#[tokio::test]
async fn wider_tables_are_taken() {
    let database = Database::with(
        "CREATE DOMAIN identifier AS bigint CHECK (VALUE > 0);
         CREATE TABLE t (extra text, made timestamptz NOT NULL DEFAULT now(), id identifier, number serial,
                         code varchar(20), name text, price numeric, UNIQUE (id))",
    )
    .await;
    let (mut sink, _) = database.start(owner()).await;
    let source = table(
        "t",
        &[
            ("id", INT8, "bigint"),
            ("code", 1043, "character varying(10)"),
            ("name", 1043, "character varying(5)"),
            ("price", NUMERIC, "numeric(10,2)"),
        ],
    );
    assert_eq!(try_ensure(&mut sink, &source).await.unwrap(), TableState::Copying);
    let mut narrower = source.clone();
    narrower.columns[1].column_type = ColumnType::built_in(1043, 25, "character varying(21)");
    let message = assert_failed(try_ensure(&mut sink, &narrower).await, Reason::SinkTableMismatch);
    assert!(message.contains("ALTER COLUMN \"code\" TYPE character varying(21)"), "{message}");
}

#[tokio::test]
async fn identity_column_that_updates_could_not_set_is_refused() {
    let database = Database::with(
        "CREATE TABLE t (id bigint PRIMARY KEY, note integer NOT NULL GENERATED ALWAYS AS IDENTITY)",
    )
    .await;
    let (mut sink, _) = database.start(owner()).await;
    let mut source = table("t", &[("id", INT8, "bigint"), ("note", INT4, "integer")]);
    source.columns[1].is_not_null = true;
    let message = assert_failed(try_ensure(&mut sink, &source).await, Reason::SinkTableMismatch);
    let (_, statement) = message.split_once("Run on the sink: ").unwrap();
    database.sql.run(statement).await.unwrap();
    assert_eq!(try_ensure(&mut sink, &source).await.unwrap(), TableState::Copying);
}

#[tokio::test]
async fn type_that_the_sink_lacks_is_told() {
    let database = Database::new().await;
    let (mut sink, _) = database.start(owner()).await;
    let source = table("t", &[("id", INT8, "bigint"), ("place", 16_600, "public.geometry")]);
    let message = assert_failed(try_ensure(&mut sink, &source).await, Reason::SinkTableMismatch);
    assert!(message.contains("public.geometry"), "{message}");
    assert_eq!(database.value("SELECT count(*) FROM penstock.ownership").await, "0", "nothing is half done");
}

#[tokio::test]
async fn second_pipeline_on_a_table_is_refused() {
    let database = Database::new().await;
    let (mut first, _) = database.start(owner()).await;
    ensure(&mut first, &[t()]).await;
    let (mut second, _) = database.start(other_owner()).await;
    let message = assert_failed(try_ensure(&mut second, &t()).await, Reason::SinkTableOwned);
    assert!(message.contains("shop/inventory (UID uid-a)"), "{message}");
}

#[tokio::test]
async fn two_source_tables_cannot_share_a_sink_table() {
    let database = Database::new().await;
    let map = TableMap::new([("a".to_owned(), "public".to_owned())].into());
    let (mut sink, _) = sink::start(database.endpoint().await, owner(), map, &source()).await.unwrap();
    ensure(&mut sink, &[t()]).await;
    let mut other = t();
    other.name.schema = "a".into();
    let message = assert_failed(try_ensure(&mut sink, &other).await, Reason::SinkTableOwned);
    assert!(message.contains("public.t and a.t"), "{message}");
}

#[tokio::test]
async fn foreign_rows_are_not_mixed_in() {
    let database = Database::with(
        "CREATE TABLE t (id bigint PRIMARY KEY, note text); INSERT INTO t VALUES (1, 'foreign')",
    )
    .await;
    let (mut sink, _) = database.start(owner()).await;
    let message = assert_failed(try_ensure(&mut sink, &t()).await, Reason::SinkTableNotEmpty);
    assert!(message.contains("TRUNCATE \"public\".\"t\"") && message.contains("Never"), "{message}");
    database.sql.run("TRUNCATE t").await.unwrap();
    assert_eq!(try_ensure(&mut sink, &t()).await.unwrap(), TableState::Copying);
}

#[tokio::test]
async fn rows_that_are_there_already_are_kept_when_nothing_is_copied() {
    let database = Database::with(
        "CREATE TABLE t (id bigint PRIMARY KEY, note text); INSERT INTO t VALUES (1, 'source')",
    )
    .await;
    let (mut sink, _) = database.start(owner()).await;
    sink.ensure_tables(&[t()], FirstCopy::AlreadyThere).await.unwrap();
    sink.mark_ready(&t().name, Lsn(100)).await.unwrap();
    assert_eq!(try_ensure(&mut sink, &t()).await.unwrap(), TableState::Ready(Lsn(100)));
    assert_eq!(database.lines("SELECT * FROM t").await, ["1|source"]);
}

#[tokio::test]
async fn removed_table_is_free_for_another_pipeline() {
    let database = Database::new().await;
    let (mut first, _) = database.start(owner()).await;
    ensure(&mut first, &[t()]).await;
    first.assign(&[(t().name, 0)].into()).await.unwrap();
    first.assign(&std::collections::BTreeMap::new()).await.unwrap();
    assert!(first.assignment().await.unwrap().is_empty());
    let (mut second, _) = database.start(other_owner()).await;
    assert_eq!(try_ensure(&mut second, &t()).await.unwrap(), TableState::Copying);
    assert_failed(try_ensure(&mut first, &t()).await, Reason::SinkTableOwned);
}

#[tokio::test]
async fn table_that_comes_back_is_copied_again() {
    let database = Database::new().await;
    let (mut sink, _) = database.start(owner()).await;
    ensure(&mut sink, &[t()]).await;
    sink.mark_ready(&t().name, Lsn(100)).await.unwrap();
    database.sql.run("INSERT INTO t VALUES (1, 'stale')").await.unwrap();
    sink.assign(&std::collections::BTreeMap::new()).await.unwrap();
    assert_eq!(try_ensure(&mut sink, &t()).await.unwrap(), TableState::Copying, "its rows are ours");
    sink.restart_copy(&t().name, None).await.unwrap();
    assert_eq!(database.lines("SELECT * FROM t").await, [""; 0]);
}

#[tokio::test]
async fn table_keeps_its_shard() {
    let database = Database::new().await;
    let (mut sink, _) = database.start(owner()).await;
    let u = TableName::new("public", "u");
    sink.assign(&[(t().name, 1)].into()).await.unwrap();
    sink.assign(&[(t().name, 0), (u.clone(), 2)].into()).await.unwrap();
    assert_eq!(sink.assignment().await.unwrap(), [(t().name, 1), (u, 2)].into());
}

#[tokio::test]
async fn table_that_moves_is_a_new_table() {
    let database = Database::new().await;
    let (mut sink, _) = database.start(owner()).await;
    ensure(&mut sink, &[t()]).await;
    sink.mark_ready(&t().name, Lsn(100)).await.unwrap();
    let map = TableMap::new([("public".to_owned(), "moved".to_owned())].into());
    let (mut sink, _) = sink::start(database.endpoint().await, owner(), map, &source()).await.unwrap();
    assert_eq!(try_ensure(&mut sink, &t()).await.unwrap(), TableState::Stale);
    let (mut other, _) = database.start(other_owner()).await;
    database.sql.run("TRUNCATE public.t").await.unwrap();
    assert_eq!(try_ensure(&mut other, &t()).await.unwrap(), TableState::Copying, "the old place is free");
}

#[tokio::test]
async fn dropped_table_is_made_and_copied_again() {
    let database = Database::new().await;
    let (mut sink, _) = database.start(owner()).await;
    ensure(&mut sink, &[t()]).await;
    sink.mark_ready(&t().name, Lsn(100)).await.unwrap();
    database.sql.run("DROP TABLE t").await.unwrap();
    assert_eq!(try_ensure(&mut sink, &t()).await.unwrap(), TableState::Stale);
}
