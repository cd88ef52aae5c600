//! Everything that can be killed is killed, in turn, under load: at the end source and sink are equal, and the
//! sequence counts every change of the source once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use penstock_e2e::kubernetes::{
    Cluster, Database, Pipeline, ensure_equal_when_caught_up, ensure_secrets_are_hidden, eventually,
    kill_container, kill_leader, manifest,
};
use tokio::task::JoinHandle;

use crate::stage::ALONE;

const TABLES: [&str; 2] = ["accounts", "journal"];
const SCHEMA: &str = "
    CREATE TABLE accounts (id int PRIMARY KEY, units bigint NOT NULL, note text);
    CREATE TABLE journal (id bigint PRIMARY KEY, from_id int NOT NULL, to_id int NOT NULL);
    INSERT INTO accounts SELECT g, 1000 FROM generate_series(1, 200) g;
    CREATE SEQUENCE steps;";
/// Moves a unit from one account to another: the sum stays the same.
const STEP: &str = "
    WITH step AS (SELECT nextval('steps') AS n, 1 + floor(random() * 200)::int AS a, 1 + floor(random() * 200)::int AS b),
    taken AS (UPDATE accounts SET units = units - 1 FROM step WHERE id = a AND a <> b RETURNING 1),
    given AS (UPDATE accounts SET units = units + 1 FROM step WHERE id = b AND a <> b RETURNING 1)
    INSERT INTO journal SELECT n, a, b FROM step WHERE a <> b;
    DELETE FROM journal WHERE id < (SELECT last_value - 400 FROM steps);";

fn write_until(stop: &Arc<AtomicBool>, source: &Database) -> JoinHandle<u64> {
    let (stop, source) = (stop.clone(), source.clone());
    tokio::spawn(async move {
        let mut steps = 0;
        while !stop.load(Ordering::Relaxed) {
            let Ok(client) = source.connect().await else {
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            };
            while !stop.load(Ordering::Relaxed) && client.batch_execute(STEP).await.is_ok() {
                steps += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        steps
    })
}

/// Kills the container's process and waits until the kubelet has started it again.
async fn kill_and_wait(cluster: &Cluster, namespace: &str, pod: &str, container: &str) -> Result<()> {
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let restarts = |pod: Pod| -> i32 {
        let containers = pod.status.and_then(|status| status.container_statuses).unwrap_or_default();
        containers.iter().map(|container| container.restart_count).sum()
    };
    let before = restarts(api.get(pod).await?);
    kill_container(cluster, namespace, pod, container).await?;
    eventually(&format!("{pod} was started again"), Duration::from_secs(90), || async {
        Ok((restarts(api.get(pod).await?) > before).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_operator_sink_and_source_killed_in_turn_lose_and_double_nothing() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let namespace = cluster.namespace("faults").await?;
    let (source, sink) = tokio::try_join!(
        Database::start(&cluster, &namespace, "source", &["-c", "wal_level=logical"]),
        Database::start(&cluster, &namespace, "sink", &[]),
    )?;
    source.execute(SCHEMA).await?;
    let tables = ["public.accounts", "public.journal"];
    let pipeline = Pipeline::apply(&cluster, manifest(&namespace, "faults", &source, &sink, &tables)).await?;
    pipeline.wait_until_ready().await?;
    source.execute("SELECT pg_create_logical_replication_slot('witness', 'test_decoding')").await?;
    let stop = Arc::new(AtomicBool::new(false));
    let load = write_until(&stop, &source);
    let pause = || tokio::time::sleep(Duration::from_secs(2));

    let workers: Vec<Pod> = cluster.list(&namespace, "penstock.dev/pipeline=faults").await?;
    let worker = workers[0].metadata.name.clone().context("the worker has a name")?;
    pause().await;
    kill_and_wait(&cluster, &namespace, &worker, "worker").await?;
    pause().await;
    let killed = ALONE.lock().await;
    kill_leader(&cluster).await?;
    drop(killed);
    pause().await;
    kill_and_wait(&cluster, &namespace, &sink.pod(), "postgres").await?;
    sink.wait_until_it_answers().await?;
    pause().await;
    kill_and_wait(&cluster, &namespace, &source.pod(), "postgres").await?;
    source.wait_until_it_answers().await?;
    pause().await;

    stop.store(true, Ordering::Relaxed);
    let steps = load.await?;
    ensure!(steps > 100, "{steps} transactions prove nothing");
    ensure_equal_when_caught_up(&source, &sink, &TABLES).await?;
    let changes =
        "SELECT count(*) FROM pg_logical_slot_peek_changes('witness', NULL, NULL, 'skip-empty-xacts', '1')
        WHERE data LIKE 'table public.accounts: %' OR data LIKE 'table public.journal: %'";
    assert_eq!(source.text(changes).await?, sink.text("SELECT sequence FROM penstock.checkpoint").await?);
    pipeline.wait_until_ready().await?;

    ensure_secrets_are_hidden(&cluster, &namespace, &pipeline.name, &[]).await?;
    cluster.remove_namespace(&namespace).await
}
