//! What `/metrics` shows.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use penstock_crds::CdcPipelineStatus;
use penstock_crds::conditions::ConditionType;
use penstock_crds::report::LineageRole;
use penstock_crds::status::Phase;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::world::{Answer, World};

/// What `/metrics` shows.
pub struct Metrics {
    registry: Registry,
    passes: Family<PassLabels, Counter>,
    seconds: Histogram,
    running: Gauge,
    leader: Gauge,
    malformed: Counter,
    left_behind: Counter,
    silent: Family<PipelineLabels, Counter>,
    pipelines: Family<PhaseLabels, Gauge>,
    ready: Family<PipelineLabels, Gauge>,
    source_matches: Family<PipelineLabels, Gauge>,
    source_compared: Family<PipelineLabels, Gauge>,
    lag_bytes: Family<ShardLabels, Gauge<f64, AtomicU64>>,
    lag_seconds: Family<ShardLabels, Gauge<f64, AtomicU64>>,
    rows_copied: Family<ShardLabels, Gauge>,
    sequence: Family<ShardLabels, Gauge>,
    /// UID to what is shown of each pipeline, so that it can be taken back.
    shown: Mutex<HashMap<String, Shown>>,
}

struct Shown {
    pipeline: PipelineLabels,
    shards: Vec<ShardLabels>,
    phase: Option<Phase>,
}

/// How a pass over one pipeline ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Outcome {
    /// Everything was carried out.
    Success,
    /// Something failed; it is tried again.
    Error,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PassLabels {
    outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PipelineLabels {
    namespace: String,
    pipeline: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ShardLabels {
    namespace: String,
    pipeline: String,
    shard: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabels {
    phase: PhaseLabel,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct PhaseLabel(Phase);

impl EncodeLabelValue for PhaseLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        write!(encoder, "{:?}", self.0)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            passes: Family::default(),
            seconds: Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]),
            running: Gauge::default(),
            leader: Gauge::default(),
            malformed: Counter::default(),
            left_behind: Counter::default(),
            silent: Family::default(),
            pipelines: Family::default(),
            ready: Family::default(),
            source_matches: Family::default(),
            source_compared: Family::default(),
            lag_bytes: Family::default(),
            lag_seconds: Family::default(),
            rows_copied: Family::default(),
            sequence: Family::default(),
            shown: Mutex::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let operator = self.registry.sub_registry_with_prefix("penstock_operator");
        operator.register("reconciles", "Passes over one pipeline, by how they ended", self.passes.clone());
        operator.register_with_unit(
            "reconcile",
            "Duration of a pass over one pipeline",
            Unit::Seconds,
            self.seconds.clone(),
        );
        operator.register("reconciles_running", "Passes that run now", self.running.clone());
        operator.register("leader", "1 if this operator leads", self.leader.clone());
        operator.register(
            "malformed_objects",
            "Times that a stored pipeline could not be read",
            self.malformed.clone(),
        );
        operator.register(
            "left_behind",
            "Pipelines let go although deletionPolicy Delete could not be carried out: their namespace was deleted",
            self.left_behind.clone(),
        );
        operator.register(
            "worker_report_failures",
            "Times that a running worker gave no report",
            self.silent.clone(),
        );
        operator.register("pipelines", "Pipelines by phase", self.pipelines.clone());
        let pipeline = self.registry.sub_registry_with_prefix("penstock_pipeline");
        pipeline.register("ready", "1 if every change is being applied", self.ready.clone());
        pipeline.register(
            "source_matches",
            "1 if the sink was equal to the source when they were compared last, 0 if it was not, -1 if nobody knows",
            self.source_matches.clone(),
        );
        pipeline.register_with_unit(
            "source_compared_timestamp",
            "When the last comparison of sink and source ended, as a Unix time",
            Unit::Seconds,
            self.source_compared.clone(),
        );
        pipeline.register_with_unit(
            "lag",
            "Write-ahead log that is not yet durable in the sink, as the worker reports it",
            Unit::Bytes,
            self.lag_bytes.clone(),
        );
        pipeline.register_with_unit(
            "lag",
            "Age of the oldest change that is not yet durable in the sink, as the worker reports it",
            Unit::Seconds,
            self.lag_seconds.clone(),
        );
        pipeline.register(
            "snapshot_rows_copied",
            "Rows that the first load has copied, as the worker reports it",
            self.rows_copied.clone(),
        );
        pipeline.register(
            "sequence",
            "Source changes settled since the pipeline began, as the worker reports it",
            self.sequence.clone(),
        );
    }

    /// A pass begins.
    pub(crate) fn pass_begins(&self) {
        self.running.inc();
    }

    /// A pass ended.
    pub(crate) fn pass_ends(&self, outcome: Outcome, took: Duration) {
        self.running.dec();
        self.seconds.observe(took.as_secs_f64());
        self.passes.get_or_create(&PassLabels { outcome }).inc();
    }

    /// A stored object could not be read.
    pub(crate) fn malformed(&self) {
        self.malformed.inc();
    }

    /// A pipeline went, and what it leaves in databases stayed against its `deletionPolicy`.
    pub(crate) fn left_behind(&self) {
        self.left_behind.inc();
    }

    /// Whether this operator leads.
    pub fn set_leader(&self, is_leader: bool) {
        self.leader.set(is_leader.into());
    }

    /// What was seen of a pipeline, and the phase that it amounts to.
    pub(crate) fn show(&self, world: &World, phase: Option<Phase>, is_ready: bool) {
        let pipeline =
            PipelineLabels { namespace: world.namespace().to_owned(), pipeline: world.name().to_owned() };
        let mut shards = Vec::new();
        for pod in &world.pods {
            if let Answer::Silent { .. } = pod.answer {
                self.silent.get_or_create(&pipeline).inc();
            }
            let Some(report) = pod.report(world.now) else { continue };
            // What is beside the tables that readers know has figures of its own, at its worker.
            if matches!(report.role, Some(LineageRole::Canary | LineageRole::Previous)) {
                continue;
            }
            let labels = ShardLabels {
                namespace: pipeline.namespace.clone(),
                pipeline: pipeline.pipeline.clone(),
                shard: report.shard.into(),
            };
            if let Some(lag) = report.lag {
                #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
                self.lag_bytes.get_or_create(&labels).set(lag.bytes as f64);
                self.lag_seconds.get_or_create(&labels).set(lag.seconds);
            } else {
                self.lag_bytes.remove(&labels);
                self.lag_seconds.remove(&labels);
            }
            if let Some(snapshot) = report.snapshot {
                let rows = i64::try_from(snapshot.rows_copied).unwrap_or(i64::MAX);
                self.rows_copied.get_or_create(&labels).set(rows);
            }
            self.sequence.get_or_create(&labels).set(report.sequence);
            shards.push(labels);
        }
        self.ready.get_or_create(&pipeline).set(is_ready.into());
        let now = Shown { pipeline, shards, phase };
        let before = self.lock().insert(world.uid.clone(), now);
        if let Some(before) = before {
            let shown = self.lock();
            let still = shown.get(&world.uid).map(|now| now.shards.as_slice()).unwrap_or_default();
            before
                .shards
                .iter()
                .filter(|labels| !still.contains(labels))
                .for_each(|labels| self.hide(labels));
        }
    }

    /// What is known of a pipeline's sink and its source.
    pub(crate) fn show_comparison(&self, world: &World, status: Option<&CdcPipelineStatus>) {
        let Some(status) = status else { return };
        let pipeline =
            PipelineLabels { namespace: world.namespace().to_owned(), pipeline: world.name().to_owned() };
        let kind = ConditionType::SourceMatches.to_string();
        let matches = status.conditions.iter().find(|condition| condition.type_ == kind);
        let value = match matches.map(|condition| condition.status.as_str()) {
            Some("True") => 1,
            Some("False") => 0,
            Some(_) | None => -1,
        };
        self.source_matches.get_or_create(&pipeline).set(value);
        if let Some(last) = &status.source_comparison {
            self.source_compared.get_or_create(&pipeline).set(last.completion_time.0.as_second());
        }
    }

    /// A pipeline cannot be observed: nothing that was seen of it stands any more.
    pub(crate) fn unobserved(&self, uid: &str) {
        let shown = self.lock();
        if let Some(pipeline) = shown.get(uid) {
            self.ready.get_or_create(&pipeline.pipeline).set(0);
            self.source_matches.get_or_create(&pipeline.pipeline).set(-1);
            pipeline.shards.iter().for_each(|labels| self.hide(labels));
        }
    }

    /// Forgets a pipeline that is gone; returns the UIDs it was known by.
    pub(crate) fn forget(&self, namespace: &str, name: &str) -> Vec<String> {
        let mut shown = self.lock();
        let gone: Vec<String> = shown
            .iter()
            .filter(|(_, shown)| shown.pipeline.namespace == namespace && shown.pipeline.pipeline == name)
            .map(|(uid, _)| uid.clone())
            .collect();
        for pipeline in gone.iter().filter_map(|uid| shown.remove(uid)) {
            pipeline.shards.iter().for_each(|labels| self.hide(labels));
            self.ready.remove(&pipeline.pipeline);
            self.source_matches.remove(&pipeline.pipeline);
            self.source_compared.remove(&pipeline.pipeline);
            self.silent.remove(&pipeline.pipeline);
        }
        gone
    }

    fn hide(&self, labels: &ShardLabels) {
        self.lag_bytes.remove(labels);
        self.lag_seconds.remove(labels);
        self.rows_copied.remove(labels);
        self.sequence.remove(labels);
    }

    /// The text that Prometheus reads.
    pub(crate) fn text(&self) -> Result<String, std::fmt::Error> {
        self.pipelines.clear();
        for shown in self.lock().values() {
            if let Some(phase) = shown.phase {
                self.pipelines.get_or_create(&PhaseLabels { phase: PhaseLabel(phase) }).inc();
            }
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Shown>> {
        self.shown.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use penstock_crds::report::WorkerPhase;
    use serde_json::json;

    use super::*;
    use crate::plan::scene_for_tests::in_phase;

    #[test]
    fn a_pipeline_is_shown_while_it_is_there_and_not_after() {
        let metrics = Metrics::default();
        let world = in_phase(WorkerPhase::Streaming);
        metrics.show(&world, Some(Phase::Streaming), true);
        let text = metrics.text().unwrap();
        for line in [
            "penstock_operator_pipelines{phase=\"Streaming\"} 1",
            "penstock_pipeline_ready{namespace=\"shop\",pipeline=\"inventory\"} 1",
            "penstock_pipeline_lag_seconds{namespace=\"shop\",pipeline=\"inventory\",shard=\"1\"} 0.5",
            "penstock_pipeline_lag_bytes{namespace=\"shop\",pipeline=\"inventory\",shard=\"0\"} 10",
            "penstock_operator_leader 0",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        metrics.forget("shop", "inventory");
        assert!(!metrics.text().unwrap().contains("inventory"));
    }

    #[test]
    fn a_pipeline_that_cannot_be_observed_is_not_ready() {
        let metrics = Metrics::default();
        let world = in_phase(WorkerPhase::Streaming);
        metrics.show(&world, Some(Phase::Streaming), true);
        metrics.unobserved(&world.uid);
        let text = metrics.text().unwrap();
        assert!(
            text.contains("penstock_pipeline_ready{namespace=\"shop\",pipeline=\"inventory\"} 0"),
            "{text}"
        );
        assert!(!text.contains("shard=\"0\""), "{text}");
    }

    #[test]
    fn the_figures_of_a_canary_are_not_taken_for_those_of_what_readers_see() {
        let metrics = Metrics::default();
        let mut world = in_phase(WorkerPhase::Streaming);
        for pod in &mut world.pods {
            let Answer::Report { report, .. } = &mut pod.answer else { unreachable!() };
            report.role = Some(if pod.shard == 0 { LineageRole::Stable } else { LineageRole::Canary });
        }
        metrics.show(&world, Some(Phase::RollingOut), false);
        let text = metrics.text().unwrap();
        assert!(text.contains("shard=\"0\"") && !text.contains("shard=\"1\""), "{text}");
    }

    /// The status after a comparison.
    fn compared(truth: &str) -> CdcPipelineStatus {
        let result = json!({"verdict": "Equal", "tables": 3});
        serde_json::from_value(json!({
            "conditions": [{
                "type": "SourceMatches", "status": truth, "reason": "Equal", "message": "so",
                "lastTransitionTime": "2026-03-01T12:00:00Z",
            }],
            "sourceComparison": {
                "completionTime": "2026-03-01T12:00:00Z", "revision": "r", "spec": "s", "job": "j", "result": result,
            },
        }))
        .unwrap()
    }

    #[test]
    fn what_a_comparison_found_is_shown_and_unknown_is_not_good() {
        let metrics = Metrics::default();
        let world = in_phase(WorkerPhase::Streaming);
        metrics.show(&world, Some(Phase::Streaming), true);
        let line = |name: &str, value: &str| {
            format!("penstock_pipeline_{name}{{namespace=\"shop\",pipeline=\"inventory\"}} {value}\n")
        };
        metrics.show_comparison(&world, Some(&CdcPipelineStatus::default()));
        let text = metrics.text().unwrap();
        assert!(
            text.contains(&line("source_matches", "-1")) && !text.contains("compared_timestamp_seconds{"),
            "{text}"
        );
        for (truth, value) in [("True", "1"), ("False", "0"), ("Unknown", "-1")] {
            metrics.show_comparison(&world, Some(&compared(truth)));
            let text = metrics.text().unwrap();
            assert!(text.contains(&line("source_matches", value)), "{truth}: {text}");
            assert!(text.contains(&line("source_compared_timestamp_seconds", "1772366400")), "{text}");
        }
        metrics.forget("shop", "inventory");
        assert!(!metrics.text().unwrap().contains("inventory"));
    }

    /// A family without a member is not served, so each gets one.
    fn everything() -> Metrics {
        let metrics = Metrics::default();
        let mut world = in_phase(WorkerPhase::Streaming);
        world.pods[1].answer = Answer::Silent { error: "refused".into() };
        metrics.show(&world, Some(Phase::Retrying), false);
        metrics.show_comparison(&world, Some(&compared("True")));
        metrics.pass_begins();
        metrics.pass_ends(Outcome::Success, Duration::from_millis(1));
        metrics
    }

    #[test]
    fn the_guide_names_every_metric_of_the_operator_and_no_other() {
        let served = everything().text().unwrap();
        let mut names: Vec<String> = served
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
            .map(|(name, kind)| if kind == "counter" { format!("{name}_total") } else { name.to_owned() })
            .collect();
        let code = include_str!("metrics.rs").split("#[cfg(test)]").next().unwrap();
        let registered = code.matches(".register(\"").count()
            + code.matches(".register(\n").count()
            + code.matches(".register_with_unit(").count();
        assert_eq!(names.len(), registered, "a family that `everything` lacks: {names:?}");

        let guide = include_str!("../../docs/guide-operations.md");
        let mut explained: Vec<&str> =
            guide.lines().filter(|line| line.starts_with("| `")).flat_map(|line| line.split('`')).collect();
        explained
            .retain(|word| word.starts_with("penstock_operator_") || word.starts_with("penstock_pipeline_"));
        names.sort_unstable();
        explained.sort_unstable();
        assert_eq!(explained, names, "docs/guide-operations.md, and what the operator serves");
    }

    #[test]
    fn a_silent_worker_shows_no_old_lag() {
        let metrics = Metrics::default();
        let mut world = in_phase(WorkerPhase::Streaming);
        metrics.show(&world, Some(Phase::Streaming), true);
        world.pods[1].answer = Answer::Silent { error: "refused".into() };
        metrics.show(&world, Some(Phase::Retrying), false);
        let text = metrics.text().unwrap();
        assert!(text.contains("shard=\"0\"") && !text.contains("shard=\"1\""), "{text}");
        assert!(text.contains(
            "penstock_operator_worker_report_failures_total{namespace=\"shop\",pipeline=\"inventory\"} 1"
        ));
    }
}
