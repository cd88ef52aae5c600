//! What becomes of a pipeline's traces when it is deleted, in every way in which it can be.

use anyhow::{Context as _, Result, ensure};
use kube::api::DeleteParams;
use penstock_e2e::kubernetes::{Cluster, Pipeline, apply, logs_of_operators, manifest, metrics_of_leader};
use serde_json::json;

use crate::stage::{ALONE, MINUTE, Stage};

#[tokio::test]
async fn deletion_policy_delete_leaves_nothing_but_the_copied_tables() -> Result<()> {
    let stage = Stage::new("delete").await?;
    let pipeline = Pipeline::apply(&stage.cluster, stage.manifest(&["public.notes"])).await?;
    pipeline.wait_until_ready().await?;
    pipeline.delete().await?;
    pipeline.wait_until_gone(2 * MINUTE).await?;
    stage.ensure_cleaned_up().await?;
    stage.end().await
}

#[tokio::test]
async fn retained_state_is_adopted_without_loss_by_a_new_object() -> Result<()> {
    let stage = Stage::new("retain").await?;
    let mut manifest = stage.manifest(&["public.notes"]);
    manifest["spec"]["deletionPolicy"] = json!("Retain");
    let pipeline = Pipeline::apply(&stage.cluster, manifest.clone()).await?;
    pipeline.wait_until_ready().await?;
    let uid = pipeline.get().await?.metadata.uid.unwrap_or_default();
    pipeline.delete().await?;
    pipeline.wait_until_gone(MINUTE).await?;
    assert_eq!(stage.slots().await?, "1", "the slot is kept");
    assert!(!stage.claims().await?.is_empty(), "the volume is kept");
    stage.source.execute("INSERT INTO notes SELECT g, 'late' FROM generate_series(501, 600) g").await?;

    let stranger = Pipeline::apply(&stage.cluster, manifest.clone()).await?;
    let message = stranger.wait_for("Stalled", "True", Some("SinkTableOwned"), 2 * MINUTE).await?;
    assert!(message.contains(&uid), "{message}");
    stranger.delete().await?;
    stranger.wait_until_gone(MINUTE).await?;

    manifest["metadata"]["annotations"] = json!({"penstock.dev/adopt": uid});
    let heir = Pipeline::apply(&stage.cluster, manifest.clone()).await?;
    heir.wait_until_ready().await?;
    stage.wait_for_rows("public.notes", 600).await?;
    let copied = stage.sink.text("SELECT max(sequence) FROM penstock.checkpoint").await?;
    assert_eq!(copied, "100", "the rows came by the stream, not by a second copy");

    // A heir of the heir still reads the slot of the first, and says so when it goes.
    let uid = heir.get().await?.metadata.uid.unwrap_or_default();
    heir.delete().await?;
    heir.wait_until_gone(MINUTE).await?;
    manifest["metadata"]["annotations"] = json!({"penstock.dev/adopt": uid});
    let last = Pipeline::apply(&stage.cluster, manifest).await?;
    last.wait_until_ready().await?;
    let uid = last.get().await?.metadata.uid.unwrap_or_default();
    last.delete().await?;
    last.wait_until_gone(MINUTE).await?;
    let note = last.wait_for_event(&uid, "StateRetained", MINUTE).await?;
    let slot = stage.source.text("SELECT slot_name FROM pg_replication_slots").await?;
    let publication = stage.source.text("SELECT pubname FROM pg_publication").await?;
    let names = format!("replication slot {slot} and publication {publication} in shop on source");
    ensure!(note.contains(&names), "{names}: {note}");
    stage.end().await
}

#[tokio::test]
async fn foreground_deletion_ends_and_so_does_that_of_a_namespace_which_names_what_it_leaves() -> Result<()> {
    let stage = Stage::new("away").await?;
    let notes = Pipeline::apply(&stage.cluster, stage.manifest(&["public.notes"])).await?;
    // Another pipeline between the same databases, alone in a namespace.
    let elsewhere = stage.cluster.namespace("elsewhere").await?;
    let mut manifest = manifest(&elsewhere, "extras", &stage.source, &stage.sink, &["public.extras"]);
    for (end, database) in [("source", &stage.source), ("sink", &stage.sink)] {
        apply(&stage.cluster, database.credentials(&elsewhere)).await?;
        manifest["spec"][end]["postgres"]["connection"]["host"] =
            json!(format!("{}.{}.svc", database.name, stage.namespace));
    }
    let extras = Pipeline::apply(&stage.cluster, manifest).await?;
    notes.wait_until_ready().await?;
    extras.wait_until_ready().await?;
    assert_eq!(stage.slots().await?, "2");

    notes.delete_with(&DeleteParams::foreground()).await?;
    notes.wait_until_gone(2 * MINUTE).await?;
    assert_eq!(stage.slots().await?, "1", "the clean-up has run");
    assert!(stage.claims().await?.is_empty(), "the volumes are removed");

    let _alone = ALONE.lock().await; // what is said is in the log of the operator that leads
    let before = left_behind(&stage.cluster).await?;
    stage.cluster.remove_namespace(&elsewhere).await?;
    let slot = stage.source.text("SELECT slot_name FROM pg_replication_slots").await?;
    let log = logs_of_operators(&stage.cluster).await?;
    let is_told = log.lines().any(|line| line.contains("LeftBehind") && line.contains(&slot));
    ensure!(is_told, "no operator names the slot {slot} that is left behind");
    ensure!(left_behind(&stage.cluster).await? > before, "what is left behind is not counted");
    stage.end().await
}

/// How many pipelines the leader had to let go with what they left in databases.
async fn left_behind(cluster: &Cluster) -> Result<u32> {
    let metrics = metrics_of_leader(cluster).await?;
    let count = metrics.lines().find_map(|line| line.strip_prefix("penstock_operator_left_behind_total "));
    count.context("the metric is served")?.parse().context("a number")
}
