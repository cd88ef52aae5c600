//! What every stage's error becomes at its edge: a stable reason and a sentence for a person.

use penstock_crds::report::{Policy, Reason};

use crate::batch::BatchError;
use crate::decode::{DecodeError, ProtocolViolation};

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
