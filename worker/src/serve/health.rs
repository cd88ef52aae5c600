//! `/healthz`, `/readyz`, `/metrics` over plain HTTP.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use penstock_crds::report::WorkerPhase;
use tokio_util::sync::CancellationToken;

use super::metrics::Metrics;
use crate::status::Status;

struct Shared {
    status: Status,
    metrics: Metrics,
}

/// Serves until `stop` is cancelled.
///
/// # Errors
/// The address cannot be bound.
pub async fn serve_health(
    address: SocketAddr,
    status: Status,
    metrics: Metrics,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let app = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(text))
        .with_state(Arc::new(Shared { status, metrics }));
    let listener = tokio::net::TcpListener::bind(address).await?;
    axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// Ready while rows move. A database that is away makes a worker unready, never unhealthy: a restart would
/// not bring it back.
async fn readyz(State(shared): State<Arc<Shared>>) -> (StatusCode, String) {
    let phase = shared.status.phase();
    let code = match phase {
        WorkerPhase::Snapshotting | WorkerPhase::Streaming => StatusCode::OK,
        WorkerPhase::Starting | WorkerPhase::Retrying | WorkerPhase::Halted | WorkerPhase::Stopping => {
            StatusCode::SERVICE_UNAVAILABLE
        }
    };
    (code, format!("{phase:?}\n"))
}

async fn text(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], shared.metrics.encode(&shared.status))
}
