//! What the worker serves: health and metrics to the cluster, its report to whoever has the pipeline's token.

mod common;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use common::{Rig, Worker};
use penstock_crds::report::{Decisions, NoticeReason, Reachability, Report, WorkerPhase};
use penstock_e2e::postgres::Version;
use reqwest::{Certificate, Client, StatusCode};

const TOKEN: &str = "token-of-the-test";

struct Served {
    rig: Rig,
    worker: Worker,
    arguments: [String; 3],
    client: Client,
    health: String,
    report: String,
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

async fn served() -> Result<Served> {
    let rig = Rig::new(Version::V15, &["public.things"]).await?;
    rig.on_source(
        "CREATE TABLE things (id int PRIMARY KEY); INSERT INTO things SELECT generate_series(1, 100)",
    )
    .await?;
    let folder = rig.state_dir(0).with_extension("control");
    std::fs::create_dir_all(&folder)?;
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()])?;
    std::fs::write(folder.join("tls.crt"), made.cert.pem())?;
    std::fs::write(folder.join("tls.key"), made.signing_key.serialize_pem())?;
    std::fs::write(folder.join("token"), TOKEN)?;
    let (health, control) = (free_port()?, free_port()?);
    let arguments = [
        format!("--health-address=127.0.0.1:{health}"),
        format!("--control-address=127.0.0.1:{control}"),
        format!("--control-dir={}", folder.display()),
    ];
    let worker = Worker::start_with(&rig.manifest_file()?, &rig.state_dir(0), 0, &arguments)?;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::builder()
        .tls_certs_only([Certificate::from_pem(made.cert.pem().as_bytes())?])
        .timeout(Duration::from_secs(5))
        .build()?;
    let served = Served {
        rig,
        worker,
        arguments,
        client,
        health: format!("http://127.0.0.1:{health}"),
        report: format!("https://localhost:{control}/v1/report"),
    };
    served.rig.wait_for("SELECT count(*) FROM things", "100").await?;
    Ok(served)
}

impl Served {
    /// The next run of the worker, after this happened to the source.
    async fn restart_after(&mut self, sql: &str) -> Result<()> {
        self.worker.terminate()?;
        self.rig.on_source(sql).await?;
        let (file, folder) = (self.rig.manifest_file()?, self.rig.state_dir(0));
        self.worker = Worker::start_with(&file, &folder, 0, &self.arguments)?;
        Ok(())
    }

    async fn report(&self) -> Result<Report> {
        let answer = self.client.get(&self.report).bearer_auth(TOKEN).send().await?.error_for_status()?;
        Ok(answer.json().await?)
    }

    async fn wait_for(&self, what: &str, is_seen: impl Fn(&Report) -> bool) -> Result<Report> {
        let began = Instant::now();
        let mut last = None;
        while began.elapsed() < Duration::from_mins(1) {
            if let Ok(report) = self.report().await {
                if is_seen(&report) {
                    return Ok(report);
                }
                last = Some(report);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        bail!("{what} was not reported; last: {last:?}")
    }

    async fn direct(&self, body: &str) -> Result<(StatusCode, String)> {
        let directive = self.report.replace("report", "directive");
        let answer = self.client.put(directive).bearer_auth(TOKEN).body(body.to_owned()).send().await?;
        Ok((answer.status(), answer.text().await?))
    }

    async fn get(&self, path: &str) -> Result<(StatusCode, String)> {
        let answer = self.client.get(format!("{}{path}", self.health)).send().await?;
        Ok((answer.status(), answer.text().await?))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_report_says_where_the_worker_stands() -> Result<()> {
    let served = served().await?;
    let report = served.wait_for("streaming", |report| report.phase == WorkerPhase::Streaming).await?;
    assert_eq!(report.epoch, Some(1));
    assert_eq!((report.source, report.sink), (Reachability::Reachable, Reachability::Reachable));
    let slot = served.rig.source_value("SELECT slot_name FROM pg_replication_slots").await?;
    let publication = served.rig.source_value("SELECT pubname FROM pg_publication").await?;
    assert_eq!((report.slot, report.publication), (Some(slot), Some(publication)));
    let snapshot = report.snapshot.expect("a first load was made");
    assert_eq!((snapshot.tables, snapshot.tables_copied, snapshot.rows_copied), (1, 1, 100));
    served.rig.on_source("INSERT INTO things VALUES (101)").await?;
    served.wait_for("the change", |report| report.sequence == 1).await?;
    served.wait_for("no lag", |report| report.lag.is_some_and(|lag| lag.seconds < 1.0)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_report_needs_the_token_and_a_database_that_is_away_is_unready_but_healthy() -> Result<()> {
    let served = served().await?;
    for request in
        [served.client.get(&served.report), served.client.get(&served.report).bearer_auth("another")]
    {
        assert_eq!(request.send().await?.status(), StatusCode::UNAUTHORIZED);
    }
    served.wait_for("streaming", |report| report.phase == WorkerPhase::Streaming).await?;
    assert_eq!(served.get("/readyz").await?.0, StatusCode::OK);
    let (status, metrics) = served.get("/metrics").await?;
    assert_eq!(status, StatusCode::OK);
    for metric in [
        "penstock_worker_snapshot_rows_total 100",
        "penstock_worker_streaming 1",
        "penstock_worker_source_up 1",
    ] {
        assert!(metrics.contains(metric), "{metric} is not in:\n{metrics}");
    }
    served.rig.sink.stop().await?;
    served.rig.on_source("INSERT INTO things VALUES (101)").await?;
    let names_the_host = |report: &Report| {
        report.sink == Reachability::Unreachable
            && report.problem.as_ref().is_some_and(|problem| problem.message.contains("127.0.0.1"))
    };
    served.wait_for("the sink's absence", names_the_host).await?;
    assert_eq!(served.get("/readyz").await?.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(served.get("/healthz").await?.0, StatusCode::OK);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_copied_again_once_for_each_token_however_often_it_is_sent() -> Result<()> {
    let served = served().await?;
    served.wait_for("streaming", |report| report.phase == WorkerPhase::Streaming).await?;
    let (rig, notices) = (&served.rig, |report: &Report, reason| {
        report.notices.iter().filter(|notice| notice.reason == reason).count()
    });
    for (token, times) in [("first", 1), ("second.2", 2)] {
        rig.on_sink("DELETE FROM things WHERE id < 50").await?;
        for _ in 0..3 {
            let body = format!("{{\"resnapshot\": \"{token}:public.*\"}}");
            assert_eq!(served.direct(&body).await?.0, StatusCode::NO_CONTENT);
        }
        let is_settled = |report: &Report| report.resnapshot.as_deref() == Some(token);
        let report = served.wait_for("the token", is_settled).await?;
        rig.wait_for("SELECT count(*) FROM things", "100").await?;
        assert_eq!(notices(&report, NoticeReason::ResnapshotTaken), times);
    }
    // A worker that was started anew knows from the sink what was done.
    rig.on_sink("DELETE FROM things WHERE id < 50").await?;
    assert_eq!(served.direct("{\"resnapshot\": \"first:public.*\"}").await?.0, StatusCode::NO_CONTENT);
    let report =
        served.wait_for("the old token", |report| report.resnapshot.as_deref() == Some("first")).await?;
    assert_eq!(notices(&report, NoticeReason::ResnapshotTaken), 2);
    assert_eq!(rig.sink_value("SELECT count(*) FROM things").await?, "51");

    assert_eq!(served.direct("{\"resnapshot\": \"third:public.nothing\"}").await?.0, StatusCode::NO_CONTENT);
    let report =
        served.wait_for("the refusal", |report| report.resnapshot.as_deref() == Some("third")).await?;
    let refusal = report.notices.iter().find(|notice| notice.reason == NoticeReason::ResnapshotRefused);
    assert!(refusal.is_some_and(|notice| notice.message.contains("public.nothing")), "{:?}", report.notices);
    for bad in ["", "[]", "{\"resnapshot\": 7}", "{\"resnapshot\": \"public.things\"}"] {
        let (status, sentence) = served.direct(bad).await?;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{bad}");
        assert!(sentence.contains("not a directive"), "{bad}: {sentence}");
    }
    Ok(())
}

/// What was found before it says nothing of the sink after it: the operator has to hear of each.
#[tokio::test(flavor = "multi_thread")]
async fn decisions_about_dead_ends_are_reported_once_they_are_carried_out_and_by_every_later_run()
-> Result<()> {
    let mut served = served().await?;
    let streams = |report: &Report| report.phase == WorkerPhase::Streaming;
    let mut before = served.wait_for("streaming", streams).await?.decisions;
    assert_eq!(before, Some(Decisions::default()));
    for (decision, count) in [("accept-loss", 1), ("begin-anew", 2)] {
        served.restart_after("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots").await?;
        let halted = served.wait_for("the dead end", |report| report.phase == WorkerPhase::Halted).await?;
        assert_eq!(halted.decisions, None, "it may be carried out by the time that anybody looks");
        let decided = served.rig.command(&[decision, "--reason", "a drill", "--by", "ann"])?;
        ensure!(decided.status.success(), "{}", String::from_utf8_lossy(&decided.stderr));
        let after = served.wait_for("streaming", streams).await?.decisions;
        let (then, now) = (before.unwrap_or_default(), after.unwrap_or_default());
        ensure!(now.count == count && now.last_micros > then.last_micros, "{before:?}, then {after:?}");
        served.restart_after("SELECT").await?;
        assert_eq!(served.wait_for("streaming", streams).await?.decisions, after, "of the next run");
        before = after;
    }
    Ok(())
}
