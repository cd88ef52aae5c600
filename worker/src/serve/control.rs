//! `GET /v1/report` and `PUT /v1/directive` over TLS with a bearer token. The operator is the only client.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use axum_server::tls_rustls::RustlsConfig;
use penstock_crds::directive::Directive;
use penstock_crds::names::FILE_TOKEN;
use penstock_crds::report::Report;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::status::{Status, now_micros};

/// How often the certificate and the key are read again: the operator renews them weeks ahead.
const RELOAD_EVERY: Duration = Duration::from_mins(1);

/// Why the control API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The address cannot be bound.
    #[error("cannot serve the control API on {address}: {source}")]
    Bind {
        /// Address.
        address: SocketAddr,
        /// Cause.
        source: std::io::Error,
    },
    /// `tls.crt` or `tls.key` cannot be used.
    #[error("cannot use the control API's certificate in {folder}: {cause}")]
    Certificate {
        /// Folder of `tls.crt` and `tls.key`.
        folder: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
}

/// No directive is larger.
const DIRECTIVE_BYTES_MAX: usize = 256 * 1024;

struct Shared {
    status: Status,
    directive: watch::Sender<Directive>,
    folder: PathBuf,
}

/// Serves until `stop` is cancelled. `folder` holds `tls.crt`, `tls.key` and `token`.
///
/// # Errors
/// The address cannot be bound, or the certificate cannot be used at the start. Later a bad certificate
/// is logged and the last good one stays.
pub async fn serve_control(
    address: SocketAddr,
    folder: PathBuf,
    (status, directive): (Status, watch::Sender<Directive>),
    stop: CancellationToken,
) -> Result<(), ControlError> {
    let tls = RustlsConfig::from_config(Arc::new(server_config(&folder)?));
    let reloader = tokio::spawn(reload(tls.clone(), folder.clone(), stop.clone()));
    let app = router(folder, status, directive);
    let handle = axum_server::Handle::new();
    let closer = tokio::spawn({
        let handle = handle.clone();
        async move {
            stop.cancelled().await;
            handle.graceful_shutdown(Some(Duration::from_secs(1)));
        }
    });
    let served = axum_server::bind_rustls(address, tls).handle(handle).serve(app.into_make_service()).await;
    reloader.abort();
    closer.abort();
    served.map_err(|source| ControlError::Bind { address, source })
}

/// What is served, to whoever has the token in `folder`.
pub fn router(folder: PathBuf, status: Status, directive: watch::Sender<Directive>) -> Router {
    let shared = Arc::new(Shared { status, directive, folder });
    Router::new()
        .route("/v1/report", get(report))
        .route("/v1/directive", put(take_directive))
        .layer(DefaultBodyLimit::max(DIRECTIVE_BYTES_MAX))
        .layer(middleware::from_fn_with_state(shared.clone(), authorize))
        .with_state(shared)
}

/// Takes what is wanted; it is carried out beside the stream, and the report says when it is settled.
async fn take_directive(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    match serde_json::from_slice::<Directive>(&body) {
        Ok(directive) => {
            shared.directive.send_replace(directive);
            StatusCode::NO_CONTENT.into_response()
        }
        Err(error) => {
            let sentence = format!("this is not a directive: {error}\n");
            (StatusCode::UNPROCESSABLE_ENTITY, sentence).into_response()
        }
    }
}

async fn report(State(shared): State<Arc<Shared>>) -> Json<Report> {
    Json(shared.status.report(now_micros()))
}

/// Lets a request pass that carries the pipeline's token. The token is read from its file each time, so a new
/// one needs no restart; digests are compared, so the time taken says nothing about the token.
async fn authorize(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let given = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    let expected = tokio::fs::read_to_string(shared.folder.join(FILE_TOKEN)).await.unwrap_or_default();
    let expected = expected.trim();
    let allowed =
        given.is_some_and(|given| !expected.is_empty() && Sha256::digest(given) == Sha256::digest(expected));
    if allowed {
        next.run(request).await
    } else {
        (StatusCode::UNAUTHORIZED, "a bearer token is needed\n").into_response()
    }
}

fn server_config(folder: &Path) -> Result<rustls::ServerConfig, ControlError> {
    let bad = |cause: String| ControlError::Certificate { folder: folder.to_owned(), cause };
    let chain = CertificateDer::pem_file_iter(folder.join("tls.crt"))
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| bad(format!("tls.crt: {error}")))?;
    let key = PrivateKeyDer::from_pem_file(folder.join("tls.key"))
        .map_err(|error| bad(format!("tls.key: {error}")))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| bad(error.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

async fn reload(tls: RustlsConfig, folder: PathBuf, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(RELOAD_EVERY)).await.is_some() {
        match server_config(&folder) {
            Ok(config) => tls.reload_from_config(Arc::new(config)),
            Err(error) => tracing::warn!(%error, "the last good certificate stays in use"),
        }
    }
}
