use serde_json::Map;

use super::*;

const VALID: &str = "
apiVersion: penstock.dev/v1alpha1
kind: CdcPipeline
metadata: {name: inventory}
spec:
  source:
    postgres:
      connection: {host: shop-db, database: shop, credentialsSecret: shop-db}
      tables: [public.inventory, 'sales.*']
  sink:
    postgres:
      connection: {host: warehouse-db, database: warehouse, credentialsSecret: warehouse-db}
";

/// The valid manifest with the value at `pointer` (created where missing) set to a YAML value.
fn with(pointer: &str, yaml: &str) -> String {
    let mut object: Value = serde_yaml::from_str(VALID).unwrap();
    let mut at = &mut object;
    for part in pointer.trim_start_matches('/').split('/') {
        if at.is_null() {
            *at = Value::Object(Map::new());
        }
        at = &mut at[part];
    }
    *at = serde_yaml::from_str(yaml).unwrap();
    serde_yaml::to_string(&object).unwrap()
}

fn refusal(yaml: &str) -> String {
    parse(yaml).map(|pipeline| format!("accepted: {pipeline:?}")).unwrap_err().to_string()
}

#[test]
fn a_valid_manifest_gets_every_default() {
    let pipeline = parse(VALID).unwrap();
    assert_eq!(pipeline.spec.source.postgres.connection.port, 5432);
    assert_eq!(pipeline.spec.worker.shards, 1);
    assert_eq!(pipeline.spec.worker.log, "info");
    assert_eq!(pipeline.spec.sink.postgres.batch.max_rows, 20_000);
}

#[test]
fn what_kubernetes_prints_is_accepted_again() {
    let printed = serde_yaml::to_string(&parse(VALID).unwrap()).unwrap();
    assert_eq!(parse(&printed).unwrap(), parse(VALID).unwrap());
}

#[test]
fn a_file_that_is_not_one_pipeline_gets_a_sentence() {
    let two = format!("{VALID}---{VALID}");
    for (yaml, sentence) in [
        ("", "the manifest is empty"),
        ("---\n---\n", "the manifest is empty"),
        (two.as_str(), "holds 2 documents"),
        ("a: [", "not YAML"),
        ("a: 1\na: 2", "duplicate entry"),
        ("just words", "an object without apiVersion"),
        ("{apiVersion: v1, kind: Secret}", "a Secret of v1"),
        ("{apiVersion: penstock.dev/v2, kind: CdcPipeline}", "a CdcPipeline of penstock.dev/v2"),
        ("{apiVersion: penstock.dev/v1alpha1}", "an object without kind"),
    ] {
        let refusal = refusal(yaml);
        assert!(refusal.contains(sentence), "{yaml:?}: {refusal}");
    }
}

fn refused(cases: &[(&str, &str, &str)]) {
    for (pointer, value, sentence) in cases {
        let refusal = refusal(&with(pointer, value));
        assert!(refusal.contains(sentence), "{pointer} = {value}: {refusal}");
    }
}

#[test]
fn what_the_schema_does_not_allow_is_named_with_its_path() {
    let source = "/spec/source/postgres";
    refused(&[
        (
            "/spec/flowControl",
            "{}",
            "spec.flowControl: unknown field; the fields here are deletionPolicy, paused",
        ),
        ("/metadata/name", "''", "metadata.name: required"),
        ("/spec/sink", "{}", "spec.sink.postgres: required"),
        (&format!("{source}/tables"), "[]", "spec.source.postgres.tables: must have at least 1 entry, not 0"),
        (&format!("{source}/tables"), "[a.b, a.b]", "spec.source.postgres.tables[1]: written twice"),
        (
            &format!("{source}/tables"),
            "a.b",
            "spec.source.postgres.tables: must be an array, not the string `a.b`",
        ),
        (&format!("{source}/connection/port"), "0", "must be between 1 and 65535, not 0"),
        (&format!("{source}/connection/port"), "'5432'", "must be an integer, not the string `5432`"),
        (&format!("{source}/connection/port"), "1.5", "must be an integer, not the number 1.5"),
        (
            &format!("{source}/connection/database"),
            "''",
            "spec.source.postgres.connection.database: must not be empty",
        ),
        (
            &format!("{source}/connection/database"),
            &"d".repeat(64),
            "must have at most 63 characters, not 64",
        ),
        (
            &format!("{source}/connection/tls/mode"),
            "prefer",
            "must be one of disable, require, verify-ca, verify-full, not `prefer`",
        ),
        (&format!("{source}/publication"), "null", "must be a string, not empty (null)"),
        ("/spec/paused", "'yes'", "spec.paused: must be a boolean"),
        ("/spec/worker/shards", "65", "must be between 1 and 64"),
        (
            "/spec/worker/imagePullSecrets",
            "[{name: a}, {name: a}]",
            "spec.worker.imagePullSecrets[1]: written twice",
        ),
        ("/spec/worker/resources/limits/cpu", "[1]", "must be a whole number or a string, not a list"),
    ]);
}

#[test]
fn a_broken_rule_says_what_to_write_instead() {
    let source = "/spec/source/postgres";
    let sink = "/spec/sink/postgres";
    refused(&[
        ("/metadata/name", "Inventory", "metadata.name must start with a letter"),
        ("/metadata/name", "i2345678901234567890123456789012345678901", "at most 40 characters"),
        (
            &format!("{source}/connection/host"),
            "postgres://shop-db/shop",
            "write shop-db, not postgres://shop-db/shop",
        ),
        (&format!("{source}/connection/host"), "shop db", "without scheme, path or spaces"),
        (&format!("{source}/connection/host"), "shop-db:5432", "write it in connection.port"),
        (&format!("{source}/connection/credentialsSecret"), "Shop_DB", "must be the name of a Secret"),
        (&format!("{source}/connection/tls"), "{caSecret: 'a b'}", "must be the name of a Secret"),
        (&format!("{source}/connection/tls"), "{clientCertificateSecret: A}", "must be the name of a Secret"),
        (&format!("{source}/connection/tls"), "{mode: disable, caSecret: ca}", "tls.mode is disable"),
        (
            &format!("{sink}/connection/tls"),
            "{mode: disable, clientCertificateSecret: ca}",
            "tls.mode is disable",
        ),
        (
            &format!("{sink}/connection/tls"),
            "{mode: require, caSecret: ca}",
            "tls.mode require encrypts without",
        ),
        (&format!("{source}/tables"), "[orders]", "write schema.table, schema.* or schema.prefix*"),
        (&format!("{source}/tables"), "['*.orders']", "write schema.table, schema.* or schema.prefix*"),
        (&format!("{source}/tables"), "['a.b c']", "write schema.table, schema.* or schema.prefix*"),
        (&format!("{source}/tables"), "['pg_catalog.*']", "cannot be copied"),
        (&format!("{source}/tables"), "[penstock.checkpoint]", "cannot be copied"),
        (&format!("{sink}/schemaMap"), "{public: penstock}", "choose another sink schema"),
        (&format!("{sink}/schemaMap"), "{public: pg_temp}", "choose another sink schema"),
        (&format!("{sink}/schemaMap"), "{public: ''}", "must not be empty"),
        (&format!("{sink}/schemaMap"), &format!("{{{}: a}}", "s".repeat(64)), "1 to 63 characters"),
        ("/spec/sourceComparison", "{interval: 5m}", "at least 10m, for example 24h"),
        ("/spec/sourceComparison", "{interval: 1d}", "at least 10m, for example 24h"),
        ("/spec/sourceComparison", "{interval: '10'}", "at least 10m, for example 24h"),
        ("/spec/sourceComparison", "{interval: 0h9m}", "at least 10m, for example 24h"),
        ("/spec/sourceComparison", "{timeout: 0m}", "at least 1m, for example 6h"),
        ("/spec/worker/storage", "{size: 1Mi}", "at least 16Mi"),
        ("/spec/worker/storage", "{size: big}", "at least 16Mi"),
        ("/spec/worker/image", "docker://worker", "without scheme or spaces"),
        ("/spec/worker/nodeSelector", "{'a b': c}", "not a Kubernetes label"),
        ("/spec/worker/nodeSelector", "{a: 'b c'}", "not a Kubernetes label"),
        ("/spec/worker/tolerations", "[{operator: Equal}]", "needs operator: Exists"),
        ("/spec/worker/tolerations", "[{}]", "needs operator: Exists"),
        ("/spec/worker/tolerations", "[{key: a, operator: Exists, value: b}]", "value would be ignored"),
        ("/spec/worker/tolerations", "[{key: a, tolerationSeconds: 3}]", "only with effect: NoExecute"),
        ("/spec/worker/imagePullSecrets", "[{name: 'a b'}]", "must be the name of a Secret"),
    ]);
}

#[test]
fn a_broken_rule_of_transforms_says_what_to_write_instead() {
    refused(&[
        ("/spec/transforms", "[{tables: [public.a]}]", "say what is done to the tables"),
        (
            "/spec/transforms",
            "[{tables: [public.a], selectColumns: [id], dropColumns: [b]}]",
            "either selectColumns (all others are left out) or dropColumns",
        ),
        ("/spec/transforms", "[{tables: ['public.*'], renameTable: b}]", "must hold one table without *"),
        (
            "/spec/transforms",
            "[{tables: [public.a, public.b], renameTable: c}]",
            "must hold one table without *",
        ),
        (
            "/spec/transforms",
            "[{tables: [orders], dropColumns: [b]}]",
            "write schema.table, schema.* or schema.prefix*",
        ),
        (
            "/spec/transforms",
            "[{tables: [p.a], maskColumns: [{columns: [b]}]}]",
            "write one of hash, redact and truncate",
        ),
        (
            "/spec/transforms",
            "[{tables: [p.a], maskColumns: [{columns: [b], redact: {}, truncate: {length: 1}}]}]",
            "write one of hash, redact and truncate",
        ),
        (
            "/spec/transforms",
            "[{tables: [p.a], maskColumns: [{columns: [b], hash: {keySecret: A_B}}]}]",
            "must be the name of a Secret",
        ),
        (
            "/spec/transforms",
            "[{tables: [p.a], maskColumns: [{columns: [b], truncate: {length: 0}}]}]",
            "must be between 1 and 10000",
        ),
        ("/spec/transforms", "[{tables: [p.a], renameColumns: {a: ''}}]", "must not be empty"),
    ]);
}

#[test]
fn transforms_are_read_with_their_defaults() {
    let yaml = "[{tables: [public.a], renameTable: b, maskColumns: [{columns: [c], redact: {}}]}]";
    let pipeline = parse(&with("/spec/transforms", yaml)).unwrap();
    let [entry] = &pipeline.spec.transforms[..] else { panic!("{:?}", pipeline.spec.transforms) };
    assert_eq!(entry.rename_table.as_deref(), Some("b"));
    assert_eq!(entry.mask_columns[0].redact.as_ref().unwrap().with, "***");
}

#[test]
fn all_mistakes_of_a_manifest_are_told_at_once() {
    let refusal = refusal(&with("/spec/source", "{postgres: {conection: {}, tables: [a.b]}}"));
    assert!(refusal.contains("spec.source.postgres.connection: required"), "{refusal}");
    assert!(refusal.contains("spec.source.postgres.conection: unknown field"), "{refusal}");
}
