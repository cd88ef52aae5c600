//! `penstock-worker`: runs one shard of a `CdcPipeline`, in a cluster or on a laptop.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use penstock_crds::comparison::ComparisonResult;
use penstock_crds::directive::Directive;
use penstock_crds::table_pattern::TablePattern;
use penstock_worker::clean_up::{self, Remove};
use penstock_worker::compare::{self, Comparison, Verdict};
use penstock_worker::failure::Failure;
use penstock_worker::rollout::{self, Outcome};
use penstock_worker::serve::{Metrics, serve_control, serve_health};
use penstock_worker::settings::{Folders, Pipeline, RunArguments, Settings};
use penstock_worker::sink::Decision;
use penstock_worker::status::Status;
use penstock_worker::telemetry::{self, LogTarget};
use penstock_worker::{decide, failpoint, progress, resnapshot, supervisor};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

/// Moves the changes of a database into another, exactly once
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// What to log, as a `tracing` filter; by default the manifest's worker.log
    #[arg(long, env = "PENSTOCK_LOG", global = true)]
    log: Option<String>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Copies the tables, then follows the changes until it is stopped
    Run(RunArguments),
    /// Removes the pipeline's slots, managed publication and sink state; the copied tables stay. With --canary only those of the
    /// canary, and its tables; with --previous those of the revision that was promoted over
    CleanUp {
        #[command(flatten)]
        folders: Folders,
        /// The revision that was promoted over: there is no way back afterwards
        #[arg(long, conflicts_with_all = ["canary", "lineage"])]
        previous: bool,
        /// Write what came of it there as well, as one short JSON document: for a container's termination message
        #[arg(long, value_name = "FILE")]
        termination_message: Option<PathBuf>,
    },
    /// Has tables copied again from their beginning, while the pipeline runs: the sink tables are emptied first
    Resnapshot {
        #[command(flatten)]
        folders: Folders,
        /// Tables of the source: schema.table, schema.* or schema.prefix*
        #[arg(required = true, value_name = "TABLE")]
        tables: Vec<TablePattern>,
    },
    /// Compares the sink with the source, at one position of the stream and while the pipeline runs. Ends with 0 when
    /// they are equal, with 1 when they differ, and with 2 when nobody knows
    Compare(CompareArguments),
    /// Gives the tables that readers know to the canary of the manifest's revision, in one transaction, if its rows are the same;
    /// the revision that had them keeps its own beside them, for the way back
    Promote {
        #[command(flatten)]
        given: RolloutArguments,
        /// Columns, as the sink calls them, in which the canary is meant to have other values
        #[arg(long, value_name = "COLUMN", value_delimiter = ',')]
        leave_out: Vec<String>,
    },
    /// Gives the tables back to the revision that was promoted over, in one transaction: nothing is lost
    RollBack(RolloutArguments),
    /// Has a pipeline that stands at a dead end go on from a new slot, with all tables copied again: nothing is lost
    BeginAnew(DecisionArguments),
    /// Has a pipeline that stands at a dead end go on without the changes that are lost: nothing is copied
    AcceptLoss(DecisionArguments),
}

/// Flags of `penstock-worker compare`.
#[derive(Debug, clap::Args)]
struct CompareArguments {
    #[command(flatten)]
    folders: Folders,
    /// With the source, row by row
    #[arg(long, required_unless_present = "stable", conflicts_with = "stable")]
    source: bool,
    /// A canary with the tables that readers know, row by row
    #[arg(long)]
    stable: bool,
    /// Tables of the source: schema.table, schema.* or schema.prefix*; by default all of the pipeline
    #[arg(value_name = "TABLE")]
    tables: Vec<TablePattern>,
    /// Differing rows to name
    #[arg(long, value_name = "ROWS", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    limit: u32,
    /// Show the values that differ, too: they are the rows' content
    #[arg(long)]
    values: bool,
    /// With --stable: columns, as the sink calls them, in which the canary is meant to have other values
    #[arg(long, value_name = "COLUMN", value_delimiter = ',', requires = "stable")]
    leave_out: Vec<String>,
    /// How to show what was found
    #[arg(long, value_enum, default_value_t = OutputFormat::Text)]
    format: OutputFormat,
    /// Seconds that the source may take to give a snapshot, and the workers to meet the barrier
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// Sessions that read at each end
    #[arg(long, value_name = "SESSIONS", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    parallelism: u8,
    /// Write what was found there as well, as one short JSON document: for a container's termination message
    #[arg(long, value_name = "FILE")]
    termination_message: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum OutputFormat {
    /// For people
    Text,
    /// One JSON document
    Json,
}

#[derive(Debug, clap::Args)]
struct RolloutArguments {
    #[command(flatten)]
    folders: Folders,
    /// Seconds that the workers may take to meet the barrier of the comparison
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// Sessions that read each side of the comparison
    #[arg(long, value_name = "SESSIONS", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    parallelism: u8,
    /// Seconds that nothing is applied for the exchange at most; then it is given up
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    hold: u64,
    /// Write what came of it there as well, as one short JSON document: for a container's termination message
    #[arg(long, value_name = "FILE")]
    termination_message: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct DecisionArguments {
    #[command(flatten)]
    folders: Folders,
    /// Why; the sink keeps it
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Who decides; the sink keeps it, too
    #[arg(long, env = "USER", value_name = "NAME", default_value = "somebody")]
    by: String,
}

#[tokio::main]
async fn main() -> ExitCode {
    let _armed = failpoint::arm();
    let arguments = Arguments::parse();
    let done = match arguments.command {
        Command::Compare(compare) => return compare_ends(&compare, arguments.log).await,
        Command::Run(run) => run_worker(&run, arguments.log).await,
        Command::CleanUp { folders, previous, termination_message } => {
            let cleaned = clean(&folders, previous, arguments.log).await;
            let word = match &cleaned {
                Ok(()) => ComparisonResult::done(),
                Err(error) => ComparisonResult::unknown(&format!("{error:#}")),
            };
            cleaned.and(write_word(termination_message.as_ref(), &word))
        }
        Command::Resnapshot { folders, tables } => resnapshot_tables(&folders, &tables, arguments.log).await,
        Command::Promote { given, leave_out } => {
            let outcome = promote(&given, leave_out, arguments.log).await;
            tell(given.termination_message.as_ref(), outcome)
        }
        Command::RollBack(given) => {
            let outcome = roll_back(&given, arguments.log).await;
            tell(given.termination_message.as_ref(), outcome)
        }
        Command::BeginAnew(given) => decide_it(Decision::BeginAnew, &given, arguments.log).await,
        Command::AcceptLoss(given) => decide_it(Decision::AcceptLoss, &given, arguments.log).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("penstock-worker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run_worker(arguments: &RunArguments, log: Option<String>) -> anyhow::Result<()> {
    let settings = Settings::read(arguments)?;
    let has_bar = arguments.health_address.is_none() && std::io::stderr().is_terminal();
    let target = if has_bar { LogTarget::Stderr } else { LogTarget::Stdout };
    let filter = log.unwrap_or_else(|| settings.pipeline.manifest.spec.worker.log.clone());
    let _telemetry = telemetry::install(&filter, target)?;
    let status = Status::new(
        settings.pipeline.lineage.uid().to_owned(),
        settings.pipeline.revision.clone(),
        settings.shard,
    );
    let metrics = Metrics::default();
    let stop = CancellationToken::new();
    let servers = CancellationToken::new();
    tokio::spawn(stop_on_signal(stop.clone()));
    if let Some(address) = arguments.health_address {
        let serving = serve_health(address, status.clone(), metrics.clone(), servers.clone());
        tokio::spawn(or_stop("health", serving, stop.clone()));
    }
    if let (Some(address), Some(folder)) = (arguments.control_address, &arguments.control_dir) {
        let (directive, wanted) = watch::channel(Directive::default());
        let serving = serve_control(address, folder.clone(), (status.clone(), directive), servers.clone());
        tokio::spawn(resnapshot::follow_directives(settings.pipeline.clone(), status.clone(), wanted));
        tokio::spawn(or_stop("control", serving, stop.clone()));
    }
    let bar = has_bar.then(|| tokio::spawn(progress::show(status.clone(), servers.clone())));
    let span = tracing::info_span!(
        "worker",
        pipeline = %format_args!("{}/{}", settings.pipeline.namespace, settings.pipeline.name),
        revision = %settings.pipeline.revision,
        shard = settings.shard
    );
    supervisor::supervise(&settings, &status, &metrics, &stop).instrument(span).await;
    servers.cancel();
    if let Some(bar) = bar {
        bar.await?;
    }
    Ok(())
}

async fn clean(folders: &Folders, previous: bool, log: Option<String>) -> anyhow::Result<()> {
    let _telemetry = telemetry::install(&log.unwrap_or_else(|| "info".into()), LogTarget::Stderr)?;
    let pipeline = Pipeline::read(folders)?;
    let what = match (folders.canary || folders.lineage.is_some(), previous) {
        (true, _) => Remove::Canary,
        (false, true) => Remove::Previous,
        (false, false) => Remove::Pipeline,
    };
    clean_up::clean_up(&pipeline, what).await.map_err(|failure: Failure| anyhow::anyhow!("{failure}"))
}

async fn resnapshot_tables(
    folders: &Folders,
    tables: &[TablePattern],
    log: Option<String>,
) -> anyhow::Result<()> {
    let _telemetry = telemetry::install(&log.unwrap_or_else(|| "info".into()), LogTarget::Stderr)?;
    let pipeline = Pipeline::read(folders)?;
    let noted = resnapshot::resnapshot(&pipeline, tables, None).await;
    noted.map(drop).map_err(|failure: Failure| anyhow::anyhow!("{failure}"))
}

async fn decide_it(decision: Decision, given: &DecisionArguments, log: Option<String>) -> anyhow::Result<()> {
    let _telemetry = telemetry::install(&log.unwrap_or_else(|| "info".into()), LogTarget::Stderr)?;
    let pipeline = Pipeline::read(&given.folders)?;
    decide::decide(&pipeline, decision, &given.reason, &given.by)
        .await
        .map_err(|failure: Failure| anyhow::anyhow!("{failure}"))
}

/// The canary that is meant, by default that of the manifest's revision.
fn read_canary(folders: &Folders) -> Result<Pipeline, Failure> {
    let canary = folders.lineage.is_none();
    Pipeline::read(&Folders { canary, ..folders.clone() })
}

async fn promote(
    given: &RolloutArguments,
    leave_out: Vec<String>,
    log: Option<String>,
) -> anyhow::Result<Outcome> {
    let _telemetry = telemetry::install(&log.unwrap_or_else(|| "warn".into()), LogTarget::Stderr)?;
    let pipeline = read_canary(&given.folders)?;
    let request = compare::Request {
        tables: Vec::new(),
        limit: 20,
        has_values: false,
        leave_out,
        sessions: usize::from(given.parallelism),
        patience: Duration::from_secs(given.timeout),
        stop: CancellationToken::new(),
    };
    Ok(Box::pin(rollout::promote(&pipeline, &request, Duration::from_secs(given.hold))).await?)
}

async fn roll_back(given: &RolloutArguments, log: Option<String>) -> anyhow::Result<Outcome> {
    let _telemetry = telemetry::install(&log.unwrap_or_else(|| "warn".into()), LogTarget::Stderr)?;
    let pipeline = Pipeline::read(&given.folders)?;
    Ok(Box::pin(rollout::roll_back(&pipeline, Duration::from_secs(given.hold))).await?)
}

/// Says what came of an exchange, to people and in the termination message.
fn tell(termination_message: Option<&PathBuf>, outcome: anyhow::Result<Outcome>) -> anyhow::Result<()> {
    let word = match &outcome {
        Ok(Outcome::Exchanged { .. }) => ComparisonResult::done(),
        Ok(Outcome::NotEqual(found)) => found.summary(),
        Err(error) => ComparisonResult::unknown(&format!("{error:#}")),
    };
    let is_told = outcome.and_then(|outcome| match outcome {
        Outcome::Exchanged { ms, compared_again } => {
            println!(
                "The tables are exchanged. Nothing was applied for {ms} ms, in which {compared_again} rows were compared once more."
            );
            Ok(())
        }
        Outcome::NotEqual(found) => anyhow::bail!("{found}\nNothing was exchanged."),
    });
    is_told.and(write_word(termination_message, &word))
}

async fn compare_ends(arguments: &CompareArguments, log: Option<String>) -> ExitCode {
    let found = try_to_compare(arguments, log).await;
    // The summary before the output: Kubernetes takes the end of the log, which has row keys, for the last words of a
    // container that dies without any.
    let is_told = leave_word(arguments, &found).and_then(|()| print_found(arguments, &found));
    match is_told.and(found) {
        Ok(Comparison { verdict: Verdict::Equal, .. }) => ExitCode::SUCCESS,
        Ok(Comparison { verdict: Verdict::Different, .. }) => ExitCode::from(1),
        Ok(Comparison { verdict: Verdict::Unknown, .. }) => ExitCode::from(2),
        Err(error) => {
            eprintln!("penstock-worker: {error:#}");
            ExitCode::from(2)
        }
    }
}

async fn try_to_compare(arguments: &CompareArguments, log: Option<String>) -> anyhow::Result<Comparison> {
    let _telemetry = telemetry::install(&log.unwrap_or_else(|| "warn".into()), LogTarget::Stderr)?;
    let pipeline =
        if arguments.stable { read_canary(&arguments.folders) } else { Pipeline::read(&arguments.folders) };
    let pipeline = pipeline?;
    let request = compare::Request {
        tables: arguments.tables.clone(),
        limit: arguments.limit as usize,
        has_values: arguments.values,
        leave_out: arguments.leave_out.clone(),
        sessions: usize::from(arguments.parallelism),
        patience: Duration::from_secs(arguments.timeout),
        stop: CancellationToken::new(),
    };
    tokio::spawn(stop_on_signal(request.stop.clone()));
    let compared = async {
        if arguments.stable {
            compare::compare_revisions(&pipeline, &request).await
        } else {
            compare::compare(&pipeline, &request).await
        }
    };
    tokio::select! {
        found = Box::pin(compared) => Ok(found?),
        () = abandoned(&request.stop) => anyhow::bail!("The comparison was asked to stop"),
    }
}

fn print_found(arguments: &CompareArguments, found: &anyhow::Result<Comparison>) -> anyhow::Result<()> {
    let Ok(found) = found else { return Ok(()) };
    match arguments.format {
        OutputFormat::Text => println!("{found}"),
        OutputFormat::Json => println!("{}", serde_json::to_string_pretty(found)?),
    }
    Ok(())
}

/// Everything but a slot that the server still makes goes with the connections; that one gets some time to be ended.
async fn abandoned(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
}

/// Writes the termination message, also of a comparison that could not be made. The file is there already, and kept
/// open by whoever made it.
fn leave_word(arguments: &CompareArguments, found: &anyhow::Result<Comparison>) -> anyhow::Result<()> {
    let word = match found {
        Ok(found) => found.summary(),
        Err(error) => ComparisonResult::unknown(&format!("{error:#}")),
    };
    write_word(arguments.termination_message.as_ref(), &word)
}

fn write_word(termination_message: Option<&PathBuf>, word: &ComparisonResult) -> anyhow::Result<()> {
    let Some(file) = termination_message else { return Ok(()) };
    std::fs::write(file, word.termination_message()?)
        .with_context(|| format!("writing the termination message to {}", file.display()))
}

/// A server that cannot serve ends the worker: the cluster would wait for its answers in vain.
async fn or_stop<E: std::fmt::Display>(
    what: &'static str,
    serving: impl Future<Output = Result<(), E>>,
    stop: CancellationToken,
) {
    if let Err(error) = serving.await {
        tracing::error!("the {what} server ended: {error}");
        stop.cancel();
    }
}

/// SIGTERM and SIGINT finish the batch; a second one ends the process at once.
async fn stop_on_signal(stop: CancellationToken) {
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut terminate), Ok(mut interrupt)) = signals else {
        tracing::error!("signals cannot be received: the worker stops only when it is killed");
        return;
    };
    for again in [false, true] {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if again {
            std::process::exit(130);
        }
        tracing::info!("asked to stop: the batch under way is finished");
        stop.cancel();
    }
}
