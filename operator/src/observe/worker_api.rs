//! Asks workers for their report: TLS, with the pipeline's own certificate authority and nothing else
//! trusted, and a bearer token. By the pod's address, so that no DNS is needed, under the name in its
//! certificate.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use penstock_crds::directive::Directive;
use penstock_crds::names::PORT_CONTROL;
use penstock_crds::report::Report;
use reqwest::Certificate;
use sha2::{Digest as _, Sha256};

use super::pods::RunningPod;
use super::{ControlMaterial, Identity};
use crate::world::Answer;

/// The longest a worker may take.
const TIME_LIMIT: Duration = Duration::from_secs(3);
/// A worker that answered is not asked again sooner, however often its objects change.
const PAUSE: SignedDuration = SignedDuration::from_secs(2);
/// No report is larger.
const BYTES_MAX: usize = 1024 * 1024;

/// Asks workers, and remembers what they said last.
#[derive(Debug, Default)]
pub(crate) struct WorkerApi {
    /// Pipeline UID to pod UID to what is known of that pod.
    acquaintances: Mutex<HashMap<String, HashMap<String, Acquaintance>>>,
}

/// What is known of one pod.
#[derive(Clone, Debug)]
struct Acquaintance {
    client: reqwest::Client,
    /// Hash of what the client trusts and whom it asks.
    made_for: [u8; 32],
    last: Option<(Timestamp, Report)>,
}

/// How to speak to a worker that was asked before.
#[derive(Clone, Debug)]
pub(crate) struct WorkerLine {
    client: reqwest::Client,
    url: String,
}

impl WorkerLine {
    /// Tells it what is wanted.
    pub(crate) async fn direct(&self, token: &str, directive: &Directive) -> Result<(), String> {
        let sent = self.client.put(&self.url).bearer_auth(token).json(directive).send().await;
        let answer = sent.map_err(|error| short(&error))?;
        match answer.status() {
            status if status.is_success() => Ok(()),
            status => Err(format!("it answered {status} to PUT /v1/directive")),
        }
    }
}

/// Why a worker did not answer.
#[derive(Debug, thiserror::Error)]
enum Silence {
    #[error("no TLS client can be made: {0}")]
    Client(reqwest::Error),
    #[error("{}", short(.0))]
    Request(#[from] reqwest::Error),
    #[error("it answered {0} to GET /v1/report")]
    Refused(reqwest::StatusCode),
    #[error("its report is larger than {BYTES_MAX} bytes")]
    TooLarge,
    #[error("its report is not understood: {0}")]
    NotUnderstood(#[from] serde_json::Error),
    #[error("another worker answered: shard {shard} of revision {revision}")]
    Another { shard: u16, revision: String },
}

/// The innermost cause: the outer ones only repeat the address.
fn short(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return format!("no answer within {} seconds", TIME_LIMIT.as_secs());
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

impl WorkerApi {
    /// Asks every pod that runs, all at once, and notes the answers in them.
    pub(super) async fn ask(
        &self,
        identity: &Identity,
        pods: &mut [RunningPod],
        control: Option<&ControlMaterial>,
    ) {
        let Some(control) = control else { return };
        let known = self.known(identity, pods);
        let answers = pods.iter().map(|pod| answer(identity, pod, control, known.get(&pod.uid).cloned()));
        let answers = join_all(answers).await;
        let mut now_known = HashMap::new();
        for (pod, (answer, acquaintance)) in pods.iter_mut().zip(answers) {
            match answer {
                Some(Answer::Silent { .. }) if pod.is_young => pod.worker.answer = Answer::NotRunning,
                Some(answer) => pod.worker.answer = answer,
                None => {}
            }
            now_known.extend(acquaintance.map(|acquaintance| (pod.uid.clone(), acquaintance)));
        }
        self.lock().insert(identity.uid.clone(), now_known);
    }

    /// How to speak to each worker that could be asked.
    pub(super) fn lines(&self, uid: &str, pods: &[RunningPod]) -> HashMap<String, WorkerLine> {
        let known = self.lock();
        let line = |pod: &RunningPod| {
            let client = known.get(uid)?.get(&pod.uid)?.client.clone();
            let url = format!("https://{}:{}/v1/directive", pod.host, pod.address?.port());
            Some((pod.worker.name.clone(), WorkerLine { client, url }))
        };
        pods.iter().filter_map(line).collect()
    }

    /// Forgets a pipeline that is gone.
    pub(super) fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }

    fn known(&self, identity: &Identity, pods: &[RunningPod]) -> HashMap<String, Acquaintance> {
        let mut known = self.lock().get(&identity.uid).cloned().unwrap_or_default();
        known.retain(|uid, _| pods.iter().any(|pod| pod.uid == *uid));
        known
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, HashMap<String, Acquaintance>>> {
        self.acquaintances.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

async fn answer(
    identity: &Identity,
    pod: &RunningPod,
    control: &ControlMaterial,
    known: Option<Acquaintance>,
) -> (Option<Answer>, Option<Acquaintance>) {
    let Some(address) = pod.address else { return (None, None) };
    let mut acquaintance = match acquainted(pod, address, control, known) {
        Ok(acquaintance) => acquaintance,
        Err(silence) => return (Some(Answer::Silent { error: silence.to_string() }), None),
    };
    let now = Timestamp::now();
    let is_recent = |(at, _): &(Timestamp, Report)| now.duration_since(*at) < PAUSE;
    if !acquaintance.last.as_ref().is_some_and(is_recent) {
        match report(identity, pod, control, &acquaintance.client).await {
            Ok(report) => acquaintance.last = Some((now, report)),
            Err(silence) => {
                tracing::debug!(pod = %pod.worker.name, %silence, "a worker does not answer");
                if acquaintance.last.is_none() {
                    return (Some(Answer::Silent { error: silence.to_string() }), Some(acquaintance));
                }
            }
        }
    }
    let answer =
        acquaintance.last.clone().map(|(at, report)| Answer::Report { report: Box::new(report), at });
    (answer, Some(acquaintance))
}

/// The client for a pod: the one that there is, unless what it trusts or whom it asks has changed.
fn acquainted(
    pod: &RunningPod,
    address: SocketAddr,
    control: &ControlMaterial,
    known: Option<Acquaintance>,
) -> Result<Acquaintance, Silence> {
    let made_for =
        Sha256::new().chain_update(&control.ca).chain_update(address.to_string()).finalize().into();
    if let Some(known) = known
        && known.made_for == made_for
    {
        return Ok(known);
    }
    let authorities = Certificate::from_pem_bundle(&control.ca).map_err(Silence::Client)?;
    let client = reqwest::Client::builder()
        .tls_certs_only(authorities)
        .https_only(true)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .resolve(&pod.host, address)
        .timeout(TIME_LIMIT)
        .build()
        .map_err(Silence::Client)?;
    Ok(Acquaintance { client, made_for, last: None })
}

async fn report(
    identity: &Identity,
    pod: &RunningPod,
    control: &ControlMaterial,
    client: &reqwest::Client,
) -> Result<Report, Silence> {
    let port = pod.address.map_or(PORT_CONTROL, |address| address.port());
    let url = format!("https://{}:{port}/v1/report", pod.host);
    let mut response = client.get(url).bearer_auth(&control.token).send().await?;
    if !response.status().is_success() {
        return Err(Silence::Refused(response.status()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > BYTES_MAX {
            return Err(Silence::TooLarge);
        }
    }
    let report: Report = serde_json::from_slice(&body)?;
    let worker = &pod.worker;
    let is_it =
        report.uid == identity.uid && report.shard == worker.shard && report.revision == worker.revision.0;
    if is_it { Ok(report) } else { Err(Silence::Another { shard: report.shard, revision: report.revision }) }
}

#[cfg(test)]
#[path = "worker_api_tests.rs"]
mod tests;
