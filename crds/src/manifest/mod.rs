//! Reads a manifest as `kubectl apply` would take it: unknown fields, values out of range and broken
//! rules are refused, each with a sentence and the path of the field. For the worker on a laptop.

mod structure;

use kube::core::cel::Validator;
use serde::Deserialize as _;
use serde_json::Value;

use crate::CdcPipeline;
use crate::crd;

/// One thing that is wrong in a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Where, such as `spec.source.postgres.tables[0]`.
    pub path: String,
    /// What is wrong, and what to write instead.
    pub message: String,
}

impl std::fmt::Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

/// Why a manifest is refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is not YAML.
    #[error("the manifest is not YAML: {0}")]
    NotYaml(#[from] serde_yaml::Error),
    /// It holds nothing.
    #[error("the manifest is empty: it must hold one CdcPipeline")]
    Empty,
    /// It holds several objects.
    #[error("the manifest holds {0} documents: it must hold one CdcPipeline and nothing else")]
    SeveralDocuments(usize),
    /// It holds something else.
    #[error("the manifest holds {found}: it must hold a CdcPipeline of apiVersion penstock.dev/v1alpha1")]
    AnotherKind {
        /// What is there instead.
        found: String,
    },
    /// The object has mistakes.
    #[error("the manifest is not valid:\n{}", .0.iter().map(|mistake| format!("  {mistake}")).collect::<Vec<_>>().join("\n"))]
    Invalid(Vec<Mistake>),
    /// The schema of this program is broken; a test makes that impossible.
    #[error("the schema of CdcPipeline cannot be made: {0}")]
    Schema(#[from] serde_json::Error),
}

/// The pipeline that a YAML manifest describes, with every default filled in.
///
/// # Errors
/// [`ManifestError`] says what is wrong, one sentence per mistake.
pub fn parse(yaml: &str) -> Result<CdcPipeline, ManifestError> {
    let object = serde_json::to_value(single_document(yaml)?)?;
    expect_kind(&object)?;
    let schema = crd::schema()?;
    let mistakes = structure::mistakes(&schema, &object);
    if !mistakes.is_empty() {
        return Err(ManifestError::Invalid(mistakes));
    }
    let mistakes = broken_rules(&schema, &object);
    if !mistakes.is_empty() {
        return Err(ManifestError::Invalid(mistakes));
    }
    let defaulted = kube::core::cel::apply_defaults(&schema, &object);
    serde_json::from_value(defaulted).map_err(|error| {
        ManifestError::Invalid(vec![Mistake { path: String::new(), message: error.to_string() }])
    })
}

/// The one document of a file. Read as YAML values first, which refuses a key written twice.
fn single_document(yaml: &str) -> Result<serde_yaml::Value, ManifestError> {
    let mut documents = Vec::new();
    for document in serde_yaml::Deserializer::from_str(yaml) {
        let value = serde_yaml::Value::deserialize(document)?;
        if !value.is_null() {
            documents.push(value);
        }
    }
    match documents.len() {
        0 => Err(ManifestError::Empty),
        1 => Ok(documents.remove(0)),
        several => Err(ManifestError::SeveralDocuments(several)),
    }
}

fn expect_kind(object: &Value) -> Result<(), ManifestError> {
    let word = |field| object.get(field).and_then(Value::as_str);
    match (word("apiVersion"), word("kind")) {
        (Some("penstock.dev/v1alpha1"), Some("CdcPipeline")) => Ok(()),
        (Some(version), Some(kind)) => {
            Err(ManifestError::AnotherKind { found: format!("a {kind} of {version}") })
        }
        (None, _) => Err(ManifestError::AnotherKind { found: "an object without apiVersion".into() }),
        (_, None) => Err(ManifestError::AnotherKind { found: "an object without kind".into() }),
    }
}

fn broken_rules(schema: &Value, object: &Value) -> Vec<Mistake> {
    let Err(errors) = Validator::new().validate(schema, object, None) else { return Vec::new() };
    errors
        .into_vec()
        .into_iter()
        .map(|error| Mistake { path: error.field_path, message: error.message })
        .collect()
}

#[cfg(test)]
mod tests;
