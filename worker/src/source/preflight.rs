//! Everything that can be known to go wrong before anything starts.

use penstock_crds::source::PostgresSource;
use penstock_crds::table_pattern::TablePattern;
use tokio_postgres::Client;

use super::catalogue::{FoundTable, describe, find_tables};
use super::error::SourceError;
use super::identity::SourceIdentity;
use super::slot::SlotName;
use crate::change::table::{SourceTable, TableName, quote_identifier};

/// Major versions that can be read.
const VERSIONS: std::ops::RangeInclusive<u32> = 14..=18;

/// What was found.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// Which server.
    pub identity: SourceIdentity,
    /// The pipeline's tables by name, partitions left out.
    pub tables: Vec<SourceTable>,
}

/// Checks the server, the role and the tables. Leaves the session with an empty `search_path`, so that everything it
/// prints is qualified.
pub async fn preflight(
    client: &Client,
    spec: &PostgresSource,
    patterns: &[TablePattern],
) -> Result<Inspection, SourceError> {
    client
        .batch_execute("SET search_path = ''")
        .await
        .map_err(|error| SourceError::sql(&error, "preparing the session"))?;
    let server = ServerFacts::read(client).await?;
    server.check()?;
    let identity = SourceIdentity::read(client).await?;
    let found = find_tables(client, patterns).await?;
    let is_managed = spec.publication.is_none();
    check_privileges(&server, &found, is_managed)?;
    if is_managed {
        check_ownership(&server, &found)?;
    }
    let tables = describe(client, &found).await?;
    Ok(Inspection { identity, tables })
}

/// Checks that the stream can be read: while the slot does not exist, a free one is needed, and a free WAL sender
/// unless a predecessor's holds the slot.
pub async fn check_room(client: &Client, slot: &SlotName) -> Result<(), SourceError> {
    let row = client
        .query_one(
            "SELECT pg_catalog.current_setting('max_replication_slots')::int8, pg_catalog.count(*), \
               coalesce(pg_catalog.bool_or(slot_name = $1::text::name), false), \
               pg_catalog.current_setting('max_wal_senders')::int8, \
               (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_replication), \
               coalesce(pg_catalog.bool_or(slot_name = $1::text::name AND active), false) \
             FROM pg_catalog.pg_replication_slots",
            &[&slot.as_str()],
        )
        .await
        .map_err(|error| SourceError::sql(&error, "counting its replication slots"))?;
    let (max, used, is_there): (i64, i64, bool) = (row.get(0), row.get(1), row.get(2));
    if !is_there && used >= max {
        return Err(SourceError::NoFreeSlot { used, max });
    }
    let (max, used, is_active): (i64, i64, bool) = (row.get(3), row.get(4), row.get(5));
    // A sender that holds our slot is a predecessor's and will be ended.
    if !is_active && used >= max {
        return Err(SourceError::NoFreeWalSender { used, max });
    }
    Ok(())
}

/// What the server and the role can do.
struct ServerFacts {
    version: u32,
    version_text: String,
    wal_level: String,
    is_standby: bool,
    role: String,
    can_replicate: bool,
    database: String,
    can_create: bool,
}

impl ServerFacts {
    async fn read(client: &Client) -> Result<Self, SourceError> {
        let row = client
            .query_one(
                "SELECT pg_catalog.current_setting('server_version_num')::int8, \
                   pg_catalog.current_setting('server_version'), pg_catalog.current_setting('wal_level'), \
                   pg_catalog.pg_is_in_recovery(), r.rolname::text, \
                   r.rolsuper OR r.rolreplication OR EXISTS ( \
                     SELECT FROM pg_catalog.pg_roles AS managed WHERE managed.rolname = 'rds_replication' \
                     AND pg_catalog.pg_has_role(managed.oid, 'MEMBER')), \
                   pg_catalog.current_database()::text, \
                   pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE') \
                 FROM pg_catalog.pg_roles AS r WHERE r.rolname = current_user",
                &[],
            )
            .await
            .map_err(|error| SourceError::sql(&error, "reading its settings"))?;
        Ok(Self {
            version: u32::try_from(row.get::<_, i64>(0)).unwrap_or_default() / 10_000,
            version_text: row.get(1),
            wal_level: row.get(2),
            is_standby: row.get(3),
            role: row.get(4),
            can_replicate: row.get(5),
            database: row.get(6),
            can_create: row.get(7),
        })
    }

    fn check(&self) -> Result<(), SourceError> {
        if !VERSIONS.contains(&self.version) {
            return Err(SourceError::VersionUnsupported(self.version_text.clone()));
        }
        if self.is_standby {
            return Err(SourceError::Standby);
        }
        if self.wal_level != "logical" {
            return Err(SourceError::NotLogical(self.wal_level.clone()));
        }
        if !self.can_replicate {
            return Err(SourceError::ReplicationMissing { role: self.role.clone() });
        }
        Ok(())
    }
}

/// SELECT on every table and partition (each partition is read by itself), USAGE on their schemas, no policy
/// that hides rows, and CREATE on the database for a publication of our own.
fn check_privileges(server: &ServerFacts, found: &[FoundTable], is_managed: bool) -> Result<(), SourceError> {
    let role = quote_identifier(&server.role);
    let mut missing = Vec::new();
    let mut statements = Vec::new();
    let mut need = |lack: String, statement: String| {
        if !statements.contains(&statement) {
            missing.push(lack);
            statements.push(statement);
        }
    };
    if is_managed && !server.can_create {
        let database = quote_identifier(&server.database);
        need(
            format!("CREATE on database {}, for the publication", server.database),
            format!("GRANT CREATE ON DATABASE {database} TO {role}"),
        );
    }
    for table in found {
        let FoundTable { name, .. } = table;
        if !table.has_schema_usage {
            let schema = quote_identifier(&name.schema);
            need(
                format!("USAGE on schema {}", name.schema),
                format!("GRANT USAGE ON SCHEMA {schema} TO {role}"),
            );
        }
        if !table.has_select {
            need(format!("SELECT on {name}"), format!("GRANT SELECT ON {} TO {role}", name.quoted()));
        }
        if table.has_active_policy {
            need(
                format!("BYPASSRLS, because row-level security hides rows of {name}"),
                format!("ALTER ROLE {role} BYPASSRLS"),
            );
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(SourceError::PrivilegesMissing { role: server.role.clone(), missing, statements })
}

/// Only its owner can put a table into a publication.
fn check_ownership(server: &ServerFacts, found: &[FoundTable]) -> Result<(), SourceError> {
    let foreign: Vec<&FoundTable> =
        found.iter().filter(|table| table.is_chosen() && !table.is_owned).collect();
    if foreign.is_empty() {
        return Ok(());
    }
    let role = quote_identifier(&server.role);
    let mut statements: Vec<String> =
        foreign.iter().map(|table| format!("GRANT {} TO {role}", quote_identifier(&table.owner))).collect();
    statements.sort();
    statements.dedup();
    let tables: Vec<TableName> = foreign.iter().map(|table| table.name.clone()).collect();
    Err(SourceError::OwnershipMissing { role: server.role.clone(), tables, statements })
}
