//! What the documents say, held against the code: the examples are accepted, and every reason that a condition
//! can have is explained, with what happens by itself and what a person has to do.

// Helpers of a test are tests too, which the lints do not see.
#![allow(clippy::panic, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use penstock_crds::manifest;
use penstock_crds::report::{Policy, Reason};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The variants of an enum without data, in order, from its source.
fn variants(source: &str, name: &str) -> Vec<String> {
    let body =
        source.split(&format!("pub enum {name} {{")).nth(1).unwrap_or_else(|| panic!("no enum {name}"));
    let body = body.split("\n}").next().unwrap();
    body.lines().filter_map(|line| line.trim().strip_suffix(',')).map(str::to_owned).collect()
}

/// The rows of the tables in a document whose first cell is a word in backquotes: word, other cells.
fn rows(document: &str) -> BTreeMap<String, Vec<String>> {
    let cells =
        |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let row = |line: &str| {
        let cells = cells(line);
        let word = cells.first()?.strip_prefix('`')?.strip_suffix('`')?.to_owned();
        Some((word, cells[1..].to_vec()))
    };
    document.lines().filter(|line| line.starts_with('|')).filter_map(row).collect()
}

#[test]
fn every_example_is_a_valid_manifest() {
    let examples = std::fs::read_dir(repository().join("deploy/examples")).unwrap();
    let mut paths: Vec<PathBuf> = examples.map(|entry| entry.unwrap().path()).collect();
    paths.push(repository().join("deploy/demo/pipeline.yaml"));
    assert!(paths.len() >= 3, "{paths:?}");
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        manifest::parse(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

#[test]
fn the_full_example_names_every_field_of_the_spec() {
    let example = read("deploy/examples/full.yaml");
    let crd = serde_json::to_value(penstock_crds::crd::definition().unwrap()).unwrap();
    let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let mut missing = Vec::new();
    collect_missing(spec, "spec", &example, &mut missing);
    assert!(missing.is_empty(), "fields that deploy/examples/full.yaml does not show: {missing:?}");
}

fn collect_missing(schema: &serde_json::Value, path: &str, example: &str, missing: &mut Vec<String>) {
    let properties = schema["properties"].as_object().or_else(|| schema["items"]["properties"].as_object());
    for (name, schema) in properties.into_iter().flatten() {
        let path = format!("{path}.{name}");
        // A taint can be tolerated for a time; the example shows the common case.
        if name != "tolerationSeconds" && !example.contains(&format!("{name}:")) {
            missing.push(path.clone());
        }
        collect_missing(schema, &path, example, missing);
    }
}

#[test]
fn every_reason_of_a_worker_is_explained_with_its_policy() {
    let guide = read("docs/guide-troubleshooting.md");
    let rows = rows(&guide);
    for word in variants(include_str!("../src/report.rs"), "Reason") {
        let reason: Reason = serde_json::from_value(serde_json::json!(word)).unwrap();
        let row = rows
            .get(&word)
            .unwrap_or_else(|| panic!("docs/guide-troubleshooting.md does not explain {word}"));
        let policy = match reason.policy() {
            Policy::Retry => "by itself",
            Policy::Halt => "you",
        };
        assert_eq!(row[0], policy, "who mends {word}");
        assert!(row[1..].iter().all(|cell| !cell.is_empty()), "{word}: {row:?}");
    }
}

#[test]
fn every_reason_of_the_operator_and_every_notice_is_explained() {
    let guide = read("docs/guide-troubleshooting.md");
    let rows = rows(&guide);
    let mut words = variants(include_str!("../src/conditions.rs"), "OperatorReason");
    words.extend(variants(include_str!("../src/report.rs"), "NoticeReason"));
    for word in words {
        assert!(rows.contains_key(&word), "docs/guide-troubleshooting.md does not explain {word}");
    }
}

#[test]
fn the_guide_explains_no_reason_that_does_not_exist() {
    let report = include_str!("../src/report.rs");
    let mut known = variants(include_str!("../src/conditions.rs"), "OperatorReason");
    for name in ["Reason", "NoticeReason", "WorkerPhase"] {
        known.extend(variants(report, name));
    }
    known.extend(variants(include_str!("../src/status.rs"), "Phase"));
    for word in rows(&read("docs/guide-troubleshooting.md")).keys() {
        assert!(known.contains(word), "docs/guide-troubleshooting.md explains {word}, which nothing says");
    }
}
