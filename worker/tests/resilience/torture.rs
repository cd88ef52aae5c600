//! Torture: faults at random under a load that carries its own proof. Everything random comes from one seed, which is
//! printed; when what happens is up to the machine.
//!
//! `make torture` is the long form: `PENSTOCK_TORTURE_FAULTS` says how many, and `PENSTOCK_TORTURE_SEED` repeats a choice.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use penstock_e2e::checker::{self, TablePair};
use penstock_e2e::postgres::Version;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::fault::Fault;
use crate::ledger::{self, Ledger, Reader};
use crate::stage::Stage;
use crate::stock::StockKeeper;

/// Faults of the short form, about one per second.
const FAULTS: u32 = 50;
/// Both sides are compared, and everything is counted, after so many.
const FAULTS_PER_ROUND: u32 = 25;
/// For the pipeline to catch up after the last fault of a round: a worker may wait for 8 s before it tries again.
const PATIENCE: Duration = Duration::from_mins(3);

#[tokio::test(flavor = "multi_thread")]
async fn torture_loses_doubles_and_reorders_nothing() -> Result<()> {
    let seed =
        from_environment("PENSTOCK_TORTURE_SEED")?.unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    let faults = from_environment("PENSTOCK_TORTURE_FAULTS")?.map_or(Ok(FAULTS), u32::try_from)?;
    println!("torture: seed {seed}, {faults} faults");
    run(seed, faults)
        .await
        .with_context(|| format!("PENSTOCK_TORTURE_SEED={seed} PENSTOCK_TORTURE_FAULTS={faults}"))
}

fn from_environment(name: &str) -> Result<Option<u64>> {
    let Ok(text) = std::env::var(name) else { return Ok(None) };
    text.parse().map(Some).with_context(|| format!("{name}={text} is not a number"))
}

async fn run(seed: u64, faults: u32) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let versions = [Version::V15, Version::V17];
    let (source, sink) =
        (versions[random.random_range(0..versions.len())], versions[random.random_range(0..versions.len())]);
    println!("torture: PostgreSQL {} to {}", source.major(), sink.major());
    let mut stage = Stage::new(source, sink).await?;
    let mut report = Report::default();
    let mut reader = Reader::start(stage.rig.clone());
    while report.faults() < faults {
        let ledger = Ledger::start(&stage.rig, random.random());
        let keeper = StockKeeper::start(&stage.rig, random.random());
        for _ in 0..FAULTS_PER_ROUND.min(faults - report.faults()) {
            tokio::time::sleep(Duration::from_millis(random.random_range(50..900))).await;
            let fault = Fault::random(&mut random);
            stage.inflict(fault, &mut random).await.with_context(|| format!("{fault:?}"))?;
            *report.inflicted.entry(fault).or_default() += 1;
        }
        report.transactions += ledger.stop().await?;
        keeper.stop().await?;
        reader.check().await?;
        report.changes = compare(&mut stage).await?;
        ledger::close(&stage.rig).await?;
        stage.check_what_was_said()?;
        report.looks = reader.looks();
        println!("{report}");
    }
    reader.stop().await?;
    ensure!(
        report.transactions > u64::from(faults) && report.looks > u64::from(faults),
        "too little to prove anything"
    );
    Ok(())
}

/// Equal on both sides, and every change counted once; how many there were.
async fn compare(stage: &mut Stage) -> Result<i64> {
    let rig = &stage.rig.clone();
    let pairs = ["public.accounts", "public.journal", "public.closed", "public.stock"].map(TablePair::same);
    let (source, sink) = (rig.source.connect(&rig.database).await?, rig.sink.connect(&rig.database).await?);
    let compared = checker::wait_until_equal(&source, &sink, &pairs, PATIENCE).await;
    compared.with_context(|| stage.tail())?;
    let counted = stage.witness.changes(rig).await?;
    let sequence: i64 = sink.value("SELECT sequence FROM penstock.checkpoint").await?.parse()?;
    ensure!(sequence == counted, "the checkpoint counts {sequence} changes, the source made {counted}");
    Ok(counted)
}

/// What was done. Anything that is lost, doubled or seen out of order ends the run: that it is printed means that there was none.
#[derive(Debug, Default)]
struct Report {
    inflicted: BTreeMap<Fault, u32>,
    transactions: u64,
    changes: i64,
    looks: u64,
}

impl Report {
    fn faults(&self) -> u32 {
        self.inflicted.values().sum()
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kills: u32 =
            self.inflicted.iter().filter(|(fault, _)| fault.is_a_kill()).map(|(_, count)| count).sum();
        write!(
            f,
            "torture: {} faults, {kills} of them kills {:?}; {} transactions, {} changes, {} looks at the sink; \
             0 lost, 0 doubled, 0 out of order",
            self.faults(),
            self.inflicted,
            self.transactions,
            self.changes,
            self.looks
        )
    }
}
