//! Leadership by a Lease: of several operators one reconciles. Who cannot renew in time stops at once,
//! before anybody else may take over.

mod lease;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use penstock_crds::names::FIELD_MANAGER;
use serde_json::json;

use self::lease::{Claim, Holding, Move, Sighting};
use crate::call::{CallError, call};

/// How long a leader that says nothing is still the leader.
pub const LEASE_DURATION: Duration = Duration::from_secs(15);
/// A leader that could not renew for so long stops.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// How often the lease is looked at.
const RETRY: Duration = Duration::from_secs(2);

/// One candidate for leadership.
pub struct Candidate {
    api: Api<Lease>,
    name: String,
    namespace: String,
    identity: String,
    sighting: Option<Sighting>,
    pulse: Arc<Pulse>,
}

/// When the API server answered last, for `/readyz`.
#[derive(Debug)]
pub struct Pulse {
    started: Instant,
    last_ms: AtomicU64,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { started: Instant::now(), last_ms: AtomicU64::new(0) }
    }
}

impl Pulse {
    fn beat(&self) {
        let elapsed_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(elapsed_ms.max(1), Ordering::Relaxed);
    }

    /// Whether the API server answered within the last lease duration.
    pub fn is_fresh(&self) -> bool {
        let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        !last.is_zero() && self.started.elapsed().saturating_sub(last) < LEASE_DURATION
    }
}

/// Leadership was lost.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// The API server could not be reached for too long.
    #[error("the lease {lease} could not be renewed within {} seconds", RENEW_DEADLINE.as_secs())]
    NotRenewed {
        /// Name of the lease.
        lease: String,
    },
    /// Somebody else has it.
    #[error("the lease {lease} is held by {holder}")]
    TakenOver {
        /// Name of the lease.
        lease: String,
        /// Who has it.
        holder: String,
    },
}

impl Candidate {
    /// A candidate that has not looked yet.
    pub fn new(client: Client, namespace: &str, name: &str, identity: String) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            identity,
            sighting: None,
            pulse: Arc::default(),
        }
    }

    /// When the API server answered last.
    pub fn pulse(&self) -> Arc<Pulse> {
        Arc::clone(&self.pulse)
    }

    /// Waits until this candidate leads.
    pub async fn lead(&mut self) {
        loop {
            match self.attempt().await {
                Ok(Holding::Ours) => return,
                Ok(Holding::Theirs(holder)) => {
                    tracing::debug!(lease = %self.name, %holder, "another operator leads");
                }
                Err(error) => {
                    tracing::warn!(lease = %self.name, %error, "the lease could not be read or written");
                }
            }
            tokio::time::sleep(jittered(RETRY)).await;
        }
    }

    /// Renews leadership until it is lost.
    pub async fn keep(&mut self) -> Lost {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(RETRY).await;
            let left = RENEW_DEADLINE.saturating_sub(renewed.elapsed());
            let begun = Instant::now();
            match tokio::time::timeout(left, self.attempt()).await {
                Ok(Ok(Holding::Ours)) => renewed = begun,
                Ok(Ok(Holding::Theirs(holder))) => {
                    return Lost::TakenOver { lease: self.name.clone(), holder };
                }
                Ok(Err(error)) => {
                    tracing::warn!(lease = %self.name, %error, "the lease could not be renewed");
                }
                Err(_) => return Lost::NotRenewed { lease: self.name.clone() },
            }
            if renewed.elapsed() >= RENEW_DEADLINE {
                return Lost::NotRenewed { lease: self.name.clone() };
            }
        }
    }

    /// Gives leadership up, so that another takes over at once.
    pub async fn release(&mut self) -> Result<(), CallError> {
        let Some(sighting) = self.sighting.take().filter(|sighting| sighting.claim.holder == self.identity)
        else {
            return Ok(());
        };
        let metadata = json!({"resourceVersion": sighting.version});
        let spec = json!({"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": MicroTime(Timestamp::now())});
        let patch = Patch::Merge(json!({"metadata": metadata, "spec": spec}));
        let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        call("releasing the lease", self.api.patch(&self.name, &parameters, &patch)).await.map(drop)
    }

    /// Looks at the lease, and takes or renews it if that is allowed.
    async fn attempt(&mut self) -> Result<Holding, CallError> {
        let lease = call("reading the lease", self.api.get_opt(&self.name)).await?;
        self.pulse.beat();
        self.sighting = lease.as_ref().map(|lease| Sighting::of(lease, self.sighting.take(), Instant::now()));
        let written = match lease::next_move(self.sighting.as_ref(), &self.identity, Instant::now()) {
            Move::Wait => return Ok(Holding::Theirs(self.holder())),
            Move::Create => {
                call("creating the lease", self.api.create(&PostParams::default(), &self.fresh())).await
            }
            Move::Write(claim) => call("writing the lease", self.write(&claim)).await,
        };
        match written {
            Ok(lease) => {
                self.sighting = Some(Sighting::of(&lease, None, Instant::now()));
                Ok(Holding::Ours)
            }
            // Somebody was faster; the next look shows who.
            Err(error) if error.is_code(409) => Ok(Holding::Theirs("a faster candidate".into())),
            Err(error) => Err(error),
        }
    }

    async fn write(&self, claim: &Claim) -> kube::Result<Lease> {
        let version = self.sighting.as_ref().map(|sighting| sighting.version.as_str());
        let metadata = json!({"resourceVersion": version});
        let patch = Patch::Merge(json!({"metadata": metadata, "spec": self.spec(claim)}));
        let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        self.api.patch(&self.name, &parameters, &patch).await
    }

    fn fresh(&self) -> Lease {
        let claim = Claim { holder: self.identity.clone(), transitions: 0, acquired: None };
        Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                namespace: Some(self.namespace.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(self.spec(&claim)),
        }
    }

    fn spec(&self, claim: &Claim) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
            acquire_time: Some(claim.acquired.clone().unwrap_or_else(|| now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(claim.transitions),
            ..LeaseSpec::default()
        }
    }

    fn holder(&self) -> String {
        self.sighting.as_ref().map(|sighting| sighting.claim.holder.clone()).unwrap_or_default()
    }
}

fn jittered(time: Duration) -> Duration {
    time.mul_f64(rand::random_range(0.8..1.2))
}

/// Version of a lease, for the condition that nobody has written it since.
fn version_of(lease: &Lease) -> String {
    lease.resource_version().unwrap_or_default()
}
