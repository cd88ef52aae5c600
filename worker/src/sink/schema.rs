//! The schema `penstock` in the sink: made and moved forward by whichever worker comes first.

use penstock_crds::report::Reason;

use super::error::failed;
use crate::failure::Failure;
use crate::postgres::Session;

/// Serialises everything that makes or removes objects in the sink: advisory locks are per database.
pub(super) const DDL_LOCK: &str = "SELECT pg_catalog.pg_advisory_xact_lock(7308339910637985392)";

/// The steps forward, in order; step N makes version N. A step only adds what older workers can live with, or
/// raises `oldest_worker` to its own number.
const STEPS: &[Step] = &[
    Step { sql: include_str!("schema/0001_state.sql"), oldest_worker: 1 },
    // An older one does not look which role a lineage has.
    Step { sql: include_str!("schema/0002_lineages.sql"), oldest_worker: 2 },
];

struct Step {
    sql: &'static str,
    /// A worker that knows fewer steps than this cannot use the schema any more.
    oldest_worker: i32,
}

const VERSION_TABLE: &str = "CREATE TABLE penstock.version (
    is_only       boolean NOT NULL PRIMARY KEY DEFAULT true CHECK (is_only),
    version       integer NOT NULL,
    oldest_worker integer NOT NULL
)";

/// Makes the schema, or moves it forward. Any number of workers may do so at once.
pub(super) async fn install(session: &mut Session) -> Result<(), Failure> {
    let doing = "looking for the schema penstock";
    if read_version(&session.client).await.map_err(|error| failed(&error, doing))?.check()? {
        return Ok(());
    }
    let doing = "making the schema penstock (the role needs CREATE on the database)";
    migrate(session).await.map_err(|error| failed(&error, doing))?.check().map(drop)
}

#[derive(Clone, Copy)]
struct Version {
    version: i32,
    oldest_worker: i32,
}

impl Version {
    fn of_this_worker() -> i32 {
        i32::try_from(STEPS.len()).unwrap_or(i32::MAX)
    }

    /// Whether it is there and up to date; an error if it is of a later age.
    fn check(self) -> Result<bool, Failure> {
        if self.oldest_worker > Self::of_this_worker() {
            let message = format!(
                "The schema penstock of the sink was moved to version {} by a newer worker; this worker knows \
                 version {} and is too old for it. Set worker.image to a newer version.",
                self.version,
                Self::of_this_worker()
            );
            return Err(Failure::new(Reason::ManifestInvalid, message));
        }
        Ok(self.version >= Self::of_this_worker())
    }
}

/// Whether the schema has that table. Asks the catalogue itself: what the server remembers of names, which
/// `to_regclass` and the like use, may be older than a lock that was waited for.
pub(super) async fn has_table(
    client: &impl tokio_postgres::GenericClient,
    table: &str,
) -> Result<bool, tokio_postgres::Error> {
    let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_class AS class \
                              JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = class.relnamespace \
                              WHERE namespace.nspname = 'penstock' AND class.relname = $1)";
    client.query_one(sql, &[&table]).await?.try_get(0)
}

async fn read_version(client: &impl tokio_postgres::GenericClient) -> Result<Version, tokio_postgres::Error> {
    let none = Version { version: 0, oldest_worker: 0 };
    if !has_table(client, "version").await? {
        return Ok(none);
    }
    match client.query_opt("SELECT version, oldest_worker FROM penstock.version", &[]).await? {
        Some(row) => Ok(Version { version: row.try_get(0)?, oldest_worker: row.try_get(1)? }),
        None => Ok(none),
    }
}

async fn migrate(session: &mut Session) -> Result<Version, tokio_postgres::Error> {
    let transaction = session.transaction().await?;
    transaction.batch_execute(DDL_LOCK).await?;
    let found = read_version(&transaction).await?;
    if found.version == 0 {
        make_schema(&transaction).await?;
    }
    let mut now = found;
    for (version, step) in (1..).zip(STEPS).skip_while(|(version, _)| *version <= found.version) {
        transaction.batch_execute(step.sql).await?;
        now = Version { version, oldest_worker: step.oldest_worker };
    }
    transaction
        .execute(
            "UPDATE penstock.version SET version = $1, oldest_worker = $2 WHERE version < $1",
            &[&now.version, &now.oldest_worker],
        )
        .await?;
    transaction.commit().await?;
    Ok(now)
}

/// The schema may be there already, empty, made by an administrator for a role without CREATE on the database.
async fn make_schema(transaction: &tokio_postgres::Transaction<'_>) -> Result<(), tokio_postgres::Error> {
    let is_there: bool = transaction
        .query_one("SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = 'penstock')", &[])
        .await?
        .try_get(0)?;
    if !is_there {
        transaction.batch_execute("CREATE SCHEMA penstock").await?;
    }
    transaction.batch_execute(VERSION_TABLE).await?;
    transaction.execute("INSERT INTO penstock.version (version, oldest_worker) VALUES (0, 0)", &[]).await?;
    Ok(())
}
