//! A slot and the snapshot that goes with it: what the snapshot sees and what the slot sends after it are
//! together every row, once.

use std::future::Future;
use std::time::Duration;

use penstock_crds::report::Reason;
use tokio::time::{Instant, interval_at};
use tracing::info;

use super::copy::TableCopy;
use super::error::SourceError;
use super::identity::parse_lsn;
use super::slot::SlotName;
use crate::change::Lsn;
use crate::change::table::SourceTable;
use crate::failpoint::{Point, reach};
use crate::failure::Failure;
use crate::postgres::{Endpoint, ReplicationConnection, ReplicationError, ServerError};

/// How often a wait is logged.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a slot lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Until it is dropped.
    Permanent,
    /// As long as the connection that made it, that is, as long as the [`ExportedSnapshot`].
    Temporary,
}

/// A snapshot that other sessions can take over while this value lives.
#[derive(Debug)]
pub struct ExportedSnapshot {
    /// Every transaction whose commit is before it is visible in the snapshot; the slot sends every later one.
    pub consistent_point: Lsn,
    /// What `SET TRANSACTION SNAPSHOT` takes.
    pub snapshot_name: String,
    pub(super) slot: SlotName,
    /// The server keeps the snapshot until the next command on this connection.
    pub(super) exporter: ReplicationConnection,
}

/// Makes a `pgoutput` slot and exports its snapshot. Waits until the transactions that are running have ended;
/// says so in the log. Two-phase decoding stays off. Where the server knows such slots, a permanent one is a failover
/// slot.
pub async fn create_slot(
    endpoint: &Endpoint,
    slot: &SlotName,
    durability: Durability,
) -> Result<ExportedSnapshot, SourceError> {
    let mut connection = endpoint
        .connect_replication(slot.as_str())
        .await
        .map_err(|error| SourceError::connect(endpoint, &error))?;
    let sql = match durability {
        Durability::Permanent if knows_failover(&mut connection).await? => {
            format!("CREATE_REPLICATION_SLOT {slot} LOGICAL pgoutput (SNAPSHOT 'export', FAILOVER true)")
        }
        // The older spelling of the options, which 14 to 18 all read.
        Durability::Permanent => format!("CREATE_REPLICATION_SLOT {slot} LOGICAL pgoutput EXPORT_SNAPSHOT"),
        Durability::Temporary => {
            format!("CREATE_REPLICATION_SLOT {slot} TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT")
        }
    };
    let what =
        format!("the slot {slot} is made when the transactions that are running at the source have ended");
    reach(Point::BeforeSlot)?;
    let rows = with_patience(connection.query(&sql), &what).await.map_err(|error| refused(error, slot))?;
    reach(Point::AfterSlot)?;
    let columns: Vec<String> = rows.into_iter().flatten().flatten().collect();
    let [_, consistent_point, snapshot_name, ..] = columns.as_slice() else {
        return Err(SourceError::Protocol("CREATE_REPLICATION_SLOT gave no snapshot".into()));
    };
    let consistent_point = parse_lsn(consistent_point)?;
    info!(%slot, lsn = %consistent_point, "replication slot created");
    Ok(ExportedSnapshot {
        consistent_point,
        snapshot_name: snapshot_name.clone(),
        slot: slot.clone(),
        exporter: connection,
    })
}

/// Whether slots can be carried over to a standby: from 17 on.
async fn knows_failover(connection: &mut ReplicationConnection) -> Result<bool, SourceError> {
    let sql = "SELECT pg_catalog.current_setting('server_version_num')::int >= 170000";
    let rows = connection
        .query(sql)
        .await
        .map_err(|error| SourceError::replication(error, "asking for the server's version"))?;
    Ok(rows.into_iter().flatten().flatten().next().as_deref() == Some("t"))
}

/// Has standbys get the slot as well, one that was made before the server could or by an older worker. It must not be
/// read at the moment.
pub async fn carry_to_standbys(endpoint: &Endpoint, slot: &SlotName) -> Result<(), SourceError> {
    let mut connection = endpoint
        .connect_replication(slot.as_str())
        .await
        .map_err(|error| SourceError::connect(endpoint, &error))?;
    connection
        .query(&format!("ALTER_REPLICATION_SLOT {slot} (FAILOVER true)"))
        .await
        .map_err(|error| SourceError::replication(error, "making its replication slot a failover slot"))?;
    info!(%slot, "the slot is carried over to standbys from now on");
    Ok(())
}

fn refused(error: ReplicationError, slot: &SlotName) -> SourceError {
    let ReplicationError::Server(error) = error else {
        return SourceError::replication(error, "making a replication slot");
    };
    let ServerError { code, message, .. } = &error;
    match code.as_str() {
        "42710" => {
            SourceError::SlotInUse { slot: slot.clone(), by: "a slot of that name exists already".into() }
        }
        "53400" => SourceError::Database(Failure::new(
            Reason::NoFreeReplicationSlot,
            format!(
                "The source has no free replication slot: {error}. Drop one that nobody needs or raise \
                 max_replication_slots and restart the server."
            ),
        )),
        "55000" if message.contains("wal_level") => SourceError::NotLogical("replica or minimal".into()),
        _ => SourceError::server(&error, "making a replication slot"),
    }
}

impl ExportedSnapshot {
    /// Opens the tables for copying, all at this snapshot. The result stands on its own: this value may be
    /// dropped afterwards.
    pub async fn open_copy(
        &self,
        endpoint: &Endpoint,
        tables: &[SourceTable],
    ) -> Result<TableCopy, SourceError> {
        TableCopy::open(endpoint, &self.slot, &self.snapshot_name, tables).await
    }
}

/// Waits for `future` and logs every 10 s that it still does.
pub(super) async fn with_patience<T>(future: impl Future<Output = T>, what: &str) -> T {
    let mut reminder = interval_at(Instant::now() + PATIENCE, PATIENCE);
    tokio::pin!(future);
    loop {
        tokio::select! {
            output = &mut future => return output,
            _ = reminder.tick() => info!("waiting: {what}"),
        }
    }
}
