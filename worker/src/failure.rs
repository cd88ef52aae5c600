//! What every stage's error becomes at its edge: a stable reason and a sentence for a person.

use penstock_crds::report::{Policy, Reason};

use crate::batch::BatchError;
use crate::change::LogIdentity;
use crate::decode::{DecodeError, ProtocolViolation};

/// The way out of a dead end that loses nothing.
pub const BEGIN_ANEW: &str =
    "To have all tables copied again from a new slot, run penstock-worker begin-anew.";

/// The way out that copies nothing.
pub const ACCEPT_LOSS: &str = "To go on without what is lost, run penstock-worker accept-loss.";

/// An error that has reached `pipeline.rs`. The reason decides what happens next ([`Reason::policy`]).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Stable word for it.
    pub reason: Reason,
    /// What was tried, on what, what went wrong, what to do. Never holds a secret.
    pub message: String,
}

impl Failure {
    /// A failure of that kind.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    /// The source is not the server that the sink's position belongs to, and does not go on from it.
    pub fn source_is_another(now: &LogIdentity, before: &LogIdentity) -> Self {
        let message = format!(
            "The source is system {} on timeline {}; the checkpoint in the sink was made with system {} on timeline {}, from which \
             it does not go on. Positions of one mean nothing in the other. Point source.postgres.connection at the server it was \
             made with. {BEGIN_ANEW}",
            now.system_id, now.timeline, before.system_id, before.timeline
        );
        Self::new(Reason::SourceChanged, message)
    }

    /// What happens next.
    pub fn policy(&self) -> Policy {
        self.reason.policy()
    }
}

impl From<DecodeError> for Failure {
    fn from(error: DecodeError) -> Self {
        Self::new(
            Reason::ProtocolViolation,
            format!("The source's stream cannot be read: {error}. Nothing of it was applied."),
        )
    }
}

impl From<ProtocolViolation> for Failure {
    fn from(error: ProtocolViolation) -> Self {
        Self::new(
            Reason::ProtocolViolation,
            format!("The source's stream makes no sense: {error}. Nothing of it was applied."),
        )
    }
}

impl From<BatchError> for Failure {
    fn from(error: BatchError) -> Self {
        Self::new(
            Reason::ProtocolViolation,
            format!("The source's changes make no sense: {error}. Nothing of them was committed."),
        )
    }
}
