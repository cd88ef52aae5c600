//! Endpoints and certificates for the tests of this binary.

use std::path::Path;

use penstock_crds::connection::{PostgresConnection, Tls, TlsMode};
use penstock_crds::report::Reason;
use penstock_crds::source::PostgresSource;
use penstock_crds::table_pattern::TablePattern;
use penstock_e2e::postgres::Server;
use penstock_worker::change::travel::Format;
use penstock_worker::failure::Failure;
use penstock_worker::postgres::{Credentials, End, Endpoint, EndpointFiles, Session};
use penstock_worker::source::{
    Inspection, PublicationName, SlotName, SourceError, SourceIdentity, StreamRequest, ensure_publication,
    preflight,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

pub(crate) fn credentials(username: &str, password: &str) -> Credentials {
    Credentials { username: username.into(), password: password.into() }
}

/// The database of a server that trusts everyone, as superuser, without TLS.
pub(crate) fn endpoint(server: &Server, database: &str) -> Endpoint {
    endpoint_as(server, database, "postgres", "unused")
}

pub(crate) fn endpoint_as(server: &Server, database: &str, username: &str, password: &str) -> Endpoint {
    Endpoint {
        end: End::Source,
        connection: PostgresConnection {
            host: "127.0.0.1".into(),
            port: server.port,
            database: database.into(),
            credentials_secret: "shop-credentials".into(),
            tls: Tls { mode: TlsMode::Disable, ca_secret: None, client_certificate_secret: None },
        },
        files: EndpointFiles {
            credentials: "/nowhere".into(),
            tls: "/nowhere".into(),
            environment: Some(credentials(username, password)),
        },
    }
}

pub(crate) async fn session(endpoint: &Endpoint) -> Session {
    endpoint.connect("penstock-test").await.unwrap()
}

/// The failure of opening an SQL session, which must be that of opening a replication connection as well.
pub(crate) async fn refusal(endpoint: &Endpoint) -> Failure {
    let sql = endpoint.connect("test").await.unwrap_err().failure(endpoint.end, &endpoint.connection);
    let replication =
        endpoint.connect_replication("test").await.unwrap_err().failure(endpoint.end, &endpoint.connection);
    assert_eq!(sql.reason, replication.reason, "{sql} / {replication}");
    sql
}

/// Both kinds of connection open and work.
pub(crate) async fn assert_connects(endpoint: &Endpoint) {
    let session = endpoint.connect("test").await.unwrap();
    session.query_one("SELECT 1", &[]).await.unwrap();
    let mut replication = endpoint.connect_replication("test").await.unwrap();
    assert_eq!(replication.query("SELECT 1").await.unwrap(), [[Some("1".to_owned())]]);
}

pub(crate) fn assert_says(failure: &Failure, reason: Reason, words: &[&str]) {
    assert_eq!(failure.reason, reason, "{failure}");
    for word in words {
        assert!(failure.message.contains(word), "`{word}` is not in: {failure}");
    }
}

pub(crate) fn patterns(texts: &[&str]) -> Vec<TablePattern> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

pub(crate) fn spec(endpoint: &Endpoint, tables: &[&str], publication: Option<&str>) -> PostgresSource {
    PostgresSource {
        connection: endpoint.connection.clone(),
        tables: tables.iter().map(|table| (*table).to_owned()).collect(),
        snapshot: penstock_crds::source::Snapshot::default(),
        publication: publication.map(str::to_owned),
    }
}

pub(crate) fn test_slot() -> SlotName {
    SlotName::of_shard("test", 0)
}

pub(crate) fn test_publication() -> PublicationName {
    PublicationName::of_pipeline("test")
}

pub(crate) async fn inspect(endpoint: &Endpoint, tables: &[&str]) -> Result<Inspection, SourceError> {
    inspect_with(endpoint, tables, None).await
}

pub(crate) async fn inspect_with(
    endpoint: &Endpoint,
    tables: &[&str],
    publication: Option<&str>,
) -> Result<Inspection, SourceError> {
    let session = session(endpoint).await;
    preflight(&session, &spec(endpoint, tables, publication), &patterns(tables)).await
}

/// Inspects the tables and publishes them.
pub(crate) async fn publish(endpoint: &Endpoint, tables: &[&str]) -> Inspection {
    let inspection = inspect(endpoint, tables).await.unwrap();
    let mut session = session(endpoint).await;
    ensure_publication(&mut session, &test_publication(), &inspection.tables, true).await.unwrap();
    inspection
}

pub(crate) fn stream_request(
    identity: &SourceIdentity,
    start: penstock_worker::change::Lsn,
) -> StreamRequest {
    StreamRequest {
        slot: test_slot(),
        publication: test_publication(),
        start,
        identity: identity.clone(),
        format: Format::Binary,
        capacity_bytes: 1024 * 1024,
    }
}

/// A certificate authority of the tests.
pub(crate) struct Authority {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// Certificate and key for a name or address, PEM.
    pub(crate) fn sign(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

pub(crate) fn write(folder: &Path, name: &str, content: &str) {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}
