//! What the preflight finds, and every refusal with its sentence.

use penstock_crds::report::Reason;
use penstock_e2e::postgres::{Server, Version};
use penstock_worker::change::table::{SourceColumn, SourceTable, TableName};
use penstock_worker::change::{Definition, ReplicaIdentity};
use penstock_worker::failure::Failure;
use penstock_worker::postgres::Endpoint;
use penstock_worker::source::check_room;

use crate::kit::{assert_says, endpoint, endpoint_as, inspect, inspect_with, session, test_slot};

const SHOP: &str = r#"
    CREATE SCHEMA sales; CREATE SCHEMA "Odd""Schema";
    CREATE TYPE sales.mood AS ENUM ('sad', 'it''s ok', 'happy');
    CREATE DOMAIN sales.price AS numeric(10,2) NOT NULL CHECK (VALUE >= 0);
    CREATE TABLE sales.customers (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        name varchar(40) NOT NULL DEFAULT 'nobody', mood sales.mood DEFAULT 'it''s ok', since timestamptz DEFAULT now(),
        tags text[] DEFAULT '{}', vip boolean DEFAULT false, dropped int, balance sales.price DEFAULT 0,
        twice bigint GENERATED ALWAYS AS (id * 2) STORED);
    ALTER TABLE sales.customers DROP COLUMN dropped;
    CREATE TABLE sales.orders (customer bigint REFERENCES sales.customers, number int, note text,
        PRIMARY KEY (number, customer));
    CREATE TABLE "Odd""Schema"."Tab ""le" (a int, "B c" text NOT NULL); 
    ALTER TABLE "Odd""Schema"."Tab ""le" REPLICA IDENTITY FULL;
    CREATE TABLE sales.by_index (code text NOT NULL, other int);
    CREATE UNIQUE INDEX by_code ON sales.by_index (code);
    ALTER TABLE sales.by_index REPLICA IDENTITY USING INDEX by_code;
    CREATE TABLE sales.events (id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
    CREATE TABLE sales.events_2020 PARTITION OF sales.events FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
    CREATE TABLE sales.events_rest PARTITION OF sales.events DEFAULT PARTITION BY LIST (id);
    CREATE TABLE sales.events_rest_1 PARTITION OF sales.events_rest DEFAULT;
    INSERT INTO sales.events SELECT g, '2020-06-01' FROM generate_series(1, 100) g;
    INSERT INTO sales.events SELECT g, '2022-06-01' FROM generate_series(1, 100) g;
    CREATE VIEW sales.a_view AS SELECT 1 AS one;
    ANALYZE sales.events_2020; ANALYZE sales.events_rest_1;
"#;

fn names(tables: &[SourceTable]) -> Vec<String> {
    tables.iter().map(|table| table.name.to_string()).collect()
}

fn column(table: &SourceTable, name: &str) -> SourceColumn {
    table.columns.iter().find(|column| column.name == name).unwrap().clone()
}

#[tokio::test]
async fn tables_are_found_and_described_alike_by_every_version() {
    for version in Version::ALL {
        let server = Server::start(version).await.unwrap();
        server.run("postgres", SHOP).await.unwrap();
        // A search_path that shortens names must change nothing.
        server.run("postgres", "ALTER ROLE postgres SET search_path = sales, public").await.unwrap();
        let endpoint = endpoint(&server, "postgres");
        let found = inspect(&endpoint, &["sales.*", "sales.orders", "Odd\"Schema.T*"]).await.unwrap();
        assert_eq!(found.identity.database, "postgres");
        assert_eq!(found.identity.timeline, 1);
        assert_eq!(found.identity.server_version / 10_000, version.major());
        let system_id = server.value("postgres", "SELECT system_identifier FROM pg_control_system()").await;
        assert_eq!(found.identity.system_id, system_id.unwrap());
        assert_shop(&found.tables);
    }
}

fn assert_shop(tables: &[SourceTable]) {
    let expected =
        ["Odd\"Schema.Tab \"le", "sales.by_index", "sales.customers", "sales.events", "sales.orders"];
    assert_eq!(names(tables), expected);
    let [odd, by_index, customers, events, orders] = tables else { panic!("{tables:?}") };

    assert_eq!(customers.primary_key, ["id"]);
    assert_eq!(customers.identity_columns, ["id"]);
    assert_eq!(customers.replica_identity, ReplicaIdentity::Default);
    assert_eq!(customers.foreign_key_peers, [orders.id]);
    let defaults: Vec<_> = customers
        .columns
        .iter()
        .map(|column| {
            (column.name.as_str(), column.column_type.sql.as_str(), column.constant_default.as_deref())
        })
        .collect();
    let text = |text| Some(text);
    assert_eq!(
        defaults,
        [
            ("id", "bigint", None),
            ("name", "character varying(40)", text("'nobody'::character varying")),
            ("mood", "sales.mood", text("'it''s ok'")),
            ("since", "timestamp with time zone", None),
            ("tags", "text[]", text("'{}'::text[]")),
            ("vip", "boolean", text("false")),
            ("balance", "numeric(10,2)", text("0")),
            ("twice", "bigint", None),
        ]
    );
    assert!(column(customers, "balance").is_not_null, "NOT NULL of the domain");
    assert!(!column(customers, "vip").is_not_null);
    assert_eq!(column(customers, "balance").column_type.oid, 1700);
    assert_eq!(column(customers, "twice").generated.as_deref(), Some("(id * 2)"));
    let labels = ["sad", "it's ok", "happy"].map(str::to_owned).to_vec();
    let mood = column(customers, "mood").column_type;
    let mood = mood.made().unwrap();
    assert_eq!(mood.name, TableName::new("sales", "mood"));
    assert_eq!(mood.definition, Definition::Enum(labels));

    assert_eq!(orders.primary_key, ["number", "customer"]);
    assert_eq!(orders.foreign_key_peers, [customers.id]);
    assert!(orders.estimated_rows > 0, "never analysed: the planner's guess");
    assert_eq!(odd.replica_identity, ReplicaIdentity::Full);
    assert_eq!(odd.identity_columns, ["a", "B c"]);
    assert_eq!(odd.primary_key, [""; 0]);
    assert_eq!(by_index.identity_columns, ["code"]);
    assert_eq!(by_index.replica_identity, ReplicaIdentity::Index);
    assert!(events.is_partitioned);
    assert_eq!(events.estimated_rows, 200);
}

#[tokio::test]
async fn a_partition_can_be_chosen_without_its_root_and_a_virtual_column_is_computed_in_the_sink() {
    let server = Server::start(Version::V18).await.unwrap();
    server.run("postgres", SHOP).await.unwrap();
    let sql = "CREATE TABLE v (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) VIRTUAL)";
    server.run("postgres", sql).await.unwrap();
    let found = inspect(&endpoint(&server, "postgres"), &["sales.events_2020", "public.v"]).await.unwrap();
    assert_eq!(names(&found.tables), ["public.v", "sales.events_2020"]);
    assert_eq!(found.tables[0].columns[1].generated.as_deref(), Some("(id * 2)"));
    assert!(!found.tables[1].is_partitioned);
}

/// Runs `sql` in a database of its own and returns what the preflight of `tables` says.
async fn refused(server: &Server, number: usize, sql: &str, tables: &[&str]) -> Failure {
    let database = format!("refused_{number}");
    server.create_database(&database).await.unwrap();
    server.run(&database, sql).await.unwrap();
    inspect(&endpoint(server, &database), tables).await.expect_err(sql).into()
}

/// SQL that sets it up, the tables asked for, what comes of it.
type Case = (&'static str, &'static [&'static str], Reason, &'static [&'static str]);

const ALL: &[&str] = &["public.*"];

const REFUSED: &[Case] = &[
    ("", &["public.gone", "public.no*"], Reason::TableMissing, &["public.gone", "public.no*", "lower case"]),
    ("CREATE VIEW v AS SELECT 1", &["public.v"], Reason::TableMissing, &["public.v, a view,"]),
    ("CREATE VIEW v AS SELECT 1", ALL, Reason::TableMissing, &["No table", "public.*"]),
    (
        "CREATE UNLOGGED TABLE u (id int PRIMARY KEY)",
        ALL,
        Reason::TableMissing,
        &["public.u, an unlogged table"],
    ),
    (
        "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; \
     CREATE TABLE t (id int PRIMARY KEY); CREATE FOREIGN TABLE f (id int) SERVER s",
        ALL,
        Reason::TableMissing,
        &["public.f, a foreign table"],
    ),
    (
        "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; \
     CREATE TABLE t (id int) PARTITION BY LIST (id); ALTER TABLE t REPLICA IDENTITY FULL; \
     CREATE FOREIGN TABLE f PARTITION OF t DEFAULT SERVER s",
        &["public.t"],
        Reason::TableMissing,
        &["public.f", "among the partitions"],
    ),
    (
        "CREATE TABLE a (id int); CREATE TABLE b (id int)",
        ALL,
        Reason::ReplicaIdentityMissing,
        &["public.a", "public.b has no primary key", "ALTER TABLE \"public\".\"b\" REPLICA IDENTITY FULL"],
    ),
    (
        "CREATE TABLE a (id int PRIMARY KEY); ALTER TABLE a REPLICA IDENTITY NOTHING",
        ALL,
        Reason::ReplicaIdentityMissing,
        &["REPLICA IDENTITY NOTHING", "REPLICA IDENTITY DEFAULT"],
    ),
    (
        "CREATE TABLE a (id int PRIMARY KEY DEFERRABLE)",
        ALL,
        Reason::ReplicaIdentityMissing,
        &["deferrable", "REPLICA IDENTITY FULL"],
    ),
    (
        "CREATE TABLE a (id int NOT NULL); CREATE UNIQUE INDEX i ON a (id); \
     ALTER TABLE a REPLICA IDENTITY USING INDEX i; DROP INDEX i",
        ALL,
        Reason::ReplicaIdentityMissing,
        &["index of the replica identity of public.a is gone"],
    ),
    (
        "CREATE TABLE a (id int, k int GENERATED ALWAYS AS (id) STORED PRIMARY KEY)",
        ALL,
        Reason::ReplicaIdentityMissing,
        &["holds a generated column"],
    ),
    (
        "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY LIST (id); CREATE TABLE p PARTITION OF t DEFAULT; \
     ALTER TABLE p REPLICA IDENTITY FULL",
        &["public.t"],
        Reason::ReplicaIdentityMissing,
        &["ALTER TABLE \"public\".\"p\" REPLICA IDENTITY DEFAULT"],
    ),
    (
        "CREATE TABLE a (id int PRIMARY KEY, c regclass, d int)",
        ALL,
        Reason::UnsupportedColumnType,
        &["public.a, column c", "values of regclass"],
    ),
    ("CREATE TABLE a (id int PRIMARY KEY, c aclitem)", ALL, Reason::UnsupportedColumnType, &["aclitem"]),
    (
        "CREATE DOMAIN d AS regtype; CREATE TYPE p AS (x int, y d[]); CREATE TABLE a (id int PRIMARY KEY, c p[])",
        ALL,
        Reason::UnsupportedColumnType,
        &["public.a, column c: values of regtype", "store the name as text"],
    ),
    (
        "CREATE TABLE a (id int PRIMARY KEY, c pg_class)",
        ALL,
        Reason::UnsupportedColumnType,
        &["the rows of pg_catalog.pg_class are the server's own"],
    ),
];

#[tokio::test]
async fn tables_that_cannot_be_followed_are_refused_with_what_to_do() {
    let server = Server::start(Version::V15).await.unwrap();
    for (number, (sql, tables, reason, words)) in REFUSED.iter().enumerate() {
        assert_says(&refused(&server, number, sql, tables).await, *reason, words);
    }
}

#[tokio::test]
async fn missing_privileges_are_named_together_with_the_statements_that_give_them() {
    let server = Server::start(Version::V15).await.unwrap();
    server
        .run(
            "postgres",
            "CREATE ROLE plain LOGIN; CREATE ROLE reader LOGIN REPLICATION; CREATE ROLE \"Owner\"; \
             CREATE SCHEMA shop; CREATE TABLE shop.t (id int PRIMARY KEY); CREATE TABLE shop.u (id int PRIMARY KEY); \
             ALTER TABLE shop.t OWNER TO \"Owner\"",
        )
        .await
        .unwrap();
    let tables = &["shop.*"];
    let as_role = |role: &str| endpoint_as(&server, "postgres", role, "unused");
    let says = async |endpoint: &Endpoint, publication: Option<&str>, words: &[&str]| {
        let failure: Failure = inspect_with(endpoint, tables, publication).await.unwrap_err().into();
        assert_says(&failure, Reason::SourcePrivilegeMissing, words);
    };
    says(&as_role("plain"), None, &["ALTER ROLE \"plain\" REPLICATION"]).await;
    let grants = [
        "GRANT CREATE ON DATABASE \"postgres\" TO \"reader\"",
        "GRANT USAGE ON SCHEMA \"shop\" TO \"reader\"",
        "GRANT SELECT ON \"shop\".\"t\" TO \"reader\"",
        "GRANT SELECT ON \"shop\".\"u\" TO \"reader\"",
    ];
    says(&as_role("reader"), None, &grants).await;
    server.run("postgres", &grants.join(";")).await.unwrap();
    let words =
        ["does not own shop.t, shop.u", "GRANT \"Owner\" TO \"reader\"", "source.postgres.publication"];
    says(&as_role("reader"), None, &words).await;
    server.run("postgres", "ALTER TABLE shop.t ENABLE ROW LEVEL SECURITY").await.unwrap();
    says(&as_role("reader"), Some("given"), &["row-level security hides rows of shop.t", "BYPASSRLS"]).await;

    // With what the sentences say, the role may go on: as a reader of a given publication, and as owner.
    server.run("postgres", "ALTER ROLE reader BYPASSRLS").await.unwrap();
    inspect_with(&as_role("reader"), tables, Some("given")).await.unwrap();
    server.run("postgres", "GRANT \"Owner\" TO reader; ALTER TABLE shop.u OWNER TO reader").await.unwrap();
    inspect(&as_role("reader"), tables).await.unwrap();
}

#[tokio::test]
async fn servers_that_cannot_be_followed_are_refused_with_what_to_do() {
    let server = Server::builder(Version::V15).setting("wal_level", "replica").start().await.unwrap();
    server.run("postgres", "CREATE TABLE t (id int PRIMARY KEY)").await.unwrap();
    let failure: Failure = inspect(&endpoint(&server, "postgres"), &["public.t"]).await.unwrap_err().into();
    let words = ["wal_level = replica", "ALTER SYSTEM SET wal_level"];
    assert_says(&failure, Reason::SourceNotLogical, &words);

    let server = Server::builder(Version::V16)
        .setting("max_replication_slots", "1")
        .setting("max_wal_senders", "0")
        .start()
        .await
        .unwrap();
    let endpoint = endpoint(&server, "postgres");
    let session = session(&endpoint).await;
    let failure: Failure = check_room(&session, &test_slot()).await.unwrap_err().into();
    assert_says(&failure, Reason::NoFreeReplicationSlot, &["0 of 0", "max_wal_senders"]);
    let take = "SELECT pg_create_logical_replication_slot('other', 'pgoutput')";
    server.run("postgres", take).await.unwrap();
    let failure: Failure = check_room(&session, &test_slot()).await.unwrap_err().into();
    assert_says(&failure, Reason::NoFreeReplicationSlot, &["1 of 1", "max_replication_slots"]);
}
