//! Reading the rows that are there, in chunks, from many sessions at one snapshot.
//!
//! An old snapshot silently reads **no rows** of a table that was rewritten since (TRUNCATE, VACUUM FULL,
//! CLUSTER, most ALTER TYPE). So a leader session holds ACCESS SHARE on every table, which keeps rewrites out,
//! and the file of each table must be, before the first chunk and after the last, the one that the snapshot sees.
//!
//! A rewrite that comes meanwhile waits for the leader, and whoever needs the table after it waits for the rewrite.
//! Were a reader among those, all three would wait forever, and no deadlock would be detected: the leader waits for
//! nothing in the database. So a reader takes the same locks before it reads anything, and never waits for them.

use std::collections::BTreeMap;

use tokio_postgres::CopyOutStream;
use tokio_postgres::error::SqlState;
use tracing::debug;

use super::chunk::{Chunk, key_ends};
use super::error::SourceError;
use super::export::with_patience;
use super::slot::SlotName;
use crate::change::RelationId;
use crate::change::table::{SourceTable, TableName, quote_literal};
use crate::change::travel::Format;
use crate::incremental::KeyColumn;
use crate::postgres::{Endpoint, Session};

/// Bytes of a table that one chunk reads.
const CHUNK_BYTES: u64 = 16 * 1024 * 1024;

/// Tables that are being copied. Dropping it gives the tables up; [`prove`](Self::prove) says whether what was read of
/// one is whole.
#[derive(Debug)]
pub struct TableCopy {
    endpoint: Endpoint,
    slot: SlotName,
    leader: Session,
    /// The snapshot as the leader exports it to the readers.
    snapshot_name: String,
    /// Takes ACCESS SHARE on every table; nothing to do when there is none.
    lock: Option<String>,
    tables: BTreeMap<RelationId, TableName>,
    files: Files,
    block_bytes: u64,
}

/// The files that hold rows, by table of the pipeline; partitions each have their own.
type Files = BTreeMap<RelationId, Vec<File>>;

#[derive(Clone, Debug, PartialEq, Eq)]
struct File {
    relation: RelationId,
    /// Qualified and quoted.
    sql_name: String,
    size_bytes: u64,
}

impl TableCopy {
    pub(super) async fn open(
        endpoint: &Endpoint,
        slot: &SlotName,
        snapshot_name: &str,
        tables: &[SourceTable],
    ) -> Result<Self, SourceError> {
        let failed = |error: tokio_postgres::Error| SourceError::sql(&error, "opening the snapshot");
        let leader = open_session(endpoint, slot, snapshot_name).await?;
        let lock = lock_statement(tables);
        if let Some(lock) = &lock {
            let what = "the tables are copied when nobody holds them exclusively at the source";
            with_patience(leader.batch_execute(lock), what).await.map_err(failed)?;
        }
        let row = leader
            .query_one(
                "SELECT pg_catalog.pg_export_snapshot(), pg_catalog.current_setting('block_size')::int8",
                &[],
            )
            .await
            .map_err(failed)?;
        let tables = tables.iter().map(|table| (table.id, table.name.clone())).collect();
        let files = read_files(&leader, &tables).await?;
        Ok(Self {
            endpoint: endpoint.clone(),
            slot: slot.clone(),
            snapshot_name: row.get(0),
            block_bytes: u64::try_from(row.get::<_, i64>(1)).unwrap_or(8192).max(1),
            leader,
            lock,
            tables,
            files,
        })
    }

    /// The chunks of a table, of about 16 MiB each, together the whole table, whatever its size is by the time they are
    /// read: ranges of `key` where its rows lie in that order, else ranges of pages.
    pub async fn chunks(
        &self,
        table: &SourceTable,
        key: Option<&[KeyColumn]>,
    ) -> Result<Vec<Chunk>, SourceError> {
        let files = self.files.get(&table.id).map_or(&[][..], Vec::as_slice);
        if let ([file], Some(key), false) = (files, key, table.is_partitioned) {
            let pages = file.size_bytes.div_ceil(self.block_bytes);
            let count = pages.div_ceil(self.pages_per_chunk());
            let ends = key_ends(&self.leader, &file.sql_name, key, pages, count).await?;
            if !ends.is_empty() {
                return Ok(Chunk::of_key(table.id, &file.sql_name, key, ends));
            }
        }
        Ok(self.page_chunks(table.id, files))
    }

    fn page_chunks(&self, table: RelationId, files: &[File]) -> Vec<Chunk> {
        let pages_per_chunk = self.pages_per_chunk();
        files
            .iter()
            .flat_map(|file| {
                let pages = file.size_bytes.div_ceil(self.block_bytes);
                let count = pages.div_ceil(pages_per_chunk).max(1);
                (0..count).map(move |number| {
                    let end = (number + 1 < count).then(|| (number + 1) * pages_per_chunk);
                    Chunk::of_pages(table, &file.sql_name, number * pages_per_chunk, end)
                })
            })
            .collect()
    }

    fn pages_per_chunk(&self) -> u64 {
        (CHUNK_BYTES / self.block_bytes).max(1)
    }

    /// A session of its own at the same snapshot. One chunk is read on it at a time. Readers are opened before
    /// the first chunk is read: one that would have to wait for somebody's rewrite makes way for it.
    pub async fn reader(&self) -> Result<ChunkReader, SourceError> {
        let session = open_session(&self.endpoint, &self.slot, &self.snapshot_name).await?;
        if let Some(lock) = &self.lock {
            session.batch_execute(&format!("{lock} NOWAIT")).await.map_err(|error| {
                if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) {
                    SourceError::MadeWay
                } else {
                    SourceError::sql(&error, "opening the snapshot")
                }
            })?;
        }
        // From here on the lock of this session keeps rewrites out; the leader's may have gone with its connection.
        read_files(&session, &self.tables).await?;
        // A range of a key is to be read by its index, even if it is a large part of the table: else each range costs a
        // pass over the table.
        session
            .batch_execute("SET enable_seqscan = off")
            .await
            .map_err(|error| SourceError::sql(&error, "opening the snapshot"))?;
        Ok(ChunkReader { session })
    }

    /// Proves that every row of a table was there to be read: it has the partitions that it had, in the files that the
    /// snapshot sees. To be called when all its chunks are read, before their rows are believed.
    pub async fn prove(&self, table: &SourceTable) -> Result<(), SourceError> {
        let files = read_files(&self.leader, &BTreeMap::from([(table.id, table.name.clone())])).await?;
        let named = |files: &Files| -> Vec<RelationId> {
            files.get(&table.id).into_iter().flatten().map(|file| file.relation).collect()
        };
        if named(&files) != named(&self.files) {
            return Err(SourceError::Rewritten { table: table.name.clone(), what: "given other partitions" });
        }
        Ok(())
    }

    /// Gives the tables up.
    pub async fn close(self) -> Result<(), SourceError> {
        self.leader
            .batch_execute("COMMIT")
            .await
            .map_err(|error| SourceError::sql(&error, "ending the snapshot"))?;
        self.leader.close().await;
        Ok(())
    }
}

fn lock_statement(tables: &[SourceTable]) -> Option<String> {
    let names: Vec<String> = tables.iter().map(|table| table.name.quoted()).collect();
    (!names.is_empty()).then(|| format!("LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", ")))
}

/// A session at the snapshot. The empty `search_path` makes every printed name qualified.
pub(super) async fn open_session(
    endpoint: &Endpoint,
    slot: &SlotName,
    snapshot_name: &str,
) -> Result<Session, SourceError> {
    let session =
        endpoint.connect(slot.as_str()).await.map_err(|error| SourceError::connect(endpoint, &error))?;
    session
        .batch_execute(&format!(
            "SET search_path = ''; SET datestyle = 'ISO'; SET timezone = 'UTC'; SET bytea_output = 'hex'; \
             BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY; \
             SET TRANSACTION SNAPSHOT {}",
            quote_literal(snapshot_name)
        ))
        .await
        .map_err(|error| SourceError::sql(&error, "taking over the snapshot"))?;
    Ok(session)
}

/// The files of the tables. A query reads `pg_class` and `pg_inherits` as the snapshot sees them, while
/// `pg_relation_filenode` and `pg_partition_tree` say what is now; the two must agree.
async fn read_files(
    leader: &Session,
    tables: &BTreeMap<RelationId, TableName>,
) -> Result<Files, SourceError> {
    let ids: Vec<u32> = tables.keys().map(|id| id.0).collect();
    let rows = leader
        .query(
            "WITH RECURSIVE tree (root, id, kind) AS ( \
               SELECT c.oid, c.oid, c.relkind FROM pg_catalog.pg_class AS c WHERE c.oid = ANY ($1) \
               UNION ALL SELECT tree.root, c.oid, c.relkind FROM tree \
                 JOIN pg_catalog.pg_inherits AS i ON i.inhparent = tree.id \
                 JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid WHERE tree.kind = 'p'), \
             now (root, id) AS ( \
               SELECT tree.root, p.relid::oid FROM tree, \
                 LATERAL pg_catalog.pg_partition_tree(tree.root) AS p \
               WHERE tree.id = tree.root AND tree.kind = 'p' AND p.isleaf \
               UNION ALL SELECT root, id FROM tree WHERE tree.id = tree.root AND tree.kind <> 'p') \
             SELECT coalesce(seen.root, now.root), coalesce(seen.id, now.id), \
               seen.id IS NOT NULL AND now.id IS NOT NULL, \
               coalesce(c.relfilenode = pg_catalog.pg_relation_filenode(c.oid), false), \
               c.oid::regclass::text, coalesce(pg_catalog.pg_relation_size(c.oid), 0) \
             FROM (SELECT root, id FROM tree WHERE kind <> 'p') AS seen \
             FULL JOIN now ON now.root = seen.root AND now.id = seen.id \
             LEFT JOIN pg_catalog.pg_class AS c ON c.oid = seen.id \
             ORDER BY 1, 2",
            &[&ids],
        )
        .await
        .map_err(|error| SourceError::sql(&error, "looking at the files of the tables"))?;
    let mut files = Files::new();
    for row in rows {
        let root = RelationId(row.get(0));
        let rewritten = |what| match tables.get(&root) {
            Some(table) => SourceError::Rewritten { table: table.clone(), what },
            None => SourceError::Protocol("a file of a table that was not asked for".into()),
        };
        if !row.get::<_, bool>(2) {
            return Err(rewritten("given other partitions"));
        }
        if !row.get::<_, bool>(3) {
            return Err(rewritten("rewritten or dropped"));
        }
        let size_bytes = u64::try_from(row.get::<_, i64>(5)).unwrap_or_default();
        let file = File { relation: RelationId(row.get(1)), sql_name: row.get(4), size_bytes };
        files.entry(root).or_default().push(file);
    }
    check_all_seen(leader, tables, &files).await?;
    Ok(files)
}

/// A table that the snapshot does not know was made or dropped meanwhile. A partitioned table may have no files.
async fn check_all_seen(
    leader: &Session,
    tables: &BTreeMap<RelationId, TableName>,
    files: &Files,
) -> Result<(), SourceError> {
    let without: Vec<u32> = tables.keys().filter(|id| !files.contains_key(id)).map(|id| id.0).collect();
    let rows = leader
        .query("SELECT oid FROM pg_catalog.pg_class WHERE relkind = 'p' AND oid = ANY ($1)", &[&without])
        .await
        .map_err(|error| SourceError::sql(&error, "looking at the tables"))?;
    let known: Vec<u32> = rows.iter().map(|row| row.get(0)).collect();
    let unknown = without.iter().find(|id| !known.contains(id)).and_then(|id| tables.get(&RelationId(*id)));
    match unknown {
        Some(table) => Err(SourceError::Rewritten { table: table.clone(), what: "dropped or made anew" }),
        None => Ok(()),
    }
}

/// A session at the snapshot that reads chunks.
#[derive(Debug)]
pub struct ChunkReader {
    session: Session,
}

impl ChunkReader {
    /// Reads a chunk as COPY: in binary the header, one row per item, the trailer; in text one row per item. The bytes
    /// can be passed unchanged to a sink table that has these columns with these types. Generated columns are not
    /// named: they are not in the stream either.
    pub async fn read(
        &self,
        chunk: &Chunk,
        columns: &[String],
        format: Format,
    ) -> Result<CopyOutStream, SourceError> {
        let sql = chunk.copy_statement(columns, format);
        debug!(%sql, "reading a chunk");
        self.session
            .copy_out(&sql)
            .await
            .map_err(|error| SourceError::sql(&error, &format!("reading rows of {}", chunk.sql_name())))
    }

    /// Ends the session.
    pub async fn close(self) {
        self.session.close().await;
    }
}
