//! `penstock-operator`: watches `CdcPipelines` and runs their workers.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use kube::{Client, Config};
use penstock_operator::controller::{self, Settings};
use penstock_operator::leader::{Candidate, Lost};
use penstock_operator::metrics::Metrics;
use penstock_operator::serve;
use penstock_operator::telemetry::Telemetry;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The lease is given back within this time, so that the whole exit takes less than 5 seconds.
const RELEASE_LIMIT: Duration = Duration::from_secs(3);

/// Open connections of probes and scrapes are served for this long at the end.
const SERVE_LIMIT: Duration = Duration::from_millis(500);

/// Watches every CdcPipeline of a cluster and runs its workers
#[derive(Clone, Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// Image of workers whose manifest names none, and of the clean-up after deletion
    #[arg(long, env = "PENSTOCK_WORKER_IMAGE", value_name = "IMAGE", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    worker_image: String,

    /// Address for /healthz, /readyz and /metrics, plain HTTP
    #[arg(long, env = "PENSTOCK_LISTEN", value_name = "ADDRESS:PORT", default_value = "0.0.0.0:8080")]
    listen: SocketAddr,

    /// Namespace of the lease that decides who leads; by default the one of the pod or of the kubeconfig
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAMESPACE")]
    lease_namespace: Option<String>,

    /// Name of the lease
    #[arg(long, env = "PENSTOCK_LEASE_NAME", value_name = "NAME", default_value = "penstock-operator")]
    lease_name: String,

    /// Name of this operator in the lease and in Events; by default one made up at the start
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    identity: Option<String>,

    /// Pipelines that are worked on at the same time
    #[arg(long, env = "PENSTOCK_CONCURRENCY", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    concurrency: u16,

    /// What to log, as a tracing filter such as info or `info,penstock_operator=debug`
    #[arg(long, env = "PENSTOCK_LOG", value_name = "FILTER", default_value = "info")]
    log: String,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // First of all: what talks TLS, the exporter of traces too, takes it, and panics where there is none.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let telemetry = match Telemetry::start(&arguments.log) {
        Ok(telemetry) => telemetry,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    let outcome = run(arguments).await;
    if let Err(error) = &outcome {
        tracing::error!(error = %format!("{error:#}"), "the operator ends");
    }
    drop(telemetry);
    if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let stop = stop_on_signal()?;
    let config = Config::infer().await.context("finding the cluster: run in a pod, or set KUBECONFIG")?;
    let namespace = arguments.lease_namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config).context("making a client for the API server")?;
    let listener = serve::listen(arguments.listen)
        .await
        .with_context(|| format!("listening on {}", arguments.listen))?;

    let identity = arguments.identity.clone().unwrap_or_else(made_up_identity);
    let metrics = Arc::new(Metrics::default());
    let mut candidate = Candidate::new(client.clone(), &namespace, &arguments.lease_name, identity.clone());
    let server = tokio::spawn(serve::serve(listener, Arc::clone(&metrics), candidate.pulse(), stop.clone()));

    tracing::info!(version = env!("CARGO_PKG_VERSION"), %identity, worker_image = %arguments.worker_image, "started");
    let settings = Settings {
        worker_image: arguments.worker_image,
        concurrency: arguments.concurrency,
        instance: identity,
    };
    let outcome = lead(&mut candidate, client, settings, &metrics, &stop).await;
    stop.cancel();
    if let Ok(served) = tokio::time::timeout(SERVE_LIMIT, server).await {
        served.context("serving /healthz")?.context("serving /healthz")?;
    }
    outcome
}

/// Waits for the lease, reconciles while it is held, and gives it back at the end.
async fn lead(
    candidate: &mut Candidate,
    client: Client,
    settings: Settings,
    metrics: &Arc<Metrics>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        () = candidate.lead() => {}
    }
    tracing::info!("leads");
    metrics.set_leader(true);
    let lost: Option<Lost> = tokio::select! {
        () = stop.cancelled() => None,
        lost = candidate.keep() => Some(lost),
        () = controller::run(client, settings, Arc::clone(metrics)) => None,
    };
    // Whatever was being written has stopped here: the loop and its passes are dropped with the select.
    metrics.set_leader(false);
    if let Some(lost) = lost {
        return Err(lost).context("leadership is lost; another operator goes on");
    }
    match tokio::time::timeout(RELEASE_LIMIT, candidate.release()).await {
        Ok(Ok(())) => tracing::info!("gave the lease back"),
        Ok(Err(error)) => tracing::warn!(%error, "the lease could not be given back; it runs out by itself"),
        Err(_) => tracing::warn!("the lease could not be given back in time; it runs out by itself"),
    }
    Ok(())
}

fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let stopped = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("asked to stop");
        stopped.cancel();
    });
    Ok(stop)
}

fn made_up_identity() -> String {
    format!("penstock-operator-{:08x}", rand::random::<u32>())
}
