//! Rollouts by the operator: a canary is tried beside the stable revision, promoted or rejected, and the way back loses nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use penstock_crds::CdcPipelineStatus;
use penstock_e2e::kubernetes::{Database, Pipeline, eventually, kill_leader};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::stage::{ALONE, MINUTE, Stage};

const PATIENCE: Duration = Duration::from_mins(4);

/// `notes` with a canary strategy that is done in a minute.
fn manifest(stage: &Stage) -> Value {
    let mut manifest = stage.manifest(&["public.notes", "public.extras"]);
    manifest["spec"]["rollout"] =
        json!({"strategy": "Canary", "comparison": {"interval": "10s", "requiredMatches": 2}});
    manifest["spec"]["deletionPolicy"] = json!("Delete");
    manifest
}

async fn status(pipeline: &Pipeline) -> Result<CdcPipelineStatus> {
    Ok(pipeline.get().await?.status.unwrap_or_default())
}

/// Waits until the status is so.
async fn wait_for_status(
    pipeline: &Pipeline,
    what: &str,
    is_so: impl Fn(&CdcPipelineStatus) -> bool,
) -> Result<CdcPipelineStatus> {
    eventually(what, PATIENCE, || async {
        let status = status(pipeline).await?;
        Ok(is_so(&status).then_some(status))
    })
    .await
}

async fn annotate(pipeline: &Pipeline, annotation: &str, value: &str) -> Result<()> {
    pipeline.patch(json!({"metadata": {"annotations": {annotation: value}}})).await.map(drop)
}

/// How an annotation names a revision, by the condition that says so.
async fn order(pipeline: &Pipeline, condition: &str, annotation: &str) -> Result<String> {
    let status = status(pipeline).await?;
    let condition = status.conditions.iter().find(|found| found.type_ == condition);
    let message = condition.map(|found| found.message.clone()).unwrap_or_default();
    let order = message.split(&format!("{annotation}=")).nth(1).and_then(|rest| rest.split(' ').next());
    order.map(str::to_owned).ok_or_else(|| anyhow::anyhow!("{annotation} is not told: {message}"))
}

/// Changes rows of the source until it is told to stop; how many changes there were.
struct Writer {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<u32>>,
}

impl Writer {
    async fn start(source: &Database) -> Result<Self> {
        let client = source.connect().await?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut written = 0;
            while !told.load(Ordering::Relaxed) {
                written += 1;
                let id = 1000 + written;
                let sql = format!(
                    "INSERT INTO notes VALUES ({id}, 'written {id}'); UPDATE notes SET body = body || '.' WHERE id = {}",
                    1 + written % 500
                );
                client.batch_execute(&sql).await?;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(written)
        });
        Ok(Self { stop, task })
    }

    async fn end(self) -> Result<u32> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?
    }
}

/// What a rollout leaves, or must not leave.
async fn schemas_beside(stage: &Stage) -> Result<String> {
    stage.sink.text("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'penstock\\_%'").await
}

/// Nothing is left of what was beside the stable revision.
async fn ensure_alone(stage: &Stage) -> Result<()> {
    eventually("only the stable revision is left", PATIENCE, || async {
        let workers = "penstock.dev/pipeline=notes,app.kubernetes.io/component=worker";
        let workers: Vec<Pod> = stage.cluster.list(&stage.namespace, workers).await?;
        let left = (stage.sets().await?.len(), stage.claims().await?.len(), workers.len());
        let publications = stage.source.text("SELECT count(*) FROM pg_publication").await?;
        let databases = (stage.slots().await?, publications, schemas_beside(stage).await?);
        let is_alone = left == (1, 1, 1) && databases.0 == "1" && databases.1 == "1" && databases.2 == "0";
        Ok(is_alone.then_some(()))
    })
    .await
}

async fn columns(stage: &Stage) -> Result<String> {
    let sql = "SELECT string_agg(attname, ',' ORDER BY attnum) FROM pg_attribute
        WHERE attrelid = 'public.notes'::regclass AND attnum > 0 AND NOT attisdropped";
    stage.sink.text(sql).await
}

#[tokio::test]
async fn a_changed_transform_is_promoted_after_its_matches_and_given_back_without_a_loss() -> Result<()> {
    let stage = Stage::new("rollout").await?;
    stage
        .source
        .execute("ALTER TABLE notes ADD COLUMN remark text; UPDATE notes SET remark = 'r' || id")
        .await?;
    let pipeline = Pipeline::apply(&stage.cluster, manifest(&stage)).await?;
    pipeline.wait_until_ready().await?;
    let uid = pipeline.get().await?.uid().unwrap_or_default();
    let old = status(&pipeline).await?.stable_revision;
    let writer = Writer::start(&stage.source).await?;

    // The operator that begins is not the one that goes on.
    pipeline
        .patch(json!({"spec": {"transforms": [{"tables": ["public.notes"], "dropColumns": ["remark"]}]}}))
        .await?;
    wait_for_status(&pipeline, "the canary is compared", |status| {
        status.rollout.as_ref().is_some_and(|rollout| rollout.matches > 0)
    })
    .await?;
    ensure!(columns(&stage).await? == "id,body,remark", "readers see the canary's table");
    let killed = ALONE.lock().await;
    kill_leader(&stage.cluster).await?;
    drop(killed);
    pipeline.wait_for_event(&uid, "Promoted", PATIENCE).await?;
    let promoted =
        wait_for_status(&pipeline, "the canary is stable", |status| status.previous_revision == old).await?;
    ensure!(promoted.stable_revision != old && promoted.canary_revision.is_none(), "{promoted:?}");
    ensure!(columns(&stage).await? == "id,body", "the canary's table is not where readers look");
    pipeline.wait_until_ready().await?;
    pipeline.wait_for("RollbackAvailable", "True", None, MINUTE).await?;

    // Back again, with what was written meanwhile.
    let order = order(&pipeline, "RollbackAvailable", "penstock.dev/roll-back").await?;
    let ordered = Instant::now();
    annotate(&pipeline, "penstock.dev/roll-back", &order).await?;
    while columns(&stage).await? != "id,body,remark" {
        ensure!(ordered.elapsed() < PATIENCE, "the old table is not back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("From the order to the old table where readers look: {} ms", ordered.elapsed().as_millis());
    wait_for_status(&pipeline, "the old revision is stable", |status| {
        status.stable_revision == old && status.previous_revision.is_none()
    })
    .await?;
    pipeline.wait_for("Ready", "False", Some("RevisionRejected"), PATIENCE).await?;
    ensure_alone(&stage).await?;
    ensure!(columns(&stage).await? == "id,body,remark", "the old table is not back");
    let written = writer.end().await?;
    ensure!(written > 500, "too little was written to prove anything: {written}");
    stage.ensure_equal(&["public.notes", "public.extras"]).await?;

    // What was rolled back is not tried again until the spec changes.
    pipeline.patch(json!({"spec": {"transforms": null}})).await?;
    pipeline.wait_until_ready().await?;
    pipeline.delete().await?;
    pipeline.wait_until_gone(2 * MINUTE).await?;
    stage.ensure_cleaned_up().await?;
    ensure!(schemas_beside(&stage).await? == "0", "schemas are left");
    stage.end().await
}

#[tokio::test]
async fn a_canary_with_other_rows_is_rejected_and_removed_and_its_log_names_them() -> Result<()> {
    let stage = Stage::new("rejected").await?;
    let pipeline = Pipeline::apply(&stage.cluster, manifest(&stage)).await?;
    pipeline.wait_until_ready().await?;
    let uid = pipeline.get().await?.uid().unwrap_or_default();
    let mask = json!([{"tables": ["public.notes"], "maskColumns": [{"columns": ["body"], "truncate": {"length": 7}}]}]);
    pipeline.patch(json!({"spec": {"transforms": mask}})).await?;
    let note = pipeline.wait_for_event(&uid, "Rejected", PATIENCE).await?;
    ensure!(note.contains("public.notes"), "{note}");
    let message = pipeline.wait_for("Stalled", "True", Some("RevisionRejected"), PATIENCE).await?;
    ensure!(message.contains("kubectl logs job/"), "{message}");
    ensure_alone(&stage).await?;
    let jobs: Vec<Job> = stage.cluster.list(&stage.namespace, "app.kubernetes.io/component=rollout").await?;
    ensure!(jobs.len() == 1 && message.contains(&jobs[0].name_any()), "{message}");
    stage.ensure_equal(&["public.notes", "public.extras"]).await?;
    // The same again is not tried.
    tokio::time::sleep(MINUTE / 4).await;
    ensure_alone(&stage).await?;
    // A column in which it is meant to differ: as wanted, once the spec has been another one.
    pipeline.patch(json!({"spec": {"transforms": null}})).await?;
    pipeline.wait_until_ready().await?;
    let comparison = json!({"interval": "10s", "requiredMatches": 1, "leaveOut": ["body"]});
    let rollout = json!({"strategy": "Canary", "comparison": comparison, "keepPrevious": "0m"});
    pipeline.patch(json!({"spec": {"transforms": mask, "rollout": rollout}})).await?;
    pipeline.wait_for_event(&uid, "Promoted", PATIENCE).await?;
    ensure_alone(&stage).await?;
    pipeline.wait_until_ready().await?;
    ensure!(stage.sink.text("SELECT max(length(body)) FROM public.notes").await? == "7", "it is not masked");

    // Other tables are taken up by the revision after it, from the same position and in the same tables.
    pipeline.patch(json!({"spec": {"source": {"postgres": {"tables": ["public.notes"]}}}})).await?;
    stage.source.execute("INSERT INTO notes VALUES (501, 'one more note')").await?;
    stage.wait_for_rows("public.notes", 501).await?;
    pipeline.wait_until_ready().await?;
    ensure_alone(&stage).await?;
    pipeline.delete().await?;
    pipeline.wait_until_gone(2 * MINUTE).await?;
    stage.ensure_cleaned_up().await?;
    ensure!(schemas_beside(&stage).await? == "0", "schemas are left");
    stage.end().await
}

#[tokio::test]
async fn a_manual_promotion_waits_and_an_annotation_ends_a_canary_that_cannot_start() -> Result<()> {
    let stage = Stage::new("manual").await?;
    let mut manifest = manifest(&stage);
    manifest["spec"]["rollout"]["promotion"] = json!("Manual");
    let pipeline = Pipeline::apply(&stage.cluster, manifest).await?;
    pipeline.wait_until_ready().await?;
    let old = status(&pipeline).await?.stable_revision;

    // An image that is not there.
    pipeline.patch(json!({"spec": {"worker": {"image": "registry.invalid/penstock-worker:never"}}})).await?;
    pipeline.wait_for("Stalled", "True", Some("ImagePullFailed"), PATIENCE).await?;
    stage.source.execute("INSERT INTO extras VALUES (51)").await?;
    stage.wait_for_rows("public.extras", 51).await?;
    let canary = status(&pipeline).await?.canary_revision.unwrap_or_default();
    annotate(&pipeline, "penstock.dev/abort", &format!("{canary}-2")).await?;
    ensure_alone(&stage).await?;
    pipeline.wait_for("Ready", "False", Some("RevisionRejected"), PATIENCE).await?;

    // One that is as it should be waits for a person.
    let transforms = json!([{"tables": ["public.notes"], "selectColumns": ["id"]}]);
    pipeline.patch(json!({"spec": {"worker": {"image": null}, "transforms": transforms}})).await?;
    pipeline.wait_for("Ready", "False", Some("WaitsForPromotion"), PATIENCE).await?;
    ensure!(status(&pipeline).await?.matches.as_deref() == Some("2/2"), "{:?}", status(&pipeline).await?);
    ensure!(status(&pipeline).await?.stable_revision == old, "it did not wait");
    let order = order(&pipeline, "Ready", "penstock.dev/promote").await?;
    annotate(&pipeline, "penstock.dev/promote", &order).await?;
    wait_for_status(&pipeline, "the canary is stable", |status| status.previous_revision == old).await?;

    // The spec as it was gives the tables back.
    pipeline.patch(json!({"spec": {"transforms": null}})).await?;
    wait_for_status(&pipeline, "the old revision is stable", |status| status.stable_revision == old).await?;
    ensure_alone(&stage).await?;
    pipeline.wait_until_ready().await?;
    stage.ensure_equal(&["public.notes", "public.extras"]).await?;
    stage.end().await
}
