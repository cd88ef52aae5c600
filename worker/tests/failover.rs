//! A standby of the source that is promoted: followed where nothing is lost, refused where something is. The source
//! keeps its address.

mod common;

use std::time::Duration;

use anyhow::{Result, ensure};
use common::{Rig, Worker};
use penstock_e2e::postgres::{STANDBY_SLOT, Server, Version};
use penstock_e2e::proxy::Proxy;
use serde_json::json;

const STREAMING: &str = "\"message\":\"streaming\"";

/// A source with a standby, behind one address.
struct Pair {
    rig: Rig,
    standby: Server,
    proxy: Proxy,
}

impl Pair {
    async fn new(version: Version) -> Result<Self> {
        let mut rig = Rig::new(version, &["public.t"]).await?;
        rig.on_source("CREATE TABLE t (id int PRIMARY KEY, body text); INSERT INTO t SELECT g, 'row ' || g FROM generate_series(1, 300) g").await?;
        let standby = rig.source.standby().await?;
        let proxy = Proxy::start(rig.source.port).await?;
        rig.manifest["spec"]["source"]["postgres"]["connection"]["port"] = json!(proxy.port());
        Ok(Self { rig, standby, proxy })
    }

    /// Waits until the standby has the pipeline's slot, for good.
    async fn synced(&self) -> Result<()> {
        self.standby_says("SELECT synced AND NOT temporary AND invalidation_reason IS NULL FROM pg_replication_slots WHERE slot_name LIKE 'penstock%'").await
    }

    async fn standby_says(&self, query: &str) -> Result<()> {
        for _ in 0..600 {
            if self.standby.value("postgres", query).await.is_ok_and(|value| value == "t") {
                return Ok(());
            }
            // What the standby waits for: a log that goes on, and a slot that is read.
            self.rig
                .on_source("SELECT pg_log_standby_snapshot()")
                .await
                .or(self.rig.on_source("SELECT 1").await)?;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        anyhow::bail!("{query}: not so within a minute; the standby said: {}", self.standby.log())
    }

    /// The primary is gone, the standby takes its place and its address.
    async fn fail_over(mut self) -> Result<(Rig, Proxy)> {
        self.rig.source.kill9();
        self.standby.promote().await?;
        self.proxy.redirect(self.standby.port);
        self.rig.source = std::sync::Arc::new(self.standby);
        Ok((self.rig, self.proxy))
    }
}

async fn streaming(rig: &Rig) -> Result<Worker> {
    let worker = rig.start(0)?;
    worker.wait_for_output(STREAMING).await?;
    Ok(worker)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_standby_with_a_synced_slot_is_followed_without_a_lost_or_doubled_row() -> Result<()> {
    for version in [Version::V17, Version::V18] {
        let pair = Pair::new(version).await?;
        let worker = streaming(&pair.rig).await?;
        pair.rig
            .on_source(&format!("ALTER SYSTEM SET synchronized_standby_slots = '{STANDBY_SLOT}'"))
            .await?;
        pair.rig.on_source("SELECT pg_reload_conf()").await?;
        pair.synced().await?;
        for id in 1000..1100 {
            pair.rig
                .on_source(&format!(
                    "INSERT INTO t VALUES ({id}, 'before'); UPDATE t SET body = body || '!' WHERE id = {}",
                    id - 900
                ))
                .await?;
        }
        // What was committed reaches the standby before it reaches the sink; the worker may be behind both.
        let end = pair.rig.source_value("SELECT pg_current_wal_flush_lsn()").await?;
        pair.standby_says(&format!("SELECT pg_last_wal_replay_lsn() >= '{end}'")).await?;
        let (rig, _proxy) = pair.fail_over().await?;
        worker.wait_for_output("SourceFailedOver").await?;
        rig.on_source("INSERT INTO t VALUES (2000, 'after'); DELETE FROM t WHERE id = 1000").await?;
        rig.wait_until_caught_up().await?;
        rig.assert_equal(&["t"]).await?;
        // 300 were copied; each later change was counted once, whichever server sent it.
        let counted = rig.sink_value("SELECT sequence FROM penstock.checkpoint").await?;
        ensure!(counted == "202", "{counted} changes were counted");
        ensure!(rig.sink_value("SELECT source_timeline FROM penstock.checkpoint").await? == "2");
        drop(worker);
        let again = rig.start(0)?;
        rig.on_source("INSERT INTO t VALUES (2001, 'later')").await?;
        rig.wait_until_caught_up().await?;
        rig.assert_equal(&["t"]).await?;
        ensure!(again.output()?.matches("SourceFailedOver").count() == 1, "told more than once");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_standby_that_lacks_what_the_sink_has_is_refused() -> Result<()> {
    let pair = Pair::new(Version::V17).await?;
    let worker = streaming(&pair.rig).await?;
    pair.synced().await?;
    // The standby falls behind, and the primary does not wait for it.
    pair.standby.run("postgres", "ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port=1'").await?;
    pair.standby.run("postgres", "SELECT pg_reload_conf()").await?;
    pair.standby_says("SELECT NOT EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')")
        .await?;
    pair.rig.on_source("INSERT INTO t VALUES (1000, 'the standby never hears of it')").await?;
    pair.rig.wait_for("SELECT count(*) FROM t WHERE id = 1000", "1").await?;
    let (rig, _proxy) = pair.fail_over().await?;
    worker.wait_for_output("\"reason\":\"SourceChanged\"").await?;
    ensure!(worker.output()?.contains("synchronized_standby_slots"), "what prevents it is not named");
    ensure!(
        rig.sink_value("SELECT source_timeline FROM penstock.checkpoint").await? == "1",
        "it was followed"
    );
    rig.on_source("INSERT INTO t VALUES (1001, 'after')").await?;
    let output = rig.command(&["begin-anew", "--reason", "the standby was behind"])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    rig.wait_for("SELECT string_agg(id::text, ' ') FROM t WHERE id > 999", "1001").await?;
    rig.wait_until_caught_up().await?;
    rig.assert_equal(&["t"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_standby_without_the_slot_is_refused_and_the_loss_can_be_accepted() -> Result<()> {
    let pair = Pair::new(Version::V15).await?;
    let worker = streaming(&pair.rig).await?;
    pair.rig.wait_until_caught_up().await?;
    let end = pair.rig.source_value("SELECT pg_current_wal_flush_lsn()").await?;
    for _ in 0..200 {
        if pair.standby.value("postgres", &format!("SELECT pg_last_wal_replay_lsn() >= '{end}'")).await?
            == "t"
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (rig, _proxy) = pair.fail_over().await?;
    worker.wait_for_output("\"reason\":\"SlotMissing\"").await?;
    ensure!(worker.output()?.contains("was not synced to it"), "why is not said");
    let output = rig.command(&["accept-loss", "--reason", "nobody wrote meanwhile"])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    rig.wait_for("SELECT count(*) FROM penstock.accepted_loss", "1").await?;
    rig.on_source("INSERT INTO t VALUES (1001, 'after')").await?;
    rig.wait_for("SELECT count(*) FROM t WHERE id = 1001", "1").await?;
    rig.assert_equal(&["t"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_standbys_do_not_get_is_made_one_that_they_do() -> Result<()> {
    let rig = Rig::new(Version::V18, &["public.t"]).await?;
    rig.on_source("CREATE TABLE t (id int PRIMARY KEY)").await?;
    let failover = "SELECT failover FROM pg_replication_slots";
    let mut worker = streaming(&rig).await?;
    ensure!(rig.source_value(failover).await? == "t", "made without");
    worker.terminate()?;
    // As an older worker, or pg_upgrade from 16, left it.
    let name = rig.source_value("SELECT slot_name FROM pg_replication_slots").await?;
    let lsn = rig.source_value("SELECT confirmed_flush_lsn FROM pg_replication_slots").await?;
    rig.on_source(&format!(
        "SELECT pg_copy_logical_replication_slot('{name}', 'kept'), pg_drop_replication_slot('{name}')"
    ))
    .await?;
    rig.on_source(&format!(
        "SELECT pg_copy_logical_replication_slot('kept', '{name}'), pg_drop_replication_slot('kept')"
    ))
    .await?;
    ensure!(rig.source_value(failover).await? == "f", "the copy has it too: this proves nothing");
    ensure!(rig.source_value("SELECT confirmed_flush_lsn FROM pg_replication_slots").await? == lsn);
    let again = rig.start(0)?;
    again.wait_for_output("carried over to standbys from now on").await?;
    rig.on_source("INSERT INTO t VALUES (1)").await?;
    rig.wait_for("SELECT count(*) FROM t", "1").await?;
    ensure!(rig.source_value(failover).await? == "t", "left without");
    Ok(())
}
