//! What a worker is doing when it dies: where the rows come from, what is written meanwhile, and which failpoints it
//! does not come by.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use penstock_e2e::postgres::Client;
use penstock_worker::failpoint::Point;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::common::Rig;

/// What a worker is doing when it dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// The first load, and the changes after it, while the source is written to.
    Snapshot,
    /// Changes of a pipeline whose tables are copied.
    Streaming,
    /// The same, by source transactions that are several times the byte bound: each is written before its commit.
    LargeTransaction,
    /// Two tables are added to a pipeline that runs; they are published, copied, followed.
    TablesAdded,
    /// Columns are added and become wider while their tables are streamed, and are carried out on the sink.
    Ddl,
}

/// `later` is copied in ranges of its key, `latest` as a whole. `journal` has no key: a row that came twice would stay unnoticed in no table but this one.
const SCHEMA: &str = "
    CREATE TABLE accounts (id int PRIMARY KEY, units bigint NOT NULL, version bigint NOT NULL DEFAULT 0, note text);
    CREATE TABLE journal (step bigint NOT NULL, from_id int NOT NULL, to_id int NOT NULL);
    ALTER TABLE journal REPLICA IDENTITY FULL;
    CREATE TABLE later (id bigint PRIMARY KEY, body text);
    CREATE TABLE latest (id text PRIMARY KEY, body text);
    INSERT INTO accounts SELECT g, 1000 FROM generate_series(1, 120) g;
    INSERT INTO journal SELECT -g, 1, 2 FROM generate_series(1, 50) g;
    INSERT INTO later SELECT -g, 'before' FROM generate_series(1, 50) g;
    INSERT INTO latest SELECT -g, 'before' FROM generate_series(1, 50) g;
    CREATE SEQUENCE steps;";

/// One transaction that moves units.
const STEP: &str = "
    WITH step AS (SELECT nextval('steps') AS n, 1 + floor(random() * 120)::int AS a, 1 + floor(random() * 120)::int AS b),
    taken AS (UPDATE accounts SET units = units - 1, version = version + 1 FROM step WHERE id = a AND a <> b),
    given AS (UPDATE accounts SET units = units + 1, version = version + 1 FROM step WHERE id = b AND a <> b)
    INSERT INTO journal SELECT n, a, b FROM step;
    DELETE FROM journal WHERE step < (SELECT last_value - 100 FROM steps);";

/// About 240 KB in one transaction.
const LARGE_STEP: &str = "
    INSERT INTO journal SELECT nextval('steps'), 1, 2 FROM generate_series(1, 20);
    UPDATE accounts SET version = version + 1, note = repeat(md5(random()::text), 60);
    DELETE FROM journal WHERE step < (SELECT last_value - 100 FROM steps);";

/// Tables that are added are written to from the moment on at which they are published.
const STEP_OF_ADDED_TABLES: &str = "
    INSERT INTO later SELECT nextval('steps'), 'after' WHERE EXISTS (SELECT FROM pg_publication_tables WHERE tablename = 'later');
    UPDATE latest SET body = body || '.' WHERE id = (-1 - floor(random() * 50)::int)::text
        AND EXISTS (SELECT FROM pg_publication_tables WHERE tablename = 'latest');";

/// What the columns are before.
const SCHEMA_OF_DDL: &str = "ALTER TABLE journal ADD COLUMN tag varchar(5)";

/// In the middle of a transaction, with rows before and after it: a column is added, or becomes wider.
const DDL: &str = "
    DO $$ DECLARE n bigint := (SELECT last_value FROM steps); BEGIN
        IF n % 64 = 0 THEN
            EXECUTE format('ALTER TABLE accounts ADD COLUMN c%s int DEFAULT %s', n, n);
            EXECUTE format('UPDATE accounts SET c%s = -version WHERE id %% 7 = 0', n);
        ELSIF n % 8 = 0 THEN
            EXECUTE format('ALTER TABLE journal ALTER tag TYPE varchar(%s)', 5 + n);
            EXECUTE format('UPDATE journal SET tag = %L WHERE step = %s', repeat('x', 5 + n::int), n);
        END IF;
    END $$;";

/// Between two transactions of the load. Every reader of a source decodes what all cells on it write, so a load that
/// knows no pause starves them all.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_AFTER_LARGE: Duration = Duration::from_millis(200);

impl Scenario {
    /// Makes the source's tables, and the manifest of before.
    pub(crate) async fn prepare(self, rig: &mut Rig) -> Result<()> {
        rig.on_source(SCHEMA).await?;
        rig.manifest["spec"]["source"]["postgres"]["tables"] = json!(["public.accounts", "public.journal"]);
        match self {
            Self::LargeTransaction => {
                rig.manifest["spec"]["sink"]["postgres"]["batch"] = json!({"maxBytes": 65_536});
            }
            Self::Ddl => {
                rig.on_source(SCHEMA_OF_DDL).await?;
                rig.manifest["spec"]["sink"]["postgres"]["schemaChanges"] = json!("Apply");
            }
            Self::Snapshot | Self::Streaming | Self::TablesAdded => {}
        }
        Ok(())
    }

    /// Whether the pipeline has run before.
    pub(crate) fn begins_with_a_copy(self) -> bool {
        self != Self::Snapshot
    }

    /// The manifest with which the worker dies.
    pub(crate) fn change_manifest(self, rig: &mut Rig) {
        if self == Self::TablesAdded {
            rig.manifest["spec"]["source"]["postgres"]["tables"] = json!(["public.*"]);
        }
    }

    /// The tables that must be equal at the end.
    pub(crate) fn tables(self) -> &'static [&'static str] {
        match self {
            Self::Snapshot | Self::Streaming | Self::LargeTransaction | Self::Ddl => {
                &["public.accounts", "public.journal"]
            }
            Self::TablesAdded => &["public.accounts", "public.journal", "public.later", "public.latest"],
        }
    }

    /// Failpoints that a worker in this scenario does not come by, and why.
    pub(crate) fn unreached(self) -> Vec<(Point, &'static str)> {
        const NO_DDL: [(Point, &str); 2] =
            [(Point::BeforeDdl, "no column changes"), (Point::AfterDdl, "no column changes")];
        const HAS_A_POSITION: [(Point, &str); 2] = [
            (Point::BeforeFirstCheckpoint, "the shard has a position"),
            (Point::AfterFirstCheckpoint, "the shard has a position"),
        ];
        const NO_RANGES: [(Point, &str); 5] = [
            (Point::BeforeRangeRead, "no table came later"),
            (Point::BeforeWatermark, "no table came later"),
            (Point::AfterWatermark, "no table came later"),
            (Point::BeforeRangeNoted, "no table came later"),
            (Point::AfterRangeNoted, "no table came later"),
        ];
        const NOTHING_IS_COPIED: [(Point, &str); 17] = [
            NO_RANGES[0],
            NO_RANGES[1],
            NO_RANGES[2],
            NO_RANGES[3],
            NO_RANGES[4],
            HAS_A_POSITION[0],
            HAS_A_POSITION[1],
            (Point::BeforeTableMade, "every sink table is there"),
            (Point::AfterTableMade, "every sink table is there"),
            (Point::BeforeSlot, "the slot is there"),
            (Point::AfterSlot, "the slot is there"),
            (Point::BeforeTableEmptied, "every table is copied"),
            (Point::AfterTableEmptied, "every table is copied"),
            (Point::BeforeChunkCommit, "every table is copied"),
            (Point::AfterChunkCommit, "every table is copied"),
            (Point::BeforeTableReady, "every table is copied"),
            (Point::AfterTableReady, "every table is copied"),
        ];
        const NO_EXCHANGE: [(Point, &str); 2] =
            [(Point::BeforeHold, "no tables are exchanged"), (Point::AtHold, "no tables are exchanged")];
        match self {
            Self::Snapshot => [&NO_RANGES[..], &NO_DDL, &NO_EXCHANGE].concat(),
            Self::TablesAdded => [&HAS_A_POSITION[..], &NO_DDL, &NO_EXCHANGE].concat(),
            Self::Streaming | Self::LargeTransaction => {
                [&NOTHING_IS_COPIED[..], &NO_DDL, &NO_EXCHANGE].concat()
            }
            Self::Ddl => [&NOTHING_IS_COPIED[..], &NO_EXCHANGE].concat(),
        }
    }

    fn pause(self) -> Duration {
        if self == Self::LargeTransaction { PAUSE_AFTER_LARGE } else { PAUSE }
    }

    fn step(self) -> String {
        match self {
            Self::Snapshot | Self::Streaming => STEP.to_owned(),
            Self::LargeTransaction => LARGE_STEP.to_owned(),
            Self::TablesAdded => format!("{STEP} {STEP_OF_ADDED_TABLES}"),
            Self::Ddl => format!("{STEP} {DDL}"),
        }
    }
}

/// A load on the source.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<()>>,
}

impl Load {
    /// Writes until it is stopped.
    pub(crate) fn start(scenario: Scenario, client: Client) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(write(scenario.step(), scenario.pause(), client, stop.clone()));
        Self { stop, task }
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await?
    }
}

async fn write(transaction: String, pause: Duration, client: Client, stop: Arc<AtomicBool>) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        client.run(&transaction).await?;
        tokio::time::sleep(pause).await;
    }
    Ok(())
}
