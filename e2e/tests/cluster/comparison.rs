//! Source comparison by the operator: the condition says whether the sink is what the source is, and why nobody knows.

use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt as _;
use penstock_crds::comparison::{ComparisonVerdict, LastComparison};
use penstock_e2e::kubernetes::{Pipeline, eventually, kill_leader};
use serde_json::json;

use crate::stage::{ALONE, MINUTE, Stage};

/// Asks for a comparison, and waits until it is settled.
async fn compare(pipeline: &Pipeline, token: &str) -> Result<LastComparison> {
    ask(pipeline, token).await?;
    settled(pipeline, token).await
}

async fn ask(pipeline: &Pipeline, token: &str) -> Result<()> {
    pipeline
        .patch(json!({"metadata": {"annotations": {"penstock.dev/compare-source": token}}}))
        .await
        .map(drop)
}

async fn settled(pipeline: &Pipeline, token: &str) -> Result<LastComparison> {
    eventually(&format!("the comparison {token} has ended"), 2 * MINUTE, || async {
        let last = pipeline.get().await?.status.and_then(|status| status.source_comparison);
        Ok(last.filter(|last| last.token.as_deref() == Some(token)))
    })
    .await
}

async fn jobs(stage: &Stage) -> Result<Vec<Job>> {
    stage.cluster.list(&stage.namespace, "app.kubernetes.io/component=comparison").await
}

#[tokio::test]
async fn a_comparison_that_is_asked_for_says_what_differs_until_it_is_mended() -> Result<()> {
    let stage = Stage::new("comparison").await?;
    let pipeline =
        Pipeline::apply(&stage.cluster, stage.manifest(&["public.notes", "public.extras"])).await?;
    pipeline.wait_until_ready().await?;
    let uid = pipeline.get().await?.uid().unwrap_or_default();
    pipeline.wait_for("SourceMatches", "Unknown", Some("NeverCompared"), MINUTE).await?;

    let last = compare(&pipeline, "one").await?;
    ensure!(last.result.verdict == ComparisonVerdict::Equal && last.result.tables == 2, "{last:?}");
    ensure!(last.result.position.is_some(), "{last:?}");
    pipeline.wait_for("SourceMatches", "True", Some("Equal"), MINUTE).await?;
    pipeline.wait_for_event(&uid, "SinkMatches", MINUTE).await?;

    // The operator that began it is not the one that sees what it found.
    stage.sink.execute("UPDATE public.notes SET body = 'by hand' WHERE id IN (7, 8)").await?;
    ask(&pipeline, "two").await?;
    eventually("its Job is there", MINUTE, || async {
        let is_there = jobs(&stage).await?.iter().any(|job| job.name_any() != last.job);
        Ok(is_there.then_some(()))
    })
    .await?;
    let killed = ALONE.lock().await;
    kill_leader(&stage.cluster).await?;
    drop(killed);
    let last = settled(&pipeline, "two").await?;
    let message = pipeline.wait_for("SourceMatches", "False", Some("Different"), MINUTE).await?;
    ensure!(message.contains("public.notes (2 rows)") && message.contains(&last.job), "{message}");
    let note = pipeline.wait_for_event(&uid, "SinkDiffers", MINUTE).await?;
    ensure!(note.contains("public.notes (2 rows)"), "{note}");
    pipeline.wait_until_ready().await?; // It is not the stream that is wrong.
    eventually("the Job whose log names the rows is kept, and no other", MINUTE, || async {
        let kept: Vec<String> = jobs(&stage).await?.iter().map(Job::name_any).collect();
        Ok((kept == [last.job.as_str()]).then_some(()))
    })
    .await?;

    // What the message advises.
    pipeline
        .patch(json!({"metadata": {"annotations": {"penstock.dev/resnapshot": "one:public.notes"}}}))
        .await?;
    pipeline.wait_for_event(&uid, "ResnapshotTaken", MINUTE).await?;
    eventually("public.notes is copied again", MINUTE, || async {
        let copied = stage.sink.text("SELECT count(*) FROM public.notes WHERE body <> 'by hand'").await?;
        Ok((copied == "500").then_some(()))
    })
    .await?;
    compare(&pipeline, "three").await?;
    pipeline.wait_for("SourceMatches", "True", Some("Equal"), MINUTE).await?;

    // At rest nothing is written, and the annotation stays.
    let before = pipeline.get().await?.resource_version();
    tokio::time::sleep(MINUTE / 4).await;
    ensure!(pipeline.get().await?.resource_version() == before, "a pipeline at rest is written to");
    ensure!(stage.slots().await? == "1", "a comparison left a slot");
    stage.end().await
}

#[tokio::test]
async fn a_comparison_that_is_interrupted_leaves_no_job_and_no_slot() -> Result<()> {
    let stage = Stage::new("interrupted-comparison").await?;
    let mut manifest = stage.manifest(&["public.notes"]);
    manifest["spec"]["sourceComparison"] = json!({"interval": "10m"}); // The first one within a minute.
    let pipeline = Pipeline::apply(&stage.cluster, manifest).await?;
    pipeline.wait_for("SourceMatches", "True", Some("Equal"), 3 * MINUTE).await?; // The schedule's first.

    // An open transaction keeps the source from making a slot: the comparison waits for it.
    let hold = stage.source.connect().await?;
    hold.batch_execute("BEGIN; INSERT INTO extras VALUES (51)").await?;
    let hold = tokio::spawn(async move {
        while hold.batch_execute("SELECT 1").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let wait_for_slots = async |slots: &'static str| {
        let is_so = || async { Ok((stage.slots().await? == slots).then_some(())) };
        eventually(&format!("there are {slots} slots"), MINUTE, is_so).await
    };
    ask(&pipeline, "interrupted").await?;
    wait_for_slots("2").await?;
    pipeline.patch(json!({"spec": {"paused": true}})).await?;
    wait_for_slots("1").await?;
    eventually("no Job runs", MINUTE, || async {
        let is_over = |job: &Job| job.status.as_ref().is_some_and(|status| status.completion_time.is_some());
        Ok(jobs(&stage).await?.iter().all(is_over).then_some(()))
    })
    .await?;
    // What was interrupted begins again, and is interrupted for good.
    pipeline.patch(json!({"spec": {"paused": false}})).await?;
    wait_for_slots("2").await?;
    ensure!(!hold.is_finished(), "the transaction is not open any more");
    pipeline.delete().await?;
    pipeline.wait_until_gone(2 * MINUTE).await?;
    ensure!(!hold.is_finished(), "the transaction is not open any more");
    hold.abort();
    stage.ensure_cleaned_up().await?;
    eventually("no Job is left", MINUTE, || async { Ok(jobs(&stage).await?.is_empty().then_some(())) })
        .await?;
    stage.end().await
}
