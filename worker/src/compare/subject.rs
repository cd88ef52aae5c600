//! What is compared of one table, and the SQL that both ends compute alike. Pure.
//!
//! Rows and keys are compared as the text that the types' own output functions write: record hashing would take 1.0
//! for 1.00 and -0 for 0. Whatever could make the same value look different is pinned on every connection
//! (`PIN_SETTINGS`). Rows fall into buckets by a hash of their key, which needs no order, and so no collation that two
//! servers would have to share.

use std::sync::Arc;

use crate::change::table::{TableName, quote_identifier, quote_literal};
use crate::transform::TableSteps;

/// Values up to this length are kept as they are, longer ones as their length and SHA-256.
pub(super) const TEXT_KEPT_MAX: usize = 256;

/// A table at both ends.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    pub(super) name: TableName,
    pub(super) sink: TableName,
    pub(super) shard: u16,
    /// The columns that are carried, in the source's order, as the sink calls them.
    pub(super) columns: Vec<String>,
    /// What the source's rows are read through, where something is done to them on their way.
    pub(super) projection: Option<Projection>,
    /// Columns of the source that the sink does not have, and need not have (`schemaChanges: Ignore`).
    pub(super) left_out: Vec<String>,
    /// Those that name a row; empty where nothing but the whole row does.
    pub(super) key: Vec<String>,
    /// The key's types come with every server, so that its index can be used.
    pub(super) is_key_built_in: bool,
    /// Rows by the source's statistics.
    pub(super) estimated_rows: u64,
}

/// Gives the rows of a table of the source as the sink has them.
#[derive(Clone, Debug)]
pub(super) struct Projection {
    pub(super) steps: Arc<TableSteps>,
    /// The columns that are carried, as the source calls them.
    pub(super) columns: Vec<String>,
}

impl Projection {
    /// For FROM, in place of the table.
    pub(super) fn of(&self, table: &str) -> String {
        self.steps.projection(table, self.columns.iter().map(String::as_str))
    }
}

/// How both ends hash.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hashing {
    /// Secret, new for every comparison: nobody can make up a row with the hash of another.
    pub(super) row_seed: i64,
    pub(super) key_seed: i64,
    /// The databases have the same encoding; else the text is brought into UTF-8 first.
    pub(super) is_same_encoding: bool,
}

impl Hashing {
    /// `bigint`, of a text.
    fn of(self, text: &str, seed: i64) -> String {
        let text = if self.is_same_encoding {
            text.to_owned()
        } else {
            format!("pg_catalog.encode(pg_catalog.convert_to({text}, 'UTF8'), 'hex')")
        };
        format!("pg_catalog.hashtextextended(({text}) COLLATE pg_catalog.\"C\", ({seed})::pg_catalog.int8)")
    }
}

impl Subject {
    pub(super) fn has_key(&self) -> bool {
        !self.key.is_empty()
    }

    /// Hash of a row of the alias `t`.
    pub(super) fn row_hash(&self, hashing: Hashing) -> String {
        hashing.of(&record("t", &self.columns), hashing.row_seed)
    }

    /// Hash by which a row of the alias `t` falls into a bucket.
    fn key_hash(&self, hashing: Hashing) -> String {
        if self.has_key() {
            hashing.of(&record("t", &self.key), hashing.key_seed)
        } else {
            self.row_hash(hashing)
        }
    }

    /// Hash of a row that is not in the table: its values are the parameter $1, an array of text.
    pub(super) fn hash_of_parameter(&self, hashing: Hashing) -> String {
        let values: Vec<String> =
            (1..=self.columns.len()).map(|place| format!("($1::pg_catalog.text[])[{place}]")).collect();
        hashing.of(&format!("ROW({})::pg_catalog.text", values.join(", ")), hashing.row_seed)
    }

    /// Bucket, rows and sum of hashes of a part of the table, without the keys whose columns are given as $1, $2, ….
    pub(super) fn sums_sql(&self, part: &str, hashing: Hashing, buckets: &Buckets) -> String {
        let (key, row) = (self.key_hash(hashing), self.row_hash(hashing));
        let mask = buckets.mask();
        let within = buckets.filter(&key).map_or_else(String::new, |filter| format!(" AND {filter}"));
        let excluded = self.exclusion();
        format!(
            "SELECT bucket, pg_catalog.count(*), pg_catalog.sum(hash)::pg_catalog.text FROM ( \
               SELECT {key} & {mask} AS bucket, {row} AS hash FROM {part}{within}{excluded}) AS hashed GROUP BY bucket"
        )
    }

    /// Key, hash and 1 for every row of a part that falls into the buckets; where there is no key, a place, hash and
    /// count of equal rows.
    pub(super) fn rows_sql(&self, part: &str, hashing: Hashing, buckets: &Buckets) -> String {
        let row = self.row_hash(hashing);
        let within = buckets
            .filter(&self.key_hash(hashing))
            .map_or_else(String::new, |filter| format!(" AND {filter}"));
        if self.has_key() {
            return format!(
                "SELECT {}, {row}, 1::pg_catalog.int8 FROM {part}{within}",
                texts("t", &self.key)
            );
        }
        format!(
            "SELECT ARRAY[pg_catalog.min(place)::pg_catalog.text], hash, pg_catalog.count(*) \
             FROM (SELECT t.ctid AS place, {row} AS hash FROM {part}{within}) AS hashed GROUP BY hash"
        )
    }

    /// Keys that are compared by themselves are left out of the sums. The server writes both sides of the comparison,
    /// so that its rules for quoting need not be known here.
    fn exclusion(&self) -> String {
        if !self.has_key() {
            return String::new();
        }
        let names: Vec<String> = (1..=self.key.len()).map(|place| format!("k{place}")).collect();
        let arrays: Vec<String> =
            (1..=self.key.len()).map(|place| format!("${place}::pg_catalog.text[]")).collect();
        format!(
            " AND NOT EXISTS (SELECT FROM ROWS FROM ({}) AS changed ({}) WHERE ({}) COLLATE pg_catalog.\"C\" = ({}) COLLATE pg_catalog.\"C\")",
            arrays.iter().map(|array| format!("pg_catalog.unnest({array})")).collect::<Vec<_>>().join(", "),
            names.join(", "),
            record("changed", &names),
            record("t", &self.key),
        )
    }

    /// Key and values, as texts or digests, of the rows with these keys.
    pub(super) fn lookup_sql(&self, table: &str, keys: &[Vec<String>]) -> String {
        let values: Vec<String> = self.columns.iter().map(|column| cell("t", column)).collect();
        let select = format!(
            "SELECT {}, ARRAY[{}]::pg_catalog.text[] FROM {table} AS t",
            texts("t", &self.key),
            values.join(", ")
        );
        let list: Vec<String> = keys
            .iter()
            .map(|key| {
                format!("({})", key.iter().map(|part| quote_literal(part)).collect::<Vec<_>>().join(", "))
            })
            .collect();
        if self.is_key_built_in {
            let key: Vec<String> =
                self.key.iter().map(|column| format!("t.{}", quote_identifier(column))).collect();
            return format!("{select} WHERE ({}) IN ({})", key.join(", "), list.join(", "));
        }
        let names: Vec<String> = (1..=self.key.len()).map(|place| format!("k{place}")).collect();
        format!(
            "{select} JOIN (VALUES {}) AS wanted ({}) ON ({}) COLLATE pg_catalog.\"C\" = ({}) COLLATE pg_catalog.\"C\"",
            list.join(", "),
            names.join(", "),
            record("wanted", &names),
            record("t", &self.key),
        )
    }
}

/// The columns of a row as the text of a record.
fn record(alias: &str, columns: &[String]) -> String {
    let columns: Vec<String> =
        columns.iter().map(|column| format!("{alias}.{}", quote_identifier(column))).collect();
    format!("ROW({})::pg_catalog.text", columns.join(", "))
}

/// The columns of a key as an array of what their output functions write. A cast to text would cut the blanks of a
/// `character`.
fn texts(alias: &str, columns: &[String]) -> String {
    let columns: Vec<String> = columns
        .iter()
        .map(|column| format!("pg_catalog.format('%s', {alias}.{})", quote_identifier(column)))
        .collect();
    format!("ARRAY[{}]::pg_catalog.text[]", columns.join(", "))
}

/// A value as a cell: NULL, `t` and the text, or `d`, the length and the digest of a long one. A composite value of
/// NULLs `IS NULL`, and is none.
fn cell(alias: &str, column: &str) -> String {
    let column = format!("{alias}.{}", quote_identifier(column));
    format!(
        "CASE WHEN {column} IS NOT DISTINCT FROM NULL THEN NULL ELSE (SELECT \
           CASE WHEN pg_catalog.octet_length(bytes) <= {TEXT_KEPT_MAX} THEN 't' || value \
                ELSE 'd' || pg_catalog.octet_length(bytes) || ':' || pg_catalog.encode(pg_catalog.sha256(bytes), 'hex') END \
         FROM (SELECT value, pg_catalog.convert_to(value, 'UTF8') FROM pg_catalog.format('%s', {column}) AS written (value)) AS written (value, bytes)) END"
    )
}

/// Which rows are looked at, and how finely their hashes are told apart: by the last `bits` of the key's hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Buckets {
    pub(super) bits: u32,
    /// Only rows in these buckets of so many bits; `None`: all rows.
    pub(super) within: Option<(u32, Vec<i64>)>,
}

impl Buckets {
    const BITS_MAX: u32 = 14;
    const ROWS_PER_BUCKET: u64 = 256;

    /// For a table of about so many rows.
    pub(super) fn for_rows(rows: u64) -> Self {
        let buckets = (rows / Self::ROWS_PER_BUCKET).max(1);
        Self { bits: buckets.next_power_of_two().ilog2().min(Self::BITS_MAX), within: None }
    }

    /// These buckets, told apart further.
    pub(super) fn finer(&self, chosen: Vec<i64>) -> Self {
        Self { bits: (self.bits + Self::BITS_MAX).min(60), within: Some((self.bits, chosen)) }
    }

    /// These buckets themselves.
    pub(super) fn only(&self, chosen: Vec<i64>) -> Self {
        Self { bits: self.bits, within: Some((self.bits, chosen)) }
    }

    fn mask(&self) -> i64 {
        (1_i64 << self.bits) - 1
    }

    /// Where a hash falls, if it is looked at.
    pub(super) fn bucket_of(&self, hash: i64) -> Option<i64> {
        let is_within = |(bits, chosen): &(u32, Vec<i64>)| chosen.contains(&(hash & ((1_i64 << bits) - 1)));
        self.within.as_ref().is_none_or(is_within).then_some(hash & self.mask())
    }

    fn filter(&self, key_hash: &str) -> Option<String> {
        let (bits, chosen) = self.within.as_ref()?;
        let list: Vec<String> = chosen.iter().map(ToString::to_string).collect();
        Some(format!(
            "{key_hash} & {} = ANY ('{{{}}}'::pg_catalog.int8[])",
            (1_i64 << bits) - 1,
            list.join(",")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_a_few_hundred_rows_and_at_most_sixteen_thousand() {
        assert_eq!(Buckets::for_rows(0).bits, 0);
        assert_eq!(Buckets::for_rows(1_000).bits, 2);
        assert_eq!(Buckets::for_rows(200_000).bits, 10);
        assert_eq!(Buckets::for_rows(u64::MAX >> 1).bits, 14);
        let finer = Buckets::for_rows(1 << 40).finer(vec![3, 5]);
        assert_eq!((finer.bits, finer.within), (28, Some((14, vec![3, 5]))));
    }

    #[test]
    fn names_are_quoted_and_a_table_without_key_is_named_by_its_rows() {
        let subject = Subject {
            name: TableName::new("public", "t"),
            sink: TableName::new("public", "t"),
            shard: 0,
            columns: vec!["a\"b".into(), "C".into()],
            projection: None,
            left_out: Vec::new(),
            key: Vec::new(),
            is_key_built_in: true,
            estimated_rows: 0,
        };
        let hashing = Hashing { row_seed: -1, key_seed: 2, is_same_encoding: true };
        let sql = subject.sums_sql("x AS t WHERE true", hashing, &Buckets::for_rows(0));
        assert!(sql.contains("ROW(t.\"a\"\"b\", t.\"C\")::pg_catalog.text"), "{sql}");
        assert!(sql.contains("(-1)::pg_catalog.int8") && !sql.contains("unnest"), "{sql}");
        let keyed = Subject { key: vec!["C".into()], ..subject };
        let sql = keyed.sums_sql("x AS t WHERE true", hashing, &Buckets::for_rows(0));
        assert!(
            sql.contains("unnest($1::pg_catalog.text[])") && sql.contains("(2)::pg_catalog.int8"),
            "{sql}"
        );
    }
}
