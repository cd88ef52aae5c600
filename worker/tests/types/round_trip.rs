//! Every type, by the first load and by the stream, in both formats, between the versions that are supported.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use penstock_e2e::checker::{TablePair, wait_until_equal};
use penstock_e2e::postgres::{Client, Version};

use crate::common::{DATABASE, Rig};
use crate::samples::{
    BUILT_IN, BY_HAND, EXTENSIONS, MADE, MAKE, MAKE_BASE, MAKE_OF_BASE, MAKE_OF_EXTENSIONS, OF_EXTENSIONS,
    Sample,
};

/// A loaded machine takes long for hundreds of tables.
const PATIENCE: Duration = Duration::from_mins(5);
/// A B-tree holds no longer keys.
const KEY_BYTES_MAX: usize = 2000;

/// Built-in types whose binary form is not for every value.
const TEXT_ONLY: [&str; 3] = ["tsquery", "int2vector", "oidvector"];
const ODD_SETTINGS: [&str; 8] = [
    "datestyle = 'SQL, DMY'",
    "intervalstyle = 'iso_8601'",
    "timezone = 'Asia/Kolkata'",
    "extra_float_digits = -15",
    "bytea_output = 'escape'",
    "xmloption = 'document'",
    "array_nulls = off",
    "search_path = 'types'",
];
/// Composite types with attributes that PostgreSQL cannot compare.
const NOT_COMPARED: [&str; 2] = ["types.numbered", "types.tagged"];

/// What travels, and between which servers.
struct Course {
    rig: Rig,
    source: Client,
    sink: Client,
    oldest: Version,
    samples: Vec<Sample>,
    /// Schema of the tables in the sink.
    schema: &'static str,
    /// By number: whether the type can be a key.
    has_key: Vec<bool>,
}

impl Course {
    async fn new(source: Version, sink: Version, schema: &'static str) -> Result<Self> {
        let mut rig = Rig::between(source, sink, &["types.*"]).await?;
        rig.manifest["spec"]["sink"]["postgres"]["schemaMap"] = serde_json::json!({"types": schema});
        let (client, sink_client) = (rig.source.connect(DATABASE).await?, rig.sink.connect(DATABASE).await?);
        client.run("CREATE SCHEMA types; CREATE SCHEMA kept; CREATE TYPE types.filler AS (a int)").await?;
        client.run(MAKE).await?;
        // Where the operators of extensions are.
        client.run("SET search_path = pg_catalog, types").await?;
        let oldest = source.min(sink);
        let is_taken = |sample: &&Sample| sample.since <= oldest && !TEXT_ONLY.contains(&sample.type_sql);
        let samples = BUILT_IN.iter().chain(MADE).filter(is_taken).copied().collect();
        Ok(Self { rig, source: client, sink: sink_client, oldest, samples, schema, has_key: Vec::new() })
    }

    /// Adds what can only travel as text; everything else does so then.
    async fn with_types_made_by_hand(mut self) -> Result<Self> {
        let schema = self.schema;
        // What text looks like must not depend on them.
        for client in [&self.source, &self.sink] {
            for setting in ODD_SETTINGS {
                client.run(&format!("ALTER DATABASE {DATABASE} SET {setting}")).await?;
            }
        }
        self.source.run(MAKE_BASE).await?;
        self.source.run(MAKE_OF_BASE).await?;
        self.sink.run(&format!("CREATE SCHEMA \"{schema}\"")).await?;
        self.sink.run(&MAKE_BASE.replace("types.", &format!("\"{schema}\"."))).await?;
        self.samples.extend(BY_HAND);
        self.travel_as_text();
        Ok(self)
    }

    async fn with_extensions(mut self) -> Result<Self> {
        self.sink.run("CREATE SCHEMA extensions").await?;
        for extension in EXTENSIONS {
            self.source.run(&format!("CREATE EXTENSION {extension} SCHEMA types")).await?;
            self.sink.run(&format!("CREATE EXTENSION {extension} SCHEMA extensions")).await?;
        }
        self.source.run(MAKE_OF_EXTENSIONS).await?;
        self.samples.extend(OF_EXTENSIONS);
        self.travel_as_text();
        Ok(self)
    }

    /// Some types only do so; "char" is refused where its text is ambiguous.
    fn travel_as_text(&mut self) {
        self.samples.extend(BUILT_IN.iter().filter(|sample| TEXT_ONLY.contains(&sample.type_sql)));
        if self.oldest < Version::V16 {
            self.samples.retain(|sample| sample.type_sql != "\"char\"");
        }
    }

    /// Three tables per type: `t` with a key of its own, `f` named by its whole rows, `k` with the type as its key.
    async fn make_tables(&mut self) -> Result<()> {
        for (number, sample) in self.samples.iter().enumerate() {
            let type_sql = sample.type_sql;
            let run =
                async |sql: String| self.source.run(&sql).await.with_context(|| format!("{type_sql}: {sql}"));
            run(format!(
                "CREATE TABLE types.t{number} (id integer PRIMARY KEY, v {type_sql}, a {type_sql}[]); {}",
                fill(number, sample)
            ))
            .await?;
            run(format!(
                "CREATE TABLE types.f{number} (v {type_sql}, a {type_sql}[], n integer); \
                 ALTER TABLE types.f{number} REPLICA IDENTITY FULL; \
                 INSERT INTO types.f{number} SELECT v, a, id FROM types.t{number}, generate_series(1, 2)"
            ))
            .await?;
            let key = format!("CREATE TABLE types.k{number} (k {type_sql} PRIMARY KEY, n integer)");
            let has_key = match self.source.run(&key).await {
                Ok(()) => true,
                Err(error) if format!("{error:#}").contains("operator class") => false,
                Err(error) => return Err(error.context(type_sql)),
            };
            // A composite type has an operator class, and its attributes may have none.
            let has_key = has_key && !NOT_COMPARED.contains(&type_sql);
            self.has_key.push(has_key);
            if has_key {
                run(format!(
                    "INSERT INTO types.k{number} SELECT v, id FROM types.t{number} WHERE v IS NOT NULL \
                       AND pg_column_size(v) < {KEY_BYTES_MAX} ORDER BY id ON CONFLICT DO NOTHING; \
                     CREATE TABLE kept.k{number} AS TABLE types.k{number}"
                ))
                .await?;
            }
        }
        Ok(())
    }

    async fn change_tables(&self) -> Result<()> {
        for (number, sample) in self.samples.iter().enumerate() {
            let (t, f, k) =
                (format!("types.t{number}"), format!("types.f{number}"), format!("types.k{number}"));
            // Each row takes the values of another one; a few rows alone, and all together.
            let mut sql = format!(
                "INSERT INTO {t} SELECT id + 1000, v, a FROM {t}; INSERT INTO {t} SELECT id + 2000, v, a FROM {t} WHERE id = 1;
                 UPDATE {t} SET v = o.v, a = o.a FROM {t} AS o
                   WHERE {t}.id BETWEEN 1001 AND 1999 AND o.id = 1 + ({t}.id - 1000) % (SELECT count(*) FROM {t} WHERE id < 1000);
                 UPDATE {t} SET id = id + 5000 WHERE id % 4 = 3; DELETE FROM {t} WHERE id % 4 = 2;
                 INSERT INTO {f} SELECT v, a, n + 1000 FROM {f};
                 UPDATE {f} SET n = n + 1 WHERE n % 3 = 1;
                 UPDATE {f} SET v = o.v, a = o.a FROM {t} AS o WHERE n % 3 = 2 AND o.id = 1;
                 DELETE FROM {f} WHERE ctid IN (SELECT ctid FROM {f} ORDER BY n LIMIT 5);"
            );
            if self.has_key[number] {
                // The first key goes, the second one becomes it and goes on.
                write!(
                    sql,
                    "UPDATE {k} SET n = n + 10000;
                     DELETE FROM {k} WHERE n = (SELECT 10000 + n FROM kept.k{number} ORDER BY n LIMIT 1);
                     UPDATE {k} SET k = (SELECT k FROM kept.k{number} ORDER BY n LIMIT 1)
                       WHERE n = (SELECT 10000 + n FROM kept.k{number} ORDER BY n LIMIT 1 OFFSET 1);
                     UPDATE {k} SET n = n + 10000; DELETE FROM {k} WHERE n % 3 = 0;"
                )?;
            }
            self.source.run(&sql).await.with_context(|| format!("{}: {sql}", sample.type_sql))?;
        }
        Ok(())
    }

    fn tables(&self) -> Vec<String> {
        let tables = |number: usize| {
            let key = self.has_key[number].then(|| format!("k{number}"));
            [format!("t{number}"), format!("f{number}")].into_iter().chain(key)
        };
        (0..self.samples.len()).flat_map(tables).collect()
    }

    /// As text, and as what the type's own functions send.
    async fn assert_equal(&self, when: &str) -> Result<()> {
        let end = self.source.value("SELECT pg_current_wal_flush_lsn()").await?;
        let reached = format!("SELECT min(end_lsn) >= '{end}'::pg_lsn FROM penstock.checkpoint");
        let began = Instant::now();
        while self.sink.value(&reached).await.unwrap_or_default() != "t" && began.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let pairs: Vec<TablePair> = self
            .tables()
            .into_iter()
            .map(|table| TablePair {
                source: format!("types.{table}"),
                sink: format!("\"{}\".{table}", self.schema),
            })
            .collect();
        wait_until_equal(&self.source, &self.sink, &pairs, Duration::from_secs(10))
            .await
            .with_context(|| format!("as text, {when}"))?;
        for (number, sample) in self.samples.iter().enumerate().filter(|(_, sample)| is_built_in(sample)) {
            let sql = |schema: &str| {
                format!(
                    "SELECT md5(coalesce(string_agg(concat_ws(' ', id, record_send(ROW(v, a))), ',' ORDER BY id), '')) \
                     FROM \"{schema}\".t{number}"
                )
            };
            let (source, sink) =
                (self.source.value(&sql("types")).await?, self.sink.value(&sql(self.schema)).await?);
            ensure!(source == sink, "{}: other bytes are sent, {when}", sample.type_sql);
        }
        Ok(())
    }

    /// The whole way.
    async fn run(mut self) -> Result<()> {
        self.make_tables().await?;
        let worker = self.rig.start(0)?;
        let began = Instant::now();
        while !worker.output()?.contains("\"message\":\"streaming\"") {
            let output = worker.output()?;
            ensure!(
                began.elapsed() < PATIENCE && !output.contains("\"ERROR\""),
                "it does not stream: {output}"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.assert_equal("by the first load").await?;
        self.change_tables().await?;
        self.assert_equal("by the stream").await?;
        Ok(())
    }
}

fn is_built_in(sample: &Sample) -> bool {
    !sample.type_sql.contains('.')
}

/// Rows of `t`: each value with each kind of array, and NULLs.
fn fill(number: usize, sample: &Sample) -> String {
    let type_sql = sample.type_sql;
    let values: Vec<String> = sample.values.iter().map(|value| format!("({value})::{type_sql}")).collect();
    let first = values.first().cloned().unwrap_or_else(|| format!("NULL::{type_sql}"));
    let mut rows = Vec::new();
    for value in &values {
        rows.push(format!("({value}, ARRAY[{value}, {first}]::{type_sql}[])"));
        if sample.is_nullable {
            rows.push(format!("({value}, ARRAY[NULL, {value}, NULL]::{type_sql}[])"));
        }
        // Two dimensions, with bounds of their own.
        rows.push(format!("({value}, array_fill({value}, ARRAY[2, 2], ARRAY[-1, 3])::{type_sql}[])"));
        rows.push(format!("({value}, '{{}}'::{type_sql}[])"));
    }
    if sample.is_nullable {
        rows.push(format!("(NULL, NULL::{type_sql}[])"));
    }
    let rows = rows.join(", ");
    format!(
        "INSERT INTO types.t{number} SELECT row_number() OVER (), v, a FROM (VALUES {rows}) AS made (v, a)"
    )
}

async fn binary_between(source: Version, sink: Version) -> Result<()> {
    Course::new(source, sink, "types").await?.run().await
}

async fn text_between(source: Version, sink: Version) -> Result<()> {
    Course::new(source, sink, "Copy of \u{fc} types").await?.with_types_made_by_hand().await?.run().await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_arrives_in_binary_from_15_to_15() -> Result<()> {
    binary_between(Version::V15, Version::V15).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_arrives_in_binary_from_17_to_17() -> Result<()> {
    binary_between(Version::V17, Version::V17).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_arrives_in_binary_from_14_to_18() -> Result<()> {
    binary_between(Version::V14, Version::V18).await
}

/// Intervals may be infinite in 17 and must not in 16, so this is text.
#[tokio::test(flavor = "multi_thread")]
async fn every_type_arrives_from_18_to_16() -> Result<()> {
    binary_between(Version::V18, Version::V16).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_arrives_as_text_from_17_to_17() -> Result<()> {
    text_between(Version::V17, Version::V17).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_arrives_as_text_from_15_to_14() -> Result<()> {
    text_between(Version::V15, Version::V14).await
}

#[tokio::test(flavor = "multi_thread")]
async fn types_of_extensions_arrive_from_15_to_15() -> Result<()> {
    Course::new(Version::V15, Version::V15, "types").await?.with_extensions().await?.run().await
}
