//! The loop: what changed is observed, planned, carried out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use jiff::Timestamp;
use kube::core::DeserializeGuard;
use kube::runtime::controller::{Action, Config, Error as LoopError};
use kube::runtime::{Controller, watcher};
use kube::{Api, Client, ResourceExt as _};
use penstock_crds::CdcPipeline;
use tracing::Instrument as _;

use crate::apply::{Applier, ApplyError, Publisher};
use crate::metrics::{Metrics, Outcome};
use crate::observe::{Caches, ObserveError, Observer, Refusals};
use crate::plan::{Plan, PlanError, Step, plan, unobserved};

/// Longest pause after an error.
const BACKOFF_MAX: Duration = Duration::from_mins(1);

/// A pipeline as it is stored, whether or not it can be read.
type Stored = DeserializeGuard<CdcPipeline>;

/// What every pass needs.
struct Context {
    observer: Observer,
    applier: Applier,
    metrics: Arc<Metrics>,
    memories: Mutex<HashMap<String, Memory>>,
}

/// What is remembered of a pipeline between two passes. Losing it costs nothing but a message.
#[derive(Clone, Debug, Default)]
struct Memory {
    /// What the API server said when it refused something.
    refusals: Refusals,
    /// Errors since the last success.
    errors: u32,
    /// Observations that failed, in a row.
    unseen: u32,
}

/// Observations that may fail in a row before what was said of a pipeline stands no more.
const UNSEEN_MAX: u32 = 2;

impl Memory {
    /// Takes note of an observation; whether what was said before stands no more.
    fn observed(&mut self, is_seen: bool) -> bool {
        self.unseen = if is_seen { 0 } else { self.unseen.saturating_add(1) };
        self.unseen > UNSEEN_MAX
    }
}

/// A pass that failed. It is tried again.
#[derive(Debug, thiserror::Error)]
enum PassError {
    #[error(transparent)]
    Observe(#[from] ObserveError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

/// How the loop runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Image of workers whose manifest names none.
    pub worker_image: String,
    /// Pipelines that are worked on at the same time.
    pub concurrency: u16,
    /// Name of this operator's pod.
    pub instance: String,
}

/// Reconciles every pipeline until it is dropped. Only the leader may run it.
pub async fn run(client: Client, settings: Settings, metrics: Arc<Metrics>) {
    let (caches, touched) = Caches::new(&client);
    let publisher = Publisher::new(client.clone(), settings.instance);
    let context = Arc::new(Context {
        observer: Observer::new(client.clone(), caches, settings.worker_image),
        applier: Applier::new(client.clone(), publisher),
        metrics,
        memories: Mutex::default(),
    });
    let pipelines: Api<Stored> = Api::all(client);
    let forgets = Arc::clone(&context);
    Controller::new(pipelines, watcher::Config::default())
        .with_config(Config::default().concurrency(settings.concurrency))
        .reconcile_on(touched)
        .run(pass, pause_after_error, context)
        .for_each(|outcome| {
            match outcome {
                Ok(_) | Err(LoopError::ReconcilerFailed(..)) => {}
                Err(LoopError::ObjectNotFound(object)) => {
                    forgets.forget(object.namespace.as_deref().unwrap_or_default(), &object.name);
                }
                Err(error) => {
                    tracing::warn!(%error, "the watch of pipelines was interrupted; it starts again");
                }
            }
            std::future::ready(())
        })
        .await;
}

/// One pass over one pipeline.
async fn pass(stored: Arc<Stored>, context: Arc<Context>) -> Result<Action, PassError> {
    let pipeline = match &stored.0 {
        Ok(pipeline) => pipeline,
        Err(invalid) => return Ok(context.malformed(&stored, &invalid.error).await),
    };
    let namespace = pipeline.namespace().unwrap_or_default();
    let span = tracing::info_span!("pass", pipeline = %format!("{namespace}/{}", pipeline.name_any()));
    let begun = Instant::now();
    context.metrics.pass_begins();
    let outcome = Box::pin(reconcile(pipeline, &context)).instrument(span.clone()).await;
    let label = if outcome.is_ok() { Outcome::Success } else { Outcome::Error };
    context.metrics.pass_ends(label, begun.elapsed());
    if let Err(error) = &outcome {
        span.in_scope(|| tracing::warn!(%error, "the pass failed; it is tried again"));
    }
    outcome
}

async fn reconcile(pipeline: &CdcPipeline, context: &Context) -> Result<Action, PassError> {
    let uid = pipeline.uid().unwrap_or_default();
    // 1. What is?
    let observed = context.observer.observe(pipeline, context.memory(&uid).refusals).await;
    if let Err(error) = &observed {
        context.unseen(&uid, pipeline, error).await;
    }
    let observed = observed?;
    context.seen(&uid);
    // 2. What is there to do, and to say?
    let plan = plan(&observed.world)?;
    log(pipeline, &plan);
    // 3. Do it; say it.
    let applied = context.applier.carry_out(&observed, &plan).await;
    // 4. What will the next pass want to know of this one?
    context.metrics.show(&observed.world, phase(&plan), is_ready(&plan));
    context.metrics.show_comparison(&observed.world, plan.status.as_ref());
    context.remember(&uid, &plan, &applied);
    applied?;
    if plan.leaves_something_behind() {
        context.metrics.left_behind();
    }
    // 5. When is there something to see again?
    Ok(plan.look_again.map_or_else(Action::await_change, |pause| Action::requeue(jittered(pause))))
}

/// What changes, and everything that people are told: Events do not live long.
fn log(pipeline: &CdcPipeline, plan: &Plan) {
    let before = pipeline.status.as_ref().and_then(|status| status.phase);
    if let Some(now) = phase(plan)
        && before != Some(now)
    {
        tracing::info!(phase = ?now, waits_for = plan.waits_for.as_deref().unwrap_or_default(), "the phase changes");
    }
}

fn phase(plan: &Plan) -> Option<penstock_crds::status::Phase> {
    plan.status.as_ref().and_then(|status| status.phase)
}

fn is_ready(plan: &Plan) -> bool {
    let conditions = plan.status.iter().flat_map(|status| &status.conditions);
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Exponential, with jitter, up to a minute.
#[expect(clippy::needless_pass_by_value, reason = "the controller's signature")]
fn pause_after_error(stored: Arc<Stored>, _: &PassError, context: Arc<Context>) -> Action {
    let errors = context.fail(&stored.uid().unwrap_or_default());
    let pause = Duration::from_millis(500).saturating_mul(2_u32.saturating_pow(errors.min(10)));
    Action::requeue(jittered(pause.min(BACKOFF_MAX)))
}

fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.8..1.2))
}

impl Context {
    /// An object that cannot be read does not stop the others.
    async fn malformed(&self, stored: &Stored, error: &str) -> Action {
        let pipeline = format!("{}/{}", stored.namespace().unwrap_or_default(), stored.name_any());
        tracing::error!(%pipeline, %error, "the stored object is not a CdcPipeline; it is left alone");
        self.metrics.malformed();
        let note = format!(
            "The stored object cannot be read and is left alone: {error}. Correct it with kubectl edit"
        );
        self.applier.publisher().malformed(stored, note).await;
        Action::await_change()
    }

    fn memory(&self, uid: &str) -> Memory {
        self.lock().get(uid).cloned().unwrap_or_default()
    }

    fn remember(&self, uid: &str, plan: &Plan, applied: &Result<(), ApplyError>) {
        if plan.steps.contains(&Step::IssueControlSecret) {
            self.observer.forget_control(uid);
        }
        let mut memories = self.lock();
        let memory = memories.entry(uid.to_owned()).or_default();
        match applied {
            Ok(()) => *memory = Memory::default(),
            Err(error) => {
                memory.refusals =
                    Refusals { object: error.refusal(), comparison: error.refusal_of_comparison() };
            }
        }
    }

    fn seen(&self, uid: &str) {
        self.lock().entry(uid.to_owned()).or_default().observed(true);
    }

    /// What cannot be seen must not stay `Ready`. Best effort: the API server may be what fails.
    async fn unseen(&self, uid: &str, pipeline: &CdcPipeline, error: &ObserveError) {
        if !self.lock().entry(uid.to_owned()).or_default().observed(false) {
            return;
        }
        self.metrics.unobserved(uid);
        let status = unobserved(pipeline, Timestamp::now(), &error.to_string());
        if let Err(error) = self.applier.say(pipeline, &status).await {
            tracing::warn!(%error, "nobody can be told that the pipeline cannot be observed");
        }
    }

    fn fail(&self, uid: &str) -> u32 {
        let mut memories = self.lock();
        let memory = memories.entry(uid.to_owned()).or_default();
        memory.errors = memory.errors.saturating_add(1);
        memory.errors
    }

    fn forget(&self, namespace: &str, name: &str) {
        for uid in self.metrics.forget(namespace, name) {
            self.observer.forget(&uid);
            self.applier.forget(&uid);
            self.lock().remove(&uid);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Memory>> {
        self.memories.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_third_failed_observation_in_a_row_is_said() {
        let mut memory = Memory::default();
        let said: Vec<bool> =
            [false, false, true, false, false, false, false].map(|is_seen| memory.observed(is_seen)).into();
        assert_eq!(said, [false, false, false, false, false, true, true]);
    }
}
