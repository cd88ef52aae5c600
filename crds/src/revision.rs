//! A revision: one version of a pipeline's data-affecting spec.
//!
//! Only what changes the rows in the sink mints a revision. Credentials, resources, batch sizes, the log
//! filter and an upgrade of the operator do not.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::CdcPipelineSpec;

/// The part of a spec that decides which rows the sink holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DataAffecting {
    /// `source.postgres.tables`, sorted: their order means nothing.
    pub tables: Vec<String>,
    /// `sink.postgres.schemaMap`.
    pub schema_map: BTreeMap<String, String>,
    /// `worker.image` as written: absent means the operator's own at minting time.
    pub image: Option<String>,
    /// `worker.shards`.
    pub shards: u16,
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
