//! The operator as a process, between an API server that has a Lease, one pipeline and nothing else, and a collector
//! of traces: a real API server cannot be made to fall silent at a given moment.

// Helpers of a test are tests too, which the lints do not see.
#![allow(clippy::unwrap_used)]

use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{RawQuery, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};

/// What is outside of the operator.
#[derive(Clone, Default)]
struct Outside(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    /// It takes requests and answers none.
    is_silent: bool,
    lease: Option<Value>,
    /// What the collector got.
    traces: Vec<Bytes>,
}

impl Outside {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap()
    }

    /// Serves all of it on one port.
    async fn serve(&self) -> String {
        let lease = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
        let router = Router::new()
            .route(lease, post(write_lease))
            .route(&format!("{lease}/penstock-operator"), get(read_lease).patch(write_lease))
            .route("/apis/penstock.dev/v1alpha1/cdcpipelines", get(list_pipelines))
            .route("/v1/traces", post(take_traces))
            .fallback(async || std::future::pending::<()>().await)
            .layer(from_fn_with_state(self.clone(), unless_silent))
            .with_state(self.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        format!("http://{address}")
    }
}

async fn unless_silent(State(outside): State<Outside>, request: Request, next: Next) -> Response {
    let is_silent = outside.seen().is_silent;
    if is_silent { std::future::pending().await } else { next.run(request).await }
}

async fn read_lease(State(outside): State<Outside>) -> (StatusCode, Json<Value>) {
    let missing =
        json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound", "message": "none"});
    match outside.seen().lease.clone() {
        Some(lease) => (StatusCode::OK, Json(lease)),
        None => (StatusCode::NOT_FOUND, Json(missing)),
    }
}

async fn write_lease(State(outside): State<Outside>, Json(written): Json<Value>) -> Json<Value> {
    let metadata = json!({"name": "penstock-operator", "namespace": "default", "resourceVersion": "1"});
    let lease = json!({"metadata": metadata, "spec": written["spec"]});
    outside.seen().lease = Some(lease.clone());
    Json(lease)
}

/// One pipeline, and a watch in which nothing happens.
async fn list_pipelines(RawQuery(query): RawQuery) -> Json<Value> {
    if query.unwrap_or_default().contains("watch=true") {
        return std::future::pending().await;
    }
    let postgres = |host: &str| json!({"host": host, "database": "shop", "credentialsSecret": "shop"});
    let pipeline = json!({
        "apiVersion": "penstock.dev/v1alpha1", "kind": "CdcPipeline",
        "metadata": {"name": "shop", "namespace": "default", "uid": "uid", "resourceVersion": "1"},
        "spec": {
            "source": {"postgres": {"connection": postgres("source"), "tables": ["public.orders"]}},
            "sink": {"postgres": {"connection": postgres("sink")}},
        },
    });
    Json(json!({"metadata": {"resourceVersion": "1"}, "items": [pipeline]}))
}

async fn take_traces(State(outside): State<Outside>, traces: Bytes) {
    outside.seen().traces.push(traces);
}

/// An operator that leads and is in the middle of a pass.
struct Operator {
    child: Child,
    _folder: TempDir,
}

impl Operator {
    async fn start(outside: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": outside}}],
            "users": [{"name": "test", "user": {}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "default"}}],
        });
        let file = folder.path().join("kubeconfig");
        std::fs::write(&file, kubeconfig.to_string()).unwrap();
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_penstock-operator"))
            .args(["--worker-image", "worker", "--listen", &free.to_string()])
            .env("KUBECONFIG", file)
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", outside)
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut operator = Self { child, _folder: folder };
        operator.wait_until_it_works(&format!("http://{free}/metrics")).await;
        operator
    }

    async fn wait_until_it_works(&mut self, metrics: &str) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let began = Instant::now();
        loop {
            if let Ok(answer) = reqwest::get(metrics).await
                && answer.text().await.unwrap().contains("penstock_operator_reconciles_running 1")
            {
                return;
            }
            assert_eq!(self.child.try_wait().unwrap(), None, "the operator ended");
            assert!(began.elapsed() < Duration::from_mins(1), "no pass begins");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// SIGTERM; how it ended, and how long that took.
    async fn terminate(mut self) -> (ExitStatus, Duration) {
        let began = Instant::now();
        let pid = self.child.id().unwrap().to_string();
        Command::new("kill").args(["-TERM", &pid]).status().await.unwrap();
        let status = tokio::time::timeout(Duration::from_mins(1), self.child.wait()).await.unwrap().unwrap();
        (status, began.elapsed())
    }
}

#[tokio::test]
async fn asked_to_stop_it_gives_the_lease_back_sends_its_traces_and_exits_within_5_seconds() {
    let outside = Outside::default();
    let operator = Operator::start(&outside.serve().await).await;
    assert_ne!(outside.seen().lease.as_ref().unwrap()["spec"]["holderIdentity"], "");
    let (status, took) = operator.terminate().await;
    assert!(status.success() && took < Duration::from_secs(5), "{status} after {took:?}");
    let seen = outside.seen();
    assert_eq!(seen.lease.as_ref().unwrap()["spec"]["holderIdentity"], "");
    let shown: Vec<_> = seen.traces.iter().map(|traces| String::from_utf8_lossy(traces)).collect();
    let is_shown = |word: &str| shown.iter().any(|traces| traces.contains(word));
    assert!(is_shown("penstock-operator") && is_shown("pass") && is_shown("default/shop"), "{shown:?}");
}

#[tokio::test]
async fn an_api_server_and_a_collector_that_answer_no_more_do_not_keep_it() {
    let outside = Outside::default();
    let operator = Operator::start(&outside.serve().await).await;
    outside.seen().is_silent = true;
    let (status, took) = operator.terminate().await;
    // 3 seconds for the lease, half a second for its own server, 1 for the traces; the kubelet waits 10.
    assert!(status.success() && took < Duration::from_secs(10), "{status} after {took:?}");
}
