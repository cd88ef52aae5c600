//! Notices a sink that neither answers nor refuses: stopped, paused with its machine, or behind something that loses
//! its answers.
//!
//! Nothing else would. TCP sees no fault, because the kernel of a stopped server goes on acknowledging; the server's
//! own timeouts stand still with it; and a statement has no deadline here, because a legal one may take ten minutes.
//! So the sink is asked something trivial on a connection of its own, which is as old as the attempt: a server whose
//! sessions are stopped may still open new ones. That the attempt is then given up, perhaps in the middle of a commit,
//! does no harm: whether it happened is what the fence says at the next start.

use std::time::Duration;

use penstock_crds::report::Reason;
use tokio::time::{sleep, timeout};

use super::Context;
use crate::failure::Failure;
use crate::postgres::{ConnectError, Endpoint, Session};

const ASK_EVERY: Duration = Duration::from_secs(10);
/// How long an answer may take, in parts. The parts are counted, and the time is not: a worker that was stopped itself
/// finds the clock far ahead, and has not waited.
const PART: Duration = Duration::from_secs(10);
const PARTS: u32 = 6;

/// Runs the attempt, and gives it up when the sink falls silent.
///
/// # Errors
/// Those of the attempt; `SinkUnreachable`.
pub(super) async fn unless_sink_is_silent<T>(
    context: Context<'_>,
    attempt: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let sink = &context.settings.pipeline.sink;
    tokio::select! {
        outcome = attempt => outcome,
        () = silence(sink) => Err(failure(sink)),
    }
}

fn failure(sink: &Endpoint) -> Failure {
    let message = format!(
        "The sink {}:{} has not answered for {} s, and has not refused either: it, or its sessions, are stopped or out of \
         breath, or something in between loses its answers. It is tried again until it is back.",
        sink.connection.host,
        sink.connection.port,
        (PART * PARTS).as_secs()
    );
    Failure::new(Reason::SinkUnreachable, message)
}

/// Returns when the sink is silent.
async fn silence(sink: &Endpoint) {
    let mut session = None;
    while let Some(still_open) = patiently(ask(sink, session.take())).await {
        session = still_open;
        sleep(ASK_EVERY).await;
    }
}

/// `None`: no answer came.
async fn patiently<T>(answer: impl Future<Output = T>) -> Option<T> {
    let mut answer = std::pin::pin!(answer);
    for _ in 0..PARTS {
        if let Ok(answer) = timeout(PART, &mut answer).await {
            return Some(answer);
        }
        tracing::warn!("the sink does not answer");
    }
    None
}

/// Waits for an answer; gives back the session if it can be asked again.
async fn ask(sink: &Endpoint, session: Option<Session>) -> Option<Session> {
    let mut session = session;
    while session.is_none() {
        session = match sink.connect("penstock watch").await {
            Ok(session) => Some(session),
            Err(ConnectError::TimedOut) => None,
            // Whoever refuses is not silent. What it means is the attempt's to find out.
            Err(_) => return None,
        };
    }
    let session = session?;
    session.batch_execute("SELECT 1").await.is_ok().then_some(session)
}
