//! What is done to rows on their way from source to sink.

use std::collections::BTreeMap;

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::connection::{OBJECT_NAME_MESSAGE, OBJECT_NAME_RULE};

/// What becomes of the columns of some tables. All names are the source's. A table is matched by one entry at most.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.selectColumns) || !has(self.dropColumns)")
    .message("transforms: write either selectColumns (all others are left out) or dropColumns (all others are carried)"))]
#[x_kube(validation = Rule::new("!has(self.renameTable) || (self.tables.size() == 1 && !self.tables[0].endsWith('*'))")
    .message("transforms: renameTable gives one table another name, so tables must hold one table without *, for example [public.orders]"))]
#[x_kube(validation = Rule::new("has(self.selectColumns) || has(self.dropColumns) || has(self.renameColumns) || has(self.renameTable) || has(self.maskColumns)")
    .message("transforms: say what is done to the tables: selectColumns, dropColumns, renameColumns, renameTable or maskColumns"))]
pub struct TableTransform {
    /// The tables, as the source calls them: `schema.table`, `schema.*`, or `schema.prefix*`. Each entry must match a
    /// table of the pipeline.
    #[schemars(length(min = 1, max = 100), inner(length(min = 3, max = 128)), extend("x-kubernetes-list-type" = "set"))]
    #[x_kube(validation = Rule::new("self.all(t, t.matches('^[^.*[:space:]]+[.]([^.*[:space:]]+[*]?|[*])$'))")
        .message("transforms.tables: write schema.table, schema.* or schema.prefix*, for example public.orders or sales.*"))]
    pub tables: Vec<String>,

    /// The columns that are carried; all others are left out, those that are added later too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 200), inner(length(min = 1, max = 63)), extend("x-kubernetes-list-type" = "set"))]
    pub select_columns: Vec<String>,

    /// The columns that are left out; all others are carried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 200), inner(length(min = 1, max = 63)), extend("x-kubernetes-list-type" = "set"))]
    pub drop_columns: Vec<String>,

    /// Names in the sink (value) of columns of the source (key).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 200, "additionalProperties" = {"type": "string", "minLength": 1, "maxLength": 63}))]
    #[x_kube(validation = Rule::new("self.all(k, k.size() > 0 && k.size() <= 63)")
        .message("transforms.renameColumns: every column name must have 1 to 63 characters"))]
    pub rename_columns: BTreeMap<String, String>,

    /// The table's name in the sink, without a schema: `sink.postgres.schemaMap` says which schema it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub rename_table: Option<String>,

    /// Columns whose values the sink does not get as they are. In the sink they are of type `text`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 50), extend("x-kubernetes-list-type" = "atomic"))]
    pub mask_columns: Vec<ColumnMask>,
}

/// How some columns are masked. Exactly one way is given. NULL stays NULL.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.hash), has(self.redact), has(self.truncate)].filter(given, given).size() == 1")
    .message("transforms.maskColumns: write one of hash, redact and truncate, for example redact: {}"))]
pub struct ColumnMask {
    /// The columns, as the source calls them.
    #[schemars(length(min = 1, max = 100), inner(length(min = 1, max = 63)), extend("x-kubernetes-list-type" = "set"))]
    pub columns: Vec<String>,

    /// Puts a keyed hash in the place of each value: equal values stay equal, and nobody without the key can tell which
    /// they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<HashMask>,

    /// Puts the same text in the place of every value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redact: Option<RedactMask>,

    /// Keeps the first characters of each value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truncate: Option<TruncateMask>,
}

/// HMAC-SHA-256 in hexadecimal, of the value as PostgreSQL writes it in UTF-8. Takes text, integers, `uuid` and enums.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HashMask {
    /// Secret of the pipeline's namespace with the key `key`, at least 16 bytes. When its content changes, the tables
    /// are copied again.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new(OBJECT_NAME_RULE).message(OBJECT_NAME_MESSAGE))]
    pub key_secret: String,
}

/// A text for every value. Takes every type.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RedactMask {
    /// The text.
    #[serde(default = "RedactMask::default_with")]
    #[schemars(length(max = 100))]
    pub with: String,
}

impl RedactMask {
    fn default_with() -> String {
        "***".to_owned()
    }
}

/// The first characters of a value. Takes text and enums.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TruncateMask {
    /// How many characters are kept.
    #[schemars(range(min = 1, max = 10_000))]
    pub length: u32,
}

/// The Secrets with keys of masks that the entries name, each once, in order of their names.
pub fn key_secrets(transforms: &[TableTransform]) -> Vec<&str> {
    let masks = transforms.iter().flat_map(|entry| &entry.mask_columns);
    let mut secrets: Vec<&str> =
        masks.filter_map(|mask| mask.hash.as_ref()).map(|hash| hash.key_secret.as_str()).collect();
    secrets.sort_unstable();
    secrets.dedup();
    secrets
}
