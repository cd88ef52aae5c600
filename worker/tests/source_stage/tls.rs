//! TLS modes, certificates of both sides, channel binding.

use std::sync::Arc;

use penstock_crds::connection::{Tls, TlsMode};
use penstock_crds::report::Reason;
use penstock_e2e::postgres::{Server, ServerTls, Version};
use penstock_worker::postgres::Endpoint;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::kit::{Authority, assert_connects, assert_says, endpoint, endpoint_as, refusal, write};

/// The message that asks for TLS.
const TLS_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

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

/// `require` trusts any certificate, so somebody in between can end TLS and begin it anew. A proof of the
/// password that is bound to the channel is worth nothing on another one.
#[tokio::test]
async fn scram_is_bound_to_the_channel_so_nobody_in_between_can_pass_it_on() {
    let authority = Authority::new("ours");
    let hba = "hostssl all,replication all 127.0.0.1/32 scram-sha-256";
    let server = tls_server(&authority, "127.0.0.1", hba).await;
    server.run("postgres", "CREATE ROLE reader LOGIN REPLICATION PASSWORD 'pass'").await.unwrap();
    let (mut endpoint, _folder) = with_mode(&server, TlsMode::Require, None);
    endpoint.files.environment = endpoint_as(&server, "postgres", "reader", "pass").files.environment;
    assert_connects(&endpoint).await;

    endpoint.connection.port = man_in_the_middle(server.port, &authority.pem).await;
    let words = ["channel binding"];
    assert_says(&refusal(&endpoint).await, Reason::SourceAuthenticationFailed, &words);
}

/// Listens, ends TLS with a certificate of its own, and passes everything on to the server over its own TLS.
async fn man_in_the_middle(server_port: u16, ca: &str) -> u16 {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let (certificate, key) = Authority::new("middle").sign("127.0.0.1");
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let to_server = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(to_server));
    let to_client = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(to_client));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (acceptor, connector) = (acceptor.clone(), connector.clone());
            tokio::spawn(async move {
                let mut request = [0; TLS_REQUEST.len()];
                client.read_exact(&mut request).await.unwrap();
                client.write_all(b"S").await.unwrap();
                let mut client = acceptor.accept(client).await.unwrap();
                let mut server = TcpStream::connect(("127.0.0.1", server_port)).await.unwrap();
                server.write_all(&request).await.unwrap();
                assert_eq!((request, server.read_u8().await.unwrap()), (TLS_REQUEST, b'S'));
                let name = ServerName::try_from("127.0.0.1").unwrap();
                let mut server = connector.connect(name, server).await.unwrap();
                let _ended = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    port
}
