use std::sync::Arc;

use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use super::*;
use crate::plan::scene_for_tests::created;

fn now() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

fn value(secret: &Secret, key: &str) -> Vec<u8> {
    secret.data.as_ref().unwrap()[key].0.clone()
}

fn material(secret: &Secret) -> ControlMaterial {
    ControlMaterial { token: String::from_utf8(value(secret, "token")).unwrap(), ca: value(secret, "ca.crt") }
}

/// Whether a client that trusts `ca` believes `worker` to be `host` at `time`.
fn is_believed(ca: &[u8], worker: &Secret, host: &str, time: Timestamp) -> bool {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
    let certificate = CertificateDer::from_pem_slice(&value(worker, "tls.crt")).unwrap();
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let time =
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(time.as_second().try_into().unwrap()));
    verifier.verify_server_cert(&certificate, &[], &name, &[], time).is_ok()
}

#[test]
fn a_worker_is_believed_under_its_own_name_and_no_other() {
    let secret = issue(&created(), None, now()).unwrap();
    let ca = value(&secret, "ca.crt");
    let worker = "inventory-r1a2b3c4d-1.inventory-worker.shop.svc";
    assert!(is_believed(&ca, &secret, worker, now()));
    assert!(!is_believed(&ca, &secret, "inventory-r1a2b3c4d-1.inventory-worker.other.svc", now()));
    assert!(!is_believed(&ca, &secret, "inventory-worker.shop.svc", now()));
    assert!(PrivateKeyDer::from_pem_slice(&value(&secret, "tls.key")).is_ok());
}

#[test]
fn another_pipelines_authority_is_not_trusted() {
    let ours = issue(&created(), None, now()).unwrap();
    let theirs = issue(&created(), None, now()).unwrap();
    assert!(!is_believed(&value(&theirs, "ca.crt"), &ours, "a.inventory-worker.shop.svc", now()));
    assert_ne!(value(&ours, "token"), value(&theirs, "token"));
    assert_eq!(value(&ours, "token").len(), 64);
}

#[test]
fn the_certificate_ends_after_90_days_and_is_renewed_after_60() {
    let secret = issue(&created(), None, now()).unwrap();
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    let believed =
        |time| is_believed(&value(&secret, "ca.crt"), &secret, "a.inventory-worker.shop.svc", time);
    assert!(believed(at("2026-05-29T00:00:00Z")));
    assert!(!believed(at("2026-05-31T00:00:00Z")));
    let renew_at = &secret.metadata.annotations.unwrap()[ANNOTATION_RENEW_AT];
    assert_eq!(renew_at, "2026-04-30T12:00:00Z");
}

#[test]
fn a_renewal_keeps_the_token_and_believes_workers_that_have_not_read_it_yet() {
    let first = issue(&created(), None, now()).unwrap();
    let second = issue(&created(), Some(&material(&first)), now()).unwrap();
    let host = "a.inventory-worker.shop.svc";
    assert_eq!(value(&first, "token"), value(&second, "token"));
    assert!(is_believed(&value(&second, "ca.crt"), &first, host, now()), "the old certificate");
    assert!(is_believed(&value(&second, "ca.crt"), &second, host, now()), "the new certificate");
    let third = issue(&created(), Some(&material(&second)), now()).unwrap();
    assert!(is_believed(&value(&third, "ca.crt"), &second, host, now()));
    assert!(!is_believed(&value(&third, "ca.crt"), &first, host, now()), "trust does not pile up");
}
