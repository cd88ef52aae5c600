//! The operator dies in the middle of what it does, and another, or itself after its restart, goes on from what it
//! finds. Finalizers on what is about to go keep the middle open until the operator is dead.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{Api, Patch, PatchParams};
use kube::core::NamespaceResourceScope;
use kube::{Resource, ResourceExt as _};
use penstock_e2e::kubernetes::{Cluster, Pipeline, eventually, kill_leader};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::stage::{ALONE, MINUTE, Stage};

/// Keeps an object from going.
const HOLD: &str = "penstock.dev/held-by-a-test";

async fn set_hold<K>(cluster: &Cluster, namespace: &str, name: &str, is_held: bool) -> Result<()>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    K: Clone + std::fmt::Debug + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(cluster.client.clone(), namespace);
    let mut finalizers = api.get(name).await?.finalizers().to_vec();
    finalizers.retain(|finalizer| finalizer != HOLD);
    if is_held {
        finalizers.push(HOLD.into());
    }
    let patch = Patch::Merge(json!({"metadata": {"finalizers": finalizers}}));
    api.patch_metadata(name, &PatchParams::default(), &patch).await?;
    Ok(())
}

async fn change_tables(pipeline: &Pipeline, tables: &[&str]) -> Result<()> {
    pipeline.patch(json!({"spec": {"source": {"postgres": {"tables": tables}}}})).await.map(drop)
}

async fn revision(pipeline: &Pipeline) -> Result<String> {
    pipeline.get().await?.status.and_then(|status| status.stable_revision).context("a stable revision")
}

#[tokio::test]
async fn an_operator_killed_while_it_replaces_or_deletes_ends_in_the_same_state() -> Result<()> {
    let stage = Stage::new("interrupted").await?;
    let pipeline = Pipeline::apply(&stage.cluster, stage.manifest(&["public.notes"])).await?;
    pipeline.wait_until_ready().await?;
    let first = revision(&pipeline).await?;

    // A to B, with the old worker not gone yet.
    let worker = stage.worker().await?.name_any();
    set_hold::<Pod>(&stage.cluster, &stage.namespace, &worker, true).await?;
    change_tables(&pipeline, &["public.notes", "public.extras"]).await?;
    pipeline.wait_for("Reconciling", "True", Some("Replacing"), MINUTE).await?;
    stage.source.execute("INSERT INTO notes SELECT g, 'meanwhile' FROM generate_series(501, 600) g").await?;
    let killed = ALONE.lock().await;
    kill_leader(&stage.cluster).await?;
    drop(killed);
    ensure!(stage.pods().await?.len() == 1, "no new worker starts while the old one is there");
    set_hold::<Pod>(&stage.cluster, &stage.namespace, &worker, false).await?;
    stage.wait_for_rows("public.extras", 50).await?;
    pipeline.wait_until_ready().await?;
    stage.ensure_equal(&["public.notes", "public.extras"]).await?;
    assert_ne!(revision(&pipeline).await?, first);

    // B to A.
    change_tables(&pipeline, &["public.notes"]).await?;
    stage
        .source
        .execute("UPDATE notes SET body = 'back' WHERE id <= 100; DELETE FROM notes WHERE id > 590")
        .await?;
    eventually("the first revision runs again", 2 * MINUTE, || async {
        Ok((revision(&pipeline).await? == first).then_some(()))
    })
    .await?;
    pipeline.wait_until_ready().await?;
    stage.ensure_equal(&["public.notes"]).await?;
    // 100 insertions, 100 updates, 10 deletions; what is copied is no change.
    assert_eq!(stage.sink.text("SELECT sequence FROM penstock.checkpoint").await?, "210");
    eventually("one revision's worker and volume are left", MINUTE, || async {
        Ok((stage.sets().await?.len() == 1 && stage.claims().await?.len() == 1).then_some(()))
    })
    .await?;

    // Away, with a volume not gone yet.
    let claim = stage.claims().await?.first().context("a volume claim")?.name_any();
    set_hold::<PersistentVolumeClaim>(&stage.cluster, &stage.namespace, &claim, true).await?;
    pipeline.delete().await?;
    eventually("the clean-up begins", MINUTE, || async {
        let jobs: Vec<Job> = stage.cluster.list(&stage.namespace, "penstock.dev/pipeline=notes").await?;
        Ok((!jobs.is_empty()).then_some(()))
    })
    .await?;
    let killed = ALONE.lock().await;
    kill_leader(&stage.cluster).await?;
    drop(killed);
    set_hold::<PersistentVolumeClaim>(&stage.cluster, &stage.namespace, &claim, false).await?;
    pipeline.wait_until_gone(2 * MINUTE).await?;
    stage.ensure_cleaned_up().await?;
    stage.end().await
}
