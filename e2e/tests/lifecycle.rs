//! The life of a pipeline on a real cluster: made, paused, changed, mended, deleted.

use std::time::Duration;

use anyhow::Result;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Secret};
use kube::api::{Api, DeleteParams};
use penstock_e2e::kubernetes::{Cluster, Database, Pipeline, apply, eventually, manifest};
use serde_json::{Value, json};

const MINUTE: Duration = Duration::from_mins(1);

/// A cluster, a namespace, and a source and a sink in it.
struct Stage {
    cluster: Cluster,
    namespace: String,
    source: Database,
    sink: Database,
}

impl Stage {
    async fn new(name: &str) -> Result<Self> {
        let cluster = Cluster::connect().await?;
        let namespace = cluster.namespace(name).await?;
        let (source, sink) = tokio::try_join!(
            Database::start(&cluster, &namespace, "source", &["-c", "wal_level=logical"]),
            Database::start(&cluster, &namespace, "sink", &[]),
        )?;
        source
            .execute(
                "CREATE TABLE notes (id int PRIMARY KEY, body text NOT NULL);
                 INSERT INTO notes SELECT g, 'note ' || g FROM generate_series(1, 500) g;
                 CREATE TABLE extras (id int PRIMARY KEY);
                 INSERT INTO extras SELECT generate_series(1, 50);
                 CREATE TABLE keyless (body text);",
            )
            .await?;
        Ok(Self { cluster, namespace, source, sink })
    }

    fn manifest(&self, tables: &[&str]) -> Value {
        manifest(&self.namespace, "notes", &self.source, &self.sink, tables)
    }

    async fn wait_for_rows(&self, table: &str, rows: u32) -> Result<()> {
        let query = format!("SELECT count(*) FROM {table}");
        eventually(&format!("{rows} rows in {table}"), MINUTE, || async {
            Ok((self.sink.text(&query).await? == rows.to_string()).then_some(()))
        })
        .await
    }

    async fn slots(&self) -> Result<String> {
        self.source.text("SELECT count(*) FROM pg_replication_slots").await
    }

    async fn claims(&self) -> Result<Vec<PersistentVolumeClaim>> {
        self.cluster.list(&self.namespace, "penstock.dev/pipeline=notes").await
    }

    async fn end(self) -> Result<()> {
        self.cluster.remove_namespace(&self.namespace).await
    }
}

#[tokio::test]
async fn deletion_policy_delete_leaves_nothing_but_the_copied_tables() -> Result<()> {
    let stage = Stage::new("delete").await?;
    let pipeline = Pipeline::apply(&stage.cluster, stage.manifest(&["public.notes"])).await?;
    pipeline.wait_until_ready().await?;
    pipeline.delete().await?;
    pipeline.wait_until_gone(2 * MINUTE).await?;
    assert_eq!(stage.slots().await?, "0");
    assert_eq!(stage.source.text("SELECT count(*) FROM pg_publication").await?, "0");
    assert_eq!(stage.sink.text("SELECT count(*) FROM pg_namespace WHERE nspname = 'penstock'").await?, "0");
    assert_eq!(stage.sink.text("SELECT count(*) FROM public.notes").await?, "500");
    eventually("the volumes are gone", MINUTE, || async {
        Ok(stage.claims().await?.is_empty().then_some(()))
    })
    .await?;
    let left: Vec<StatefulSet> = stage.cluster.list(&stage.namespace, "penstock.dev/pipeline=notes").await?;
    assert!(left.is_empty(), "{left:?}");
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
    let heir = Pipeline::apply(&stage.cluster, manifest).await?;
    heir.wait_until_ready().await?;
    stage.wait_for_rows("public.notes", 600).await?;
    let copied = stage.sink.text("SELECT max(sequence) FROM penstock.checkpoint").await?;
    assert_eq!(copied, "100", "the rows came by the stream, not by a second copy");
    stage.end().await
}

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
        let sets: Vec<StatefulSet> =
            stage.cluster.list(&stage.namespace, "penstock.dev/pipeline=notes").await?;
        Ok((sets.len() == 1 && stage.claims().await?.len() == 1).then_some(()))
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
    eventually("the workers are gone", MINUTE, || async {
        let pods: Vec<Pod> = stage.cluster.list(&stage.namespace, "penstock.dev/pipeline=notes").await?;
        Ok(pods.is_empty().then_some(()))
    })
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
    let pods: Vec<Pod> = stage.cluster.list(&stage.namespace, "penstock.dev/pipeline=notes").await?;
    let api: Api<Pod> = Api::namespaced(stage.cluster.client.clone(), &stage.namespace);
    let name = pods[0].metadata.name.clone().unwrap_or_default();
    api.delete(&name, &DeleteParams::default()).await?;
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
    apply(&stage.cluster, secret("wrong")).await?;
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
    stage.end().await
}

#[tokio::test]
async fn a_worker_gets_no_token_for_the_kubernetes_api() -> Result<()> {
    let stage = Stage::new("token").await?;
    let pipeline = Pipeline::apply(&stage.cluster, stage.manifest(&["public.notes"])).await?;
    pipeline.wait_until_ready().await?;
    let pods: Vec<Pod> = stage.cluster.list(&stage.namespace, "penstock.dev/pipeline=notes").await?;
    let spec = pods[0].spec.clone().unwrap_or_default();
    assert_eq!(spec.automount_service_account_token, Some(false));
    let secrets: Api<Secret> = Api::namespaced(stage.cluster.client.clone(), &stage.namespace);
    assert!(secrets.get_opt("notes-control").await?.is_some());
    stage.end().await
}
