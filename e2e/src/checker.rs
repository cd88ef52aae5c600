//! Is the content of two tables the same? Plain SQL on both sides, from the tables' own rows.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::time::{Instant, sleep};

use crate::postgres::Client;

/// Everything that changes how a value is written as text. `hashtextextended` is the same in all supported
/// versions for the same text in the same encoding.
const PINNED: &str = "SET LOCAL datestyle = 'ISO, YMD'; SET LOCAL intervalstyle = 'postgres'; \
     SET LOCAL timezone = 'UTC'; SET LOCAL extra_float_digits = 3; SET LOCAL bytea_output = 'hex'; \
     SET LOCAL xmlbinary = 'base64'; SET LOCAL lc_monetary = 'C'; SET LOCAL search_path = pg_catalog; \
     SET LOCAL row_security = off; SET LOCAL client_encoding = 'UTF8'";
const HASH_SEED: i64 = 0x5045_4e53_544f_434b;
const POLL: Duration = Duration::from_millis(200);
/// Rows above which [`differing_rows`] refuses: it holds both tables in memory.
const ROWS_MAX_FOR_DIFFERENCES: u64 = 500_000;

/// A table in the source and where it arrives, both with their schema as SQL writes them: `shop.orders`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablePair {
    /// In the source.
    pub source: String,
    /// In the sink.
    pub sink: String,
}

impl TablePair {
    /// The same name on both sides.
    pub fn same(name: impl Into<String>) -> Self {
        let source = name.into();
        Self { sink: source.clone(), source }
    }
}

/// What a table holds, whatever the order of its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Columns, in the order of their names.
    pub columns: Vec<String>,
    /// Rows.
    pub rows: u64,
    /// Sum of the rows' hashes (a sum, so that equal rows do not cancel out).
    pub hash: String,
}

/// Both sides of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// Which.
    pub pair: TablePair,
    /// The source's content.
    pub source: Content,
    /// The sink's content.
    pub sink: Content,
}

impl Comparison {
    /// The same columns, rows and hash.
    pub fn is_equal(&self) -> bool {
        self.source == self.sink
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.is_equal() { "equal" } else { "DIFFERENT" };
        let (source, sink) = (&self.source, &self.sink);
        write!(
            f,
            "{:<28} source {:>9} rows {:>26}   sink {:>9} rows {:>26}   {verdict}",
            self.pair.source, source.rows, source.hash, sink.rows, sink.hash
        )?;
        if source.columns != sink.columns {
            write!(f, " (columns: {} / {})", source.columns.join(", "), sink.columns.join(", "))?;
        }
        Ok(())
    }
}

/// Compares the tables, each side in one snapshot.
pub async fn compare(source: &Client, sink: &Client, pairs: &[TablePair]) -> Result<Vec<Comparison>> {
    let sources: Vec<&str> = pairs.iter().map(|pair| pair.source.as_str()).collect();
    let sinks: Vec<&str> = pairs.iter().map(|pair| pair.sink.as_str()).collect();
    let source = contents(source, &sources).await.context("cannot read the source's tables")?;
    let sink = contents(sink, &sinks).await.context("cannot read the sink's tables")?;
    Ok(pairs
        .iter()
        .zip(source.into_iter().zip(sink))
        .map(|(pair, (source, sink))| Comparison { pair: pair.clone(), source, sink })
        .collect())
}

/// Waits until all tables are equal. The error shows what is not, with some of the rows.
pub async fn wait_until_equal(
    source: &Client,
    sink: &Client,
    pairs: &[TablePair],
    timeout: Duration,
) -> Result<Vec<Comparison>> {
    let deadline = Instant::now() + timeout;
    loop {
        // A sink table that does not exist yet is not equal yet.
        let compared = compare(source, sink, pairs).await;
        match compared {
            Ok(comparisons) if comparisons.iter().all(Comparison::is_equal) => return Ok(comparisons),
            Ok(comparisons) if Instant::now() > deadline => {
                bail!("not equal after {timeout:?}:\n{}", explain(source, sink, &comparisons).await?)
            }
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("after {timeout:?}")));
            }
            Ok(_) | Err(_) => sleep(POLL).await,
        }
    }
}

/// The comparisons as lines, with up to ten differing rows of each differing table.
pub async fn explain(source: &Client, sink: &Client, comparisons: &[Comparison]) -> Result<String> {
    const ROWS_SHOWN_MAX: usize = 10;
    let mut lines = Vec::new();
    for comparison in comparisons {
        lines.push(comparison.to_string());
        let rows = comparison.source.rows.max(comparison.sink.rows);
        if !comparison.is_equal() && rows <= ROWS_MAX_FOR_DIFFERENCES {
            lines.extend(differing_rows(source, sink, &comparison.pair, ROWS_SHOWN_MAX).await?);
        }
    }
    Ok(lines.join("\n"))
}

/// Up to `limit` rows that only one side has, as `source has (…)` or `sink has (…)`.
pub async fn differing_rows(
    source: &Client,
    sink: &Client,
    pair: &TablePair,
    limit: usize,
) -> Result<Vec<String>> {
    let mut balance: BTreeMap<String, i64> = BTreeMap::new();
    for (client, table, weight) in [(source, &pair.source, 1), (sink, &pair.sink, -1)] {
        for row in row_texts(client, table).await? {
            *balance.entry(row).or_default() += weight;
        }
    }
    Ok(balance
        .into_iter()
        .filter(|(_, count)| *count != 0)
        .take(limit)
        .map(|(row, count)| format!("    {} has {row}", if count > 0 { "source" } else { "sink" }))
        .collect())
}

async fn contents(client: &Client, tables: &[&str]) -> Result<Vec<Content>> {
    in_snapshot(client, async || {
        let mut contents = Vec::new();
        for table in tables {
            contents.push(content(client, table).await.with_context(|| format!("cannot read {table}"))?);
        }
        Ok(contents)
    })
    .await
}

async fn content(client: &Client, table: &str) -> Result<Content> {
    let columns = columns(client, table).await?;
    let row = row_expression(&columns);
    let sql = format!(
        "SELECT count(*), coalesce(sum(hashtextextended({row}, {HASH_SEED})::numeric), 0) FROM {table} AS t"
    );
    let found = client.rows(&sql).await?.pop().unwrap_or_default();
    let [Some(rows), Some(hash)] = found.as_slice() else { bail!("`{sql}` returned {found:?}") };
    Ok(Content { columns, rows: rows.parse()?, hash: hash.clone() })
}

async fn row_texts(client: &Client, table: &str) -> Result<Vec<String>> {
    in_snapshot(client, async || {
        let row = row_expression(&columns(client, table).await?);
        let rows = client.rows(&format!("SELECT {row} FROM {table} AS t")).await?;
        Ok(rows.into_iter().flatten().flatten().collect())
    })
    .await
}

/// Runs the reads in a transaction with one snapshot and the pinned settings. It ends whatever happens, so that
/// the connection can be used again.
async fn in_snapshot<T>(client: &Client, reads: impl AsyncFnOnce() -> Result<T>) -> Result<T> {
    client.run(&format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {PINNED}")).await?;
    let result = reads().await;
    client.run("ROLLBACK").await?;
    result
}

async fn columns(client: &Client, table: &str) -> Result<Vec<String>> {
    let name = table.replace('\'', "''");
    let sql = format!(
        "SELECT attname FROM pg_attribute WHERE attrelid = '{name}'::regclass AND attnum > 0 AND NOT attisdropped \
         ORDER BY attname COLLATE \"C\""
    );
    Ok(client.rows(&sql).await?.into_iter().flatten().flatten().collect())
}

/// All columns as one text, by name, so that the order of columns does not matter.
fn row_expression(columns: &[String]) -> String {
    let quoted: Vec<_> = columns.iter().map(|name| format!("t.\"{}\"", name.replace('"', "\"\""))).collect();
    format!("ROW({})::text", quoted.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::{Server, Version};

    async fn pair_of_databases(server: &Server) -> (Client, Client) {
        for name in ["source", "sink"] {
            server.create_database(name).await.unwrap();
        }
        (server.connect("source").await.unwrap(), server.connect("sink").await.unwrap())
    }

    #[tokio::test]
    async fn settings_of_a_database_do_not_count() {
        let server = Server::start(Version::V16).await.unwrap();
        let (source, sink) = pair_of_databases(&server).await;
        for client in [&source, &sink] {
            client
                .run(
                    "CREATE TABLE t (a float8, b timestamptz, c interval, d bytea, e regclass);
                     INSERT INTO t VALUES (0.1::float8 + 0.2, '2024-02-29 23:59:59.999999+05:30',
                         '-1 year 2 months 3 days 04:05:06', '\\x00ff', 'public.t')",
                )
                .await
                .unwrap();
        }
        let text = "SELECT t::text FROM public.t AS t";
        let plain = sink.value(text).await.unwrap();
        for setting in [
            "extra_float_digits = -3",
            "timezone = 'Asia/Kolkata'",
            "datestyle = 'SQL, DMY'",
            "intervalstyle = 'iso_8601'",
            "bytea_output = 'escape'",
            "search_path = 'pg_catalog'",
        ] {
            sink.run(&format!("ALTER DATABASE sink SET {setting}")).await.unwrap();
            let odd = server.connect("sink").await.unwrap();
            assert_ne!(
                odd.value(text).await.unwrap(),
                plain,
                "{setting} changes the text where it is not pinned"
            );
            let compared = compare(&source, &odd, &[TablePair::same("public.t")]).await.unwrap();
            assert!(compared[0].is_equal(), "{setting}");
            sink.run("ALTER DATABASE sink RESET ALL").await.unwrap();
        }
    }

    #[tokio::test]
    async fn only_content_counts() {
        let server = Server::start(Version::V15).await.unwrap();
        let (source, sink) = pair_of_databases(&server).await;
        source
            .run("CREATE TABLE t (a int, b text, c float8); INSERT INTO t VALUES (1, 'x', 0.1), (2, NULL, '-0')")
            .await
            .unwrap();
        sink.run(
            "CREATE TABLE t (c float8, b text, a int); INSERT INTO t VALUES ('-0', NULL, 2), (0.1, 'x', 1)",
        )
        .await
        .unwrap();
        let pairs = [TablePair::same("public.t")];
        let compared = compare(&source, &sink, &pairs).await.unwrap();
        assert!(compared[0].is_equal(), "{}", compared[0]);
        assert_eq!(compared[0].source.rows, 2);

        for (change, what) in [
            ("UPDATE t SET c = 0.0 WHERE a = 2", "minus zero is not zero"),
            ("UPDATE t SET b = '' WHERE a = 2", "empty text is not NULL"),
            ("INSERT INTO t VALUES (7, 7, 7), (7, 7, 7)", "equal rows do not cancel out"),
            ("DELETE FROM t WHERE a = 1", "a missing row"),
            ("ALTER TABLE t ADD d int", "another column"),
        ] {
            sink.run(&format!("CREATE TABLE kept AS TABLE t; {change}")).await.unwrap();
            let compared = compare(&source, &sink, &pairs).await.unwrap();
            assert!(!compared[0].is_equal(), "{what}");
            sink.run("DROP TABLE t; ALTER TABLE kept RENAME TO t").await.unwrap();
            assert!(compare(&source, &sink, &pairs).await.unwrap()[0].is_equal());
        }
    }

    #[tokio::test]
    async fn differing_rows_are_shown() {
        let server = Server::start(Version::V17).await.unwrap();
        let (source, sink) = pair_of_databases(&server).await;
        source.run("CREATE TABLE t (a int); INSERT INTO t VALUES (1), (2), (2)").await.unwrap();
        sink.run("CREATE TABLE t (a int); INSERT INTO t VALUES (2), (3)").await.unwrap();
        let error = wait_until_equal(&source, &sink, &[TablePair::same("public.t")], Duration::ZERO)
            .await
            .unwrap_err();
        let text = format!("{error:#}");
        for line in ["source has (1)", "source has (2)", "sink has (3)"] {
            assert!(text.contains(line), "{text}");
        }
        // The connections can be used again after an error.
        assert!(compare(&source, &sink, &[TablePair::same("missing")]).await.is_err());
        compare(&source, &sink, &[TablePair::same("public.t")]).await.unwrap();
    }
}
