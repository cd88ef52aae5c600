//! What the API server says of manifests: every mistake that can be known from the manifest alone is refused with
//! a sentence that says what to write instead.

use anyhow::{Result, bail, ensure};
use penstock_e2e::kubernetes::{Cluster, apply};
use serde_json::{Value, json};

/// A good manifest that needs no database, because nothing runs.
pub(crate) fn paused(namespace: &str, name: &str) -> Value {
    let connection = |host: &str| json!({"host": host, "database": "shop", "credentialsSecret": "nobody"});
    json!({
        "apiVersion": "penstock.dev/v1alpha1", "kind": "CdcPipeline",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "source": {"postgres": {"connection": connection("source"), "tables": ["public.orders"]}},
            "sink": {"postgres": {"connection": connection("sink")}},
            "paused": true,
        },
    })
}

/// Sets the value at a path like `/spec/worker/shards`, making objects on the way.
fn set(manifest: &mut Value, path: &str, value: Value) {
    let mut at = manifest;
    for part in path.trim_start_matches('/').split('/') {
        at = &mut at[part];
    }
    *at = value;
}

/// Each value at its path makes the API server refuse the manifest, and say the sentence.
async fn ensure_refused(cluster: &Cluster, namespace: &str, cases: &[(&str, Value, &str)]) -> Result<()> {
    for (path, value, sentence) in cases {
        let mut manifest = paused(namespace, "manifest");
        set(&mut manifest, path, value.clone());
        let Err(refusal) = apply(cluster, manifest).await else { bail!("{path} = {value} was accepted") };
        ensure!(format!("{refusal:#}").contains(sentence), "{path} = {value}: {refusal:#}");
    }
    Ok(())
}

#[tokio::test]
async fn bad_manifests_are_refused_with_a_sentence_that_helps() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let namespace = cluster.namespace("manifests").await?;
    let cases: &[(&str, Value, &str)] = &[
        ("/spec/flowControl", json!({}), ".spec.flowControl: field not declared in schema"),
        (
            "/spec/rollout",
            json!({"comparison": {"interval": "5s"}}),
            "rollout.comparison.interval must be hours, minutes and seconds of at least 10s",
        ),
        ("/spec/rollout", json!({"keepPrevious": "a day"}), "rollout.keepPrevious must be hours and minutes"),
        ("/spec/rollout", json!({"strategy": "BlueGreen"}), "Unsupported value: \"BlueGreen\""),
        (
            "/spec/transforms",
            json!([{"tables": ["public.*"], "selectColumns": ["a"], "dropColumns": ["b"]}]),
            "write either selectColumns",
        ),
        ("/spec/worker/shard", json!(2), ".spec.worker.shard: field not declared in schema"),
        ("/spec/worker/shards", json!(0), "greater than or equal to 1"),
        ("/spec/worker/storage/size", json!("8Mi"), "at least 16Mi"),
        ("/spec/worker/storage/size", json!("big"), "at least 16Mi"),
        ("/spec/source/postgres/tables", json!([]), "at least 1"),
        ("/spec/source/postgres/tables", json!(["orders"]), "write schema.table"),
        (
            "/spec/source/postgres/tables",
            json!(["public.orders", "public.orders"]),
            "duplicate entries for key",
        ),
        ("/spec/source/postgres/tables", json!(["pg_catalog.pg_class"]), "cannot be copied"),
        ("/spec/source/postgres/connection/host", json!("postgres://db/shop"), "without scheme"),
        ("/spec/source/postgres/connection/port", json!(70_000), "65535"),
        (
            "/spec/source/postgres/connection/tls",
            json!({"mode": "disable", "caSecret": "ca"}),
            "would be ignored",
        ),
        ("/spec/source/postgres/connection/tls", json!({"mode": "prefer"}), "verify-full"),
        ("/spec/sink/postgres/schemaMap", json!({"public": "penstock"}), "choose another sink schema"),
        ("/spec/sink/postgres/batch", json!({"maxBytes": 1}), "65536"),
        ("/spec/sink/postgres/sessionReplicationRole", json!("Local"), "\"Origin\", \"Replica\""),
        ("/spec/sink/postgres/schemaChanges", json!("Always"), "\"Stop\", \"Apply\", \"Ignore\""),
        ("/spec/sourceComparison", json!({"interval": "5m"}), "at least 10m"),
        ("/spec/sourceComparison", json!({"interval": "1d"}), "for example 24h or 1h30m"),
        ("/spec/sourceComparison", json!({"timeout": "0h"}), "at least 1m"),
        ("/spec/deletionPolicy", json!("Maybe"), "\"Retain\", \"Delete\""),
        ("/metadata/name", json!("a-name-that-is-much-too-long-for-the-names-made-from-it"), "at most 40"),
        ("/metadata/name", json!("1st"), "start with a letter"),
    ];
    ensure_refused(&cluster, &namespace, cases).await?;
    cluster.remove_namespace(&namespace).await
}

#[tokio::test]
async fn edits_that_would_lose_rows_are_refused_with_a_sentence() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let namespace = cluster.namespace("edits").await?;
    let cases: &[(&str, Value, &str)] = &[
        ("/spec/worker/shards", json!(2), "cannot move between them without loss"),
        ("/spec/worker/storage/size", json!("2Gi"), "does not change the volume claims"),
        ("/spec/source/postgres/connection/database", json!("other"), "positions belong to one database"),
        ("/spec/source/postgres/publication", json!("mine"), "would be lost"),
    ];
    apply(&cluster, paused(&namespace, "manifest")).await?;
    ensure_refused(&cluster, &namespace, cases).await?;
    cluster.remove_namespace(&namespace).await
}
