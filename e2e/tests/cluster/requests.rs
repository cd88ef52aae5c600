//! What is asked of a pipeline that runs: tables to be copied again, and the way out of a dead end from within a pod.

use anyhow::{Result, ensure};
use kube::ResourceExt as _;
use penstock_e2e::kubernetes::{Pipeline, eventually, pid_of_container};
use serde_json::json;

use crate::stage::{MINUTE, Stage};

#[tokio::test]
async fn an_annotation_has_a_table_copied_again_once_per_token() -> Result<()> {
    let stage = Stage::new("resnapshot").await?;
    let pipeline =
        Pipeline::apply(&stage.cluster, stage.manifest(&["public.notes", "public.extras"])).await?;
    pipeline.wait_until_ready().await?;
    let uid = pipeline.get().await?.uid().unwrap_or_default();
    let ask = async |value: &str| {
        pipeline.patch(json!({"metadata": {"annotations": {"penstock.dev/resnapshot": value}}})).await
    };
    ask("public.notes").await?;
    let note = pipeline.wait_for_event(&uid, "AnnotationInvalid", MINUTE).await?;
    ensure!(note.contains("write TOKEN:TABLE"), "{note}");
    for token in ["one", "two"] {
        stage.sink.execute("DELETE FROM public.notes WHERE id < 100").await?;
        ask(&format!("{token}:public.notes")).await?;
        stage.wait_for_rows("public.notes", 500).await?;
    }
    pipeline.wait_for_event(&uid, "ResnapshotTaken", MINUTE).await?;
    pipeline.wait_until_ready().await?;
    ensure!(stage.sink.text("SELECT count(*) FROM penstock.resnapshot").await? == "2");
    // The annotation stays, and nothing is copied any more.
    let epoch = "SELECT epoch FROM penstock.checkpoint";
    let before = stage.sink.text(epoch).await?;
    tokio::time::sleep(MINUTE / 3).await;
    ensure!(stage.sink.text(epoch).await? == before, "it was copied again and again");
    stage.ensure_equal(&["public.notes", "public.extras"]).await?;
    stage.end().await
}

#[tokio::test]
async fn a_pipeline_at_a_dead_end_is_begun_anew_from_within_its_pod() -> Result<()> {
    let stage = Stage::new("dead-end").await?;
    let pipeline = Pipeline::apply(&stage.cluster, stage.manifest(&["public.notes"])).await?;
    pipeline.wait_until_ready().await?;
    pipeline.patch(json!({"spec": {"paused": true}})).await?;
    pipeline.wait_for("Ready", "False", Some("Paused"), MINUTE).await?;
    eventually("the slot is free", MINUTE, || async { Ok(stage.pods().await?.is_empty().then_some(())) })
        .await?;
    stage.source.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots").await?;
    stage.source.execute("INSERT INTO notes VALUES (501, 'unseen'); DELETE FROM notes WHERE id = 1").await?;
    pipeline.patch(json!({"spec": {"paused": false}})).await?;
    pipeline.wait_for("Stalled", "True", Some("SlotMissing"), MINUTE * 2).await?;
    // The command of the guide, where `kubectl exec` would run it: the namespaces and the account of the pod.
    let pod = stage.worker().await?.name_any();
    let pid = pid_of_container(&stage.cluster, &stage.namespace, &pod, "worker").await?.to_string();
    let output = tokio::process::Command::new("nsenter")
        .args(["--target", &pid, "--mount", "--net", "--pid", "--setuid", "65532", "--setgid", "65532", "--"])
        .args([
            "/usr/local/bin/penstock-worker",
            "begin-anew",
            "--file",
            "/etc/penstock/config/pipeline.yaml",
        ])
        .args(["--reason", "the slot was dropped", "--by", "ann"])
        .output()
        .await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    pipeline.wait_until_ready().await?;
    stage.ensure_equal(&["public.notes"]).await?;
    let recorded = stage.sink.text("SELECT decision || ' ' || why FROM penstock.accepted_loss").await?;
    ensure!(recorded == "begin-anew the slot was dropped", "{recorded}");
    stage.end().await
}
