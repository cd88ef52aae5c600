//! The parts in which a table is copied at one snapshot.
//!
//! Ranges of a key are worth more than ranges of pages: pages mean nothing to another snapshot, so a table of which
//! some pages were copied when the worker died is copied anew, while one that is copied up to a key goes on after it.
//! But where rows do not lie in the order of the key, every range of it reads nearly every page. A sample says which it is.

use std::fmt::Write as _;

use tokio_postgres::Client;

use super::error::SourceError;
use crate::change::RelationId;
use crate::change::table::quote_identifier;
use crate::change::travel::Format;
use crate::incremental::KeyColumn;

/// Correlation between the order of the key and the order of the pages from which on a table is read by its key.
const IN_ORDER: f64 = 0.9;
/// Pages that are sampled for each chunk, so that chunks are of about the same size; and of a table. With fewer, chunks are
/// of more different sizes.
const PAGES_SAMPLED_PER_CHUNK: u64 = 16;
const PAGES_SAMPLED_MAX: u64 = 20_000;

/// A part of a table that one session reads at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The table of the pipeline.
    pub table: RelationId,
    /// Qualified and quoted name of the table or partition that holds the rows.
    sql_name: String,
    part: Part,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Pages {
        first: u64,
        /// Open-ended when `None`: the last chunk of a file.
        end: Option<u64>,
    },
    Keys {
        key: Vec<KeyColumn>,
        /// Place among the chunks of the table.
        number: u32,
        /// The range begins after this key; `None`: at the first row.
        after: Option<KeyText>,
        /// The range ends with this key; `None`: with the last row.
        up_to: Option<KeyText>,
    },
}

/// Values of a key's columns as the server writes them.
pub type KeyText = Vec<String>;

impl Chunk {
    pub(super) fn of_pages(table: RelationId, sql_name: &str, first: u64, end: Option<u64>) -> Self {
        Self { table, sql_name: sql_name.to_owned(), part: Part::Pages { first, end } }
    }

    /// Ranges that end with these keys, and one more.
    pub(super) fn of_key(
        table: RelationId,
        sql_name: &str,
        key: &[KeyColumn],
        ends: Vec<KeyText>,
    ) -> Vec<Self> {
        let begins = std::iter::once(None).chain(ends.clone().into_iter().map(Some));
        let ends = ends.into_iter().map(Some).chain(std::iter::once(None));
        (0..)
            .zip(begins.zip(ends))
            .map(|(number, (after, up_to))| Self {
                table,
                sql_name: sql_name.to_owned(),
                part: Part::Keys { key: key.to_vec(), number, after, up_to },
            })
            .collect()
    }

    pub(super) fn sql_name(&self) -> &str {
        &self.sql_name
    }

    /// Its place among the chunks of the table and the key that it ends with; `None`: it is no range of a key, or the
    /// last one.
    pub fn end(&self) -> Option<(u32, &KeyText)> {
        match &self.part {
            Part::Keys { number, up_to: Some(up_to), .. } => Some((*number, up_to)),
            Part::Keys { up_to: None, .. } | Part::Pages { .. } => None,
        }
    }

    /// Names of the columns of the key that it is a range of.
    pub fn key_columns(&self) -> Option<Vec<String>> {
        match &self.part {
            Part::Keys { key, .. } => Some(key.iter().map(|column| column.name.clone()).collect()),
            Part::Pages { .. } => None,
        }
    }

    /// Its place among the chunks of the table, if it is a range of a key.
    pub fn number(&self) -> Option<u32> {
        match &self.part {
            Part::Keys { number, .. } => Some(*number),
            Part::Pages { .. } => None,
        }
    }

    /// Ranges of a key for a test.
    #[cfg(test)]
    pub fn in_ranges(table: RelationId, count: u32) -> Vec<Self> {
        Self::of_key(table, "big", &[], (1..count).map(|end| vec![end.to_string()]).collect())
    }

    /// Ranges of pages for a test.
    #[cfg(test)]
    pub fn in_pages(table: RelationId, count: u64) -> Vec<Self> {
        (0..count).map(|page| Self::of_pages(table, "other", page, Some(page + 1))).collect()
    }

    pub(super) fn copy_statement(&self, columns: &[String], format: Format) -> String {
        let columns: Vec<String> = columns.iter().map(|column| quote_identifier(column)).collect();
        let mut sql = format!("COPY (SELECT {} FROM ONLY {}", columns.join(", "), self.sql_name);
        let _infallible = match &self.part {
            Part::Pages { first, end: None } => write!(sql, " WHERE ctid >= '({first},0)'::tid"),
            Part::Pages { first, end: Some(end) } => {
                write!(sql, " WHERE ctid >= '({first},0)'::tid AND ctid < '({end},0)'::tid")
            }
            Part::Keys { key, after, up_to, .. } => {
                let bounds = [(">", after), ("<=", up_to)];
                let bounds = bounds.into_iter().filter_map(|(compared, text)| {
                    let text = text.as_ref()?;
                    Some(format!(
                        "({}) {compared} ({})",
                        KeyColumn::names(key),
                        KeyColumn::literals(key, text)
                    ))
                });
                let bounds: Vec<String> = bounds.collect();
                write!(sql, " WHERE {}", bounds.join(" AND "))
            }
        };
        let _infallible = write!(sql, ") TO STDOUT ({})", format.copy_options());
        sql
    }
}

/// The keys with which all chunks but the last end. None: there is one chunk, or the rows do not lie in the order of
/// the key, or there are too few to say.
pub(super) async fn key_ends(
    client: &Client,
    sql_name: &str,
    key: &[KeyColumn],
    pages: u64,
    chunks: u64,
) -> Result<Vec<KeyText>, SourceError> {
    if chunks < 2 {
        return Ok(Vec::new());
    }
    #[expect(clippy::cast_precision_loss, reason = "a sample")]
    let percent =
        (100.0 * (chunks * PAGES_SAMPLED_PER_CHUNK).min(PAGES_SAMPLED_MAX) as f64 / pages as f64).min(100.0);
    let texts: Vec<String> =
        key.iter().map(|column| format!("{}::text", quote_identifier(&column.name))).collect();
    let (names, texts) = (KeyColumn::names(key), texts.join(", "));
    let sql = format!(
        "WITH sample AS MATERIALIZED ( \
           SELECT {names}, (ctid::text::point)[0] AS page, row_number() OVER (ORDER BY {names}) AS place, \
             count(*) OVER () AS total \
           FROM ONLY {sql_name} TABLESAMPLE SYSTEM ({percent}) REPEATABLE (1)), \
         found AS (SELECT abs(corr(place, page)) AS correlation FROM sample) \
         SELECT ARRAY[{texts}] FROM sample, found \
         WHERE correlation >= {IN_ORDER} AND place < total AND place * {chunks} / total <> (place - 1) * {chunks} / total \
         ORDER BY place"
    );
    let rows = client
        .query(&sql, &[])
        .await
        .map_err(|error| SourceError::sql(&error, &format!("sampling the rows of {sql_name}")))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
