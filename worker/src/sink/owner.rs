//! Whom state in the sink belongs to.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::layout::Layout;
use crate::change::table::TableName;
use crate::lineage::Lineage;

/// Whom state in the sink belongs to, and which run of it this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Whose state it is.
    pub lineage: Lineage,
    /// Its namespace, for people.
    pub namespace: String,
    /// Its name, for people.
    pub name: String,
    /// Revision.
    pub revision: String,
    /// Number of the revision. It takes a shard over from lower and equal numbers only; `None` (on a laptop)
    /// takes over from all.
    pub revision_number: Option<i64>,
    /// Shard, from 0.
    pub shard: u16,
    /// How many shards the pipeline has.
    pub shards: u16,
    /// Identity of the worker's volume.
    pub volume_id: Uuid,
    /// UID of a deleted pipeline whose retained state is taken over, if there is none of its own yet.
    pub adopt: Option<String>,
}

impl Owner {
    /// What its state is kept under.
    pub(super) fn key(&self) -> &String {
        self.lineage.key()
    }

    /// What the sessions of one run are called, so that the next run finds and ends them.
    pub(super) fn application_name(&self, epoch: i64) -> String {
        format!("{}/{epoch}", self.application_name_of_shard())
    }

    /// The same without the epoch, which is not known before the fence is taken.
    pub(super) fn application_name_of_shard(&self) -> String {
        let digest = Sha256::digest(self.key().as_bytes());
        format!("penstock/{}/{}", hex::encode(digest.get(..4).unwrap_or_default()), self.shard)
    }
}

/// Where the tables of the source go in the sink.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableMap {
    /// Source schema to the schema that readers of the sink know.
    schemas: BTreeMap<String, String>,
    /// Tables of the source that have another name there.
    names: BTreeMap<TableName, String>,
    layout: Layout,
}

impl TableMap {
    /// Source schema to sink schema; schemas that are not named keep theirs.
    pub fn new(schemas: BTreeMap<String, String>) -> Self {
        Self { schemas, ..Self::default() }
    }

    /// The same, with other names for these tables of the source; their schema stays the one that it is mapped to.
    #[must_use]
    pub fn renaming(self, names: BTreeMap<TableName, String>) -> Self {
        Self { names, ..self }
    }

    /// The tables are where the lineage has them.
    pub(super) fn laid_out(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    /// The sink's table for one of the source, where it is now.
    pub fn sink_name(&self, source: &TableName) -> TableName {
        let live = self.live_name(source);
        TableName { schema: self.layout.schema(&live.schema), ..live }
    }

    /// The same as readers of the sink name it.
    pub(super) fn live_name(&self, source: &TableName) -> TableName {
        let name = self.names.get(source).unwrap_or(&source.name);
        TableName { name: name.clone(), ..self.type_name(source) }
    }

    /// The sink's type for one of the source: all lineages of a pipeline share it. A table's row type is one that has its name.
    pub fn type_name(&self, source: &TableName) -> TableName {
        let schema = self.schemas.get(&source.schema).unwrap_or(&source.schema);
        TableName::new(schema, &source.name)
    }
}
