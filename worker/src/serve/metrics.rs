//! Prometheus metrics of a worker.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use penstock_crds::report::{Reachability, WorkerPhase};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::status::{Status, now_micros};

/// Counters that the pipeline moves, and gauges that are read from [`Status`] when asked. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    /// Source changes read.
    pub changes: Counter,
    /// Source transactions that are durable in the sink.
    pub transactions: Counter,
    /// Commits of the sink, idle advances included.
    pub sink_commits: Counter,
    /// Seconds from the first statement of a batch to its durable checkpoint.
    pub batch_seconds: Histogram,
    /// Seconds that applying stood still at a barrier.
    pub barrier_seconds: Histogram,
    /// Attempts that failed.
    pub failures: Counter,
    /// Rows copied by snapshots.
    pub snapshot_rows: Counter,
    /// Bytes of write-ahead log that the source keeps for the slot.
    pub retained_wal: Gauge,
    lag_bytes: Gauge,
    lag_seconds: Gauge<f64, AtomicU64>,
    sequence: Gauge,
    streaming: Gauge,
    source_up: Gauge,
    sink_up: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("penstock_worker");
        let metrics = Self {
            changes: Counter::default(),
            transactions: Counter::default(),
            sink_commits: Counter::default(),
            batch_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            barrier_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            failures: Counter::default(),
            snapshot_rows: Counter::default(),
            retained_wal: Gauge::default(),
            lag_bytes: Gauge::default(),
            lag_seconds: Gauge::default(),
            sequence: Gauge::default(),
            streaming: Gauge::default(),
            source_up: Gauge::default(),
            sink_up: Gauge::default(),
            registry: Arc::default(),
        };
        metrics.register(&mut registry);
        Self { registry: Arc::new(registry), ..metrics }
    }
}

impl Metrics {
    fn register(&self, registry: &mut Registry) {
        registry.register("changes", "Source changes read", self.changes.clone());
        registry.register(
            "transactions",
            "Source transactions durable in the sink",
            self.transactions.clone(),
        );
        registry.register(
            "sink_commits",
            "Commits of the sink, idle advances included",
            self.sink_commits.clone(),
        );
        let batch = "From the first statement of a batch to its durable checkpoint";
        registry.register_with_unit("batch", batch, Unit::Seconds, self.batch_seconds.clone());
        let barrier = "How long applying stood still at a barrier";
        registry.register_with_unit("barrier", barrier, Unit::Seconds, self.barrier_seconds.clone());
        registry.register("failures", "Attempts that failed", self.failures.clone());
        registry.register("snapshot_rows", "Rows copied by snapshots", self.snapshot_rows.clone());
        let retained = "Write-ahead log that the source keeps for the slot";
        registry.register_with_unit("retained_wal", retained, Unit::Bytes, self.retained_wal.clone());
        let behind = "Write-ahead log not yet durable in the sink";
        registry.register_with_unit("lag", behind, Unit::Bytes, self.lag_bytes.clone());
        let waiting = "Age of the oldest change not yet durable in the sink";
        registry.register_with_unit("lag", waiting, Unit::Seconds, self.lag_seconds.clone());
        registry.register(
            "sequence",
            "Source changes read and settled since the pipeline began",
            self.sequence.clone(),
        );
        registry.register("streaming", "1 while changes are applied as they arrive", self.streaming.clone());
        registry.register("source_up", "1 while the source answers", self.source_up.clone());
        registry.register("sink_up", "1 while the sink answers", self.sink_up.clone());
    }

    /// The metrics in `OpenMetrics` text.
    pub fn encode(&self, status: &Status) -> String {
        let report = status.report(now_micros());
        if let Some(lag) = report.lag {
            self.lag_bytes.set(i64::try_from(lag.bytes).unwrap_or(i64::MAX));
            self.lag_seconds.set(lag.seconds);
        }
        self.sequence.set(report.sequence);
        self.streaming.set(i64::from(report.phase == WorkerPhase::Streaming));
        self.source_up.set(i64::from(report.source == Reachability::Reachable));
        self.sink_up.set(i64::from(report.sink == Reachability::Reachable));
        let mut text = String::new();
        if encode(&mut text, &self.registry).is_err() {
            tracing::error!("metrics could not be encoded");
        }
        text
    }
}
