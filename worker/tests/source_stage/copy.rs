//! Copying what is there.

use std::pin::pin;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use penstock_crds::report::Reason;
use penstock_e2e::postgres::{Server, Version};
use penstock_worker::change::table::SourceTable;
use penstock_worker::change::travel::Format;
use penstock_worker::failure::Failure;
use penstock_worker::incremental::{KeyColumn, KeyOrder, key_of};
use penstock_worker::postgres::{Endpoint, Session};
use penstock_worker::source::{Durability, ExportedSnapshot, SourceError, TableCopy, create_slot, read_key};

use crate::kit::{assert_says, endpoint, inspect, publish, session, test_slot};

/// Table `t` with 1000 rows, found, and a snapshot after that.
async fn snapshot_of_t(server: &Server) -> (Endpoint, Vec<SourceTable>, ExportedSnapshot) {
    let sql = "CREATE TABLE t (id int PRIMARY KEY, x text); \
               INSERT INTO t SELECT g, 'row ' || g FROM generate_series(1, 1000) g";
    server.run("postgres", sql).await.unwrap();
    let endpoint = endpoint(server, "postgres");
    let tables = inspect(&endpoint, &["public.t"]).await.unwrap().tables;
    let snapshot = create_slot(&endpoint, &test_slot(), Durability::Temporary).await.unwrap();
    (endpoint, tables, snapshot)
}

fn copied_columns(table: &SourceTable) -> Vec<String> {
    table
        .columns
        .iter()
        .filter(|column| column.generated.is_none())
        .map(|column| column.name.clone())
        .collect()
}

/// Passes every chunk unchanged into the table `into`; returns the number of chunks, and how many of them end with a key.
async fn copy_by(
    copy: &TableCopy,
    table: &SourceTable,
    sink: &Session,
    into: &str,
    by_key: bool,
) -> (usize, usize) {
    let columns = copied_columns(table);
    let names: Vec<String> = columns.iter().map(|column| format!("\"{column}\"")).collect();
    let reader = copy.reader().await.unwrap();
    let key = if by_key { key_of(table) } else { None };
    let chunks = copy.chunks(table, key.as_deref()).await.unwrap();
    for chunk in &chunks {
        let sql = format!("COPY {into} ({}) FROM STDIN (FORMAT binary)", names.join(", "));
        let mut writer = pin!(sink.copy_in::<_, bytes::Bytes>(&sql).await.unwrap());
        let mut rows = pin!(reader.read(chunk, &columns, Format::Binary).await.unwrap());
        while let Some(bytes) = rows.next().await {
            writer.send(bytes.unwrap()).await.unwrap();
        }
        writer.close().await.unwrap();
    }
    reader.close().await;
    (chunks.len(), chunks.iter().filter(|chunk| chunk.end().is_some()).count())
}

async fn copy_into(copy: &TableCopy, table: &SourceTable, sink: &Session, into: &str) -> usize {
    copy_by(copy, table, sink, into, false).await.0
}

async fn prove(copy: &TableCopy, tables: &[SourceTable]) -> Result<(), SourceError> {
    for table in tables {
        copy.prove(table).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_table_rewritten_after_the_snapshot_is_refused_where_it_would_silently_read_as_empty() {
    let rewrites = [
        "TRUNCATE t",
        "BEGIN; TRUNCATE t; INSERT INTO t SELECT g, 'new' FROM generate_series(1, 10) g; COMMIT",
        "VACUUM FULL t",
        "CLUSTER t USING t_pkey",
        "ALTER TABLE t ALTER id TYPE bigint",
        "ALTER TABLE t ADD COLUMN y float8 DEFAULT random()",
    ];
    for rewrite in rewrites {
        let server = Server::start(Version::V15).await.unwrap();
        let (endpoint, tables, snapshot) = snapshot_of_t(&server).await;
        server.run("postgres", rewrite).await.unwrap();
        if rewrite == "TRUNCATE t" {
            let old = session(&endpoint).await;
            let begin = format!(
                "BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '{}'",
                snapshot.snapshot_name
            );
            old.batch_execute(&begin).await.unwrap();
            let row = old.query_one("SELECT count(*) FROM t", &[]).await.unwrap();
            assert_eq!(row.get::<_, i64>(0), 0, "the trap: no error, no rows");
        }
        let error = snapshot.open_copy(&endpoint, &tables).await.expect_err(rewrite);
        assert_says(&Failure::from(error), Reason::TableRewritten, &["public.t", "copied again"]);
    }
}

#[tokio::test]
async fn a_table_dropped_or_replaced_after_it_was_found_is_refused() {
    for (change, reason) in [
        ("DROP TABLE t", Reason::TableMissing),
        ("DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, x text)", Reason::TableRewritten),
    ] {
        let server = Server::start(Version::V15).await.unwrap();
        let (endpoint, tables, snapshot) = snapshot_of_t(&server).await;
        server.run("postgres", change).await.unwrap();
        let error = snapshot.open_copy(&endpoint, &tables).await.expect_err(change);
        assert_says(&Failure::from(error), reason, &[]);
    }
}

#[tokio::test]
async fn rewrites_are_kept_out_while_the_copy_is_open_and_a_lost_leader_voids_it() {
    let server = Server::start(Version::V15).await.unwrap();
    let (endpoint, tables, snapshot) = snapshot_of_t(&server).await;
    let copy = snapshot.open_copy(&endpoint, &tables).await.unwrap();
    drop(snapshot);
    let rewrite = "SET lock_timeout = '200ms'; TRUNCATE t";
    let refused = server.run("postgres", rewrite).await.unwrap_err();
    assert!(format!("{refused:#}").contains("lock timeout"), "{refused:#}");
    prove(&copy, &tables).await.unwrap();
    copy.close().await.unwrap();

    let snapshot = create_slot(&endpoint, &test_slot(), Durability::Temporary).await.unwrap();
    let copy = snapshot.open_copy(&endpoint, &tables).await.unwrap();
    let end_leader = "SELECT count(pg_terminate_backend(pid)) FROM pg_locks \
                      WHERE relation = 't'::regclass AND mode = 'AccessShareLock'";
    assert_eq!(server.value("postgres", end_leader).await.unwrap(), "1");
    server.run("postgres", "TRUNCATE t").await.unwrap();
    let failure = Failure::from(prove(&copy, &tables).await.unwrap_err());
    assert_says(&failure, Reason::SourceUnreachable, &[]);
}

#[tokio::test]
async fn a_rewrite_that_waits_for_the_copy_never_holds_up_its_readers() {
    let server = Server::start(Version::V15).await.unwrap();
    let (endpoint, tables, snapshot) = snapshot_of_t(&server).await;
    let copy = snapshot.open_copy(&endpoint, &tables).await.unwrap();
    drop(snapshot);
    let rewriter = session(&endpoint).await;
    let rewrite = async {
        rewriter.batch_execute("TRUNCATE t").await.unwrap();
    };
    let late_reader = async {
        wait_for_waiting_rewrite(&server).await;
        let failure =
            Failure::from(copy.reader().await.expect_err("a reader must not queue behind the rewrite"));
        assert_says(&failure, Reason::TableRewritten, &["waits to rewrite"]);
        drop(copy);
    };
    within_ten_seconds(async { tokio::join!(rewrite, late_reader) }).await;

    server.run("postgres", "INSERT INTO t VALUES (1, 'one')").await.unwrap();
    let snapshot = create_slot(&endpoint, &test_slot(), Durability::Temporary).await.unwrap();
    let copy = snapshot.open_copy(&endpoint, &tables).await.unwrap();
    let reader = copy.reader().await.unwrap();
    let rewrite = async {
        rewriter.batch_execute("TRUNCATE t").await.unwrap();
    };
    let early_reader = async {
        wait_for_waiting_rewrite(&server).await;
        let chunk = copy.chunks(&tables[0], None).await.unwrap().remove(0);
        let rows = reader.read(&chunk, &copied_columns(&tables[0]), Format::Binary).await.unwrap();
        let bytes: usize = rows.map(|bytes| bytes.unwrap().len()).collect::<Vec<_>>().await.iter().sum();
        assert!(bytes > 21, "more than header and trailer: {bytes}");
        reader.close().await;
        prove(&copy, &tables).await.unwrap();
        copy.close().await.unwrap();
    };
    within_ten_seconds(async { tokio::join!(rewrite, early_reader) }).await;
}

async fn within_ten_seconds<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), work)
        .await
        .expect("leader, reader and rewrite wait for each other")
}

async fn wait_for_waiting_rewrite(server: &Server) {
    let waiting = "SELECT count(*) FROM pg_locks WHERE relation = 't'::regclass AND NOT granted";
    while server.value("postgres", waiting).await.unwrap() == "0" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn chunks_are_the_whole_snapshot_whatever_happens_meanwhile() {
    for version in [Version::V15, Version::V18] {
        let server = Server::start(version).await.unwrap();
        server
            .run(
                "postgres",
                "CREATE TABLE big (id int PRIMARY KEY, x text NOT NULL, twice int GENERATED ALWAYS AS (id * 2) STORED, \
                   n numeric, a int[], empty text); ALTER TABLE big ALTER x SET STORAGE plain; \
                 INSERT INTO big (id, x, n, a) SELECT g, repeat(md5(g::text), 125), g / 7.0, ARRAY[g, NULL] \
                   FROM generate_series(1, 40000) g; \
                 CREATE TABLE before AS SELECT * FROM big; CREATE TABLE copied (LIKE big INCLUDING GENERATED); \
                 CREATE TABLE nothing (id int PRIMARY KEY)",
            )
            .await
            .unwrap();
        let endpoint = endpoint(&server, "postgres");
        let inspection = publish(&endpoint, &["public.big", "public.nothing"]).await;
        let snapshot = create_slot(&endpoint, &test_slot(), Durability::Permanent).await.unwrap();
        let copy = snapshot.open_copy(&endpoint, &inspection.tables).await.unwrap();
        let meddle = "INSERT INTO big (id, x) SELECT g, repeat('new', 900) FROM generate_series(50000, 60000) g; \
                      UPDATE big SET x = 'changed' WHERE id % 3 = 0; DELETE FROM big WHERE id % 3 = 1";
        server.run("postgres", meddle).await.unwrap();
        server.run("postgres", "VACUUM big").await.unwrap();

        let sink = session(&endpoint).await;
        let [big, nothing] = inspection.tables.as_slice() else { panic!() };
        assert_eq!(copy_into(&copy, big, &sink, "copied").await, 10);
        assert_eq!(copy_into(&copy, nothing, &sink, "nothing").await, 1);
        prove(&copy, &inspection.tables).await.unwrap();
        copy.close().await.unwrap();
        let differing = "SELECT count(*) FROM ((TABLE before EXCEPT ALL TABLE copied) UNION ALL \
                         (TABLE copied EXCEPT ALL TABLE before)) AS d";
        assert_eq!(server.value("postgres", differing).await.unwrap(), "0");
        assert_eq!(server.value("postgres", "SELECT count(*) FROM copied").await.unwrap(), "40000");
    }
}

#[tokio::test]
async fn a_table_that_lies_in_the_order_of_its_key_is_copied_in_ranges_of_it_and_another_by_pages() {
    let server = Server::start(Version::V15).await.unwrap();
    let wide = |table: &str, order: &str| {
        format!(
            "CREATE TABLE {table} (a int, day date, x text, PRIMARY KEY (day, a)); ALTER TABLE {table} ALTER x SET STORAGE plain; \
             INSERT INTO {table} SELECT g, '2020-01-01'::date + g / 100, repeat(md5(g::text), 60) \
               FROM generate_series(1, 40000) g ORDER BY {order}; CREATE TABLE {table}_copied (LIKE {table}); "
        )
    };
    let sql = wide("ordered", "g") + &wide("backwards", "-g") + &wide("shuffled", "md5(g::text)");
    server.run("postgres", &sql).await.unwrap();
    let endpoint = endpoint(&server, "postgres");
    let inspection = publish(&endpoint, &["public.ordered", "public.backwards", "public.shuffled"]).await;
    let snapshot = create_slot(&endpoint, &test_slot(), Durability::Permanent).await.unwrap();
    let copy = snapshot.open_copy(&endpoint, &inspection.tables).await.unwrap();
    let meddle =
        "UPDATE ordered SET day = day - 10000 WHERE a % 3 = 0; DELETE FROM backwards WHERE a % 3 = 1";
    server.run("postgres", meddle).await.unwrap();

    let sink = session(&endpoint).await;
    for table in &inspection.tables {
        let into = format!("{}_copied", table.name.name);
        let (chunks, of_key) = copy_by(&copy, table, &sink, &into, true).await;
        assert!(chunks >= 5, "{chunks} chunks of {}", table.name);
        let expected = if table.name.name == "shuffled" { 0 } else { chunks - 1 };
        assert_eq!(of_key, expected, "{}", table.name);
        let whole = format!("SELECT (count(*), count(DISTINCT a), sum(a), count(DISTINCT x)) FROM {into}");
        assert_eq!(server.value("postgres", &whole).await.unwrap(), "(40000,40000,800020000,40000)");
    }
    prove(&copy, &inspection.tables).await.unwrap();
}

#[tokio::test]
async fn partitions_are_copied_as_their_root_and_a_new_one_voids_the_copy() {
    let server = Server::start(Version::V15).await.unwrap();
    server
        .run(
            "postgres",
            "CREATE TABLE t (id int, x text, PRIMARY KEY (id)) PARTITION BY RANGE (id); \
             CREATE TABLE odd_order (x text, dropped int, id int NOT NULL); ALTER TABLE odd_order DROP dropped; \
             ALTER TABLE t ATTACH PARTITION odd_order FOR VALUES FROM (0) TO (100); \
             CREATE TABLE sub PARTITION OF t FOR VALUES FROM (100) TO (200) PARTITION BY LIST (id); \
             CREATE TABLE sub_rest PARTITION OF sub DEFAULT; \
             INSERT INTO t SELECT g, g::text FROM generate_series(0, 199) g; \
             CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent); \
             INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2); \
             CREATE TABLE copied (id int, x text); CREATE TABLE copied_parent (id int)",
        )
        .await
        .unwrap();
    let endpoint = endpoint(&server, "postgres");
    let tables = inspect(&endpoint, &["public.t", "public.parent"]).await.unwrap().tables;
    let [parent, root] = tables.as_slice() else { panic!("{tables:?}") };
    let snapshot = create_slot(&endpoint, &test_slot(), Durability::Temporary).await.unwrap();
    let sink = session(&endpoint).await;

    let copy = snapshot.open_copy(&endpoint, &tables).await.unwrap();
    assert_eq!(copy_into(&copy, root, &sink, "copied").await, 2);
    assert_eq!(copy_into(&copy, parent, &sink, "copied_parent").await, 1);
    prove(&copy, &tables).await.unwrap();
    copy.close().await.unwrap();
    let same = "SELECT count(*) FILTER (WHERE id::text = x) FROM copied";
    assert_eq!(server.value("postgres", same).await.unwrap(), "200");
    assert_eq!(server.value("postgres", "SELECT array_agg(id) FROM copied_parent").await.unwrap(), "{1}");

    let copy = snapshot.open_copy(&endpoint, &tables).await.unwrap();
    let attach = "CREATE TABLE late (LIKE t INCLUDING ALL); INSERT INTO late VALUES (300, 'late'); \
                  ALTER TABLE t ATTACH PARTITION late FOR VALUES FROM (300) TO (400)";
    server.run("postgres", attach).await.unwrap();
    let failure = Failure::from(prove(&copy, &tables).await.unwrap_err());
    assert_says(&failure, Reason::TableRewritten, &["public.t", "given other partitions"]);
}

#[tokio::test]
async fn the_worker_orders_keys_as_the_server_does() {
    let server = Server::start(Version::V15).await.unwrap();
    let session = session(&endpoint(&server, "postgres")).await;
    let numbers = "SELECT DISTINCT v FROM ( \
        SELECT round((random() - 0.5)::numeric * power(10::numeric, (random() * 60)::int - 30), (random() * 40)::int) AS v \
          FROM generate_series(1, 2000) \
        UNION ALL SELECT unnest('{NaN,Infinity,-Infinity,0,0.00,1,1.0,10000,9999,-10000,-9999,0.0001,-0.00010}'::numeric[])) AS n";
    let floats = "SELECT DISTINCT v FROM ( \
        SELECT (random() - 0.5) * power(10::float8, (random() * 600)::int - 300) AS v FROM generate_series(1, 2000) \
        UNION ALL SELECT unnest('{NaN,Infinity,-Infinity,0,-0,5e-324,-5e-324,1}'::float8[])) AS n";
    let columns = [
        ("numeric", 1700, numbers),
        ("double precision", 701, floats),
        ("real", 700, "SELECT DISTINCT (random() * 100 - 50)::real AS v FROM generate_series(1, 500)"),
        ("bigint", 20, "SELECT DISTINCT (random() * 1e18 - 5e17)::int8 AS v FROM generate_series(1, 500)"),
        (
            "timestamp with time zone",
            1184,
            "SELECT '-infinity'::timestamptz AS v UNION ALL SELECT 'infinity' UNION ALL \
          SELECT '1999-12-31'::timestamptz + g * interval '7 hours' FROM generate_series(1, 500) AS g",
        ),
        ("uuid", 2950, "SELECT gen_random_uuid() AS v FROM generate_series(1, 500)"),
    ];
    for (type_sql, oid, values) in columns {
        let order = KeyOrder::of_type(oid).unwrap();
        let key = [KeyColumn { name: "v".into(), type_sql: type_sql.into(), order }];
        let mut keys = Vec::new();
        for row in
            session.query(&format!("SELECT v::text FROM ({values}) AS v ORDER BY v.v"), &[]).await.unwrap()
        {
            keys.push(read_key(&session, &key, &[row.get(0)]).await.unwrap());
        }
        assert!(keys.len() > 400 && keys.is_sorted_by(|one, next| one < next), "{type_sql}");
    }
}
