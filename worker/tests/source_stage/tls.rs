//! TLS modes, certificates of both sides, channel binding.

use penstock_crds::connection::{Tls, TlsMode};
use penstock_crds::report::Reason;
use penstock_e2e::postgres::{Server, ServerTls, Version};
use penstock_worker::postgres::Endpoint;
use tempfile::TempDir;

use crate::kit::{Authority, assert_connects, assert_says, endpoint, endpoint_as, refusal, write};

async fn tls_server(authority: &Authority, name: &str, hba: &str) -> Server {
    let (certificate, key) = authority.sign(name);
    let tls = ServerTls { certificate, key, client_ca: Some(authority.pem.clone()) };
    Server::builder(Version::V15).tls(tls).hba(hba).start().await.unwrap()
}

/// An endpoint with this mode that trusts this CA.
fn with_mode(server: &Server, mode: TlsMode, ca: Option<&Authority>) -> (Endpoint, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut endpoint = endpoint(server, "postgres");
    folder.path().clone_into(&mut endpoint.files.tls);
    if let Some(ca) = ca {
        write(folder.path(), "ca/ca.crt", &ca.pem);
    }
    let ca_secret = ca.map(|_| "shop-ca".to_owned());
    endpoint.connection.tls = Tls { mode, ca_secret, client_certificate_secret: None };
    (endpoint, folder)
}

#[tokio::test]
async fn each_mode_checks_what_it_says_and_no_more() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let hba = "hostssl all,replication all 127.0.0.1/32 trust";
    let misnamed = tls_server(&ours, "db.example", hba).await;
    let named = tls_server(&ours, "127.0.0.1", hba).await;

    let connects = [
        (&misnamed, TlsMode::Require, None),
        (&misnamed, TlsMode::VerifyCa, Some(&ours)),
        (&named, TlsMode::VerifyFull, Some(&ours)),
    ];
    for (server, mode, ca) in connects {
        let (endpoint, _folder) = with_mode(server, mode, ca);
        assert_connects(&endpoint).await;
    }

    let refused = [
        (&misnamed, TlsMode::VerifyFull, &ours, ["127.0.0.1", "verify-ca"]),
        (&misnamed, TlsMode::VerifyCa, &other, ["UnknownIssuer", "caSecret"]),
        (&named, TlsMode::VerifyFull, &other, ["UnknownIssuer", "caSecret"]),
    ];
    for (server, mode, ca, words) in refused {
        let (endpoint, _folder) = with_mode(server, mode, Some(ca));
        assert_says(&refusal(&endpoint).await, Reason::SourceTlsFailed, &words);
    }

    let (unencrypted, _folder) = with_mode(&named, TlsMode::Disable, None);
    assert_says(&refusal(&unencrypted).await, Reason::SourceAuthenticationFailed, &["pg_hba.conf"]);
}

#[tokio::test]
async fn a_server_without_tls_is_never_talked_to_in_the_clear_when_tls_is_asked_for() {
    let authority = Authority::new("ours");
    let server = Server::start(Version::V15).await.unwrap();
    for mode in [TlsMode::Require, TlsMode::VerifyCa, TlsMode::VerifyFull] {
        let (endpoint, _folder) = with_mode(&server, mode, Some(&authority));
        assert_says(&refusal(&endpoint).await, Reason::SourceTlsFailed, &["does not offer TLS"]);
    }
}

#[tokio::test]
async fn a_client_certificate_is_shown_and_a_missing_or_foreign_one_is_told() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let hba = "hostssl all,replication all 127.0.0.1/32 trust clientcert=verify-ca";
    let server = tls_server(&ours, "127.0.0.1", hba).await;
    let (mut endpoint, folder) = with_mode(&server, TlsMode::VerifyFull, Some(&ours));
    assert_says(&refusal(&endpoint).await, Reason::SourceAuthenticationFailed, &["client certificate"]);

    endpoint.connection.tls.client_certificate_secret = Some("shop-client".into());
    assert_says(&refusal(&endpoint).await, Reason::CredentialsMissing, &["shop-client", "tls.crt"]);

    let show = |authority: &Authority| {
        let (certificate, key) = authority.sign("postgres");
        write(folder.path(), "client/tls.crt", &certificate);
        write(folder.path(), "client/tls.key", &key);
    };
    show(&other);
    let words = ["clientCertificateSecret"];
    assert_says(&refusal(&endpoint).await, Reason::SourceTlsFailed, &words);
    show(&ours);
    assert_connects(&endpoint).await;

    write(folder.path(), "client/tls.key", "no key");
    assert_says(&refusal(&endpoint).await, Reason::SourceTlsFailed, &["shop-client", "tls.key"]);
    write(folder.path(), "ca/ca.crt", "no certificate");
    assert_says(&refusal(&endpoint).await, Reason::SourceTlsFailed, &["shop-ca", "ca.crt"]);
}

/// The server refuses a proof that is bound to another channel, and one that claims the server offered no
/// binding: so both kinds of connection bind to this one.
#[tokio::test]
async fn scram_over_tls_is_bound_to_the_channel() {
    let authority = Authority::new("ours");
    let hba = "hostssl all,replication all 127.0.0.1/32 scram-sha-256";
    let server = tls_server(&authority, "127.0.0.1", hba).await;
    server.run("postgres", "CREATE ROLE reader LOGIN REPLICATION PASSWORD 'pass'").await.unwrap();
    let (mut endpoint, _folder) = with_mode(&server, TlsMode::VerifyFull, Some(&authority));
    endpoint.files.environment = endpoint_as(&server, "postgres", "reader", "pass").files.environment;
    assert_connects(&endpoint).await;
}
