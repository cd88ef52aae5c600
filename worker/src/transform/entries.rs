//! The entries of `spec.transforms`, and which of them is a table's.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use penstock_crds::table_pattern::{InvalidTablePattern, TablePattern};
use penstock_crds::transform::TableTransform;

use super::mask::Mask;
use super::{MaskKeys, Unsuitable};
use crate::change::table::{SourceTable, TableName};

/// The entries, each with its patterns.
#[derive(Clone, Debug, Default)]
pub struct Entries {
    entries: Vec<(Vec<TablePattern>, TableTransform)>,
    /// `sink.postgres.schemaMap`.
    schemas: BTreeMap<String, String>,
}

impl Entries {
    /// Reads the patterns.
    ///
    /// # Errors
    /// A pattern is none.
    pub fn new(
        transforms: &[TableTransform],
        schemas: &BTreeMap<String, String>,
    ) -> Result<Self, InvalidTablePattern> {
        let entry = |entry: &TableTransform| {
            let patterns = entry.tables.iter().map(|table| table.parse()).collect::<Result<_, _>>()?;
            Ok((patterns, entry.clone()))
        };
        let entries = transforms.iter().map(entry).collect::<Result<_, _>>()?;
        Ok(Self { entries, schemas: schemas.clone() })
    }

    fn matching(&self, table: &TableName) -> impl Iterator<Item = (usize, &TableTransform)> {
        let is_meant = |patterns: &[TablePattern]| {
            patterns.iter().any(|pattern| pattern.matches(&table.schema, &table.name))
        };
        let found = self.entries.iter().enumerate().filter(move |(_, (patterns, _))| is_meant(patterns));
        found.map(|(place, (_, entry))| (place, entry))
    }

    /// The entry of a table; what is wrong when several match it.
    pub(super) fn of(&self, table: &TableName) -> Result<Option<&TableTransform>, String> {
        let mut found = self.matching(table);
        match (found.next(), found.next()) {
            (Some((first, _)), Some((second, _))) => Err(format!(
                "{table} is matched by transforms[{first}] and transforms[{second}]: write what is done to a table into one entry"
            )),
            (first, _) => Ok(first.map(|(_, entry)| entry)),
        }
    }

    /// Patterns that match no table of the pipeline: a mistyped one would leave a table as it is.
    pub(super) fn without_table(&self, tables: &[SourceTable]) -> Vec<String> {
        let matches_none = |pattern: &TablePattern| {
            !tables.iter().any(|table| pattern.matches(&table.name.schema, &table.name.name))
        };
        let place = |(place, (patterns, _)): (usize, &(Vec<TablePattern>, _))| {
            let none = patterns.iter().filter(|pattern| matches_none(pattern));
            none.map(|pattern| {
                format!("transforms[{place}].tables: {pattern} matches no table of the pipeline")
            })
            .collect::<Vec<_>>()
        };
        self.entries.iter().enumerate().flat_map(place).collect()
    }
}

impl Entries {
    /// Tables that would be written into one.
    pub(super) fn meeting(&self, tables: &[SourceTable], names: &BTreeMap<TableName, String>) -> Vec<String> {
        if self.entries.is_empty() {
            return Vec::new();
        }
        let mut written: BTreeMap<(&str, &str), &TableName> = BTreeMap::new();
        let met = tables.iter().filter_map(|table| {
            let schema = self.schemas.get(&table.name.schema).unwrap_or(&table.name.schema);
            let name = names.get(&table.name).unwrap_or(&table.name.name);
            let other = written.insert((schema, name), &table.name)?;
            Some(format!(
                "{other} and {} would both be written into the sink table {schema}.{name}",
                table.name
            ))
        });
        met.collect()
    }
}

/// The masks of an entry, by column.
pub(super) fn masks(
    entry: &TableTransform,
    keys: &MaskKeys,
    table: &TableName,
) -> Result<BTreeMap<String, Arc<Mask>>, Unsuitable> {
    let mut masks = BTreeMap::new();
    let mut wrong = Vec::new();
    for given in &entry.mask_columns {
        let mask = match (&given.hash, &given.redact, &given.truncate) {
            (Some(hash), None, None) => {
                let key = keys.get(&hash.key_secret).cloned();
                key.map(|key| Mask::Hash(hash.key_secret.clone(), key))
            }
            (None, Some(redact), None) => Some(Mask::Redact(Bytes::from(redact.with.clone().into_bytes()))),
            (None, None, Some(truncate)) => {
                Some(Mask::Truncate(usize::try_from(truncate.length).unwrap_or(usize::MAX)))
            }
            _ => None,
        };
        let Some(mask) = mask.map(Arc::new) else {
            wrong.push(format!("{table}: a mask of {} has no way, or no key", given.columns.join(", ")));
            continue;
        };
        for column in &given.columns {
            if masks.insert(column.clone(), Arc::clone(&mask)).is_some() {
                wrong.push(format!("{table}, column {column}: it is masked twice; write it once"));
            }
        }
    }
    if wrong.is_empty() { Ok(masks) } else { Err(Unsuitable(wrong)) }
}
