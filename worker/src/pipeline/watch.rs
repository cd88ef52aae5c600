//! Looks at the source every few seconds while the stream runs: where its log ends, and how much of it the slot
//! keeps.

use std::time::Duration;

use tokio_util::task::AbortOnDropHandle;

use super::Context;
use crate::postgres::{End, Endpoint, Session};
use crate::serve::Metrics;
use crate::source::{self, SlotName};
use crate::status::Status;

const LOOK_EVERY: Duration = Duration::from_secs(3);

/// Watches until the handle is dropped. What it finds is shown, and decides nothing.
pub(super) fn watch_source(context: Context<'_>, slot: &SlotName) -> AbortOnDropHandle<()> {
    let endpoint = context.settings.pipeline.source.clone();
    let watch = Watch {
        endpoint,
        slot: slot.clone(),
        status: context.status.clone(),
        metrics: context.metrics.clone(),
    };
    AbortOnDropHandle::new(tokio::spawn(watch.run()))
}

struct Watch {
    endpoint: Endpoint,
    slot: SlotName,
    status: Status,
    metrics: Metrics,
}

impl Watch {
    async fn run(self) {
        let mut session = None;
        loop {
            session = match self.look(session).await {
                Ok(session) => Some(session),
                Err(message) => {
                    tracing::debug!("the source could not be looked at: {message}");
                    None
                }
            };
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn look(&self, session: Option<Session>) -> Result<Session, String> {
        let session = match session {
            Some(session) => session,
            None => self.endpoint.connect("penstock watch").await.map_err(|error| error.to_string())?,
        };
        let now = source::wal_position(&session, &self.slot).await.map_err(|error| error.to_string())?;
        self.status.source_ends_at(now.end);
        self.status.reached(End::Source);
        self.metrics.retained_wal.set(i64::try_from(now.retained_bytes).unwrap_or(i64::MAX));
        Ok(session)
    }
}
