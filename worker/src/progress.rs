//! A progress bar for `penstock-worker run` on a terminal: the first load, then the lag and what is still copied.

use std::fmt::Write as _;
use std::time::Duration;

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use penstock_crds::report::{Report, WorkerPhase};
use tokio_util::sync::CancellationToken;

use crate::status::{Status, now_micros};

const REDRAW_EVERY: Duration = Duration::from_millis(250);

/// Draws until `stop` is cancelled.
pub async fn show(status: Status, stop: CancellationToken) {
    let bar = ProgressBar::new(0);
    let mut shown = None;
    while stop.run_until_cancelled(tokio::time::sleep(REDRAW_EVERY)).await.is_some() {
        let report = status.report(now_micros());
        if shown != Some(report.phase) {
            bar.set_style(style(report.phase));
            shown = Some(report.phase);
        }
        draw(&bar, &report);
    }
    bar.finish_and_clear();
}

fn draw(bar: &ProgressBar, report: &Report) {
    match (report.phase, report.snapshot) {
        (WorkerPhase::Snapshotting, Some(snapshot)) => {
            bar.set_length(snapshot.rows_estimated.max(snapshot.rows_copied));
            bar.set_position(snapshot.rows_copied);
            bar.set_message(format!("{}/{} tables", snapshot.tables_copied, snapshot.tables));
        }
        (WorkerPhase::Streaming, _) => bar.set_message(streaming_line(report)),
        (WorkerPhase::Snapshotting | WorkerPhase::Starting | WorkerPhase::Stopping, _) => bar.set_message(""),
        (WorkerPhase::Retrying | WorkerPhase::Halted, _) => {
            bar.set_message(
                report.problem.as_ref().map(|problem| problem.message.clone()).unwrap_or_default(),
            );
        }
    }
    bar.tick();
}

fn streaming_line(report: &Report) -> String {
    let changes = HumanCount(u64::try_from(report.sequence).unwrap_or(0));
    let position = report.position.as_deref().unwrap_or("-");
    let mut line = format!("{changes} changes, at {position}");
    if let Some(lag) = report.lag {
        let _infallible = write!(line, ", lag {:.1} s ({})", lag.seconds, HumanBytes(lag.bytes));
    }
    if let Some(snapshot) = report.snapshot.filter(|_| !report.has_all_rows()) {
        let (copied, estimated) = (HumanCount(snapshot.rows_copied), HumanCount(snapshot.rows_estimated));
        let tables = format!("{}/{} tables", snapshot.tables_copied, snapshot.tables);
        let _infallible = write!(line, "; copying beside it: {copied}/~{estimated} rows, {tables}");
    }
    line
}

fn style(phase: WorkerPhase) -> ProgressStyle {
    let template = match phase {
        WorkerPhase::Snapshotting => {
            "{spinner} copying   [{bar:30}] {human_pos}/~{human_len} rows, {per_sec}, {msg}, {eta} left"
        }
        WorkerPhase::Streaming => "{spinner} streaming {msg}",
        WorkerPhase::Starting => "{spinner} starting",
        WorkerPhase::Stopping => "{spinner} stopping",
        WorkerPhase::Retrying => "{spinner} trying again: {msg}",
        WorkerPhase::Halted => "{spinner} halted: {msg}",
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
