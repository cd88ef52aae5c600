//! Logs on stdout: JSON, or readable on a terminal. Traces by OTLP, when an endpoint is set.

use std::io::IsTerminal as _;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

/// Environment variables of OpenTelemetry that turn traces on.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];

/// Why telemetry cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The log filter is not one.
    #[error("--log `{filter}` is not a tracing filter such as info or info,penstock_operator=debug: {error}")]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        error: ParseError,
    },
    /// The trace exporter cannot be made.
    #[error("traces cannot be exported to the endpoint that OTEL_EXPORTER_OTLP_ENDPOINT names: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
}

/// Sends what is left of the traces when it is dropped.
#[derive(Debug)]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Starts logging and, when an endpoint is set, tracing.
    pub fn start(filter: &str) -> Result<Self, TelemetryError> {
        let filter = EnvFilter::try_new(filter)
            .map_err(|error| TelemetryError::Filter { filter: filter.to_owned(), error })?;
        let traces =
            if ENDPOINTS.iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty())) {
                Some(provider()?)
            } else {
                None
            };
        let spans = traces.as_ref().map(|provider| provider.tracer("penstock-operator"));
        let logs = tracing_subscriber::fmt::layer();
        let logs = if std::io::stdout().is_terminal() {
            logs.compact().boxed()
        } else {
            logs.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed()
        };
        tracing_subscriber::registry()
            .with(filter)
            .with(logs)
            .with(spans.map(|tracer| tracing_opentelemetry::layer().with_tracer(tracer)))
            .init();
        Ok(Self { traces })
    }
}

fn provider() -> Result<SdkTracerProvider, opentelemetry_otlp::ExporterBuildError> {
    let exporter = opentelemetry_otlp::SpanExporter::builder().with_http().build()?;
    let resource = Resource::builder().with_service_name("penstock-operator").build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(Err(error)) =
            self.traces.take().map(|traces| traces.shutdown_with_timeout(std::time::Duration::from_secs(1)))
        {
            tracing::warn!(%error, "the last traces could not be sent");
        }
    }
}
