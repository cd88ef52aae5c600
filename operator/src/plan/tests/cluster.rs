//! A cluster and a sink that do what a plan says: Jobs run, tables change places, workers say whose they are.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use penstock_crds::comparison::{ComparisonResult, ComparisonVerdict, DifferentTable};
use penstock_crds::names::LABEL_REVISION;
use penstock_crds::report::{LineageRole, WorkerPhase};
use penstock_crds::revision::RevisionName;
use penstock_crds::rollout::{RolloutTask, Strategy};

use super::scene::*;
use crate::plan::{DoomedKind, Manifest, Step};
use crate::world::{Answer, ComparisonProgress, KnownRevision, OutcomeKind, RolloutJob, World};

/// Whose tables are where: a lineage, by the name of the canary that began it.
type Sink = BTreeMap<Option<String>, LineageRole>;

/// A cluster and a sink that do what a plan says.
pub(super) struct Cluster {
    pub(super) world: World,
    pub(super) sink: Sink,
    /// What comparisons find.
    pub(super) finds: ComparisonResult,
    /// What Jobs did, in order.
    pub(super) done: Vec<RolloutTask>,
    /// Workers do not answer.
    pub(super) is_silent: bool,
}

impl Cluster {
    /// A pipeline that streams, whose spec has just got another image.
    pub(super) fn with_a_new_image() -> Self {
        let mut world = at_rest();
        world.pipeline.spec.rollout.strategy = Strategy::Canary;
        world.pipeline.spec.rollout.comparison.interval = "1m".into();
        world.pipeline.spec.rollout.comparison.required_matches = 2;
        let mut cluster = Self {
            world,
            sink: Sink::from([(None, LineageRole::Stable)]),
            finds: ComparisonResult::done(),
            done: Vec::new(),
            is_silent: false,
        };
        cluster.image("worker:2");
        cluster
    }

    pub(super) fn image(&mut self, image: &str) {
        self.world.pipeline.spec.worker.image = Some(image.into());
    }

    pub(super) fn annotate(&mut self, annotation: &str, value: &str) {
        let annotations = self.world.pipeline.metadata.annotations.get_or_insert_default();
        annotations.insert(annotation.into(), value.into());
    }

    /// Carries plans out for as long as a rollout takes, and longer.
    pub(super) fn settle(&mut self) {
        for _ in 0..60 {
            self.step();
        }
    }

    /// Carries one plan out; what Kubernetes and the workers do follows.
    pub(super) fn step(&mut self) {
        let plan = planned(&self.world);
        for step in &plan.steps {
            match step {
                Step::Apply(Manifest::ControllerRevision(object)) => self.keep(object),
                Step::Apply(Manifest::StatefulSet(object)) => self.scale(object),
                Step::Apply(Manifest::Job(object)) => self.run(object),
                Step::Delete(doomed) if doomed.kind == DoomedKind::StatefulSet => {
                    self.world.sets.retain(|set| set.object.uid != doomed.uid);
                }
                Step::Delete(doomed) if doomed.kind == DoomedKind::Job => {
                    self.world.rollout_jobs.retain(|job| job.uid != doomed.uid);
                }
                Step::AddFinalizer
                | Step::RemoveFinalizer
                | Step::Apply(_)
                | Step::IssueControlSecret
                | Step::Delete(_)
                | Step::Direct { .. }
                | Step::Emit(_) => {}
            }
        }
        self.world.pipeline.status = plan.status;
        self.world.now += jiff::SignedDuration::from_secs(10);
        self.answer();
    }

    fn keep(&mut self, object: &ControllerRevision) {
        let name = revision_of(object.metadata.labels.as_ref());
        let annotations = object.metadata.annotations.clone().unwrap_or_default();
        let course = annotations.get("penstock.dev/course").map(|text| serde_json::from_str(text).unwrap());
        let data = serde_json::to_value(object.data.as_ref().unwrap()).unwrap();
        let kept = KnownRevision {
            name: name.clone(),
            number: object.revision,
            minted: serde_json::from_value(data).unwrap(),
            uid: format!("uid-{name}"),
            course: course.unwrap_or_default(),
        };
        self.world.revisions.retain(|revision| revision.name != name);
        self.world.revisions.push(kept);
    }

    fn scale(&mut self, object: &StatefulSet) {
        let name = revision_of(object.metadata.labels.as_ref());
        let replicas = object.spec.as_ref().unwrap().replicas.unwrap();
        let is_paused = self.world.pipeline.spec.paused;
        let newest = self.newest(self.lineage(&name).as_ref());
        let is_stable = self.sink.get(&self.lineage(&name)) == Some(&LineageRole::Stable);
        assert!(
            replicas > 0 || is_paused || !is_stable || newest.as_ref() != Some(&name),
            "the revision that readers see is stopped"
        );
        self.world.sets.retain(|set| set.object.revision != name);
        self.world.sets.push(set(&name, replicas, replicas == 0));
    }

    /// What a Job does is done at once; that it ended is seen at the next look.
    fn run(&mut self, object: &Job) {
        let metadata = &object.metadata;
        let name = metadata.name.clone().unwrap();
        let task = metadata.annotations.as_ref().unwrap()["penstock.dev/task"].clone();
        let task: RolloutTask = serde_json::from_value(task.into()).unwrap();
        let beside = self.lineage(&revision_of(metadata.labels.as_ref()));
        self.done.push(task);
        let result = match task {
            RolloutTask::Compare => self.finds.clone(),
            RolloutTask::Promote if self.finds.verdict != ComparisonVerdict::Equal => self.finds.clone(),
            RolloutTask::Promote => self.exchange(beside, LineageRole::Canary, LineageRole::Previous),
            RolloutTask::RollBack => self.exchange(beside, LineageRole::Previous, LineageRole::Canary),
            RolloutTask::CleanUp => {
                let gone = self.sink.remove(&beside);
                assert_ne!(gone, Some(LineageRole::Stable), "what readers see is removed");
                ComparisonResult::done()
            }
        };
        self.world.rollout_jobs.push(RolloutJob {
            uid: format!("uid-{name}"),
            name,
            task,
            created: self.world.now,
            is_deleting: false,
            progress: ComparisonProgress::Ended { at: self.world.now, result },
        });
    }

    fn exchange(&mut self, rises: Option<String>, is: LineageRole, becomes: LineageRole) -> ComparisonResult {
        let falls = self.sink.iter().find(|(_, role)| **role == LineageRole::Stable).unwrap().0.clone();
        if self.sink.get(&rises) != Some(&is) {
            return ComparisonResult::unknown("it is something else");
        }
        self.sink.insert(falls, becomes);
        self.sink.insert(rises, LineageRole::Stable);
        ComparisonResult::done()
    }

    /// Every worker that should run streams, and says what the sink says of it.
    pub(super) fn answer(&mut self) {
        let mut pods = Vec::new();
        for set in &self.world.sets {
            let name = &set.object.revision;
            let lineage = self.lineage(name);
            if set.replicas_wanted > 0 {
                self.sink.entry(lineage.clone()).or_insert(LineageRole::Canary);
            }
            for shard in 0..u16::try_from(set.replicas_wanted).unwrap() {
                let mut report = report(name, shard, WorkerPhase::Streaming);
                report.role = self.sink.get(&lineage).copied();
                let answer = if self.is_silent {
                    Answer::Silent { error: "connection refused".into() }
                } else {
                    Answer::Report { report: Box::new(report), at: self.world.now }
                };
                pods.push(pod(name, shard, answer));
            }
        }
        self.world.pods = pods;
        self.world = up_to_date(self.world.clone());
    }

    fn known(&self, name: &RevisionName) -> Option<&KnownRevision> {
        self.world.revisions.iter().find(|revision| revision.name == *name)
    }

    pub(super) fn lineage(&self, name: &RevisionName) -> Option<String> {
        self.known(name)?.course.lineage.clone()
    }

    fn newest(&self, lineage: Option<&String>) -> Option<RevisionName> {
        let revisions =
            self.world.revisions.iter().filter(|revision| revision.course.lineage.as_ref() == lineage);
        revisions.max_by_key(|revision| revision.number).map(|revision| revision.name.clone())
    }

    /// The revision that has workers and this role.
    pub(super) fn with_role(&self, role: LineageRole) -> Option<RevisionName> {
        let names = self.world.sets.iter().map(|set| &set.object.revision);
        let mut names = names.filter(|name| self.sink.get(&self.lineage(name)) == Some(&role));
        names.next_back().cloned()
    }

    pub(super) fn stable(&self) -> RevisionName {
        self.with_role(LineageRole::Stable).unwrap()
    }

    pub(super) fn previous(&self) -> Option<RevisionName> {
        self.with_role(LineageRole::Previous)
    }

    /// What the spec means.
    pub(super) fn meant(&self) -> KnownRevision {
        let name = crate::plan::target_revision(&self.world.pipeline).unwrap();
        self.known(&name).unwrap().clone()
    }

    pub(super) fn outcome(&self, name: &RevisionName) -> Option<OutcomeKind> {
        self.known(name)?.course.outcome.as_ref().map(|outcome| outcome.outcome)
    }

    pub(super) fn ready(&self) -> (bool, &str) {
        let conditions = &self.world.pipeline.status.as_ref().unwrap().conditions;
        let ready = conditions.iter().find(|condition| condition.type_ == "Ready").unwrap();
        (ready.status == "True", &ready.reason)
    }

    pub(super) fn sets(&self) -> Vec<&str> {
        let mut sets: Vec<&str> = self.world.sets.iter().map(|set| set.object.revision.0.as_str()).collect();
        sets.sort_unstable();
        sets
    }
}

fn revision_of(labels: Option<&BTreeMap<String, String>>) -> RevisionName {
    RevisionName(labels.unwrap()[LABEL_REVISION].clone())
}

/// How an annotation names a revision.
pub(super) fn order(revision: &KnownRevision) -> String {
    format!("{}-{}", revision.name, revision.number)
}

/// What a comparison finds that finds two rows.
pub(super) fn different() -> ComparisonResult {
    ComparisonResult {
        verdict: ComparisonVerdict::Different,
        tables: 3,
        tables_different: 1,
        different: vec![DifferentTable { table: "public.inventory".into(), rows: 2, is_at_least: false }],
        ..ComparisonResult::done()
    }
}
