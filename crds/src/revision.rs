//! A revision: one version of a pipeline's data-affecting spec.
//!
//! Only what changes the rows in the sink mints a revision. Credentials, resources, batch sizes, the log
//! filter and an upgrade of the operator do not.
//!
//! Both types are stored, and the name is a hash of the JSON. So a field that is added later must be absent from
//! the JSON while it is empty (`#[serde(default, skip_serializing_if = …)]`), and the fields that are there keep
//! their form: else every pipeline would get a new revision with the upgrade of its operator.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::CdcPipelineSpec;
use crate::transform::TableTransform;

/// The part of a spec that decides which rows the sink holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DataAffecting {
    /// `source.postgres.tables`, sorted: their order means nothing.
    pub tables: Vec<String>,
    /// `sink.postgres.schemaMap`.
    #[serde(default)]
    pub schema_map: BTreeMap<String, String>,
    /// `worker.image` as written: absent means the operator's own at minting time.
    #[serde(default)]
    pub image: Option<String>,
    /// `worker.shards`.
    pub shards: u16,
    /// `transforms`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub transforms: Vec<TableTransform>,
}

impl From<&CdcPipelineSpec> for DataAffecting {
    fn from(spec: &CdcPipelineSpec) -> Self {
        let mut tables = spec.source.postgres.tables.clone();
        tables.sort();
        Self {
            tables,
            schema_map: spec.sink.postgres.schema_map.clone(),
            image: spec.worker.image.clone(),
            shards: spec.worker.shards,
            transforms: spec.transforms.clone(),
        }
    }
}

impl DataAffecting {
    /// `r` and the first 8 hex digits of the SHA-256 of the canonical JSON.
    ///
    /// # Errors
    /// Never for values that came from a manifest: they are plain strings and numbers.
    pub fn name(&self) -> Result<RevisionName, serde_json::Error> {
        let canonical = serde_json::to_vec(self)?;
        let digest = hex::encode(Sha256::digest(canonical));
        Ok(RevisionName(format!("r{}", &digest[..8])))
    }
}

/// Name of a revision, such as `r1a2b3c4d`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RevisionName(pub String);

impl std::fmt::Display for RevisionName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a `ControllerRevision` holds: the revision as it was minted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MintedRevision {
    /// What the revision means.
    pub data: DataAffecting,
    /// The image its workers run, resolved when it was minted.
    pub image: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Revisions as they are stored in clusters, and their names. Neither may ever change here.
    const STORED: [(&str, &str); 2] = [
        (
            r#"{"data":{"tables":["public.inventory","sales.*"],"schemaMap":{},"image":null,"shards":2},"image":"registry.example.com/penstock-worker:0.1.0"}"#,
            "rfb51a752",
        ),
        (
            r#"{"data":{"tables":["public.a"],"schemaMap":{"public":"shop"},"image":"worker:1","shards":1},"image":"worker:1"}"#,
            "r091896cc",
        ),
    ];

    #[test]
    fn a_stored_revision_keeps_its_name_and_its_form() {
        for (stored, name) in STORED {
            let minted: MintedRevision = serde_json::from_str(stored).unwrap();
            assert_eq!(minted.data.name().unwrap().0, name, "{stored}");
            assert_eq!(serde_json::to_string(&minted).unwrap(), stored);
        }
    }

    #[test]
    fn transforms_mint_a_revision_and_their_absence_keeps_the_old_name() {
        let (stored, _) = STORED[0];
        let plain: MintedRevision = serde_json::from_str(stored).unwrap();
        let entry = TableTransform {
            tables: vec!["public.inventory".into()],
            drop_columns: vec!["note".into()],
            ..TableTransform::default()
        };
        let with = DataAffecting { transforms: vec![entry], ..plain.data.clone() };
        assert_ne!(with.name().unwrap(), plain.data.name().unwrap());
        let json = serde_json::to_string(&with).unwrap();
        assert!(
            json.ends_with(r#","transforms":[{"tables":["public.inventory"],"dropColumns":["note"]}]}"#),
            "{json}"
        );
        assert_eq!(serde_json::from_str::<DataAffecting>(&json).unwrap(), with);
    }
}
