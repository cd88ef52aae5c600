//! The exchange of a pipeline's tables: the lineage that rises gets the names that readers know, and the one that falls keeps
//! its tables beside them. One transaction, sent as one message: it happened, or it did not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use penstock_crds::report::Reason;
use tokio::time::sleep;
use tokio_postgres::Error;
use tokio_postgres::error::SqlState;

use super::barrier_registry::BarrierId;
use super::dependents::{self, Dependents, Replaced};
use super::error::failed;
use super::layout::{Role, schema_beside};
use super::outcome::{HoldEnd, abort};
use super::session::{self, Purpose};
use crate::change::table::{TableName, quote_identifier, quote_literal};
use crate::failure::Failure;
use crate::lineage::Lineage;
use crate::postgres::{Endpoint, Session};

/// How long readers may wait for one attempt: for its locks, and for what it does with them.
const ATTEMPT_MAX_MS: u32 = 1_000;
/// How long it waits for one lock that readers queue behind. Less than PostgreSQL's `deadlock_timeout`: where it and a reader
/// wait for each other, it is the one to give up.
const LOCK_MAX_MS: u32 = 300;
/// How long it waits for autovacuum to give way, which takes it as long as `deadlock_timeout`. Readers do not wait meanwhile.
const GIVE_WAY_MAX_MS: u32 = 3_000;
/// Between two attempts at one hold.
const AGAIN_AFTER: Duration = Duration::from_millis(50);
const DOING: &str = "exchanging tables";

/// Which lineages exchange their tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// It gets the tables that readers know.
    pub rises: Lineage,
    /// What it is until then.
    pub is: Role,
    /// It has them.
    pub falls: Lineage,
    /// What that one is afterwards.
    pub becomes: Role,
}

/// What was found before: the tables, and what hangs on them.
#[derive(Clone, Debug)]
pub struct Prepared {
    exchange: Exchange,
    /// Names as readers know them, with the schema of each side that is not theirs.
    tables: Vec<Exchanged>,
    /// What the sink says of them, as one text.
    listed: String,
    dependents: Dependents,
}

/// A table that one of the lineages, or both have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Exchanged {
    live: TableName,
    /// Where the one that rises has it; `None`: it has none.
    rises_from: Option<TableName>,
    /// Whether the one that falls has it.
    falls: bool,
}

impl Prepared {
    /// Looks at both sides. Nothing is changed.
    ///
    /// # Errors
    /// `SinkTableMismatch`: something that hangs on a table cannot follow; the message names all of it. `SinkDiverged`: a
    /// table of one side is not copied. The sink does not answer or refuses.
    pub async fn look(endpoint: &Endpoint, exchange: Exchange) -> Result<Self, Failure> {
        let session = session::open(endpoint, "penstock exchange", Purpose::Control).await?;
        let (tables, listed) = read_tables(&session, &exchange).await?;
        if let Some(table) = tables.iter().find(|table| !table.falls || table.rises_from.is_none()) {
            let message = format!(
                "The table {} is one that only one of the two revisions has. Tables are exchanged only where both have the same ones, under \
                 the same names.",
                table.live
            );
            return Err(Failure::new(Reason::SinkTableMismatch, message));
        }
        let dependents = dependents::read(&session.client, &replaced(&tables))
            .await
            .map_err(|error| failed(&error, DOING))?;
        session.close().await;
        if dependents.obstacles.is_empty() {
            return Ok(Self { exchange, tables, listed, dependents });
        }
        let message = format!(
            "The sink tables cannot be exchanged, because what hangs on them cannot follow: {}. Remove it, or make it depend on a \
             view of the table instead of the table.",
            dependents.obstacles.join("; ")
        );
        Err(Failure::new(Reason::SinkTableMismatch, message))
    }

    /// Key of the lineage that gets the tables.
    pub fn rises(&self) -> &str {
        self.exchange.rises.key()
    }

    /// Key of the lineage that has them.
    pub fn falls(&self) -> &str {
        self.exchange.falls.key()
    }

    /// Exchanges the tables at a hold that every shard of both lineages has come to; tries again while there is time.
    ///
    /// # Errors
    /// The sink does not answer, so nobody knows whether it happened: ask again with [`outcome_of`]. Every other failure has
    /// ended the hold without an exchange.
    pub async fn carry_out(&self, endpoint: &Endpoint, hold: &BarrierId) -> Result<HoldEnd, Failure> {
        let session = session::open(endpoint, "penstock exchange", Purpose::Control).await?;
        let script = self.script(hold);
        let began = Instant::now();
        let outcome = loop {
            let error = match session.batch_execute(&script).await {
                Ok(()) => {
                    tracing::info!(ms = began.elapsed().as_secs_f64() * 1e3, "the tables are exchanged");
                    break Ok(HoldEnd::Promoted);
                }
                Err(error) => error,
            };
            if error.as_db_error().is_none() {
                return Err(failed(&error, DOING));
            }
            session.batch_execute("ROLLBACK").await.map_err(|error| failed(&error, DOING))?;
            if !passes(&error) {
                break Err(failed(&error, DOING));
            }
            tracing::info!("the tables are not exchanged yet: {error}");
            sleep(AGAIN_AFTER).await;
        };
        match outcome {
            Ok(end) => Ok(end),
            Err(failure) => {
                let end = abort(&session.client, hold).await.map_err(|error| failed(&error, DOING))?;
                if end == HoldEnd::Promoted { Ok(end) } else { Err(failure) }
            }
        }
    }

    /// Everything in one message: no round trip lies between the first lock and the commit.
    fn script(&self, hold: &BarrierId) -> String {
        let Self { exchange: Exchange { rises, falls, becomes, .. }, tables, dependents, .. } = self;
        let live = |wanted: fn(&Exchanged) -> bool| tables.iter().filter(move |table| wanted(table));
        let mut sql = vec![
            "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE".to_owned(),
            format!(
                "SET LOCAL lock_timeout = '{GIVE_WAY_MAX_MS}ms'; SET LOCAL statement_timeout = '{GIVE_WAY_MAX_MS}ms'; \
                 SET LOCAL idle_in_transaction_session_timeout = '{ATTEMPT_MAX_MS}ms'; SET LOCAL synchronous_commit = on"
            ),
            // First, and in this order, as every transaction of a worker does.
            format!(
                "SELECT FROM penstock.checkpoint WHERE uid IN ({}, {}) ORDER BY uid, shard FOR NO KEY UPDATE",
                quote_literal(rises.key()),
                quote_literal(falls.key())
            ),
            self.checks(hold),
        ];
        let live_schemas: BTreeSet<&str> = tables.iter().map(|table| table.live.schema.as_str()).collect();
        for schema in &live_schemas {
            sql.push(format!(
                "CREATE SCHEMA IF NOT EXISTS {}",
                quote_identifier(&schema_beside(falls, schema))
            ));
        }
        sql.extend(self.locks(hold));
        let moved = |table: &str, schema: &str| {
            format!("ALTER TABLE {table} SET SCHEMA {}", quote_identifier(schema))
        };
        for Exchanged { live, .. } in live(|table| table.falls) {
            sql.push(moved(&live.quoted(), &schema_beside(falls, &live.schema)));
        }
        for table in tables {
            if let Some(from) = &table.rises_from {
                sql.push(moved(&from.quoted(), &table.live.schema));
            }
        }
        let emptied: BTreeSet<&str> =
            tables.iter().filter_map(|table| Some(table.rises_from.as_ref()?.schema.as_str())).collect();
        sql.extend(emptied.into_iter().map(drop_if_empty));
        sql.extend(dependents.to_follow.iter().cloned());
        for table in tables {
            sql.extend(self.notes_of(table));
        }
        for schema in live_schemas {
            sql.extend(self.layout_of(schema));
        }
        sql.push(format!(
            "UPDATE penstock.lineage SET role = CASE WHEN key = {} THEN 'stable' ELSE {} END WHERE key IN ({0}, {})",
            quote_literal(rises.key()),
            quote_literal(becomes.word()),
            quote_literal(falls.key())
        ));
        sql.push(format!(
            "UPDATE penstock.checkpoint SET layout = layout + 1 WHERE uid IN ({}, {})",
            quote_literal(rises.key()),
            quote_literal(falls.key())
        ));
        sql.push(in_time(hold));
        sql.push("COMMIT".to_owned());
        sql.join(";\n")
    }

    /// All that is exchanged is locked, and what came before the locks were there is seen then.
    fn locks(&self, hold: &BarrierId) -> Vec<String> {
        let Self { tables, dependents, .. } = self;
        let falling = tables.iter().filter(|table| table.falls).map(|table| table.live.quoted());
        let rising = tables.iter().filter_map(|table| Some(table.rises_from.as_ref()?.quoted()));
        let mut locked: Vec<String> = falling.chain(rising).collect();
        locked.sort();
        let lock =
            |mode: &'static str| move |table: &String| format!("LOCK TABLE ONLY {table} IN {mode} MODE");
        // Autovacuum gives way to these, which readers do not wait for, and comes no more.
        let mut sql: Vec<String> = locked.iter().map(lock("SHARE UPDATE EXCLUSIVE")).collect();
        sql.push(format!(
            "SET LOCAL lock_timeout = '{LOCK_MAX_MS}ms'; SET LOCAL statement_timeout = '{ATTEMPT_MAX_MS}ms'; \
             SELECT pg_catalog.set_config('penstock.began', pg_catalog.clock_timestamp()::pg_catalog.text, true)"
        ));
        // Views first: a reader has the lock of the view when it asks for that of the table.
        sql.extend(dependents.to_lock.iter().cloned());
        sql.extend(locked.iter().map(lock("ACCESS EXCLUSIVE")));
        sql.push(self.checks_under_lock(hold));
        sql
    }

    /// Raises an exception unless everything is as it was looked at, every shard waits at the hold, and nobody gave it up.
    fn checks(&self, hold: &BarrierId) -> String {
        let Self { exchange: Exchange { rises, is, falls, .. }, listed, .. } = self;
        let body = CHECKS
            .replace("{uid}", &quote_literal(&hold.uid))
            .replace("{nonce}", &quote_literal(&hold.nonce.to_string()))
            .replace("{rises}", &quote_literal(rises.key()))
            .replace("{falls}", &quote_literal(falls.key()))
            .replace("{is}", &quote_literal(is.word()))
            .replace("{tables}", &quote_literal(listed))
            .replace("{list}", &list_sql(&self.exchange));
        format!("DO {}", quote_literal(&body))
    }

    /// Raises an exception if what hangs on the tables is not what was looked at, or readers have waited too long.
    fn checks_under_lock(&self, hold: &BarrierId) -> String {
        let body = format!(
            "BEGIN IF ({}) IS DISTINCT FROM {} THEN RAISE EXCEPTION 'what hangs on the tables has changed'; END IF; END",
            dependents::fingerprint(&replaced(&self.tables)),
            quote_literal(&self.dependents.fingerprint)
        );
        format!("DO {};\n{}", quote_literal(&body), in_time(hold))
    }

    /// Where a table is from now on, for both sides. The one that falls makes room first.
    fn notes_of(&self, table: &Exchanged) -> Vec<String> {
        let Exchange { rises, falls, .. } = &self.exchange;
        let (name, live) = (quote_literal(&table.live.name), quote_literal(&table.live.schema));
        let move_to = |lineage: &Lineage, from: &str, to: &str| {
            let key = quote_literal(lineage.key());
            ["table_state", "ownership"].map(|kept| {
                format!(
                    "UPDATE penstock.{kept} SET sink_schema = {to} WHERE uid = {key} AND (sink_schema, sink_table) = ({from}, {name})"
                )
            })
        };
        let mut sql = Vec::new();
        if table.falls {
            sql.extend(move_to(falls, &live, &quote_literal(&schema_beside(falls, &table.live.schema))));
        }
        if let Some(from) = &table.rises_from {
            sql.extend(move_to(rises, &quote_literal(&from.schema), &live));
        }
        sql
    }

    fn layout_of(&self, live: &str) -> [String; 2] {
        let Exchange { rises, falls, .. } = &self.exchange;
        let put = |lineage: &Lineage, schema: &str| {
            format!(
                "INSERT INTO penstock.layout (key, live_schema, schema) VALUES ({}, {}, {}) \
                 ON CONFLICT (key, live_schema) DO UPDATE SET schema = excluded.schema",
                quote_literal(lineage.key()),
                quote_literal(live),
                quote_literal(schema)
            )
        };
        [put(rises, live), put(falls, &schema_beside(falls, live))]
    }
}

/// The tables that readers know, each with the schema of the one that takes its place.
fn replaced(tables: &[Exchanged]) -> Vec<Replaced<'_>> {
    let falling = tables.iter().filter(|table| table.falls);
    falling.map(|table| (&table.live, table.rises_from.as_ref().map(|from| from.schema.as_str()))).collect()
}

/// Raises what the next attempt may not meet, if this one has kept readers, or the shards, waiting for too long.
fn in_time(hold: &BarrierId) -> String {
    let body = format!(
        "BEGIN IF pg_catalog.clock_timestamp() - pg_catalog.current_setting('penstock.began')::pg_catalog.timestamptz \
             > '{ATTEMPT_MAX_MS} ms'::pg_catalog.interval OR EXISTS (SELECT FROM penstock.barrier \
             WHERE uid = {} AND nonce = {} AND expires_at < pg_catalog.clock_timestamp()) \
         THEN RAISE EXCEPTION 'readers have waited for too long' USING ERRCODE = 'lock_not_available'; END IF; END",
        quote_literal(&hold.uid),
        quote_literal(&hold.nonce.to_string())
    );
    format!("DO {}", quote_literal(&body))
}

/// A schema that somebody put something else into stays.
fn drop_if_empty(schema: &str) -> String {
    let body = format!(
        "BEGIN IF NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS d JOIN pg_catalog.pg_namespace AS n ON n.oid = d.refobjid \
             WHERE d.refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass AND n.nspname = {}) \
         THEN DROP SCHEMA {}; END IF; END",
        quote_literal(schema),
        quote_identifier(schema)
    );
    format!("DO {}", quote_literal(&body))
}

/// What became of a hold after the connection of whoever exchanged the tables was lost: it is ended, unless it happened.
///
/// # Errors
/// The sink does not answer.
pub async fn outcome_of(endpoint: &Endpoint, hold: &BarrierId) -> Result<HoldEnd, Failure> {
    let session = session::open(endpoint, "penstock exchange", Purpose::Control).await?;
    let end = abort(&session.client, hold).await.map_err(|error| failed(&error, DOING))?;
    session.close().await;
    Ok(end)
}

/// Somebody has a lock, or a transaction came in between: the next attempt may find it gone.
fn passes(error: &Error) -> bool {
    let passing = [
        SqlState::LOCK_NOT_AVAILABLE,
        SqlState::QUERY_CANCELED,
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::T_R_SERIALIZATION_FAILURE,
    ];
    error.code().is_some_and(|code| passing.contains(code))
}

const CHECKS: &str = "BEGIN
    UPDATE penstock.barrier SET outcome = 'promoted'
    WHERE uid = {uid} AND nonce = {nonce} AND kind = 'hold' AND outcome IS NULL AND expires_at > pg_catalog.clock_timestamp();
    IF NOT FOUND THEN RAISE EXCEPTION 'the shards do not wait any longer'; END IF;
    IF EXISTS (SELECT FROM penstock.checkpoint AS c WHERE uid IN ({rises}, {falls}) AND NOT EXISTS (
            SELECT FROM penstock.barrier_arrival AS a
            WHERE (a.uid, a.nonce) = ({uid}, {nonce}::pg_catalog.uuid) AND (a.key, a.shard, a.epoch) = (c.uid, c.shard, c.epoch)))
       OR EXISTS (SELECT uid FROM penstock.checkpoint WHERE uid IN ({rises}, {falls}) GROUP BY uid HAVING count(*) <> max(shards))
       THEN RAISE EXCEPTION 'a shard does not wait at the hold'; END IF;
    IF (SELECT pg_catalog.count(*) FROM penstock.lineage
        WHERE (key = {falls} AND role = 'stable') OR (key = {rises} AND role = {is})) <> 2
       THEN RAISE EXCEPTION 'the lineages have other roles by now'; END IF;
    IF ({list}) IS DISTINCT FROM {tables} THEN RAISE EXCEPTION 'the tables are others by now'; END IF;
END";

/// The tables of both sides, and what is kept about them as one text.
async fn read_tables(session: &Session, exchange: &Exchange) -> Result<(Vec<Exchanged>, String), Failure> {
    let error = |error: Error| failed(&error, "reading the tables that are to be exchanged");
    let listed: Option<String> =
        session.query_one(&list_sql(exchange), &[]).await.and_then(|row| row.try_get(0)).map_err(error)?;
    let sql = "SELECT state.uid = $1, state.state = 'ready', state.sink_schema, state.sink_table, \
                   coalesce(layout.live_schema, state.sink_schema), state.source_schema || '.' || state.source_table \
               FROM penstock.table_state AS state LEFT JOIN penstock.layout AS layout \
                 ON (layout.key, layout.schema) = (state.uid, state.sink_schema) \
               WHERE state.uid IN ($1, $2)";
    let rows = session.query(sql, &[exchange.rises.key(), exchange.falls.key()]).await.map_err(error)?;
    let mut tables: BTreeMap<TableName, Exchanged> = BTreeMap::new();
    for row in &rows {
        let read = || -> Result<(bool, bool, TableName, String, String), Error> {
            let at = TableName::new(row.try_get::<_, String>(2)?, row.try_get::<_, String>(3)?);
            Ok((row.try_get(0)?, row.try_get(1)?, at, row.try_get(4)?, row.try_get(5)?))
        };
        let (rises, is_ready, at, live_schema, source) = read().map_err(error)?;
        if !is_ready {
            let whose =
                if rises { "the one that is to be promoted" } else { "the one that has the tables now" };
            let message = format!(
                "The table {source} is not copied yet by {whose}; tables are exchanged when all are."
            );
            return Err(Failure::new(Reason::SinkDiverged, message));
        }
        let live = TableName::new(live_schema, &at.name);
        let table =
            tables.entry(live.clone()).or_insert_with(|| Exchanged { live, rises_from: None, falls: false });
        if rises {
            table.rises_from = Some(at);
        } else {
            table.falls = true;
        }
    }
    Ok((tables.into_values().collect(), listed.unwrap_or_default()))
}

fn list_sql(exchange: &Exchange) -> String {
    format!(
        "SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', uid = {}, state = 'ready', ready_lsn, sink_oid, sink_schema, sink_table), ', ' \
             ORDER BY uid, sink_schema COLLATE pg_catalog.\"C\", sink_table COLLATE pg_catalog.\"C\") \
         FROM penstock.table_state WHERE uid IN ({0}, {})",
        quote_literal(exchange.rises.key()),
        quote_literal(exchange.falls.key())
    )
}
