//! Every call to the API server goes through here: it has a name, a time limit, and an error that says what
//! was tried.

use std::time::Duration;

/// The longest a call may take. Shorter than the lease, so that a call never outlives leadership by much.
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// A call to the API server that failed.
#[derive(Debug, thiserror::Error)]
#[error("{tried}: {cause}")]
pub struct CallError {
    /// What was tried, on what.
    tried: String,
    /// What went wrong.
    cause: Cause,
}

#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error("the API server gave no answer within {} seconds", TIME_LIMIT.as_secs())]
    Timeout,
    #[error("{}", sentence(.0))]
    Api(Box<kube::Error>),
}

/// The API server's own sentence, where there is one.
fn sentence(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error { status.message.clone() } else { error.to_string() }
}

impl CallError {
    fn status(&self) -> Option<&kube::core::Status> {
        match &self.cause {
            Cause::Api(error) => {
                if let kube::Error::Api(status) = error.as_ref() {
                    Some(status)
                } else {
                    None
                }
            }
            Cause::Timeout => None,
        }
    }

    /// Whether the HTTP status is this.
    pub(crate) fn is_code(&self, code: u16) -> bool {
        self.status().is_some_and(|status| status.code == code)
    }

    /// Whether the API server understood the request and will refuse it again: an invalid or forbidden
    /// object, an exhausted quota, an admission webhook. A namespace that is being deleted is not that.
    pub(crate) fn is_refusal(&self) -> bool {
        let Some(status) = self.status() else { return false };
        let causes = status.details.iter().flat_map(|details| &details.causes);
        let namespace_goes = causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating");
        [400, 403, 405, 413, 422].contains(&status.code) && !namespace_goes
    }
}

/// Runs a call within the time limit. The call is boxed: a pass makes many, and their states are large.
pub(crate) fn call<T>(
    tried: impl Into<String>,
    work: impl Future<Output = kube::Result<T>>,
) -> impl Future<Output = Result<T, CallError>> {
    let (tried, work) = (tried.into(), Box::pin(work));
    async move {
        let cause = match tokio::time::timeout(TIME_LIMIT, work).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => Cause::Api(Box::new(error)),
            Err(_) => Cause::Timeout,
        };
        Err(CallError { tried, cause })
    }
}
