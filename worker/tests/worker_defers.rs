//! Foreign keys and triggers of the sink, with and without `sessionReplicationRole: Replica`.

mod common;

use anyhow::{Result, ensure};
use common::{PASSWORD, Rig};
use penstock_e2e::postgres::Version;
use serde_json::json;

/// Both ends have the tables; the sink has a foreign key that the source does not keep, and triggers that write a log.
const TABLES: &str =
    "CREATE TABLE parents (id int PRIMARY KEY); CREATE TABLE children (id int PRIMARY KEY, parent int);";
const EXTRAS: &str = "
    ALTER TABLE children ADD FOREIGN KEY (parent) REFERENCES parents;
    CREATE TABLE fired (what text);
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public
        AS $$ BEGIN INSERT INTO fired VALUES (TG_NAME); RETURN NULL; END $$;
    CREATE TRIGGER ordinary AFTER INSERT ON parents FOR EACH ROW EXECUTE FUNCTION note();
    CREATE TRIGGER replica AFTER INSERT ON parents FOR EACH ROW EXECUTE FUNCTION note();
    ALTER TABLE parents ENABLE REPLICA TRIGGER replica;
    CREATE TRIGGER always AFTER INSERT ON parents FOR EACH ROW EXECUTE FUNCTION note();
    ALTER TABLE parents ENABLE ALWAYS TRIGGER always;";
const FIRED: &str = "SELECT string_agg(what, ' ' ORDER BY what) FROM fired";

async fn rig(role: Option<&str>) -> Result<Rig> {
    let mut rig = Rig::new(Version::V15, &["public.parents", "public.children"]).await?;
    if let Some(role) = role {
        rig.manifest["spec"]["sink"]["postgres"]["sessionReplicationRole"] = json!(role);
    }
    rig.on_source(TABLES).await?;
    rig.on_sink(TABLES).await?;
    rig.on_sink(EXTRAS).await?;
    Ok(rig)
}

#[tokio::test(flavor = "multi_thread")]
async fn as_replica_foreign_keys_are_not_checked_and_ordinary_triggers_do_not_fire() -> Result<()> {
    let rig = rig(Some("Replica")).await?;
    rig.on_source("INSERT INTO parents VALUES (1); INSERT INTO children VALUES (1, 99)").await?;
    let worker = rig.start(0)?;
    worker.wait_for_output("\"message\":\"streaming\"").await?;
    rig.on_source("INSERT INTO children VALUES (2, 98); INSERT INTO parents VALUES (2)").await?;
    rig.wait_until_caught_up().await?;
    rig.assert_equal(&["parents", "children"]).await?;
    let fired = rig.sink_value(FIRED).await?;
    ensure!(fired == "always always replica replica", "{fired}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn by_default_foreign_keys_are_checked_and_triggers_fire() -> Result<()> {
    for role in [None, Some("Origin")] {
        let rig = rig(role).await?;
        let worker = rig.start(0)?;
        worker.wait_for_output("\"message\":\"streaming\"").await?;
        rig.on_source("INSERT INTO parents VALUES (2)").await?;
        rig.wait_until_caught_up().await?;
        let fired = rig.sink_value(FIRED).await?;
        ensure!(fired == "always ordinary", "{fired}");
        rig.on_source("INSERT INTO children VALUES (2, 98)").await?;
        worker.wait_for_output("\"reason\":\"SinkRejectedRow\"").await?;
        ensure!(worker.output()?.contains("sessionReplicationRole"), "the switch is not named");
        ensure!(rig.sink_value("SELECT count(*) FROM children").await? == "0");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_not_act_as_replica_is_told_so_before_anything_is_copied() -> Result<()> {
    let rig = rig(Some("Replica")).await?;
    let sql = format!(
        "CREATE ROLE poor LOGIN PASSWORD '{PASSWORD}'; GRANT ALL ON DATABASE shop TO poor; GRANT ALL ON SCHEMA public TO poor; \
         ALTER TABLE parents OWNER TO poor; ALTER TABLE children OWNER TO poor"
    );
    rig.on_sink(&sql).await?;
    let worker = rig.start_as(&[("PENSTOCK_SINK_USERNAME", "poor")])?;
    worker.wait_for_output("\"reason\":\"SinkPrivilegeMissing\"").await?;
    ensure!(
        worker.output()?.contains("GRANT SET ON PARAMETER session_replication_role"),
        "what to do is not said"
    );
    ensure!(rig.source_value("SELECT count(*) FROM pg_replication_slots").await? == "0", "a slot was made");
    rig.on_source("INSERT INTO children VALUES (1, 99)").await?;
    rig.on_sink("GRANT SET ON PARAMETER session_replication_role TO poor").await?;
    rig.wait_for("SELECT count(*) FROM children", "1").await
}
