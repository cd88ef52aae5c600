//! Values of every common type arrive as they were, by COPY, INSERT and UPDATE.

use bytes::{Buf as _, Bytes};
use futures::TryStreamExt as _;
use penstock_worker::change::{OldRow, Relation, RelationColumn, ReplicaIdentity, Row, Value};

use crate::support::*;

/// A value of each type that holds something awkward, as SQL writes it.
const VALUES: &[(&str, &str)] = &[
    ("boolean", "true"),
    ("smallint", "'-32768'"),
    ("integer", "2147483647"),
    ("bigint", "'-9223372036854775808'"),
    ("numeric", "'-12345678901234567890.123456789000'"),
    ("numeric(12,4)", "'NaN'"),
    ("real", "'-0'"),
    ("double precision", "'1e-300'"),
    ("money", "'-1234.50'"),
    ("text", "E'Grüße, \\\\N \\t\\n ''\"'"),
    ("character varying(20)", "'  spaces  '"),
    ("character(5)", "'ab'"),
    ("name", "'a name'"),
    ("\"char\"", "'x'"),
    ("bytea", "'\\x00ff10'"),
    ("date", "'infinity'"),
    ("time(3)", "'23:59:59.999'"),
    ("time with time zone", "'12:00:00.000001+05:30'"),
    ("timestamp without time zone", "'0044-03-15 12:00:00 BC'"),
    ("timestamp with time zone", "'2026-02-28 23:59:59.999999+00'"),
    ("interval", "'-1 year 2 mons -3 days 04:05:06.789'"),
    ("uuid", "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"),
    ("json", "'{\"a\":  1, \"a\": 2}'"),
    ("jsonb", "'{\"b\": [1, null], \"a\": 1.50}'"),
    ("jsonpath", "'$.a[*] ? (@ > 1)'"),
    ("xml", "'<a b=\"c\">d</a>'"),
    ("inet", "'2001:db8::1/64'"),
    ("cidr", "'10.0.0.0/8'"),
    ("macaddr", "'08:00:2b:01:02:03'"),
    ("macaddr8", "'08:00:2b:01:02:03:04:05'"),
    ("bit(5)", "B'10101'"),
    ("bit varying", "B'1'"),
    ("point", "'(1.5,-2)'"),
    ("box", "'(3,4),(1,2)'"),
    ("path", "'[(1,2),(3,4)]'"),
    ("polygon", "'((0,0),(1,1),(1,0))'"),
    ("circle", "'<(1,2),3>'"),
    ("line", "'{1,2,3}'"),
    ("lseg", "'[(1,2),(3,4)]'"),
    ("tsvector", "'a:1A b:2'"),
    ("tsquery", "'a & !b'"),
    ("int4range", "'[1,10)'"),
    ("tstzrange", "'[2026-01-01 00:00+00,)'"),
    ("int8multirange", "'{[1,3),[5,8)}'"),
    ("pg_lsn", "'16/B374D848'"),
    ("integer[]", "'[2:3][0:1]={{1,NULL},{3,4}}'"),
    ("text[]", "'{\"a,b\",NULL,\"\"}'"),
    ("public.mood", "'it''s'"),
    ("public.mood[]", "'{sad,NULL,it''s}'"),
    ("public.short", "'dom'"),
    ("public.span", "'[sad,it''s]'"),
];

/// Types whose values cannot be compared with `=`, or not by key.
const TYPES: &str = "CREATE TYPE mood AS ENUM ('sad', 'it''s'); CREATE DOMAIN short AS varchar(5); \
                     CREATE TYPE span AS RANGE (subtype = mood)";

fn create(identity: &str) -> String {
    let columns: Vec<_> =
        VALUES.iter().enumerate().map(|(place, (type_sql, _))| format!("c{place} {type_sql}")).collect();
    format!("CREATE TABLE public.t (id bigint {identity}, {})", columns.join(", "))
}

/// The source's table, its description as the stream gives it, and its rows as the stream sends them.
async fn source_rows(source: &Database, identity: ReplicaIdentity) -> (Relation, Vec<Row>) {
    // User types get other OIDs than in the sink.
    source.sql.run("CREATE TYPE filler AS (a integer)").await.unwrap();
    source.sql.run(TYPES).await.unwrap();
    source.sql.run(&create("PRIMARY KEY")).await.unwrap();
    let values = VALUES.iter().map(|(type_sql, value)| format!("{value}::{type_sql}")).collect::<Vec<_>>();
    let nulls = vec!["NULL"; VALUES.len()].join(", ");
    let fill = format!(
        "INSERT INTO t SELECT id, {} FROM generate_series(1, 10) AS id; INSERT INTO t VALUES (11, {nulls})",
        values.join(", ")
    );
    source.sql.run(&fill).await.unwrap();
    let described = source
        .sql
        .query(
            "SELECT attname::text, atttypid, atttypmod, attname = 'id' FROM pg_attribute \
             WHERE attrelid = 't'::regclass AND attnum > 0 ORDER BY attnum",
            &[],
        )
        .await
        .unwrap();
    let columns = described
        .iter()
        .map(|row| RelationColumn {
            name: row.get(0),
            type_oid: row.get(1),
            type_modifier: row.get(2),
            is_key: identity == ReplicaIdentity::Full || row.get(3),
        })
        .collect();
    let relation =
        Relation { id: T, schema: "public".into(), name: "t".into(), replica_identity: identity, columns };
    let copy =
        source.sql.copy_out("COPY (SELECT * FROM t ORDER BY id) TO STDOUT (FORMAT binary)").await.unwrap();
    let data: Vec<Bytes> = copy.try_collect().await.unwrap();
    (relation, parse(Bytes::from(data.concat())))
}

fn parse(mut data: Bytes) -> Vec<Row> {
    data.advance(19);
    let mut rows = Vec::new();
    loop {
        let columns = data.get_i16();
        if columns < 0 {
            return rows;
        }
        let value = |data: &mut Bytes| match usize::try_from(data.get_i32()) {
            Ok(length) => Value::Binary(data.split_to(length)),
            Err(_) => Value::Null,
        };
        rows.push(Row((0..columns).map(|_| value(&mut data)).collect()));
    }
}

async fn content(database: &Database) -> Vec<String> {
    // Every column as text: what a reader of the table sees.
    database.lines("SELECT t::text FROM t ORDER BY id").await
}

#[tokio::test]
async fn every_common_type_arrives_as_it_was() {
    let source = Database::new().await;
    let (relation, rows) = source_rows(&source, ReplicaIdentity::Default).await;
    let sink = Database::with(TYPES).await;
    sink.sql.run(&create("PRIMARY KEY")).await.unwrap();
    let (_running, mut writer) = sink.writer(&relation).await;

    writer.write(vec![insert(rows.clone())]).await.unwrap();
    writer.commit(&after(1)).await.unwrap();
    assert_eq!(content(&sink).await, content(&source).await, "by COPY");

    let (ten, last) = (rows[0].clone(), rows[10].clone());
    sink.sql.run("TRUNCATE t").await.unwrap();
    writer.write(vec![insert([ten.clone(), last.clone()])]).await.unwrap();
    writer.commit(&after(2)).await.unwrap();
    source.sql.run("DELETE FROM t WHERE id BETWEEN 2 AND 10").await.unwrap();
    assert_eq!(content(&sink).await, content(&source).await, "by INSERT");

    // Each takes the other's values.
    let swap = |id: &Row, values: &Row| {
        let new = Row(id.0.iter().take(1).chain(values.0.iter().skip(1)).cloned().collect());
        (OldRow::Key(id.clone()), new)
    };
    writer.write(vec![update([swap(&ten, &last), swap(&last, &ten)])]).await.unwrap();
    writer.commit(&after(3)).await.unwrap();
    source.sql.run("UPDATE t SET id = -id; UPDATE t SET id = 12 + id").await.unwrap();
    assert_eq!(content(&sink).await, content(&source).await, "by UPDATE");
}

/// Also types without `=`, and with one that means something else.
#[tokio::test]
async fn whole_row_of_every_common_type_is_found() {
    let source = Database::new().await;
    let (relation, rows) = source_rows(&source, ReplicaIdentity::Full).await;
    let sink = Database::with(TYPES).await;
    sink.sql.run(&create("")).await.unwrap();
    let (_running, mut writer) = sink.writer(&relation).await;
    writer.write(vec![insert(rows.clone())]).await.unwrap();
    writer.write(vec![delete(rows.into_iter().map(OldRow::Full))]).await.unwrap();
    writer.commit(&after(1)).await.unwrap();
    assert_eq!(content(&sink).await, [""; 0]);
}

#[tokio::test]
async fn types_without_binary_format_arrive_as_text() {
    // `aclitem` has neither send nor receive.
    let database = Database::with("CREATE TABLE t (id bigint PRIMARY KEY, note aclitem)").await;
    let (_sink, mut writer) =
        database.writer(&relation(ReplicaIdentity::Default, &[("id", INT8), ("note", 1033)])).await;
    let acl = |id| row([int8(id), Value::Text(Bytes::from_static(b"postgres=r/postgres"))]);
    writer
        .write(vec![insert((0..20).map(acl)), update([(key(3), row([int8(3), Value::Null]))])])
        .await
        .unwrap();
    writer.commit(&after(1)).await.unwrap();
    assert_eq!(
        database
            .value("SELECT count(note) FROM t WHERE note IS NULL OR note::text = 'postgres=r/postgres'")
            .await,
        "19"
    );
}

/// The equality of an extension's type is not in the search path of the session.
#[tokio::test]
async fn keys_of_extension_types_are_found_by_their_own_equality() {
    let database = Database::with("CREATE EXTENSION citext; CREATE TABLE t (id citext PRIMARY KEY, note text); INSERT INTO t VALUES ('Key', 'old')").await;
    let (_sink, mut writer) =
        database.writer(&relation(ReplicaIdentity::Default, &[("id", 16_700), ("note", TEXT)])).await;
    let old = OldRow::Key(row([text("KEY"), Value::Null]));
    writer.write(vec![update([(old, row([text("KEY"), text("new")]))])]).await.unwrap();
    writer.commit(&after(1)).await.unwrap();
    assert_eq!(database.value("SELECT note FROM t").await, "new");
}
