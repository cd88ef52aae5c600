//! Source comparison: when one begins, what becomes of its Job, what there is to say. One at a time. What is recorded in
//! the status is settled; what was interrupted is not recorded, so it begins again.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use penstock_crds::comparison::{ComparisonResult, ComparisonVerdict, LastComparison};
use penstock_crds::conditions::{ConditionReason, ConditionType, OperatorReason};
use penstock_crds::directive::is_token;
use penstock_crds::names::{ANNOTATION_COMPARE_SOURCE, ANNOTATION_RESNAPSHOT, uid8};
use penstock_crds::report::{Decisions, Reason, Report};

use super::events::PlannedEvent;
use super::revision::{Target, target};
use super::schedule::{Schedule, schedule};
use super::shards::{all_stream, reporting};
use super::stage::{Crew, Stage};
use super::status::whole_seconds;
use super::verdict::Truth;
use super::{Doomed, DoomedKind, PlanError, Step, decisions, manifests};
use crate::names;
use crate::world::{ComparisonJob, ComparisonProgress, KnownRevision, World};

/// How long a Job's container may take to start, and a Job to end after its deadline.
const PATIENCE: SignedDuration = SignedDuration::from_mins(5);
/// Where a comparison does not say why.
const NO_REASON: &str = "no reason is given";
/// Tables that a sentence names at most.
const TABLES_NAMED_MAX: usize = 5;

/// What is known of a sink about which something was decided since.
const OVERTAKEN: &str =
    "Since the last comparison began, what a person decided about a dead end was carried out";
/// What is known of a sink while nobody says whether something was decided since.
const UNCONFIRMED: &str = "Source and sink were the same when they were compared. That nothing was decided about a dead end since is known when \
                           every worker streams and says so; one of an older image never does";

/// When one that is asked for begins.
const BEGINS: &str = "begins when every change is applied and all rows are copied";

/// How source comparison stands, and what to do about it.
#[derive(Debug)]
pub(super) struct Comparison<'a> {
    /// What to do.
    pub(super) steps: Vec<Step>,
    /// The last one that ended, as it is to be recorded.
    pub(super) last: Option<LastComparison>,
    /// The last one speaks of the spec as it is now.
    is_of_this_spec: bool,
    /// Something was decided about a dead end since the last one began.
    is_overtaken: bool,
    /// That both ends were the same may be said: it is said already, or every worker says that nothing was decided since.
    is_confirmed: bool,
    /// What the schedule asks for.
    schedule: Schedule,
    /// The token that asks for one and is not carried out yet.
    pending: Option<&'a str>,
    /// The one that is under way.
    running: Option<&'a ComparisonJob>,
    /// Where a worker stands at a dead end: what was the same before need not be now.
    dead_end: Option<Reason>,
}

/// How source comparison stands in a pipeline that nobody deleted.
pub(super) fn comparison<'a>(world: &'a World, stage: &Stage<'_>) -> Result<Comparison<'a>, PlanError> {
    let revision = compared_revision(world, stage)?;
    let spec = manifests::compared_spec(world, &revision)?;
    // 1. What ended, or is of no use?
    let (mut last, mut steps) = settle(world, stage, &spec);
    // 2. What is asked for?
    let (token, complaint) = token(world);
    steps.extend(complaint.map(Step::Emit));
    let token = token.filter(|token| !is_carried_out(last.as_ref(), token));
    let can_begin = is_ready(stage) && world.comparisons.iter().all(|job| is_over(world, job));
    let counts =
        |last: &&LastComparison| last.spec == spec && !decisions::is_overtaken(stage, &last.decisions);
    let is_turn = schedule(world, last.as_ref().filter(counts), can_begin).is_turn;
    // 3. Can it begin? What a token asks for waits for nobody's turn.
    if can_begin && (token.is_some() || is_turn) {
        let decisions = decisions::noted(stage);
        let name = next_name(world, &spec, token, &decisions);
        if let Some(refusal) = &world.comparison_refused {
            let (revision, decisions) = (&revision.name.0, &decisions);
            let job = Attempt { name: &name, revision, spec: &spec, token, decisions };
            let result = ComparisonResult::unknown(&format!("Kubernetes refuses the Job: {refusal}"));
            let record = record(world, &job, whole_seconds(world.now), result);
            steps.extend(PlannedEvent::compared(world, &record).map(Step::Emit));
            last = Some(record);
        } else {
            steps.extend(world.comparisons.iter().map(delete));
            steps.push(Step::Apply(manifests::comparison_job(world, &revision, &name, token, &decisions)?));
        }
    }
    let pending = token.filter(|token| !is_carried_out(last.as_ref(), token));
    let noted = last.as_ref().map(|last| last.decisions.as_slice()).unwrap_or_default();
    let is_running = |job: &&ComparisonJob| {
        !job.is_deleting && is_under_way(job) && !is_of_no_use(world, stage, job, &spec)
    };
    Ok(Comparison {
        steps,
        is_of_this_spec: last.as_ref().is_some_and(|last| last.spec == spec),
        is_overtaken: decisions::is_overtaken(stage, noted),
        is_confirmed: is_said_to_match(world) || decisions::is_confirmed(stage, noted),
        schedule: schedule(world, last.as_ref().filter(counts), can_begin),
        pending,
        running: world.comparisons.iter().find(is_running),
        dead_end: dead_end(stage),
        last,
    })
}

/// The one whose tables readers know; before there is one, the one that the spec means.
fn compared_revision(world: &World, stage: &Stage<'_>) -> Result<KnownRevision, PlanError> {
    if let Some((stable, _)) = stage.running() {
        return Ok(stable.clone());
    }
    let (Target::Minted(revision) | Target::Mint(revision) | Target::Clash(revision)) = target(world)?;
    Ok(revision)
}

impl Comparison<'_> {
    /// What the condition says. The same again is said in the same words. While a token is not carried out, what was
    /// found before does not answer it; a run of the schedule was not asked for, so it leaves the old word.
    pub(super) fn finding(&self, pipeline: &str) -> (Truth, OperatorReason, String) {
        let is_current = self.is_of_this_spec && !self.is_overtaken;
        let last = self.last.as_ref().filter(|_| is_current && self.pending.is_none());
        match (last, self.running) {
            (Some(LastComparison { result, .. }), _)
                if result.verdict == ComparisonVerdict::Equal
                    && let Some(reason) = self.dead_end =>
            {
                let message = format!(
                    "Source and sink were the same before a worker met {}; the condition Ready says what to do",
                    ConditionReason::from(reason)
                );
                (Truth::Unknown, OperatorReason::ComparisonOutdated, message)
            }
            (Some(LastComparison { result, .. }), _)
                if result.verdict == ComparisonVerdict::Equal && !self.is_confirmed =>
            {
                (Truth::Unknown, OperatorReason::ComparisonOutdated, UNCONFIRMED.to_owned())
            }
            (Some(last), _) => {
                let (truth, reason) = match last.result.verdict {
                    ComparisonVerdict::Equal => (Truth::True, OperatorReason::Equal),
                    ComparisonVerdict::Different => (Truth::False, OperatorReason::Different),
                    ComparisonVerdict::Unknown => (Truth::Unknown, OperatorReason::ComparisonFailed),
                };
                (truth, reason, sentence(pipeline, last))
            }
            (None, Some(job)) => (Truth::Unknown, OperatorReason::Comparing, of_running(job)),
            (None, None) => match self.pending {
                Some(token) => (Truth::Unknown, OperatorReason::Comparing, of_pending(token)),
                None => self.unknown(pipeline),
            },
        }
    }

    /// Since when the schedule asks for one.
    pub(super) fn due_since(&self) -> Option<Time> {
        self.schedule.since.map(Time)
    }

    fn unknown(&self, pipeline: &str) -> (Truth, OperatorReason, String) {
        let next = if self.schedule.is_due {
            format!("The next comparison {BEGINS}, within half an hour")
        } else {
            format!(
                "kubectl annotate cdc {pipeline} --overwrite {ANNOTATION_COMPARE_SOURCE}=TOKEN begins one; spec.sourceComparison.interval repeats it"
            )
        };
        let (reason, known) = if self.last.is_none() {
            (OperatorReason::NeverCompared, "The sink was not compared with the source yet")
        } else if self.is_of_this_spec {
            (OperatorReason::ComparisonOutdated, OVERTAKEN)
        } else {
            (OperatorReason::ComparisonOutdated, "The last comparison was of the spec as it was before")
        };
        (Truth::Unknown, reason, format!("{known}. {next}"))
    }
}

fn of_pending(token: &str) -> String {
    format!("The comparison that the token {token} asks for {BEGINS}")
}

fn of_running(job: &ComparisonJob) -> String {
    match &job.progress {
        ComparisonProgress::Waiting { trouble: Some(trouble) } => {
            format!("The Job {} waits to compare: {trouble}", job.name)
        }
        ComparisonProgress::Waiting { trouble: None }
        | ComparisonProgress::Running
        | ComparisonProgress::Ended { .. } => {
            format!("The Job {} compares the sink with the source", job.name)
        }
    }
}

/// What a comparison found, and what to do about it.
pub(super) fn sentence(pipeline: &str, last: &LastComparison) -> String {
    let result = &last.result;
    let reason = result.reason.as_deref().unwrap_or(NO_REASON);
    match result.verdict {
        ComparisonVerdict::Equal => {
            format!("The rows of all {} tables are the same in source and sink", result.tables)
        }
        ComparisonVerdict::Different => {
            let unknown = match result.tables_unknown {
                0 => String::new(),
                count => format!("; {count} could not be compared: {reason}"),
            };
            let resnapshot = result.different.first().map_or_else(String::new, |first| {
                format!(
                    "; kubectl annotate cdc {pipeline} --overwrite {ANNOTATION_RESNAPSHOT}=TOKEN:{} copies a table again",
                    first.table
                )
            });
            let more = match &last.failure {
                None => format!(
                    "Until the next comparison, at most for an hour, kubectl logs job/{} names them",
                    last.job
                ),
                Some(failure) => format!("The comparison after that could not be made: {failure}"),
            };
            format!(
                "Rows differ in {} of {} tables: {}{unknown}. {more}{resnapshot}",
                result.tables_different,
                result.tables,
                named(result),
            )
        }
        ComparisonVerdict::Unknown if result.tables == 0 => {
            format!("The sink could not be compared with the source: {reason}")
        }
        ComparisonVerdict::Unknown => {
            format!("Of {} tables {} could not be compared: {reason}", result.tables, result.tables_unknown)
        }
    }
}

/// `public.orders (2 rows), public.items (at least 1000 rows) and 3 more`.
pub(super) fn named(result: &ComparisonResult) -> String {
    let named: Vec<String> = result
        .different
        .iter()
        .take(TABLES_NAMED_MAX)
        .map(|table| {
            let least = if table.is_at_least { "at least " } else { "" };
            let rows = if table.rows == 1 { "row" } else { "rows" };
            format!("{} ({least}{} {rows})", table.table, table.rows)
        })
        .collect();
    let more = usize::try_from(result.tables_different).unwrap_or(usize::MAX).saturating_sub(named.len());
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("{}{more}", named.join(", "))
}

/// Records what the newest Job came to, and removes what is of no use.
fn settle(world: &World, stage: &Stage<'_>, spec: &str) -> (Option<LastComparison>, Vec<Step>) {
    let mut last = recorded(world).cloned();
    let mut steps = Vec::new();
    for job in world.comparisons.iter().filter(|job| !job.is_deleting) {
        if is_of_no_use(world, stage, job, spec) {
            steps.push(delete(job));
        } else if is_newest(world, job)
            && !is_recorded(world, job)
            && let Some((at, result)) = outcome(world, job)
        {
            let attempt = Attempt {
                name: &job.name,
                revision: &job.revision.0,
                spec: &job.spec,
                token: job.token.as_deref(),
                decisions: &job.decisions,
            };
            let record = record(world, &attempt, at, result);
            steps.extend(PlannedEvent::compared(world, &record).map(Step::Emit));
            last = Some(record);
        }
    }
    (last, steps)
}

/// A Job of another spec, one that began before something was decided about a dead end, one that runs although the
/// pipeline is paused, and one that was given up.
fn is_of_no_use(world: &World, stage: &Stage<'_>, job: &ComparisonJob, spec: &str) -> bool {
    let is_under_way = is_under_way(job);
    if is_recorded(world, job) {
        return is_under_way;
    }
    job.spec != spec
        || decisions::is_overtaken(stage, &job.decisions)
        || (is_under_way && (world.pipeline.spec.paused || !is_newest(world, job)))
}

/// What a Job came to, and when; absent while it may still come to something.
fn outcome(world: &World, job: &ComparisonJob) -> Option<(Timestamp, ComparisonResult)> {
    let age = world.now.duration_since(job.created);
    let reason = match &job.progress {
        ComparisonProgress::Ended { at, result } => {
            // The clock of the node may be ahead.
            return Some((whole_seconds((*at).min(world.now)), result.clone()));
        }
        ComparisonProgress::Waiting { trouble } if age > PATIENCE => match trouble {
            Some(trouble) => trouble.clone(),
            None => format!(
                "Kubernetes does not start the pod of the Job {}, mostly because of a quota, Pod Security or a webhook: kubectl get events shows what refuses it",
                job.name
            ),
        },
        ComparisonProgress::Running if job.timeout.is_some_and(|timeout| age > timeout + PATIENCE) => {
            format!("The Job {} does not end although its time is over", job.name)
        }
        ComparisonProgress::Waiting { .. } | ComparisonProgress::Running => return None,
    };
    Some((whole_seconds(world.now), ComparisonResult::unknown(&reason)))
}

/// A comparison that ended or was refused.
struct Attempt<'a> {
    name: &'a str,
    revision: &'a str,
    spec: &'a str,
    token: Option<&'a str>,
    decisions: &'a [Decisions],
}

fn record(world: &World, attempt: &Attempt<'_>, at: Timestamp, result: ComparisonResult) -> LastComparison {
    let settled = || recorded(world)?.token.clone();
    let result = result.shortened();
    let differed = recorded(world).filter(|last| {
        last.spec == attempt.spec
            && last.decisions == attempt.decisions
            && last.result.verdict == ComparisonVerdict::Different
    });
    let (result, failure) = match differed {
        Some(last) if result.verdict == ComparisonVerdict::Unknown => {
            (last.result.clone(), Some(result.reason.unwrap_or_else(|| NO_REASON.to_owned())))
        }
        Some(_) | None => (result, None),
    };
    LastComparison {
        completion_time: Time(at),
        revision: attempt.revision.to_owned(),
        spec: attempt.spec.to_owned(),
        job: attempt.name.to_owned(),
        token: attempt.token.map(str::to_owned).or_else(settled),
        decisions: attempt.decisions.to_vec(),
        result,
        failure,
    }
}

/// The last comparison as the status has it.
pub(super) fn recorded(world: &World) -> Option<&LastComparison> {
    world.pipeline.status.as_ref()?.source_comparison.as_ref()
}

/// Whether the condition says that both ends are the same.
fn is_said_to_match(world: &World) -> bool {
    let kind = ConditionType::SourceMatches.to_string();
    let mut conditions = world.pipeline.status.iter().flat_map(|status| &status.conditions);
    conditions.any(|condition| condition.type_ == kind && condition.status == "True")
}

fn is_recorded(world: &World, job: &ComparisonJob) -> bool {
    recorded(world).is_some_and(|last| last.job == job.name)
}

fn is_under_way(job: &ComparisonJob) -> bool {
    !matches!(job.progress, ComparisonProgress::Ended { .. })
}

fn is_newest(world: &World, job: &ComparisonJob) -> bool {
    world.comparisons.last().is_some_and(|newest| newest.name == job.name)
}

/// Kept for its log alone.
fn is_over(world: &World, job: &ComparisonJob) -> bool {
    !job.is_deleting && !is_under_way(job) && (is_recorded(world, job) || !is_newest(world, job))
}

fn is_carried_out(last: Option<&LastComparison>, token: &str) -> bool {
    last.and_then(|last| last.token.as_deref()) == Some(token)
}

/// The token of the annotation, or what is wrong with it.
fn token(world: &World) -> (Option<&str>, Option<PlannedEvent>) {
    let annotations = world.pipeline.metadata.annotations.as_ref();
    let text = annotations.and_then(|all| all.get(ANNOTATION_COMPARE_SOURCE)).map(|text| text.trim());
    match text {
        None | Some("") => (None, None),
        Some(token) if is_token(token) => (Some(token), None),
        Some(text) => {
            let given: String = text.chars().take(100).collect();
            let why = format!(
                "`{given}` is no token: write 1 to 63 letters, digits, dots, dashes and underscores, such as 2026-11-21; another token asks again"
            );
            (None, Some(PlannedEvent::annotation_invalid(ANNOTATION_COMPARE_SOURCE, text, &why)))
        }
    }
}

/// Every change is applied, and all rows are copied: before that, tables are unknown, and a barrier is met late.
fn is_ready(stage: &Stage<'_>) -> bool {
    let Stage::Run { lineup, missing: None } = stage else { return false };
    let Crew { replicas, shards, outdated, .. } = &lineup.stable;
    let has_all_rows = || shards.iter().filter_map(reporting).all(Report::has_all_rows);
    *replicas > 0 && outdated.is_empty() && all_stream(shards) && has_all_rows()
}

/// Where a worker stands, if nothing that is mended brings it on.
fn dead_end(stage: &Stage<'_>) -> Option<Reason> {
    let (_, shards) = stage.running()?;
    let mut problems = shards.iter().filter_map(reporting).filter_map(|report| report.problem.as_ref());
    problems.find_map(|problem| Some(problem.reason).filter(|reason| reason.is_dead_end()))
}

/// The same until something is recorded, so that a Job that was just made is not made twice; and never that of a Job that
/// began before something was decided, whose word would pass for one of afterwards.
fn next_name(world: &World, spec: &str, token: Option<&str>, decisions: &[Decisions]) -> String {
    let last = recorded(world).map(|last| last.job.as_str()).unwrap_or_default();
    let mut identity =
        [world.uid.as_str(), last, spec, token.unwrap_or_default()].map(str::to_owned).to_vec();
    identity
        .extend(decisions.iter().map(|Decisions { count, last_micros }| format!("{count} {last_micros}")));
    names::comparison_job(world.name(), &uid8(&identity.join("\n")))
}

/// Removes a Job, and its pod.
pub(super) fn delete(job: &ComparisonJob) -> Step {
    Step::Delete(Doomed { kind: DoomedKind::Job, name: job.name.clone(), uid: job.uid.clone() })
}
