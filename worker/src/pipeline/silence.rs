//! Notices a sink that neither answers nor refuses: stopped, paused with its machine, or behind something that loses
//! its answers.
//!
//! Nothing else would. TCP sees no fault, because the kernel of a stopped server goes on acknowledging; the server's
//! own timeouts stand still with it; and a statement has no deadline here, because a legal one may take ten minutes.
//! So the sink is asked something trivial on a connection of its own. That the attempt may then be given up in the
//! middle of a commit does no harm: whether it happened is what the fence says at the next start.

use std::time::Duration;

use penstock_crds::report::Reason;
use tokio::time::{sleep, timeout};

use super::Context;
use crate::failure::Failure;
use crate::postgres::{ConnectError, Endpoint, Session};

const ASK_EVERY: Duration = Duration::from_secs(10);
/// As long as a connection may take to be opened.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Questions in a row without an answer. They are counted, and the time is not: a worker that was stopped itself finds
/// the clock far ahead, and has asked nothing.
const UNANSWERED_MAX: u32 = 6;

/// Runs the attempt, and gives it up when the sink falls silent.
///
/// # Errors
/// Those of the attempt; `SinkUnreachable`.
pub(super) async fn unless_sink_is_silent(
    context: Context<'_>,
    attempt: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    tokio::select! {
        outcome = attempt => outcome,
        () = silence(&context.settings.pipeline.sink) => Err(failure(&context.settings.pipeline.sink)),
    }
}

fn failure(sink: &Endpoint) -> Failure {
    let seconds = ANSWER_MAX.as_secs() * u64::from(UNANSWERED_MAX);
    let message = format!(
        "The sink {}:{} has not answered for {seconds} s, on old connections and new ones, and does not refuse them: it is \
         stopped or out of breath, or something in between loses its answers. It is tried again until it is back.",
        sink.connection.host, sink.connection.port
    );
    Failure::new(Reason::SinkUnreachable, message)
}

/// Returns when the sink is silent.
async fn silence(sink: &Endpoint) {
    let mut session = None;
    let mut unanswered = 0;
    while unanswered < UNANSWERED_MAX {
        match ask(sink, session.take()).await {
            Answer::Came(still_open) => {
                session = still_open;
                unanswered = 0;
                sleep(ASK_EVERY).await;
            }
            Answer::None => {
                unanswered += 1;
                tracing::warn!(unanswered, "the sink does not answer");
            }
        }
    }
}

enum Answer {
    /// Something came; the session, if it can be asked again.
    Came(Option<Session>),
    /// Nothing came.
    None,
}

async fn ask(sink: &Endpoint, session: Option<Session>) -> Answer {
    let session = match session {
        Some(session) => session,
        None => match sink.connect("penstock watch").await {
            Ok(session) => session,
            Err(ConnectError::TimedOut) => return Answer::None,
            // Whoever refuses is not silent. What it means is the attempt's to find out.
            Err(_) => return Answer::Came(None),
        },
    };
    match timeout(ANSWER_MAX, session.batch_execute("SELECT 1")).await {
        Ok(Ok(())) => Answer::Came(Some(session)),
        Ok(Err(_)) => Answer::Came(None),
        Err(_) => Answer::None,
    }
}
