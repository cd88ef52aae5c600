//! A table of people, what is done to it, and what the sink must then hold, as the source itself computes it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};
use penstock_e2e::postgres::{Server, Version};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::common::{Rig, Worker};

pub(crate) const STREAMING: &str = "\"message\":\"streaming\"";
pub(crate) const COPIED_AGAIN: &str = "SnapshotRestarted";
/// Key of the masks, and how a worker on a laptop gets it.
pub(crate) const KEY: &str = "key of these tests, in bytes";
pub(crate) const WITH_KEY: [(&str, &str); 1] = [("PENSTOCK_MASK_KEY_PII", KEY)];

/// Values that are looked for in the sink begin with this word.
pub(crate) const CLEAR: &str = "clear";

pub(crate) const PEOPLE: &str = "
    CREATE TABLE people (id int PRIMARY KEY, mail text NOT NULL DEFAULT 'clear default', phone varchar(30), size int NOT NULL,
        token uuid, note text, body text);
    ALTER TABLE people ALTER COLUMN body SET STORAGE EXTERNAL;
    INSERT INTO people SELECT g, 'clear' || g || '@example.com', CASE WHEN g % 3 > 0 THEN 'clear +49 ' || g END, g * 7,
        md5(g::text)::uuid, 'clear note ' || g, 'clear body ' || repeat(md5(g::text), 100) FROM generate_series(1, 300) g";

/// What is done to it: everything that can be.
pub(crate) fn people_transform() -> Value {
    json!({
        "tables": ["public.people"],
        "renameTable": "persons",
        "dropColumns": ["note"],
        "renameColumns": {"size": "height"},
        "maskColumns": [
            {"columns": ["mail", "token"], "hash": {"keySecret": "pii"}},
            {"columns": ["phone"], "redact": {}},
            {"columns": ["body"], "truncate": {"length": 2}},
        ],
    })
}

/// The same, computed by the source.
pub(crate) const EXPECTED: &str = "SELECT id, masked(mail) AS mail, CASE WHEN phone IS NOT NULL THEN '***' END AS phone, \
    size AS height, masked(token::text) AS token, left(body, 2) AS body FROM people";

static SERVERS: OnceCell<(Arc<Server>, Arc<Server>)> = OnceCell::const_new();
static RIGS: AtomicU32 = AtomicU32::new(0);

/// Databases of their own on servers that all tests share; the source can compute masks.
pub(crate) async fn rig(tables: &[&str]) -> Result<Rig> {
    let start = || async {
        let source = Server::builder(Version::V15)
            .setting("max_replication_slots", "60")
            .setting("max_wal_senders", "60")
            .setting("wal_sender_timeout", "10s");
        anyhow::Ok((Arc::new(source.start().await?), Arc::new(Server::start(Version::V15).await?)))
    };
    let (source, sink) = SERVERS.get_or_try_init(start).await?.clone();
    let name = format!("transforms-{}", RIGS.fetch_add(1, Ordering::Relaxed));
    let rig = Rig::on(source, sink, &name, tables).await?;
    rig.on_source(&mask_function()).await?;
    Ok(rig)
}

/// A pipeline of `people` with these transforms, not started.
pub(crate) async fn people(transforms: Value) -> Result<Rig> {
    let mut rig = rig(&["public.people"]).await?;
    rig.on_source(PEOPLE).await?;
    rig.manifest["spec"]["transforms"] = transforms;
    Ok(rig)
}

pub(crate) fn policy(rig: &mut Rig, policy: &str) {
    rig.manifest["spec"]["sink"]["postgres"]["schemaChanges"] = json!(policy);
}

/// HMAC-SHA-256 as RFC 2104 writes it.
fn mask_function() -> String {
    let pad = |with: u8| {
        let mut block = KEY.as_bytes().to_vec();
        block.resize(64, 0);
        hex::encode(block.iter().map(|byte| byte ^ with).collect::<Vec<_>>())
    };
    format!(
        "CREATE FUNCTION masked(value text) RETURNS text LANGUAGE sql IMMUTABLE STRICT AS $$ SELECT encode(sha256('\\x{}'::bytea || \
         sha256('\\x{}'::bytea || convert_to(value, 'UTF8'))), 'hex') $$",
        pad(0x5c),
        pad(0x36)
    )
}

pub(crate) async fn streaming(rig: &Rig) -> Result<Worker> {
    let worker = rig.start_as(&WITH_KEY)?;
    worker.wait_for_output(STREAMING).await?;
    Ok(worker)
}

/// Waits until everything arrived; then the sink's table must be what the source computes.
pub(crate) async fn assert_is(rig: &Rig, expected: &str, sink_table: &str) -> Result<()> {
    rig.wait_for("SELECT count(*) FROM penstock.table_state WHERE state <> 'ready'", "0").await?;
    rig.wait_until_caught_up().await?;
    let columns = "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute \
                   WHERE attnum > 0 AND NOT attisdropped AND attrelid = ";
    rig.on_source(&format!("DROP VIEW IF EXISTS expected; CREATE VIEW expected AS {expected}")).await?;
    let list = rig.source_value(&format!("{columns} 'expected'::regclass")).await?;
    let sum = |table: &str| {
        format!(
            "SELECT count(*) || ' rows, hash ' || coalesce(sum(hashtextextended(ROW({list})::text, 7)), 0) FROM {table}"
        )
    };
    let (source, sink) = (rig.source_value(&sum("expected")).await?, rig.sink_value(&sum(sink_table)).await?);
    rig.on_source("DROP VIEW expected").await?;
    ensure!(source == sink, "{sink_table}: expected {source}, the sink has {sink}");
    Ok(())
}

/// Nothing of what is hidden is anywhere in the sink: in no table, neither the pipeline's nor its own.
pub(crate) async fn assert_nothing_is_clear(rig: &Rig) -> Result<()> {
    let tables = rig
        .sink_value(
            "SELECT string_agg(format('SELECT t::text FROM %I.%I AS t', schemaname, tablename), ' UNION ALL ') FROM pg_tables \
             WHERE schemaname NOT IN ('pg_catalog', 'information_schema')",
        )
        .await?;
    let found = rig
        .sink_value(&format!("SELECT coalesce(string_agg(left(row, 300), '; '), '') FROM ({tables}) AS rows (row) WHERE row LIKE '%{CLEAR}%'"))
        .await?;
    ensure!(found.is_empty(), "in the clear: {found}");
    let defaults = "SELECT coalesce(string_agg(pg_get_expr(adbin, adrelid), '; '), '') FROM pg_attrdef \
                    WHERE pg_get_expr(adbin, adrelid) LIKE '%clear%'";
    let found = rig.sink_value(defaults).await?;
    ensure!(found.is_empty(), "a default in the clear: {found}");
    Ok(())
}

/// The statements that the last failure of this reason told to run on the sink.
pub(crate) fn told(worker: &Worker, reason: &str) -> Result<String> {
    let message = message(worker, reason)?;
    let (_, statements) = message.split_once("Run on the sink: ").context(message.clone())?;
    let end = statements.rfind(';').context("statements")?;
    Ok(statements[..end].to_owned())
}

pub(crate) fn message(worker: &Worker, reason: &str) -> Result<String> {
    let output = worker.output()?;
    let mut lines = output.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let line = lines.find(|line| line["reason"] == reason).context("no such reason")?;
    Ok(line["message"].as_str().context("message")?.to_owned())
}

pub(crate) async fn halted(worker: &Worker, reason: &str) -> Result<()> {
    worker.wait_for_output(&format!("\"reason\":\"{reason}\"")).await
}

/// The worker's output since `from`.
pub(crate) fn since(worker: &Worker, from: usize) -> Result<String> {
    Ok(worker.output()?[from..].to_owned())
}

/// Runs `compare --source`, with the key in a file as a mounted Secret has it.
pub(crate) fn compare(rig: &Rig, key: &str) -> Result<(i32, Value)> {
    let folder = TempDir::new()?;
    std::fs::create_dir(folder.path().join("pii"))?;
    std::fs::write(folder.path().join("pii/key"), format!("{key}\n"))?;
    let keys = folder.path().to_str().context("path")?;
    let arguments = ["compare", "--source", "--format", "json", "--values", "--mask-keys-dir", keys];
    let output = tokio::task::block_in_place(|| rig.command(&arguments))?;
    let json = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    Ok((output.status.code().context("no exit code")?, json))
}
