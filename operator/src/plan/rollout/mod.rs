//! The rollout of a revision beside the stable one: which step comes next, what the last one came to, what there is to say.
//!
//! One Job at a time. What one came to is counted once, because its name is recorded with it; who has the tables that readers know
//! is never counted, but heard from the workers. What was decided about a revision is kept with it before it is carried out.

mod words;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use penstock_crds::comparison::{ComparisonResult, ComparisonVerdict};
use penstock_crds::names::{ANNOTATION_ABORT, ANNOTATION_PROMOTE, ANNOTATION_ROLL_BACK, uid8};
use penstock_crds::report::{LineageRole, Report};
use penstock_crds::rollout::{LastTask, Promotion, RolloutStatus, RolloutTask};

use super::events::PlannedEvent;
use super::live::delete;
use super::revision::role;
use super::shards::{all_stream, reporting};
use super::stage::{Crew, Lineup, Meant, Stage};
use super::status::whole_seconds;
use super::{Doomed, DoomedKind, PlanError, Step, manifests, target_revision};
use crate::names;
use crate::world::{ComparisonProgress, KnownRevision, OutcomeKind, RevisionOutcome, RolloutJob, World};

pub(super) use words::{matching, progress, way_back};
use words::{order, sentence};

/// After a step that failed, before it is tried again.
const TRY_AGAIN_AFTER: SignedDuration = SignedDuration::from_secs(30);
/// How long a Job's container may take to start.
const PATIENCE: SignedDuration = SignedDuration::from_mins(5);

/// How a rollout stands, and what to do about it.
#[derive(Debug, Default)]
pub(super) struct Rollout {
    /// What to do.
    pub(super) steps: Vec<Step>,
    /// As it is to be recorded.
    pub(super) status: Option<RolloutStatus>,
    /// What is beside the stable revision.
    pub(super) beside: Option<Beside>,
}

/// What is beside the stable revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beside {
    /// A canary. Next: `Previous` is the stable one, or `Leaving`.
    Canary {
        /// It waits for a person to promote it.
        waits: bool,
    },
    /// The revision that was promoted over. Next: it is the stable one, or `Leaving`.
    Previous,
    /// It is removed.
    Leaving,
}

/// How the rollout of a living pipeline stands.
pub(super) fn rollout(world: &World, stage: &Stage<'_>) -> Result<Rollout, PlanError> {
    let Some(lineup) = stage.lineup() else { return Ok(Rollout::default()) };
    let mut always = release(world)?;
    always.extend(complaints(world).map(Step::Emit));
    let Some(beside) = &lineup.beside else {
        let steps = world.rollout_jobs.iter().filter(|job| is_of_no_use(job)).map(delete_job);
        return Ok(Rollout { steps: steps.chain(always).collect(), ..Rollout::default() });
    };
    let mut rollout = Rollouter { world, lineup, beside, status: recorded(world, beside), steps: Vec::new() };
    rollout.name_slots();
    let finding = rollout.settle();
    let is = rollout.proceed(finding)?;
    rollout.steps.extend(always);
    Ok(Rollout { steps: rollout.steps, status: Some(rollout.status), beside: Some(is) })
}

/// How the rollout of this revision stood at the last look.
fn recorded(world: &World, beside: &Crew<'_>) -> RolloutStatus {
    let revision = &beside.revision;
    let before = world.pipeline.status.as_ref().and_then(|status| status.rollout.clone());
    before
        .filter(|status| status.revision == revision.name.0 && status.number == revision.number)
        .unwrap_or_else(|| RolloutStatus {
            revision: revision.name.to_string(),
            number: revision.number,
            ..RolloutStatus::default()
        })
}

/// What was found wrong may be tried again once the spec has meant something else.
fn release(world: &World) -> Result<Vec<Step>, PlanError> {
    let meant = target_revision(&world.pipeline)?;
    let is_barred = |revision: &&KnownRevision| revision.course.is_barred && revision.name != meant;
    let release = |revision: &KnownRevision| {
        let mut released = revision.clone();
        released.course.is_barred = false;
        Ok(Step::Apply(manifests::controller_revision(world, &released)?))
    };
    world.revisions.iter().filter(is_barred).map(release).collect()
}

/// What is wrong with annotations that name no revision.
fn complaints(world: &World) -> impl Iterator<Item = PlannedEvent> {
    let annotations = world.pipeline.metadata.annotations.as_ref();
    let orders = [ANNOTATION_PROMOTE, ANNOTATION_ABORT, ANNOTATION_ROLL_BACK].into_iter();
    orders.filter_map(move |annotation| {
        let text = annotations?.get(annotation).filter(|text| !text.is_empty())?;
        let names_one = text.trim().rsplit_once('-').is_some_and(|(name, number)| {
            number.parse::<i64>().is_ok() && world.revisions.iter().any(|known| known.name.0 == name)
        });
        let why =
            "it names a revision that is kept and its number, such as r1a2b3c4d-2, as the conditions do";
        (!names_one).then(|| PlannedEvent::annotation_invalid(annotation, text, why))
    })
}

struct Rollouter<'a, 'w> {
    world: &'w World,
    lineup: &'a Lineup<'w>,
    beside: &'a Crew<'w>,
    status: RolloutStatus,
    steps: Vec<Step>,
}

impl Rollouter<'_, '_> {
    /// What it keeps in the source, as its workers say.
    fn name_slots(&mut self) {
        let reports = self.beside.shards.iter().map(|shard| reporting(shard)?.slot.clone());
        if let Some(slots) = reports.collect::<Option<Vec<String>>>() {
            self.status.slots = slots;
        }
    }

    /// Counts what the last Job came to. What was found wrong, in a sentence.
    fn settle(&mut self) -> Option<String> {
        let job = self.job()?;
        let (at, result) = outcome(self.world, job)?;
        let (task, verdict) = (job.task, result.verdict);
        self.status.last = Some(LastTask {
            job: job.name.clone(),
            task,
            completion_time: Time(at),
            result: result.shortened(),
        });
        match (task, verdict) {
            (RolloutTask::Compare, ComparisonVerdict::Equal) => self.status.matches += 1,
            (RolloutTask::Compare | RolloutTask::Promote, ComparisonVerdict::Different) => {
                self.status.matches = 0;
                return self.last_word();
            }
            (RolloutTask::Compare, ComparisonVerdict::Unknown)
            | (RolloutTask::Promote, ComparisonVerdict::Equal | ComparisonVerdict::Unknown)
            | (RolloutTask::RollBack | RolloutTask::CleanUp, _) => {}
        }
        None
    }

    /// Decides what comes next, and says what the revision is now.
    fn proceed(&mut self, wrong: Option<String>) -> Result<Beside, PlanError> {
        let strays = self.world.rollout_jobs.iter().filter(|job| is_of_no_use(job) && !self.is_own(job));
        self.steps.extend(strays.map(delete_job).collect::<Vec<_>>());
        let (stable, beside) = (&self.lineup.stable.revision, &self.beside.revision);
        if beside.course.is_leaving {
            if self.make_way(Some(RolloutTask::CleanUp)) && self.is_empty() {
                self.clean_up();
            }
            return Ok(Beside::Leaving);
        }
        let is_stable_sure = role(self.world, stable) == Some(LineageRole::Stable);
        let beside_role = role(self.world, beside);
        let was_previous = self.was_promoted_over();
        match (is_stable_sure, beside_role) {
            (true, Some(LineageRole::Canary)) => self.canary(wrong, true),
            (true, Some(LineageRole::Previous)) => self.previous(true),
            (true, None) if was_previous => self.previous(false),
            (true, None) => self.canary(wrong, false),
            // Who has the tables is not sure, so nothing is decided.
            (false, _) | (true, Some(LineageRole::Stable)) => {
                let is_previous = beside_role == Some(LineageRole::Previous) || was_previous;
                Ok(if is_previous { Beside::Previous } else { Beside::Canary { waits: false } })
            }
        }
    }

    /// A canary: it ends, or is compared, or promoted.
    fn canary(&mut self, wrong: Option<String>, is_sure: bool) -> Result<Beside, PlanError> {
        let revision = &self.beside.revision;
        let end = if promoted_at(revision).is_some() {
            let reason =
                format!("its tables were given back to revision {}", self.lineup.stable.revision.name);
            Some((OutcomeKind::RolledBack, reason))
        } else if let Some(wrong) = wrong {
            Some((OutcomeKind::Rejected, wrong))
        } else if self.is_asked(ANNOTATION_ABORT, revision) {
            Some((OutcomeKind::Rejected, format!("the annotation {ANNOTATION_ABORT} asks for it")))
        } else if self.lineup.meant == Meant::Beside {
            None
        } else {
            Some((OutcomeKind::Abandoned, "the spec means another revision".to_owned()))
        };
        if let Some((kind, reason)) = end {
            return if self.make_way(None) { self.leave(kind, reason) } else { Ok(Beside::Leaving) };
        }
        let rollout = &self.world.pipeline.spec.rollout;
        let is_proven = self.status.matches >= rollout.comparison.required_matches;
        let is_ordered =
            rollout.promotion == Promotion::Automatic || self.is_asked(ANNOTATION_PROMOTE, revision);
        let waits = is_proven && !is_ordered;
        if is_sure && self.is_ready() {
            if is_proven && is_ordered {
                self.begin(RolloutTask::Promote, TRY_AGAIN_AFTER);
            } else {
                self.begin(RolloutTask::Compare, rollout.comparison.interval());
            }
        }
        Ok(Beside::Canary { waits })
    }

    /// The revision that was promoted over: it is there for the way back, until it need not be.
    fn previous(&mut self, is_sure: bool) -> Result<Beside, PlanError> {
        let stable = &self.lineup.stable.revision;
        let promoted = if let Some(at) = promoted_at(stable) {
            at
        } else {
            let at = whole_seconds(self.world.now);
            let reason = format!("its rows were those of revision {}", self.beside.revision.name);
            self.note(stable, |course| {
                course.outcome = Some(RevisionOutcome { outcome: OutcomeKind::Promoted, reason, at });
                course.is_leaving = false;
            })?;
            self.steps.push(Step::Emit(PlannedEvent::promoted(stable, &self.beside.revision)));
            at
        };
        let until = promoted + self.world.pipeline.spec.rollout.keep_previous();
        self.status.previous_kept_until = Some(Time(until));
        let is_wanted_back =
            self.lineup.meant == Meant::Beside || self.is_asked(ANNOTATION_ROLL_BACK, stable);
        if is_wanted_back {
            if is_sure && self.is_ready() {
                self.begin(RolloutTask::RollBack, TRY_AGAIN_AFTER);
            }
            return Ok(Beside::Previous);
        }
        let is_over = until <= self.world.now || self.lineup.meant == Meant::Another;
        if is_over && self.make_way(None) {
            let revision = self.beside.revision.clone();
            self.note(&revision, |course| course.is_leaving = true)?;
            return Ok(Beside::Leaving);
        }
        Ok(Beside::Previous)
    }

    /// Ends the rollout of a canary.
    fn leave(&mut self, outcome: OutcomeKind, reason: String) -> Result<Beside, PlanError> {
        let revision = self.beside.revision.clone();
        let event = PlannedEvent::rollout_ended(&revision, outcome, &reason);
        self.note(&revision, |course| {
            let at = whole_seconds(self.world.now);
            course.outcome = Some(RevisionOutcome { outcome, reason, at });
            course.is_barred = outcome != OutcomeKind::Abandoned;
            course.is_leaving = true;
        })?;
        self.steps.push(Step::Emit(event));
        Ok(Beside::Leaving)
    }

    /// Keeps what was decided with the revision.
    fn note(
        &mut self,
        revision: &KnownRevision,
        change: impl FnOnce(&mut crate::world::RevisionCourse),
    ) -> Result<(), PlanError> {
        let mut noted = revision.clone();
        change(&mut noted.course);
        self.steps.push(Step::Apply(manifests::controller_revision(self.world, &noted)?));
        Ok(())
    }

    /// Its pods are gone: first what it left in the databases goes, then its StatefulSet, and all else after that.
    fn clean_up(&mut self) {
        let is_clean = self.status.last.as_ref().is_some_and(|last| {
            last.task == RolloutTask::CleanUp && last.result.verdict == ComparisonVerdict::Equal
        });
        if !is_clean {
            self.begin(RolloutTask::CleanUp, TRY_AGAIN_AFTER);
        } else if let Some(set) = self.world.set(&self.beside.revision.name) {
            self.steps.push(delete(DoomedKind::StatefulSet, &set.object));
        }
    }

    /// Begins a step, unless it is under way, or was the last one and ended less than `pause` ago.
    fn begin(&mut self, task: RolloutTask, pause: SignedDuration) {
        let waits = self.status.last.as_ref().is_some_and(|last| {
            last.task == task && self.world.now.duration_since(last.completion_time.0) < pause
        });
        if !self.make_way(Some(task)) || self.job().is_some() || waits || self.world.pipeline.spec.paused {
            return;
        }
        let ended = self.world.rollout_jobs.iter().filter(|job| is_of_no_use(job)).map(delete_job);
        self.steps.extend(ended);
        let job = manifests::rollout_job(self.world, &self.beside.revision, task, &self.next_name());
        self.steps.push(Step::Apply(job));
    }

    /// Ends a Job that does anything but this. Whether nothing else is under way any more.
    fn make_way(&mut self, task: Option<RolloutTask>) -> bool {
        match self.job().map(|job| (job.task, delete_job(job))) {
            Some((under_way, _)) if Some(under_way) == task => true,
            Some((_, delete)) => {
                self.steps.push(delete);
                false
            }
            None => {
                let is_ending = self.world.rollout_jobs.iter().any(|job| job.is_deleting);
                !is_ending && self.world.rollout_pods.is_empty()
            }
        }
    }

    /// The Job that is under way.
    fn job(&self) -> Option<&RolloutJob> {
        let name = self.next_name();
        self.world.rollout_jobs.iter().find(|job| job.name == name && !job.is_deleting)
    }

    fn is_own(&self, job: &RolloutJob) -> bool {
        let last = self.status.last.as_ref().map(|last| last.job.as_str());
        job.name == self.next_name() || last == Some(job.name.as_str())
    }

    /// The same until something is recorded, so that a Job that was just made is not made twice.
    fn next_name(&self) -> String {
        let last = self.status.last.as_ref().map(|last| last.job.as_str()).unwrap_or_default();
        let number = self.status.number.to_string();
        let identity = [self.world.uid.as_str(), &self.status.revision, &number, last];
        names::rollout_job(self.world.name(), &uid8(&identity.join("\n")))
    }

    /// Every change is applied, and all rows are copied, on both sides.
    fn is_ready(&self) -> bool {
        self.lineup.crews().all(|crew| {
            let mut reports = crew.shards.iter().filter_map(reporting);
            crew.replicas > 0
                && crew.outdated.is_empty()
                && all_stream(&crew.shards)
                && reports.all(Report::has_all_rows)
        })
    }

    /// No worker of it may still write.
    fn is_empty(&self) -> bool {
        let name = &self.beside.revision.name;
        self.world.set(name).is_none_or(|set| set.is_observed_empty)
            && self.world.pods.iter().all(|pod| pod.revision != *name)
    }

    fn is_asked(&self, annotation: &str, revision: &KnownRevision) -> bool {
        let annotations = self.world.pipeline.metadata.annotations.as_ref();
        annotations.and_then(|all| all.get(annotation)).is_some_and(|text| text.trim() == order(revision))
    }

    /// Whether it is what the stable one was promoted over, as far as that was noted.
    fn was_promoted_over(&self) -> bool {
        let (stable, beside) = (&self.lineup.stable.revision, &self.beside.revision);
        promoted_at(stable).is_some() && beside.number < stable.number
    }

    /// What the last Job found, in words.
    fn last_word(&self) -> Option<String> {
        let last = self.status.last.as_ref()?;
        Some(format!("{} (kubectl logs job/{} names them, for an hour)", sentence(&last.result), last.job))
    }
}

/// When a revision was seen to have been promoted.
fn promoted_at(revision: &KnownRevision) -> Option<Timestamp> {
    let outcome = revision.course.outcome.as_ref()?;
    (outcome.outcome == OutcomeKind::Promoted).then_some(outcome.at)
}

/// What a Job came to, and when; absent while it may still come to something.
fn outcome(world: &World, job: &RolloutJob) -> Option<(Timestamp, ComparisonResult)> {
    let age = world.now.duration_since(job.created);
    let reason = match &job.progress {
        ComparisonProgress::Ended { at, result } => {
            // The clock of the node may be ahead.
            return Some((whole_seconds((*at).min(world.now)), result.clone()));
        }
        ComparisonProgress::Waiting { trouble } if age > PATIENCE => trouble.clone().unwrap_or_else(|| {
            format!(
                "Kubernetes does not start the pod of the Job {}: kubectl get events shows what refuses it",
                job.name
            )
        }),
        ComparisonProgress::Waiting { .. } | ComparisonProgress::Running => return None,
    };
    Some((whole_seconds(world.now), ComparisonResult::unknown(&reason)))
}

/// A Job that nobody waits for, but for one whose log names rows that differ: Kubernetes removes that in an hour.
fn is_of_no_use(job: &RolloutJob) -> bool {
    let names_rows = matches!(&job.progress, ComparisonProgress::Ended { result, .. } if result.verdict == ComparisonVerdict::Different);
    !job.is_deleting && !names_rows
}

/// Removes a Job, and its pod.
pub(super) fn delete_job(job: &RolloutJob) -> Step {
    Step::Delete(Doomed { kind: DoomedKind::Job, name: job.name.clone(), uid: job.uid.clone() })
}
