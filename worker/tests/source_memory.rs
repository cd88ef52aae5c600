//! The memory of the reader, in a process of its own: what the bound says is what the process takes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use penstock_crds::connection::{PostgresConnection, Tls, TlsMode};
use penstock_crds::source::{PostgresSource, Snapshot};
use penstock_e2e::postgres::{Server, Version};
use penstock_worker::change::Lsn;
use penstock_worker::change::travel::Format;
use penstock_worker::postgres::{Credentials, End, Endpoint, EndpointFiles};
use penstock_worker::source::{
    Durability, Frame, PublicationName, SlotName, SourceIdentity, StreamRequest, create_slot,
    ensure_publication, preflight, spawn_reader,
};

const MIB: usize = 1024 * 1024;

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

async fn source(server: &Server) -> (Endpoint, SourceIdentity, Lsn) {
    let endpoint = Endpoint {
        end: End::Source,
        connection: PostgresConnection {
            host: "127.0.0.1".into(),
            port: server.port,
            database: "postgres".into(),
            credentials_secret: "unused".into(),
            tls: Tls { mode: TlsMode::Disable, ca_secret: None, client_certificate_secret: None },
        },
        files: EndpointFiles {
            credentials: "/nowhere".into(),
            tls: "/nowhere".into(),
            environment: Some(Credentials { username: "postgres".into(), password: "unused".into() }),
        },
    };
    let spec = PostgresSource {
        connection: endpoint.connection.clone(),
        tables: vec!["public.*".into()],
        snapshot: Snapshot::default(),
        publication: None,
    };
    let slot = SlotName::of_shard("memory", 0);
    let mut session = endpoint.connect("test").await.unwrap();
    let patterns = ["public.*".parse().unwrap()];
    let inspection = preflight(&session, &spec, &patterns).await.unwrap();
    let publication = PublicationName::of_pipeline("memory");
    ensure_publication(&mut session, &publication, &inspection.tables, true).await.unwrap();
    let snapshot = create_slot(&endpoint, &slot, Durability::Permanent).await.unwrap();
    (endpoint, inspection.identity, snapshot.consistent_point)
}

/// Two streams of the same number of bytes: rows of 1 MiB, and one row of 100 bytes that is kept out of every
/// 100 that pass. Both must stay within the bound: the first however long nobody reads, the second however many
/// short rows are kept.
#[tokio::test]
async fn memory_stays_within_the_bound_for_wide_rows_and_for_a_few_kept_short_ones() {
    let server = Server::start(Version::V15).await.unwrap();
    server
        .run(
            "postgres",
            "CREATE TABLE wide (id int PRIMARY KEY, x text); ALTER TABLE wide ALTER x SET STORAGE external; \
             CREATE TABLE short (id int PRIMARY KEY, x text)",
        )
        .await
        .unwrap();
    let (endpoint, identity, start) = source(&server).await;
    let request = StreamRequest {
        slot: SlotName::of_shard("memory", 0),
        publication: PublicationName::of_pipeline("memory"),
        start,
        identity,
        format: Format::Binary,
        capacity_bytes: 8 * MIB,
    };
    server
        .run(
            "postgres",
            "INSERT INTO wide SELECT g, repeat('x', 1048576) FROM generate_series(1, 300) g; \
             INSERT INTO short SELECT g, repeat('y', 100) FROM generate_series(1, 1000000) g",
        )
        .await
        .unwrap();

    let before = resident_bytes();
    let mut reader = spawn_reader(endpoint, request);
    let started = Instant::now();
    while resident_bytes().saturating_sub(before) < 4 * MIB {
        assert!(started.elapsed() < Duration::from_mins(1), "nothing is read");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let stalled = resident_bytes() - before;
    assert!(stalled < 24 * MIB, "{} MiB are held for a consumer that reads nothing", stalled / MIB);

    let (mut wide, mut short) = (0, 0);
    let mut kept = Vec::new();
    let mut kept_bytes = 0;
    let mut most = 0;
    while short < 1_000_000 {
        let Frame::Data { payload, .. } = reader.next().await.unwrap() else { continue };
        if payload[0] != b'I' {
            continue;
        }
        if payload.len() > MIB {
            wide += 1;
            most = most.max(resident_bytes());
        } else {
            short += 1;
            if short % 100 == 0 {
                kept_bytes += payload.len();
                kept.push(payload.slice(9..));
            }
        }
    }
    assert_eq!((wide, kept.len()), (300, 10_000));
    let passing = most.saturating_sub(before);
    assert!(passing < 32 * MIB, "{} MiB while wide rows pass", passing / MIB);
    let held = resident_bytes().saturating_sub(before);
    assert!(held < kept_bytes * 3 + 32 * MIB, "{} MiB for {kept_bytes} kept bytes", held / MIB);
}
