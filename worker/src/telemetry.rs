//! Logs on stdout (JSON, or plain on a terminal) and, where an OTLP endpoint is set, traces.

use std::io::IsTerminal as _;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

/// Name under which traces appear.
const SERVICE: &str = "penstock-worker";

/// Where log lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// JSON on stdout; plain text where stdout is a terminal.
    Stdout,
    /// Plain text on stderr, so that a progress bar keeps stdout.
    Stderr,
}

/// Ends the export of traces when dropped.
#[derive(Debug)]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

/// Installs the global subscriber. `filter` is a `tracing` filter such as `info`.
///
/// # Errors
/// The filter is not valid, or the OTLP exporter cannot be made.
pub fn install(filter: &str, target: LogTarget) -> anyhow::Result<Telemetry> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| anyhow::anyhow!("the log filter `{filter}` is not valid: {error}"))?;
    let logs = match target {
        LogTarget::Stdout if !std::io::stdout().is_terminal() => tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .boxed(),
        LogTarget::Stdout => tracing_subscriber::fmt::layer().compact().boxed(),
        LogTarget::Stderr => {
            tracing_subscriber::fmt::layer().compact().with_target(false).with_writer(std::io::stderr).boxed()
        }
    };
    let provider = exporter()?;
    let traces = provider
        .as_ref()
        .map(|provider| tracing_opentelemetry::layer().with_tracer(provider.tracer(SERVICE)).boxed());
    tracing_subscriber::registry().with(filter).with(logs).with(traces).try_init()?;
    Ok(Telemetry { provider })
}

/// An exporter where `OTEL_EXPORTER_OTLP_ENDPOINT` (or its variant for traces) is set.
fn exporter() -> anyhow::Result<Option<SdkTracerProvider>> {
    let wanted = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
    if !wanted.iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty())) {
        return Ok(None);
    }
    // The exporter's HTTP client takes the process's provider, and panics where there is none.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let exporter = opentelemetry_otlp::SpanExporter::builder().with_http().build()?;
    let resource = opentelemetry_sdk::Resource::builder().with_service_name(SERVICE).build();
    Ok(Some(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build()))
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.provider.take().map(|provider| provider.shutdown()) {
            eprintln!("traces may be incomplete: {error}");
        }
    }
}
