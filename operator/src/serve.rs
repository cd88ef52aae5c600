//! `/healthz`, `/readyz` and `/metrics`, plain HTTP.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::leader::Pulse;
use crate::metrics::Metrics;

#[derive(Clone)]
struct Shown {
    metrics: Arc<Metrics>,
    pulse: Arc<Pulse>,
}

/// Listens, so that a port in use is an error at the start.
pub async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves until it is told to stop.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    pulse: Arc<Pulse>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(show_metrics))
        .with_state(Shown { metrics, pulse });
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// Ready to lead or to take over: the API server answers. A standby is ready too.
async fn ready(State(shown): State<Shown>) -> Response {
    if shown.pulse.is_fresh() {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the API server has not answered lately\n").into_response()
    }
}

async fn show_metrics(State(shown): State<Shown>) -> Response {
    match shown.metrics.text() {
        Ok(text) => {
            let open_metrics = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, open_metrics)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
