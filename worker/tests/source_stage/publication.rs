//! Publications, managed and given.

use std::time::{Duration, Instant};

use penstock_crds::report::Reason;
use penstock_e2e::postgres::{Server, Version};
use penstock_worker::change::table::SourceTable;
use penstock_worker::failure::Failure;
use penstock_worker::postgres::Endpoint;
use penstock_worker::source::{PublicationName, drop_publication, ensure_publication};

use crate::kit::{assert_says, endpoint, inspect, session, test_publication};

const TABLES: &str = "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, x int); \
     CREATE TABLE child () INHERITS (a); \
     CREATE TABLE p (id int PRIMARY KEY) PARTITION BY LIST (id); CREATE TABLE p_rest PARTITION OF p DEFAULT";

async fn found(endpoint: &Endpoint, tables: &[&str]) -> Vec<SourceTable> {
    inspect(endpoint, tables).await.unwrap().tables
}

/// What the publication publishes: operations, root, tables.
async fn published(server: &Server, name: &PublicationName) -> String {
    let sql = format!(
        "SELECT concat_ws(' ', pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot, ( \
           SELECT string_agg(tablename, ',' ORDER BY tablename) FROM pg_publication_tables \
           WHERE pubname = p.pubname)) FROM pg_publication p WHERE pubname = '{name}'"
    );
    server.value("postgres", &sql).await.unwrap()
}

#[tokio::test]
async fn a_managed_publication_is_made_followed_repaired_and_dropped() {
    for version in [Version::V15, Version::V18] {
        let server = Server::start(version).await.unwrap();
        server.run("postgres", TABLES).await.unwrap();
        let endpoint = endpoint(&server, "postgres");
        let name = test_publication();
        let mut session = session(&endpoint).await;
        let few = found(&endpoint, &["public.a", "public.p"]).await;
        let more = found(&endpoint, &["public.a", "public.b", "public.p"]).await;

        ensure_publication(&mut session, &name, &few, true).await.unwrap();
        assert_eq!(published(&server, &name).await, "t t t t t a,p", "without the child of a");
        ensure_publication(&mut session, &name, &more, true).await.unwrap();
        assert_eq!(published(&server, &name).await, "t t t t t a,b,p");
        ensure_publication(&mut session, &name, &few, true).await.unwrap();
        assert_eq!(published(&server, &name).await, "t t t t t a,p");

        let meddle = format!(
            "ALTER PUBLICATION {name} SET (publish = 'insert', publish_via_partition_root = false); \
             ALTER PUBLICATION {name} SET TABLE a WHERE (id > 5), p (id)"
        );
        server.run("postgres", &meddle).await.unwrap();
        ensure_publication(&mut session, &name, &few, true).await.unwrap();
        assert_eq!(published(&server, &name).await, "t t t t t a,p");
        let narrowed =
            "SELECT count(*) FROM pg_publication_rel WHERE prqual IS NOT NULL OR prattrs IS NOT NULL";
        assert_eq!(server.value("postgres", narrowed).await.unwrap(), "0");

        drop_publication(&session, &name).await.unwrap();
        drop_publication(&session, &name).await.unwrap();
        assert_eq!(server.value("postgres", "SELECT count(*) FROM pg_publication").await.unwrap(), "0");
    }
}

#[tokio::test]
async fn shards_may_make_the_publication_at_the_same_time() {
    let server = Server::start(Version::V15).await.unwrap();
    server.run("postgres", TABLES).await.unwrap();
    let endpoint = endpoint(&server, "postgres");
    let tables = found(&endpoint, &["public.a", "public.b"]).await;
    let shards = (0..8).map(|_| async {
        let mut session = session(&endpoint).await;
        ensure_publication(&mut session, &test_publication(), &tables, true).await
    });
    for result in futures::future::join_all(shards).await {
        result.unwrap();
    }
    assert_eq!(published(&server, &test_publication()).await, "t t t t t a,b");
}

#[tokio::test]
async fn a_given_publication_is_checked_and_the_statement_that_repairs_it_does() {
    let server = Server::start(Version::V18).await.unwrap();
    server.run("postgres", TABLES).await.unwrap();
    let endpoint = endpoint(&server, "postgres");
    let tables = found(&endpoint, &["public.a", "public.b", "public.p"]).await;
    let name = PublicationName::given("Their pub");
    let mut session = session(&endpoint).await;
    let cases = [
        ("", "does not exist"),
        (
            "CREATE PUBLICATION \"Their pub\" FOR TABLE a, p WITH (publish_via_partition_root)",
            "lacks public.b",
        ),
        (
            "CREATE PUBLICATION \"Their pub\" FOR ALL TABLES WITH (publish = 'insert, update', \
             publish_via_partition_root)",
            "does not publish delete, truncate",
        ),
        ("CREATE PUBLICATION \"Their pub\" FOR TABLE a, b, p", "publishes partitions of public.p"),
        (
            "CREATE PUBLICATION \"Their pub\" FOR TABLE a, b (id), p WITH (publish_via_partition_root)",
            "row filter or a column list on public.b",
        ),
        (
            "CREATE PUBLICATION \"Their pub\" FOR TABLE a WHERE (id > 1), b, p WITH (publish_via_partition_root)",
            "row filter or a column list on public.a",
        ),
        (
            "CREATE PUBLICATION \"Their pub\" FOR TABLES IN SCHEMA public WITH (publish_via_partition_root, \
             publish_generated_columns = stored)",
            "publishes generated columns",
        ),
    ];
    for (sql, problem) in cases {
        server.run("postgres", sql).await.unwrap();
        let error = ensure_publication(&mut session, &name, &tables, false).await.expect_err(sql);
        let failure = Failure::from(error);
        assert_says(&failure, Reason::PublicationUnsuitable, &["Their pub", problem]);
        let (_, repair) = failure.message.split_once("Run: ").unwrap();
        server.run("postgres", repair).await.unwrap();
        ensure_publication(&mut session, &name, &tables, false).await.expect(repair);
        server.run("postgres", "DROP PUBLICATION \"Their pub\"").await.unwrap();
    }
}

#[tokio::test]
async fn after_a_table_is_added_every_transaction_that_was_open_is_waited_for() {
    let server = Server::start(Version::V15).await.unwrap();
    server.run("postgres", TABLES).await.unwrap();
    let endpoint = endpoint(&server, "postgres");
    let name = test_publication();
    let mut session = session(&endpoint).await;
    ensure_publication(&mut session, &name, &found(&endpoint, &["public.a"]).await, true).await.unwrap();

    let open = server.connect("postgres").await.unwrap();
    open.run("BEGIN").await.unwrap();
    open.run("INSERT INTO b VALUES (1)").await.unwrap();
    let started = Instant::now();
    let held = Duration::from_millis(1500);
    let tables = found(&endpoint, &["public.a", "public.b"]).await;
    let end = async {
        tokio::time::sleep(held).await;
        open.run("COMMIT").await.unwrap();
    };
    let (done, ()) = tokio::join!(ensure_publication(&mut session, &name, &tables, true), end);
    done.unwrap();
    assert!(started.elapsed() >= held, "{:?}", started.elapsed());

    let unchanged = Instant::now();
    open.run("BEGIN").await.unwrap();
    open.run("INSERT INTO b VALUES (2)").await.unwrap();
    ensure_publication(&mut session, &name, &tables, true).await.unwrap();
    assert!(unchanged.elapsed() < held, "nothing was added, so nothing is waited for");
}
