//! One end of a comparison: sessions that all see the same snapshot, and what is read on them.
//!
//! A table is locked against rewrites only while it is compared, and its parts are small: whoever waits to rewrite it
//! (a TRUNCATE that the worker applies, too) gets it within a part, and the table is compared again later. An old
//! snapshot silently reads no rows of a table that was rewritten since, so after the lock the files must be those that
//! the snapshot knows.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures::future::try_join_all;
use tokio::time::sleep;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Error, Row};
use tokio_util::task::AbortOnDropHandle;

use super::cell::Cell;
use super::changes::{Delta, Key};
use super::subject::{Buckets, Hashing, Projection, Subject};
use super::sums::Sums;
use crate::change::table::TableName;
use crate::failure::Failure;
use crate::postgres::{End, Endpoint, Session, classify};

/// Bytes of a table that one statement reads: what a rewrite waits for at most.
const PART_BYTES: i64 = 64 << 20;
/// Keys that one statement looks up.
const KEYS_PER_STATEMENT: usize = 500;
const LOOK_FOR_WAITERS_EVERY: Duration = Duration::from_millis(500);

/// One end, at one snapshot.
#[derive(Debug)]
pub(super) struct Side {
    end: End,
    endpoint: Endpoint,
    sessions: Vec<Session>,
}

/// Why a table cannot be compared now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unsettled {
    /// Perhaps at the next barrier.
    #[error("{0}")]
    Later(String),
    /// The end does not answer, or the statement makes no sense there.
    #[error(transparent)]
    Failed(#[from] Failure),
}

/// The end at which somebody waits for the table that is compared. Both ends give way to either: the one that has read its
/// parts holds its lock for as long as the other reads.
pub(super) type Awaited = Arc<OnceLock<End>>;

/// A part of a table, for FROM and WHERE, with the alias `t`.
type Part = String;

/// A table that is locked against rewrites while the value lives and [`unlock`](Self::unlock) is not called.
#[derive(Debug)]
pub(super) struct Locked<'a> {
    side: &'a Side,
    /// As SQL names it.
    table: String,
    parts: Vec<Part>,
    awaited: Awaited,
    _watch: AbortOnDropHandle<()>,
}

/// A row, or equal rows, by hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HashedRow {
    /// Its key, or the place of one of them.
    pub(super) name: Key,
    pub(super) hash: i64,
    pub(super) count: i64,
}

/// A row that was found by its key: key and values.
pub(super) type Found = BTreeMap<Key, Vec<Vec<Cell>>>;

impl Side {
    pub(super) fn new(end: End, endpoint: Endpoint, sessions: Vec<Session>) -> Self {
        Self { end, endpoint, sessions }
    }

    /// Ends the transactions, and with them the locks.
    pub(super) async fn close(self) {
        for session in self.sessions {
            session.close().await;
        }
    }

    /// Sets settings in every session, each by a statement of its own.
    pub(super) async fn set(&self, settings: &[(String, String)]) -> Result<(), Failure> {
        let sql = "SELECT pg_catalog.set_config($1, $2, false)";
        for session in &self.sessions {
            for (name, value) in settings {
                let set = session.execute(sql, &[name, value]).await;
                set.map_err(|error| self.failed(&error, "preparing to compare masked values"))?;
            }
        }
        Ok(())
    }

    /// The first session: for what is read once.
    pub(super) fn session(&self) -> Result<&Session, Failure> {
        let none =
            || Failure::new(self.end.unreachable(), format!("No session with the {} is open.", self.end));
        self.sessions.first().ok_or_else(none)
    }

    pub(super) fn failed(&self, error: &Error, doing: &str) -> Failure {
        classify(self.end, error, doing)
    }

    /// Locks a table against rewrites, and makes sure that none came since the snapshot.
    pub(super) async fn lock(
        &self,
        name: &TableName,
        is_partitioned: bool,
        projection: Option<&Projection>,
        awaited: &Awaited,
    ) -> Result<Locked<'_>, Unsettled> {
        let table = if is_partitioned { name.quoted() } else { format!("ONLY {}", name.quoted()) };
        let mut locked = 0;
        let taken = self.take_lock(&table, &mut locked).await;
        let files = match (taken, self.sessions.first()) {
            (Ok(()), Some(session)) => read_files(session, name, projection).await,
            (Ok(()), None) => Ok(None),
            (Err(error), _) => Err(error),
        };
        let why = match files {
            Ok(Some((oids, parts))) => {
                let awaited = Arc::clone(awaited);
                let watch = watch_for_waiters(self.end, self.endpoint.clone(), oids, Arc::clone(&awaited));
                let watch = AbortOnDropHandle::new(tokio::spawn(watch));
                let table = projection.map_or(table.clone(), |projection| projection.of(&table));
                return Ok(Locked { side: self, table, parts, awaited, _watch: watch });
            }
            Ok(None) => {
                let what = format!("at the {} it was rewritten, dropped or truncated meanwhile", self.end);
                Unsettled::Later(what)
            }
            Err(error) => self.later(&error, name),
        };
        self.roll_back(locked).await?;
        Err(why)
    }

    /// On every session: one that had to queue behind somebody who waits for another of them would wait forever.
    async fn take_lock(&self, table: &str, locked: &mut usize) -> Result<(), Error> {
        for session in &self.sessions {
            session.batch_execute("SAVEPOINT table_of_comparison").await?;
            *locked += 1;
            let lock = if *locked == 1 {
                format!("SET LOCAL lock_timeout = '2s'; LOCK TABLE {table} IN ACCESS SHARE MODE")
            } else {
                format!("LOCK TABLE {table} IN ACCESS SHARE MODE NOWAIT")
            };
            session.batch_execute(&lock).await?;
        }
        Ok(())
    }

    /// The first so many sessions are as they were before the table.
    async fn roll_back(&self, locked: usize) -> Result<(), Failure> {
        let sql = "ROLLBACK TO SAVEPOINT table_of_comparison; RELEASE SAVEPOINT table_of_comparison";
        for session in self.sessions.iter().take(locked) {
            session.batch_execute(sql).await.map_err(|error| self.failed(&error, "comparing tables"))?;
        }
        Ok(())
    }

    /// Whether the table's columns and keys are as they were at the snapshot. Statements find columns by the names of now, rows
    /// that an old snapshot reads through a new description may look like others, and without its key a row is not told from
    /// another.
    pub(super) async fn is_as_at_snapshot(&self, name: &TableName) -> Result<bool, Failure> {
        let sql = "SELECT pg_catalog.string_agg(pg_catalog.format('%s %s %s %s %s', a.attnum, a.attname, a.atttypid, a.xmin, ( \
                       SELECT pg_catalog.string_agg(label.xmin::text, ',' ORDER BY label.oid) \
                       FROM pg_catalog.pg_enum AS label WHERE label.enumtypid = a.atttypid)), ';' ORDER BY a.attnum) \
                       || (SELECT pg_catalog.concat(c.relreplident, pg_catalog.string_agg( \
                           pg_catalog.format('%s %s %s', i.indisprimary, i.indisreplident, i.indkey), ';' ORDER BY i.indisprimary, i.indkey::text)) \
                           FROM pg_catalog.pg_index AS i WHERE i.indrelid = c.oid AND (i.indisprimary OR i.indisreplident)) \
                   FROM pg_catalog.pg_attribute AS a JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid \
                   JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
                   WHERE a.attnum > 0 AND n.nspname = $1::text::name AND c.relname = $2::text::name GROUP BY c.oid, c.relreplident";
        let doing = format!("looking at the columns of {name}");
        let failed = |error: Error| self.failed(&error, &doing);
        let now = self
            .endpoint
            .connect("penstock compare")
            .await
            .map_err(|error| error.failure(self.end, &self.endpoint.connection))?;
        let parameters: [&(dyn ToSql + Sync); 2] = [&name.schema, &name.name];
        let read = async |session: &Session| -> Result<Option<String>, Error> {
            session.query_opt(sql, &parameters).await?.map(|row| row.try_get(0)).transpose()
        };
        let at_snapshot = read(self.session()?).await.map_err(failed)?;
        let is_same = read(&now).await.map_err(failed)? == at_snapshot;
        now.close().await;
        Ok(is_same)
    }

    /// A statement about a table failed: unless the end is gone, it may be for what somebody did to the table.
    fn later(&self, error: &Error, name: &TableName) -> Unsettled {
        let failure = self.failed(error, &format!("comparing {name}"));
        if error.as_db_error().is_none() {
            return Unsettled::Failed(failure);
        }
        Unsettled::Later(failure.message)
    }

    /// Hashes of rows that are in no table.
    pub(super) async fn hash_rows(
        &self,
        subject: &Subject,
        hashing: Hashing,
        rows: &[Delta],
    ) -> Result<Vec<i64>, Unsettled> {
        let session = self.session()?;
        let failed = |error: Error| self.later(&error, &subject.name);
        let statement = session
            .prepare(&format!("SELECT {}", subject.hash_of_parameter(hashing)))
            .await
            .map_err(failed)?;
        let mut hashes = Vec::with_capacity(rows.len());
        for row in rows {
            let found = session.query_one(&statement, &[&row.values]).await.and_then(|row| row.try_get(0));
            hashes.push(found.map_err(failed)?);
        }
        Ok(hashes)
    }
}

impl Locked<'_> {
    /// Lets the table go.
    pub(super) async fn unlock(self) -> Result<(), Failure> {
        self.side.roll_back(self.side.sessions.len()).await
    }

    /// Rows and sums of hashes per bucket, without some keys.
    pub(super) async fn sums(
        &self,
        subject: &Subject,
        hashing: Hashing,
        buckets: &Buckets,
        excluded: &[&Key],
    ) -> Result<Sums, Unsettled> {
        let columns: Vec<Vec<&str>> = (0..subject.key.len())
            .map(|place| excluded.iter().filter_map(|key| key.get(place)).map(String::as_str).collect())
            .collect();
        let sums = Mutex::new(Sums::default());
        self.each_part(subject, async |session, part| {
            let parameters: Vec<&(dyn ToSql + Sync)> =
                columns.iter().map(|column| column as &(dyn ToSql + Sync)).collect();
            let rows = session.query(&subject.sums_sql(part, hashing, buckets), &parameters).await?;
            let mut sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
            for row in &rows {
                let (bucket, count, sum): (i64, i64, String) =
                    (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
                // A sum of 64-bit numbers over fewer rows than that many fits.
                sums.add(bucket, count, sum.parse().unwrap_or_default());
            }
            Ok(())
        })
        .await?;
        Ok(sums.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Key, hash and count of the rows in these buckets; where there is no key, the place of one with the hash.
    pub(super) async fn rows(
        &self,
        subject: &Subject,
        hashing: Hashing,
        buckets: &Buckets,
    ) -> Result<Vec<HashedRow>, Unsettled> {
        let found = Mutex::new(Vec::new());
        self.each_part(subject, async |session, part| {
            let rows = session.query(&subject.rows_sql(part, hashing, buckets), &[]).await?;
            let read = |row: &Row| {
                Ok(HashedRow { name: row.try_get(0)?, hash: row.try_get(1)?, count: row.try_get(2)? })
            };
            let rows = rows.iter().map(read).collect::<Result<Vec<_>, Error>>()?;
            found.lock().unwrap_or_else(PoisonError::into_inner).extend(rows);
            Ok(())
        })
        .await?;
        Ok(found.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// The rows with these keys.
    pub(super) async fn lookup(&self, subject: &Subject, keys: &[Key]) -> Result<Found, Unsettled> {
        let session = self.side.session()?;
        let mut found = Found::new();
        for keys in keys.chunks(KEYS_PER_STATEMENT) {
            self.give_way()?;
            let failed = |error: Error| self.side.later(&error, &subject.name);
            let rows = session.query(&subject.lookup_sql(&self.table, keys), &[]).await.map_err(failed)?;
            for row in rows {
                let key: Key = row.try_get(0).map_err(failed)?;
                let values: Vec<Option<&str>> = row.try_get(1).map_err(failed)?;
                let cells = values.into_iter().map(Cell::read).collect::<Option<Vec<_>>>();
                let cells = cells.ok_or_else(|| Unsettled::Later("a value could not be read".into()))?;
                found.entry(key).or_default().push(cells);
            }
        }
        Ok(found)
    }

    /// Does something with each part, on all sessions at a time.
    async fn each_part(
        &self,
        subject: &Subject,
        work: impl AsyncFn(&Session, &str) -> Result<(), Error>,
    ) -> Result<(), Unsettled> {
        let queue = Mutex::new(self.parts.iter().rev().collect::<Vec<_>>());
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let (next, work) = (&next, &work);
        let workers = self.side.sessions.iter().map(async |session| {
            while let Some(part) = next() {
                self.give_way()?;
                work(session, part).await.map_err(|error| self.side.later(&error, &subject.name))?;
            }
            Ok(())
        });
        try_join_all(workers).await.map(drop)
    }

    /// Somebody waits to rewrite the table.
    fn give_way(&self) -> Result<(), Unsettled> {
        match self.awaited.get() {
            Some(end) => Err(Unsettled::Later(format!("at the {end} somebody waited to rewrite it"))),
            None => Ok(()),
        }
    }
}

/// Looks again and again whether somebody waits for one of the tables alone. Whoever cannot look does not know: the
/// lock then lasts as long as the table is compared.
async fn watch_for_waiters(end: End, endpoint: Endpoint, oids: Vec<u32>, awaited: Awaited) {
    sleep(LOOK_FOR_WAITERS_EVERY).await;
    let Ok(session) = endpoint.connect("penstock compare").await else { return };
    let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_locks WHERE NOT granted AND locktype = 'relation' \
                   AND mode = 'AccessExclusiveLock' \
                   AND (relation = ANY ($1) OR relation IN (SELECT indexrelid FROM pg_catalog.pg_index WHERE indrelid = ANY ($1))) \
                   AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()))";
    while let Ok(row) = session.query_one(sql, &[&oids]).await {
        if row.get(0) {
            let _the_other_end_was_first = awaited.set(end);
            return;
        }
        sleep(LOOK_FOR_WAITERS_EVERY).await;
    }
}

/// Relations that hold the table's rows, itself included, and its parts; `None`: they are not those of the snapshot. A
/// query reads `pg_class` as the snapshot sees it, while `pg_relation_filenode` says what is now.
async fn read_files(
    session: &Session,
    name: &TableName,
    projection: Option<&Projection>,
) -> Result<Option<(Vec<u32>, Vec<Part>)>, Error> {
    let sql = "WITH RECURSIVE tree (id, kind) AS ( \
                 SELECT c.oid, c.relkind FROM pg_catalog.pg_class AS c \
                 JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
                 WHERE n.nspname = $1::text::name AND c.relname = $2::text::name AND c.relkind IN ('r', 'p') \
                 UNION ALL SELECT c.oid, c.relkind FROM tree JOIN pg_catalog.pg_inherits AS i ON i.inhparent = tree.id \
                 JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid WHERE tree.kind = 'p') \
               SELECT c.oid, c.relkind = 'p', pg_catalog.format('%I.%I', n.nspname, c.relname), \
                 c.relkind = 'p' OR pg_catalog.pg_relation_filenode(c.oid) IS NOT DISTINCT FROM c.relfilenode, \
                 CASE WHEN c.relkind = 'p' THEN 0 ELSE coalesce(pg_catalog.pg_relation_size(c.oid), 0) END, \
                 pg_catalog.current_setting('block_size')::int8 \
               FROM tree JOIN pg_catalog.pg_class AS c ON c.oid = tree.id \
               JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace ORDER BY c.oid";
    let rows = session.query(sql, &[&name.schema, &name.name]).await?;
    let (mut oids, mut parts) = (Vec::new(), Vec::new());
    for row in &rows {
        oids.push(row.try_get(0)?);
        if !row.try_get(3)? {
            return Ok(None);
        }
        if row.try_get(1)? {
            continue;
        }
        let (table, bytes, block): (String, i64, i64) = (row.try_get(2)?, row.try_get(4)?, row.try_get(5)?);
        let only = format!("ONLY {table}");
        let only = projection.map_or(only.clone(), |projection| projection.of(&only));
        let (pages, per_part) = (bytes / block.max(1) + 1, (PART_BYTES / block.max(1)).max(1));
        let count = (pages + per_part - 1) / per_part;
        parts.extend((0..count).map(|number| {
            let end = if number + 1 < count {
                format!(" AND t.ctid < '({},0)'::pg_catalog.tid", (number + 1) * per_part)
            } else {
                String::new()
            };
            format!("{only} AS t WHERE t.ctid >= '({},0)'::pg_catalog.tid{end}", number * per_part)
        }));
    }
    Ok((!oids.is_empty()).then_some((oids, parts)))
}
