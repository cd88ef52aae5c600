//! Where a lineage has its tables: in the schemas that readers know, or beside them in schemas of its own. Pure but for
//! the reading of it.

use std::collections::BTreeMap;

use penstock_crds::report::LineageRole;
use sha2::{Digest as _, Sha256};
use tokio_postgres::{Error, GenericClient};

use crate::change::table::TableName;
use crate::lineage::Lineage;

/// PostgreSQL cuts longer names.
const NAME_BYTES_MAX: usize = 63;

/// What a lineage is to its pipeline. The sink alone says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It writes the tables that readers know. Set when the pipeline begins, and by promotion and rollback.
    Stable,
    /// It writes shadow tables. Set when it begins, and by rollback. Next: `Stable`.
    Canary,
    /// It was stable, and writes the tables of before. Set by promotion. Next: `Stable` by rollback.
    Previous,
    /// It is being removed, and does nothing any more. Set by clean-up of a `Canary` or `Previous`. Next: gone.
    Retired,
}

impl Role {
    /// As the sink writes it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Canary => "canary",
            Self::Previous => "previous",
            Self::Retired => "retired",
        }
    }

    /// As the report says it; a lineage that is being removed has no worker to say it.
    pub fn reported(self) -> Option<LineageRole> {
        match self {
            Self::Stable => Some(LineageRole::Stable),
            Self::Canary => Some(LineageRole::Canary),
            Self::Previous => Some(LineageRole::Previous),
            Self::Retired => None,
        }
    }

    pub(super) fn read(word: &str) -> Option<Self> {
        [Self::Stable, Self::Canary, Self::Previous, Self::Retired]
            .into_iter()
            .find(|role| role.word() == word)
    }
}

/// Where a lineage has its tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    /// By the schema that readers know.
    schemas: BTreeMap<String, String>,
    /// Schemas that are not named are in one of its own.
    beside: Option<Lineage>,
}

impl Layout {
    /// The schema that has the tables which readers look for in `live`.
    pub(super) fn schema(&self, live: &str) -> String {
        match (self.schemas.get(live), &self.beside) {
            (Some(schema), _) => schema.clone(),
            (None, Some(lineage)) => schema_beside(lineage, live),
            (None, None) => live.to_owned(),
        }
    }

    /// As the sink has it.
    pub(super) async fn read(
        client: &impl GenericClient,
        lineage: &Lineage,
        role: Role,
    ) -> Result<Self, Error> {
        let sql = "SELECT live_schema, schema FROM penstock.layout WHERE key = $1";
        let rows = client.query(sql, &[&lineage.key()]).await?;
        let schemas =
            rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_, Error>>()?;
        Ok(Self { schemas, beside: (role != Role::Stable).then(|| lineage.clone()) })
    }
}

/// Keeps which schema has the tables that readers look for in another one, if it is another one.
pub(super) async fn note(
    client: &impl GenericClient,
    key: &String,
    live: &TableName,
    at: &TableName,
) -> Result<(), Error> {
    if live.schema == at.schema {
        return Ok(());
    }
    let sql =
        "INSERT INTO penstock.layout (key, live_schema, schema) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
    client.execute(sql, &[key, &live.schema, &at.schema]).await.map(drop)
}

/// `penstock_<8 hex digits of SHA-256(UID)>_<revision>_<live>`, where a name may be so long; of the first lineage, whose
/// revisions change, `first` instead.
pub(super) fn schema_beside(lineage: &Lineage, live: &str) -> String {
    let digest = |text: &str| hex::encode(Sha256::digest(text.as_bytes()).get(..4).unwrap_or_default());
    let begun_by = lineage.begun_by().unwrap_or("first");
    let begin = format!("penstock_{}_{begun_by}", digest(lineage.uid()));
    let name = format!("{begin}_{live}");
    if name.len() <= NAME_BYTES_MAX { name } else { format!("{begin}_{}", digest(live)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_schemas_meet_beside_the_live_ones() {
        let long = ["a".repeat(63), format!("{}b", "a".repeat(62))];
        let lives = ["public", "sales", &long[0], &long[1]];
        let lineages = [
            Lineage::first("one"),
            Lineage::of_canary("one", "r1a2b3c4d"),
            Lineage::of_canary("one", "r1a2b3c4e"),
            Lineage::of_canary("two", "r1a2b3c4d"),
        ];
        let names: std::collections::BTreeSet<String> =
            lineages.iter().flat_map(|lineage| lives.map(|live| schema_beside(lineage, live))).collect();
        assert_eq!(names.len(), lives.len() * lineages.len());
        assert!(names.iter().all(|name| name.len() <= NAME_BYTES_MAX && name.starts_with("penstock_")));
    }

    #[test]
    fn a_stable_lineage_is_where_readers_look_unless_the_sink_says_otherwise() {
        assert_eq!(Layout::default().schema("public"), "public");
        let beside = Layout { beside: Some(Lineage::of_canary("u", "r1")), ..Layout::default() };
        assert!(beside.schema("public").ends_with("_r1_public"));
        let promoted = Layout { schemas: [("public".into(), "public".into())].into(), ..beside };
        assert_eq!(promoted.schema("public"), "public");
    }
}
