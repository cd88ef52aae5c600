//! The `CustomResourceDefinition` as it is installed: what the derive makes, fitted to what an API server
//! knows.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;
use serde_json::Value;

use crate::CdcPipeline;

/// The `CustomResourceDefinition` of `CdcPipeline`, as the chart installs it.
///
/// # Errors
/// Never for the types of this crate; a test makes it.
pub fn definition() -> Result<CustomResourceDefinition, serde_json::Error> {
    serde_json::from_value(fitted()?)
}

/// The definition as the YAML file that is committed.
///
/// # Errors
/// Never for the types of this crate; a test makes it.
pub fn yaml() -> Result<String, serde_yaml::Error> {
    let definition = fitted().map_err(<serde_yaml::Error as serde::ser::Error>::custom)?;
    let body = serde_yaml::to_string(&definition)?;
    Ok(format!(
        "# Made by `cargo run -p penstock-crds` from the Rust types in crds/; not edited by hand.\n{body}"
    ))
}

/// The schema that objects are checked against.
///
/// # Errors
/// Never for the types of this crate; a test makes it.
pub fn schema() -> Result<Value, serde_json::Error> {
    Ok(fitted()?["spec"]["versions"][0]["schema"]["openAPIV3Schema"].take())
}

fn fitted() -> Result<Value, serde_json::Error> {
    let mut definition = serde_json::to_value(CdcPipeline::crd())?;
    fit(&mut definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]);
    Ok(definition)
}

/// Fits one schema and those below it: an absent value is left out and never null, `format` is one that
/// Kubernetes knows (it warns of others), numbers are whole, paragraphs are not broken into lines.
fn fit(schema: &mut Value) {
    let Value::Object(fields) = schema else { return };
    fields.remove("nullable");
    fields.remove("title");
    if let Some(format) = fields.get("format").and_then(Value::as_str) {
        match format {
            "uint8" | "uint16" | "int8" | "int16" => fields.insert("format".into(), "int32".into()),
            "uint32" | "uint64" => fields.insert("format".into(), "int64".into()),
            _ => None,
        };
    }
    for bound in ["minimum", "maximum"] {
        if let Some(whole) = fields.get(bound).and_then(Value::as_f64).and_then(whole_number) {
            fields.insert(bound.into(), whole.into());
        }
    }
    if let Some(Value::String(text)) = fields.get_mut("description") {
        let paragraphs: Vec<String> =
            text.split("\n\n").map(|paragraph| paragraph.replace('\n', " ")).collect();
        *text = paragraphs.join("\n\n");
    }
    if let Some(Value::Object(properties)) = fields.get_mut("properties") {
        properties.values_mut().for_each(fit);
    }
    for below in ["items", "additionalProperties"] {
        if let Some(schema) = fields.get_mut(below) {
            fit(schema);
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "bounds of fields are far below 2^53")]
fn whole_number(number: f64) -> Option<i64> {
    (number.fract() == 0.0).then_some(number as i64)
}

#[cfg(test)]
#[path = "crd_tests.rs"]
mod tests;
