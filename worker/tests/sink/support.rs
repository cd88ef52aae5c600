//! A database per test on one server, and short ways to say rows and tables.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use penstock_crds::connection::{PostgresConnection, Tls, TlsMode};
use penstock_crds::report::Reason;
use penstock_e2e::postgres::{Client, Server, Version};
use penstock_worker::batch::{Operation, UpdateRow};
use penstock_worker::change::table::{SourceColumn, SourceTable, TableName};
use penstock_worker::change::{
    Checkpoint, ColumnType, Lsn, OldRow, Position, Relation, RelationColumn, RelationId, ReplicaIdentity,
    Row, SourceIdentity, Steps, Value,
};
use penstock_worker::failure::Failure;
use penstock_worker::lineage::Lineage;
use penstock_worker::postgres::{Credentials, End, Endpoint, EndpointFiles};
use penstock_worker::sink::{self, FirstCopy, Owner, Sink, Started, TableMap, Writer};
use tokio::sync::OnceCell;
use uuid::Uuid;

static SERVER: OnceCell<Server> = OnceCell::const_new();
static DATABASES: AtomicU32 = AtomicU32::new(0);

/// The server that all tests share; its watchdog ends it with the process.
pub(crate) async fn server() -> &'static Server {
    SERVER.get_or_init(async || Server::start(Version::V15).await.unwrap()).await
}

/// A fresh database.
pub(crate) struct Database {
    pub(crate) name: String,
    pub(crate) sql: Client,
}

impl Database {
    pub(crate) async fn new() -> Self {
        let name = format!("test_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
        server().await.create_database(&name).await.unwrap();
        let sql = server().await.connect(&name).await.unwrap();
        Self { name, sql }
    }

    pub(crate) async fn with(sql: &str) -> Self {
        let database = Self::new().await;
        database.sql.run(sql).await.unwrap();
        database
    }

    pub(crate) async fn endpoint(&self) -> Endpoint {
        self.endpoint_at(server().await.port, "postgres")
    }

    pub(crate) fn endpoint_at(&self, port: u16, username: &str) -> Endpoint {
        Endpoint {
            end: End::Sink,
            connection: PostgresConnection {
                host: "127.0.0.1".into(),
                port,
                database: self.name.clone(),
                credentials_secret: "sink".into(),
                tls: Tls { mode: TlsMode::Disable, ca_secret: None, client_certificate_secret: None },
            },
            files: EndpointFiles {
                credentials: PathBuf::new(),
                tls: PathBuf::new(),
                environment: Some(Credentials { username: username.into(), password: String::from("none") }),
            },
        }
    }

    pub(crate) async fn start(&self, owner: Owner) -> (Sink, Started) {
        self.try_start(owner).await.unwrap()
    }

    pub(crate) async fn try_start(&self, owner: Owner) -> Result<(Sink, Started), Failure> {
        sink::start(self.endpoint().await, owner, TableMap::default(), &source()).await
    }

    /// A sink that runs, and a writer that knows the table `public.t` with the columns of `sql`.
    pub(crate) async fn writer(&self, relation: &Relation) -> (Sink, Writer) {
        let (sink, _) = self.start(owner()).await;
        let mut writer = sink.writer(0).await.unwrap();
        writer.describe(relation).await.unwrap();
        (sink, writer)
    }

    /// Rows as text, one line each.
    pub(crate) async fn lines(&self, sql: &str) -> Vec<String> {
        let cell = |cell: Option<String>| cell.unwrap_or_else(|| "NULL".into());
        let rows = self.sql.rows(sql).await.unwrap();
        rows.into_iter().map(|row| row.into_iter().map(cell).collect::<Vec<_>>().join("|")).collect()
    }

    pub(crate) async fn value(&self, sql: &str) -> String {
        self.sql.value(sql).await.unwrap()
    }
}

pub(crate) fn owner() -> Owner {
    Owner {
        lineage: Lineage::first("uid-a"),
        namespace: "shop".into(),
        name: "inventory".into(),
        revision: "r1".into(),
        revision_number: Some(1),
        shard: 0,
        shards: 1,
        volume_id: Uuid::nil(),
        adopt: None,
    }
}

pub(crate) fn other_owner() -> Owner {
    Owner { lineage: Lineage::first("uid-b"), name: "other".into(), ..owner() }
}

pub(crate) fn source() -> SourceIdentity {
    SourceIdentity { system_id: "7300000000000000001".into(), timeline: 1, slot: "penstock_a_0".into() }
}

/// A checkpoint after so many changes.
pub(crate) fn after(sequence: i64) -> Checkpoint {
    let lsn = Lsn(0x0100_0000 + sequence.cast_unsigned() * 16);
    let position = Position { commit_lsn: lsn, xid: 700, ordinal: 1 };
    Checkpoint { position, end_lsn: Lsn(lsn.0 + 8), sequence }
}

pub(crate) const T: RelationId = RelationId(16_400);
pub(crate) const INT4: u32 = 23;
pub(crate) const INT8: u32 = 20;
pub(crate) const TEXT: u32 = 25;
pub(crate) const JSON: u32 = 114;
pub(crate) const NUMERIC: u32 = 1700;

/// `public.t`; the first column is the key unless the identity says otherwise.
pub(crate) fn relation(replica_identity: ReplicaIdentity, columns: &[(&str, u32)]) -> Relation {
    let is_key = |place: usize| match replica_identity {
        ReplicaIdentity::Full => true,
        ReplicaIdentity::Nothing => false,
        ReplicaIdentity::Default | ReplicaIdentity::Index => place == 0,
    };
    let columns = columns
        .iter()
        .enumerate()
        .map(|(place, (name, type_oid))| RelationColumn {
            name: (*name).into(),
            type_oid: *type_oid,
            type_modifier: -1,
            is_key: is_key(place),
        })
        .collect();
    Relation { id: T, schema: "public".into(), name: "t".into(), replica_identity, columns }
}

/// `public.t(id bigint primary key, note text)`.
pub(crate) fn id_and_note() -> Relation {
    relation(ReplicaIdentity::Default, &[("id", INT8), ("note", TEXT)])
}

pub(crate) const CREATE_ID_AND_NOTE: &str = "CREATE TABLE t (id bigint PRIMARY KEY, note text)";

/// The modifier as the catalogue holds it, of the types that the tests use.
fn modifier(type_sql: &str) -> i32 {
    let Some((name, inner)) = type_sql.strip_suffix(')').and_then(|rest| rest.split_once('(')) else {
        return -1;
    };
    let numbers: Vec<i32> = inner.split(',').map(|number| number.parse().unwrap()).collect();
    match (name, numbers.as_slice()) {
        ("character varying", [length]) => length + 4,
        ("numeric", [precision, scale]) => (precision << 16) + scale + 4,
        _ => panic!("{type_sql}"),
    }
}

/// A table of the source; the first column is the primary key.
pub(crate) fn table(name: &str, columns: &[(&str, u32, &str)]) -> SourceTable {
    let key = columns.first().map(|(name, ..)| (*name).to_owned());
    SourceTable {
        id: T,
        name: TableName::new("public", name),
        columns: columns
            .iter()
            .map(|(name, type_oid, type_sql)| SourceColumn {
                name: (*name).into(),
                column_type: ColumnType::built_in(*type_oid, modifier(type_sql), *type_sql),
                is_not_null: Some(*name) == key.as_deref(),
                constant_default: None,
                generated: None,
                is_masked: false,
            })
            .collect(),
        replica_identity: ReplicaIdentity::Default,
        primary_key: key.iter().cloned().collect(),
        is_primary_key_deferrable: false,
        identity_columns: key.into_iter().collect(),
        is_partitioned: false,
        foreign_key_peers: Vec::new(),
        estimated_rows: 0,
        steps: Steps::default(),
    }
}

pub(crate) fn t() -> SourceTable {
    table("t", &[("id", INT8, "bigint"), ("note", TEXT, "text")])
}

/// Makes `public.t` through the sink and leaves it in the state `copying`.
pub(crate) async fn ensure(sink: &mut Sink, tables: &[SourceTable]) {
    sink.ensure_tables(tables, FirstCopy::Copied).await.unwrap();
}

pub(crate) fn int8(value: i64) -> Value {
    Value::Binary(Bytes::copy_from_slice(&value.to_be_bytes()))
}

pub(crate) fn int4(value: i32) -> Value {
    Value::Binary(Bytes::copy_from_slice(&value.to_be_bytes()))
}

pub(crate) fn text(value: &str) -> Value {
    Value::Binary(Bytes::copy_from_slice(value.as_bytes()))
}

pub(crate) fn row<const N: usize>(values: [Value; N]) -> Row {
    Row(values.into())
}

pub(crate) fn insert(rows: impl IntoIterator<Item = Row>) -> Operation {
    Operation::Insert { relation: T, rows: rows.into_iter().collect() }
}

pub(crate) fn update(rows: impl IntoIterator<Item = (OldRow, Row)>) -> Operation {
    let rows = rows.into_iter().map(|(old, new)| UpdateRow { old, new }).collect();
    Operation::Update { relation: T, rows }
}

pub(crate) fn delete(rows: impl IntoIterator<Item = OldRow>) -> Operation {
    Operation::Delete { relation: T, rows: rows.into_iter().collect() }
}

/// The key of `id_and_note`.
pub(crate) fn key(id: i64) -> OldRow {
    OldRow::Key(row([int8(id), Value::Null]))
}

pub(crate) fn note(id: i64, note: &str) -> Row {
    row([int8(id), text(note)])
}

pub(crate) fn assert_failed<T: std::fmt::Debug>(result: Result<T, Failure>, reason: Reason) -> String {
    let failure = result.unwrap_err();
    assert_eq!(failure.reason, reason, "{failure}");
    failure.message
}
