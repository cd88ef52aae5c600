//! The life of a pipeline on a real cluster: made, paused, changed, mended.

use anyhow::Result;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams};
use penstock_e2e::kubernetes::{Pipeline, apply, ensure_secrets_are_hidden, eventually};
use serde_json::json;

use crate::stage::{MINUTE, Stage};

#[tokio::test]
async fn a_changed_table_list_goes_on_from_the_exact_position() -> Result<()> {
    let stage = Stage::new("recreate").await?;
    let pipeline = Pipeline::apply(&stage.cluster, stage.manifest(&["public.notes"])).await?;
    pipeline.wait_until_ready().await?;
    let first = pipeline.get().await?.status.unwrap_or_default().stable_revision;
    pipeline
        .patch(json!({"spec": {"source": {"postgres": {"tables": ["public.notes", "public.extras"]}}}}))
        .await?;
    stage.source.execute("INSERT INTO notes SELECT g, 'during' FROM generate_series(501, 700) g").await?;
    stage.wait_for_rows("public.extras", 50).await?;
    pipeline.wait_until_ready().await?;
    stage.wait_for_rows("public.notes", 700).await?;
    stage.source.execute("INSERT INTO extras VALUES (51)").await?;
    stage.wait_for_rows("public.extras", 51).await?;
    let second = pipeline.get().await?.status.unwrap_or_default().stable_revision;
    assert_ne!(first, second);
    eventually("the old revision's workers and volumes are gone", MINUTE, || async {
        Ok((stage.sets().await?.len() == 1 && stage.claims().await?.len() == 1).then_some(()))
    })
    .await?;
    assert_eq!(stage.sink.text("SELECT sequence FROM penstock.checkpoint").await?, "201");
    stage.end().await
}

#[tokio::test]
async fn a_paused_pipeline_stops_and_goes_on_where_it_was() -> Result<()> {
    let stage = Stage::new("pause").await?;
    let pipeline = Pipeline::apply(&stage.cluster, stage.manifest(&["public.notes"])).await?;
    pipeline.wait_until_ready().await?;
    pipeline.patch(json!({"spec": {"paused": true}})).await?;
    pipeline.wait_for("Ready", "False", Some("Paused"), MINUTE).await?;
    eventually("the workers are gone", MINUTE, || async { Ok(stage.pods().await?.is_empty().then_some(())) })
        .await?;
    stage.source.execute("INSERT INTO notes VALUES (501, 'while paused')").await?;
    pipeline.patch(json!({"spec": {"paused": false}})).await?;
    pipeline.wait_until_ready().await?;
    stage.wait_for_rows("public.notes", 501).await?;
    stage.end().await
}

#[tokio::test]
async fn the_volume_survives_the_deletion_of_its_pod() -> Result<()> {
    let stage = Stage::new("volume").await?;
    let pipeline = Pipeline::apply(&stage.cluster, stage.manifest(&["public.notes"])).await?;
    pipeline.wait_until_ready().await?;
    let volume = "SELECT volume_id::text FROM penstock.checkpoint";
    let epoch = "SELECT epoch FROM penstock.checkpoint";
    let (volume_before, epoch_before) = (stage.sink.text(volume).await?, stage.sink.text(epoch).await?);
    let api: Api<Pod> = Api::namespaced(stage.cluster.client.clone(), &stage.namespace);
    api.delete(&stage.worker().await?.name_any(), &DeleteParams::default()).await?;
    eventually("a new run of the shard", 2 * MINUTE, || async {
        Ok((stage.sink.text(epoch).await? != epoch_before).then_some(()))
    })
    .await?;
    stage.source.execute("INSERT INTO notes VALUES (501, 'after')").await?;
    stage.wait_for_rows("public.notes", 501).await?;
    assert_eq!(stage.sink.text(volume).await?, volume_before);
    stage.end().await
}

#[tokio::test]
async fn what_a_person_must_mend_is_said_and_the_pipeline_goes_on_by_itself() -> Result<()> {
    let stage = Stage::new("mend").await?;
    let mut manifest = stage.manifest(&["public.keyless"]);
    manifest["spec"]["source"]["postgres"]["connection"]["credentialsSecret"] = json!("late");
    let pipeline = Pipeline::apply(&stage.cluster, manifest).await?;
    let message = pipeline.wait_for("Ready", "False", Some("CredentialsMissing"), MINUTE).await?;
    assert!(message.contains("late"), "{message}");

    let secret = |password: &str| {
        json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "late", "namespace": stage.namespace},
            "stringData": {"username": "postgres", "password": password},
        })
    };
    let wrong = "hunter3-wrong-and-never-to-be-logged";
    apply(&stage.cluster, secret(wrong)).await?;
    pipeline.wait_for("Stalled", "True", Some("SourceAuthenticationFailed"), 2 * MINUTE).await?;

    apply(&stage.cluster, secret(penstock_e2e::kubernetes::PASSWORD)).await?;
    let patience = 3 * MINUTE; // the kubelet brings a changed Secret to the pod within its sync period
    let message = pipeline.wait_for("Stalled", "True", Some("ReplicaIdentityMissing"), patience).await?;
    assert!(message.contains("ALTER TABLE"), "{message}");

    stage
        .source
        .execute("ALTER TABLE keyless REPLICA IDENTITY FULL; INSERT INTO keyless VALUES ('a'), ('a')")
        .await?;
    pipeline.wait_until_ready().await?;
    stage.source.execute("DELETE FROM keyless WHERE ctid = '(0,1)'").await?;
    stage.wait_for_rows("public.keyless", 1).await?;
    ensure_secrets_are_hidden(&stage.cluster, &stage.namespace, &pipeline.name, &[wrong]).await?;
    stage.end().await
}

#[tokio::test]
async fn a_worker_gets_no_token_for_the_kubernetes_api() -> Result<()> {
    let stage = Stage::new("token").await?;
    let pipeline = Pipeline::apply(&stage.cluster, stage.manifest(&["public.notes"])).await?;
    pipeline.wait_until_ready().await?;
    let spec = stage.worker().await?.spec.unwrap_or_default();
    assert_eq!(spec.automount_service_account_token, Some(false));
    let secrets: Api<Secret> = Api::namespaced(stage.cluster.client.clone(), &stage.namespace);
    assert!(secrets.get_opt("notes-control").await?.is_some());
    stage.end().await
}
