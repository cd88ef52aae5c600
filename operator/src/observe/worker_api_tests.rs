//! Against a real TLS server with the certificates that the operator issues.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::get;
use axum_server::tls_rustls::RustlsConfig;
use k8s_openapi::api::core::v1::Secret;
use penstock_crds::report::WorkerPhase;
use penstock_crds::revision::RevisionName;

use super::*;
use crate::apply::issue_for_tests;
use crate::plan::scene_for_tests::{UID, created, pod, report};

fn identity() -> Identity {
    Identity { namespace: "shop".into(), name: "inventory".into(), uid: UID.into() }
}

fn value(secret: &Secret, key: &str) -> Vec<u8> {
    secret.data.as_ref().unwrap()[key].0.clone()
}

fn material(secret: &Secret) -> ControlMaterial {
    ControlMaterial { token: String::from_utf8(value(secret, "token")).unwrap(), ca: value(secret, "ca.crt") }
}

/// A worker of shard 0 that shows the certificate of `secret`, wants its token and counts how often it is
/// asked.
async fn worker(secret: &Secret, body: String) -> (SocketAddr, Arc<AtomicUsize>) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let tls = RustlsConfig::from_pem(value(secret, "tls.crt"), value(secret, "tls.key")).await.unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let expected = format!("Bearer {}", material(secret).token);
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let router = Router::new().route(
        "/v1/report",
        get(async move |headers: HeaderMap| {
            counter.fetch_add(1, Ordering::SeqCst);
            let given = headers.get("authorization").and_then(|value| value.to_str().ok());
            if given == Some(expected.as_str()) { Ok(body.clone()) } else { Err(StatusCode::UNAUTHORIZED) }
        }),
    );
    tokio::spawn(axum_server::from_tcp_rustls(listener, tls).unwrap().serve(router.into_make_service()));
    (address, asked)
}

fn streaming() -> String {
    let revision = RevisionName("r1a2b3c4d".into());
    serde_json::to_string(&report(&revision, 0, WorkerPhase::Streaming)).unwrap()
}

fn running(address: SocketAddr) -> RunningPod {
    let worker = pod(&RevisionName("r1a2b3c4d".into()), 0, Answer::NotRunning);
    RunningPod {
        host: format!("{}.inventory-worker.shop.svc", worker.name),
        worker,
        uid: "pod-uid".into(),
        is_young: false,
        address: Some(address),
    }
}

async fn ask(api: &WorkerApi, address: SocketAddr, control: &ControlMaterial) -> Answer {
    let mut pods = vec![running(address)];
    api.ask(&identity(), &mut pods, Some(control)).await;
    pods.remove(0).worker.answer
}

fn silence(answer: Answer) -> String {
    let Answer::Silent { error } = answer else { panic!("{answer:?}") };
    error
}

#[tokio::test]
async fn a_worker_with_our_certificate_and_token_is_heard_and_not_asked_again_at_once() {
    let secret = issue_for_tests(&created());
    let (address, asked) = worker(&secret, streaming()).await;
    let api = WorkerApi::default();
    for _ in 0..3 {
        let answer = ask(&api, address, &material(&secret)).await;
        let Answer::Report { report, .. } = answer else { panic!("{answer:?}") };
        assert_eq!(report.phase, WorkerPhase::Streaming);
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_stranger_in_the_workers_place_is_not_believed_and_never_sees_the_token() {
    let ours = issue_for_tests(&created());
    let theirs = issue_for_tests(&created());
    let (address, asked) = worker(&theirs, streaming()).await;
    let error = silence(ask(&WorkerApi::default(), address, &material(&ours)).await);
    assert!(error.contains("certificate"), "{error}");
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_worker_that_refuses_the_token_is_silent() {
    let secret = issue_for_tests(&created());
    let (address, _) = worker(&secret, streaming()).await;
    let wrong = ControlMaterial { token: "wrong".into(), ..material(&secret) };
    let error = silence(ask(&WorkerApi::default(), address, &wrong).await);
    assert!(error.contains("401"), "{error}");
}

#[tokio::test]
async fn the_report_of_another_worker_does_not_count() {
    let secret = issue_for_tests(&created());
    let other = report(&RevisionName("r99999999".into()), 0, WorkerPhase::Streaming);
    let (address, _) = worker(&secret, serde_json::to_string(&other).unwrap()).await;
    let error = silence(ask(&WorkerApi::default(), address, &material(&secret)).await);
    assert!(error.contains("shard 0 of revision r99999999"), "{error}");
}

#[tokio::test]
async fn what_is_not_a_report_or_too_large_is_silence_with_a_sentence() {
    let secret = issue_for_tests(&created());
    for (body, sentence) in [("{}".to_owned(), "not understood"), ("x".repeat(BYTES_MAX + 1), "larger than")]
    {
        let (address, _) = worker(&secret, body).await;
        let error = silence(ask(&WorkerApi::default(), address, &material(&secret)).await);
        assert!(error.contains(sentence), "{error}");
    }
}

#[tokio::test]
async fn a_worker_that_has_just_started_is_not_expected_to_answer() {
    let secret = issue_for_tests(&created());
    let (address, asked) = worker(&secret, "{}".into()).await;
    let mut pods = vec![RunningPod { is_young: true, ..running(address) }];
    WorkerApi::default().ask(&identity(), &mut pods, Some(&material(&secret))).await;
    assert_eq!(pods.remove(0).worker.answer, Answer::NotRunning);
    assert_eq!(asked.load(Ordering::SeqCst), 1, "it is asked all the same");
}

#[tokio::test]
async fn nobody_there_is_silence_with_a_sentence() {
    let secret = issue_for_tests(&created());
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = silence(ask(&WorkerApi::default(), address, &material(&secret)).await);
    assert!(error.contains("refused"), "{error}");
}
