use std::path::Path;

use kube::core::cel::{Validator, compile_schema};
use serde_json::{Value, json};

use super::*;

fn walk<'a>(schema: &'a Value, path: &str, visit: &mut impl FnMut(&str, &'a Value)) {
    visit(path, schema);
    for (name, below) in schema["properties"].as_object().into_iter().flatten() {
        walk(below, &format!("{path}.{name}"), visit);
    }
    for below in ["items", "additionalProperties"] {
        if schema[below].is_object() {
            walk(&schema[below], &format!("{path}[]"), visit);
        }
    }
}

#[test]
fn the_committed_crd_is_what_the_types_say() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/penstock/crd/cdcpipelines.yaml");
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        committed == yaml().unwrap(),
        "charts/penstock/crd/cdcpipelines.yaml is stale: run `cargo run -p penstock-crds > charts/penstock/crd/cdcpipelines.yaml`"
    );
}

#[test]
fn the_fitted_definition_is_still_a_definition() {
    assert_eq!(definition().unwrap().metadata.name.as_deref(), Some("cdcpipelines.penstock.dev"));
}

#[test]
fn every_field_has_a_description() {
    let schema = schema().unwrap();
    walk(&schema, "", &mut |path, field| {
        let is_entry = path.ends_with("[]");
        assert!(is_entry || field["description"].as_str().is_some_and(|text| text.len() > 4), "{path}");
    });
}

#[test]
fn everything_a_user_writes_is_bounded_so_that_rules_have_a_cost() {
    let schema = schema().unwrap();
    walk(&schema["properties"]["spec"], "spec", &mut |path, field| match field["type"].as_str() {
        Some("string") => assert!(field["maxLength"].is_u64() || field["enum"].is_array(), "{path}"),
        Some("array") => {
            assert!(field["maxItems"].is_u64() && field["x-kubernetes-list-type"].is_string(), "{path}");
        }
        Some("integer") => assert!(field["minimum"].is_i64() && field["maximum"].is_i64(), "{path}"),
        Some("object") => {
            assert!(field["properties"].is_object() || field["maxProperties"].is_u64(), "{path}");
        }
        Some(_) | None => {}
    });
}

#[test]
fn only_words_that_an_api_server_knows_are_used() {
    let schema = schema().unwrap();
    walk(&schema, "", &mut |path, field| {
        assert!(field.get("nullable").is_none(), "{path}");
        let format = field["format"].as_str();
        assert!(
            format.is_none_or(|format| ["int32", "int64", "date-time"].contains(&format)),
            "{path}: {format:?}"
        );
    });
}

#[test]
fn every_rule_compiles() {
    assert!(!compile_schema(&schema().unwrap()).has_errors());
}

fn pipeline() -> Value {
    json!({
        "apiVersion": "penstock.dev/v1alpha1", "kind": "CdcPipeline", "metadata": {"name": "inventory"},
        "spec": {
            "source": {"postgres": {
                "connection": {"host": "a", "database": "shop", "credentialsSecret": "a"}, "tables": ["public.a"],
            }},
            "sink": {"postgres": {"connection": {"host": "b", "database": "b", "credentialsSecret": "b"}}},
        },
    })
}

#[test]
fn an_edit_that_would_lose_changes_is_refused_with_a_sentence() {
    let schema = schema().unwrap();
    let refused: &[(&str, &str, Value, &str)] = &[
        ("/spec/worker", "shards", json!(2), "worker.shards cannot be changed"),
        ("/spec/worker", "storage", json!({"size": "2Gi"}), "worker.storage cannot be changed"),
        ("/spec/source/postgres/connection", "database", json!("other"), "database cannot be changed"),
        ("/spec/source/postgres", "publication", json!("theirs"), "publication cannot be changed"),
        ("/spec/source/postgres/snapshot", "mode", json!("Never"), "snapshot.mode cannot be changed"),
        ("/spec/sink/postgres/connection", "database", json!("other"), "database cannot be changed"),
    ];
    for (parent, field, value, sentence) in refused {
        let old = kube::core::cel::apply_defaults(&schema, &pipeline());
        let mut new = old.clone();
        new.pointer_mut(parent).unwrap()[*field] = value.clone();
        let errors = Validator::new().validate(&schema, &new, Some(&old)).expect_err(sentence).to_string();
        assert!(errors.contains(sentence), "{parent}/{field}: {errors}");
        assert!(Validator::new().validate(&schema, &old, Some(&new)).is_err(), "{parent}/{field} back again");
        Validator::new().validate(&schema, &new, Some(&new)).unwrap();
    }
}

#[test]
fn a_name_that_no_object_can_have_is_refused() {
    let schema = schema().unwrap();
    let fields: &[(&str, &str)] = &[
        ("/spec/source/postgres/connection", "credentialsSecret"),
        ("/spec/sink/postgres/connection", "credentialsSecret"),
        ("/spec/source/postgres/connection/tls", "caSecret"),
        ("/spec/source/postgres/connection/tls", "clientCertificateSecret"),
        ("/spec/sink/postgres/connection/tls", "caSecret"),
        ("/spec/sink/postgres/connection/tls", "clientCertificateSecret"),
        ("/spec/worker/storage", "storageClassName"),
    ];
    let with = |parent: &str, field: &str, name: &str| {
        let mut pipeline = kube::core::cel::apply_defaults(&schema, &pipeline());
        pipeline.pointer_mut(parent).unwrap()[field] = json!(name);
        Validator::new().validate(&schema, &pipeline, None)
    };
    for (parent, field) in fields {
        for name in
            ["Shop", "shop_db", "-shop", "shop-", "shop..db", "shop/db", "shop db", "ns:shop", "shop\n"]
        {
            let error = with(parent, field, name).expect_err(name).to_string();
            assert!(error.contains("must be the name of a"), "{parent}/{field} {name:?}: {error}");
        }
        for name in ["a", "shop-db", "shop.db-2", "0"] {
            with(parent, field, name).unwrap_or_else(|error| panic!("{parent}/{field} {name}: {error}"));
        }
    }
}

#[test]
fn an_edit_that_loses_nothing_is_taken() {
    let schema = schema().unwrap();
    let old = kube::core::cel::apply_defaults(&schema, &pipeline());
    let mut new = old.clone();
    new["spec"]["source"]["postgres"]["tables"] = json!(["public.a", "public.b"]);
    new["spec"]["source"]["postgres"]["connection"]["host"] = json!("moved");
    new["spec"]["worker"]["image"] = json!("worker:2");
    new["spec"]["paused"] = json!(true);
    new["spec"]["deletionPolicy"] = json!("Delete");
    new["spec"]["sourceComparison"] = json!({"interval": "1h30m", "timeout": "20m"});
    new["spec"]["rollout"] = json!({"strategy": "Canary", "comparison": {"interval": "30s", "requiredMatches": 3}, "keepPrevious": "0m"});
    Validator::new().validate(&schema, &new, Some(&old)).unwrap();
}

#[test]
fn people_and_tools_find_what_they_expect() {
    let definition = serde_json::to_value(definition().unwrap()).unwrap();
    assert_eq!(definition["spec"]["names"]["shortNames"], json!(["cdc"]));
    assert_eq!(definition["spec"]["names"]["categories"], json!(["all"]));
    let version = &definition["spec"]["versions"][0];
    let columns: Vec<&str> = version["additionalPrinterColumns"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|column| column["name"].as_str())
        .collect();
    assert_eq!(
        columns,
        ["Phase", "Stable", "Canary", "Matches", "Lag", "Ready", "Reason", "SourceMatches", "Age"]
    );
    assert_eq!(version["subresources"]["status"], json!({}));
    assert_eq!(version["subresources"]["scale"]["specReplicasPath"], ".spec.worker.shards");
}
