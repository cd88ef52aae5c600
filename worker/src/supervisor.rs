//! Runs the pipeline again and again until it is asked to stop: backoff after what passes by itself, a slow
//! look after what needs a person.

use std::time::{Duration, Instant};

use backon::{BackoffBuilder as _, ExponentialBuilder};
use penstock_crds::report::{Policy, WorkerPhase};
use rand::RngExt as _;
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::pipeline;
use crate::serve::Metrics;
use crate::settings::Settings;
use crate::status::Status;

const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(8);
/// An attempt that lasted this long was not a failed start: the backoff begins anew.
const SOUND_ATTEMPT: Duration = Duration::from_secs(30);

/// Runs until `stop` is cancelled. Never gives up: what needs a person is shown and looked at again.
pub async fn supervise(settings: &Settings, status: &Status, metrics: &Metrics, stop: &CancellationToken) {
    let mut backoff = new_backoff();
    while !stop.is_cancelled() {
        let started = Instant::now();
        status.enter(WorkerPhase::Starting);
        let Err(failure) = pipeline::run(settings, status, metrics, stop).await else { break };
        if stop.is_cancelled() {
            tracing::info!(reason = ?failure.reason, "stopped while an attempt was failing: {failure}");
            break;
        }
        metrics.failures.inc();
        if started.elapsed() >= SOUND_ATTEMPT {
            backoff = new_backoff();
        }
        let pause = match failure.policy() {
            Policy::Retry => backoff.next().unwrap_or(BACKOFF_MAX),
            Policy::Halt => settings.recheck.mul_f64(rand::rng().random_range(0.75..1.25)),
        };
        announce(&failure, status, pause);
        let _ = stop.run_until_cancelled(tokio::time::sleep(pause)).await;
    }
    status.enter(WorkerPhase::Stopping);
}

fn announce(failure: &Failure, status: &Status, pause: Duration) {
    let seconds = pause.as_secs_f32();
    match failure.policy() {
        Policy::Retry => {
            status.failed(failure, WorkerPhase::Retrying);
            tracing::warn!(reason = ?failure.reason, retry_in_seconds = seconds, "{failure}");
        }
        Policy::Halt => {
            status.failed(failure, WorkerPhase::Halted);
            tracing::error!(reason = ?failure.reason, look_again_in_seconds = seconds, "{failure}");
        }
    }
}

fn new_backoff() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(BACKOFF_MIN)
        .with_max_delay(BACKOFF_MAX)
        .with_jitter()
        .without_max_times()
        .build()
}
