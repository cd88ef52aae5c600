//! No type is forgotten: each server is asked for every type that it has.

use std::collections::BTreeSet;

use penstock_crds::connection::{PostgresConnection, Tls, TlsMode};
use penstock_crds::report::Reason;
use penstock_crds::source::{PostgresSource, Snapshot};
use penstock_e2e::postgres::{Server, Version};
use penstock_worker::failure::Failure;
use penstock_worker::postgres::{Credentials, End, Endpoint, EndpointFiles};
use penstock_worker::source::preflight;

use crate::samples::BUILT_IN;

const GUIDE: &str = include_str!("../../../docs/guide-types.md");

/// Makes a table with a column of every type of the server that a column can have, and returns their names by
/// column. Arrays have columns of their own.
const ONE_OF_EACH: &str = "
    CREATE TABLE one_of_each (id integer PRIMARY KEY);
    CREATE TABLE types_by_column (name text, type text, kind text, element text);
    DO $$ DECLARE t record; BEGIN
        FOR t IN SELECT type.oid, format_type(type.oid, NULL) AS name, type.typtype, COALESCE('c' || element.oid, '') AS element
                 FROM pg_type AS type
                 LEFT JOIN pg_type AS element ON element.typarray = type.oid
                 WHERE type.oid < 16384 AND type.typtype <> 'p' AND type.typnamespace <> 'pg_toast'::regnamespace
                 ORDER BY type.oid LOOP
            BEGIN
                EXECUTE format('ALTER TABLE one_of_each ADD COLUMN c%s %s', t.oid, t.name);
                INSERT INTO types_by_column VALUES ('c' || t.oid, t.name, t.typtype, t.element);
            EXCEPTION WHEN invalid_table_definition THEN NULL;
            END;
        END LOOP;
    END $$";

async fn refused_columns(server: &Server) -> BTreeSet<String> {
    let endpoint = Endpoint {
        end: End::Source,
        connection: PostgresConnection {
            host: "127.0.0.1".into(),
            port: server.port,
            database: "postgres".into(),
            credentials_secret: "none".into(),
            tls: Tls { mode: TlsMode::Disable, ca_secret: None, client_certificate_secret: None },
        },
        files: EndpointFiles {
            credentials: "/nowhere".into(),
            tls: "/nowhere".into(),
            environment: Some(Credentials { username: "postgres".into(), password: "none".into() }),
        },
    };
    let session = endpoint.connect("test").await.unwrap();
    let tables = vec!["public.one_of_each".to_owned()];
    let patterns: Vec<_> = tables.iter().map(|table| table.parse().unwrap()).collect();
    let connection = endpoint.connection.clone();
    let spec = PostgresSource { connection, tables, snapshot: Snapshot::default(), publication: None };
    let error = preflight(&session, &spec, &patterns).await.unwrap_err();
    let failure = Failure::from(error);
    assert_eq!(failure.reason, Reason::UnsupportedColumnType, "{failure}");
    let columns = failure.message.split("public.one_of_each, column ").skip(1);
    columns.map(|rest| rest.split(':').next().unwrap().to_owned()).collect()
}

/// The words in backticks of a section of the guide.
fn types_of_section(heading: &str) -> BTreeSet<&'static str> {
    let (_, rest) =
        GUIDE.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no section {heading}"));
    let section = rest.split("\n## ").next().unwrap();
    section.split('`').skip(1).step_by(2).collect()
}

#[tokio::test]
async fn every_type_of_every_server_is_carried_and_tried_or_refused_and_told() {
    let (carried_in_guide, refused_in_guide) =
        (types_of_section("Built-in types"), types_of_section("What is refused"));
    for version in Version::ALL {
        let server = Server::start(version).await.unwrap();
        server.run("postgres", ONE_OF_EACH).await.unwrap();
        let refused = refused_columns(&server).await;
        let client = server.connect("postgres").await.unwrap();
        let mut tried = BTreeSet::new();
        for sample in BUILT_IN {
            tried.insert(
                client
                    .value(&format!("SELECT format_type('{}'::regtype, NULL)", sample.type_sql))
                    .await
                    .unwrap(),
            );
        }
        for row in client.rows("SELECT name, type, kind, element FROM types_by_column").await.unwrap() {
            let [Some(column), Some(name), Some(kind), Some(element)] = row.as_slice() else {
                panic!("{row:?}")
            };
            let is_refused = refused.contains(column);
            match (kind.as_str(), element.as_str()) {
                ("c", _) => assert!(is_refused, "{version}: the rows of {name}"),
                ("d", _) => assert!(!is_refused, "{version}: the domain {name}"),
                (_, "") if is_refused => {
                    assert!(
                        refused_in_guide.contains(name.as_str()),
                        "{version}: {name} is refused, the guide does not say so"
                    );
                }
                (_, "") => {
                    assert!(tried.contains(name), "{version}: {name} is carried and never tried");
                    assert!(
                        carried_in_guide.contains(name.as_str()),
                        "{version}: {name} is carried, the guide does not say so"
                    );
                }
                (_, element) => {
                    assert_eq!(is_refused, refused.contains(element), "{version}: {name} and its elements");
                }
            }
        }
    }
}
