//! Following changes.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use penstock_crds::report::Reason;
use penstock_e2e::postgres::{Server, Version};
use penstock_worker::change::Lsn;
use penstock_worker::change::travel::Format;
use penstock_worker::postgres::Endpoint;
use penstock_worker::source::{
    Durability, ExportedSnapshot, Frame, Inspection, Reader, create_slot, slot_state, spawn_reader,
};
use tokio::time::{sleep, timeout};

use crate::kit::{assert_says, endpoint, publish, session, stream_request, test_slot};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, x text); ALTER TABLE t ALTER x SET STORAGE external";

/// A server with a published table `t` and a slot.
async fn source(server: &Server) -> (Endpoint, Inspection, ExportedSnapshot) {
    server.run("postgres", TABLE).await.unwrap();
    let endpoint = endpoint(server, "postgres");
    let inspection = publish(&endpoint, &["public.t"]).await;
    let snapshot = create_slot(&endpoint, &test_slot(), Durability::Permanent).await.unwrap();
    (endpoint, inspection, snapshot)
}

fn read(endpoint: &Endpoint, inspection: &Inspection, start: Lsn, capacity_bytes: usize) -> Reader {
    let mut request = stream_request(&inspection.identity, start);
    request.capacity_bytes = capacity_bytes;
    spawn_reader(endpoint.clone(), request)
}

/// The key of an INSERT message (binary), if it is one.
fn inserted_id(payload: &[u8]) -> Option<i32> {
    // 'I', relation, 'N', number of columns, 'b', length, value.
    let is_insert = payload.first() == Some(&b'I') && payload.get(8) == Some(&b'b');
    is_insert.then(|| i32::from_be_bytes(payload[13..17].try_into().unwrap()))
}

/// End of the transaction in a COMMIT message.
fn commit_end(payload: &[u8]) -> Option<Lsn> {
    (payload.first() == Some(&b'C')).then(|| Lsn(u64::from_be_bytes(payload[10..18].try_into().unwrap())))
}

/// Reads until `count` keys were inserted and their transaction ended; keys and where it ended.
async fn read_ids(reader: &mut Reader, count: usize) -> (Vec<i32>, Lsn) {
    let mut ids = Vec::new();
    loop {
        let frame = timeout(Duration::from_mins(1), reader.next()).await.expect("no change for a minute");
        let Frame::Data { payload, .. } = frame.unwrap() else { continue };
        ids.extend(inserted_id(&payload));
        if let Some(end) = commit_end(&payload)
            && ids.len() >= count
        {
            return (ids, end);
        }
    }
}

#[tokio::test]
async fn snapshot_and_stream_are_together_every_row_once() {
    for version in Version::ALL {
        let server = Server::start(version).await.unwrap();
        server.run("postgres", TABLE).await.unwrap();
        let endpoint = endpoint(&server, "postgres");
        let inspection = publish(&endpoint, &["public.t"]).await;
        let is_made = AtomicBool::new(false);
        let write = async {
            let client = server.connect("postgres").await.unwrap();
            let mut rows = 0;
            let mut since_made = 0;
            while since_made < 50 {
                since_made += i32::from(is_made.load(Ordering::Relaxed));
                let sql = format!("INSERT INTO t SELECT g, 'x' FROM generate_series({rows}, {rows} + 4) g");
                client.run(&sql).await.unwrap();
                rows += 5;
            }
            rows
        };
        let make = async {
            sleep(Duration::from_millis(50)).await;
            let snapshot = create_slot(&endpoint, &test_slot(), Durability::Permanent).await.unwrap();
            is_made.store(true, Ordering::Relaxed);
            snapshot
        };
        let (rows, snapshot) = tokio::join!(write, make);

        let copy = snapshot.open_copy(&endpoint, &inspection.tables).await.unwrap();
        let chunk_reader = copy.reader().await.unwrap();
        let mut copied = BTreeSet::new();
        for chunk in copy.chunks(&inspection.tables[0], None).await.unwrap() {
            let rows = chunk_reader.read(&chunk, &["id".to_owned()], Format::Binary).await.unwrap();
            let mut rows = std::pin::pin!(rows);
            let mut bytes = Vec::new();
            while let Some(part) = rows.next().await {
                bytes.extend_from_slice(&part.unwrap());
            }
            // 19 bytes of header; per row: number of columns, length, value; 2 bytes of trailer.
            for row in bytes[19..bytes.len() - 2].chunks_exact(10) {
                assert!(copied.insert(i32::from_be_bytes(row[6..10].try_into().unwrap())));
            }
        }
        copy.prove(&inspection.tables[0]).await.unwrap();
        copy.close().await.unwrap();

        let mut reader = read(&endpoint, &inspection, snapshot.consistent_point, 1 << 20);
        let (streamed, _) = read_ids(&mut reader, usize::try_from(rows).unwrap() - copied.len()).await;
        assert!(!copied.is_empty() && !streamed.is_empty(), "{} copied, {version}", copied.len());
        for id in streamed {
            assert!(copied.insert(id), "{id} was both copied and streamed");
        }
        assert_eq!(copied, (0..rows).collect());
    }
}

#[tokio::test]
async fn a_stalled_consumer_stops_the_source_and_loses_neither_connection_nor_rows() {
    let server = Server::builder(Version::V15).setting("wal_sender_timeout", "6s").start().await.unwrap();
    let (endpoint, inspection, snapshot) = source(&server).await;
    let capacity_bytes = 2 * 1024 * 1024;
    let mut reader = read(&endpoint, &inspection, snapshot.consistent_point, capacity_bytes);
    let rows = 2000;
    let fill = format!(
        "DO $$ BEGIN FOR id IN 1..{rows} LOOP INSERT INTO t VALUES (id, repeat('x', 100000)); COMMIT; \
         END LOOP; END $$"
    );
    server.run("postgres", &fill).await.unwrap();
    reader.next().await.unwrap();
    let active = "SELECT active_pid FROM pg_replication_slots";
    let pid = server.value("postgres", active).await.unwrap();

    // Twice the timeout, without a single frame taken.
    sleep(Duration::from_secs(12)).await;
    // The connection that exports the snapshot is a walsender, too.
    let sent = format!(
        "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), sent_lsn)::bigint FROM pg_stat_replication WHERE pid = {pid}"
    );
    let unsent: u64 = server.value("postgres", &sent).await.unwrap().parse().unwrap();
    // Kernel buffers on both sides take up to 10 MB or so.
    assert!(unsent > 150_000_000, "only {unsent} of 200 MB wait at the source");

    let (ids, _) = read_ids(&mut reader, rows).await;
    assert_eq!(ids.len(), rows);
    assert_eq!(server.value("postgres", active).await.unwrap(), pid, "the connection was lost meanwhile");
}

#[tokio::test]
async fn the_slot_follows_acknowledgements_at_once_and_never_passes_them() {
    let server = Server::builder(Version::V15).setting("wal_sender_timeout", "6s").start().await.unwrap();
    let (endpoint, inspection, snapshot) = source(&server).await;
    let session = session(&endpoint).await;
    let confirmed =
        async || slot_state(&session, &test_slot()).await.unwrap().unwrap().confirmed_flush.unwrap();
    let start = snapshot.consistent_point;
    let mut reader = read(&endpoint, &inspection, start, 1 << 20);
    server.run("postgres", "INSERT INTO t VALUES (1, 'x')").await.unwrap();
    let (_, first_end) = read_ids(&mut reader, 1).await;
    server.run("postgres", "INSERT INTO t VALUES (2, 'x')").await.unwrap();
    read_ids(&mut reader, 1).await;
    // Keepalives and status updates go to and fro meanwhile.
    sleep(Duration::from_secs(3)).await;
    assert_eq!(confirmed().await, start);

    reader.acknowledge(first_end);
    reader.acknowledge(start);
    let asked = Instant::now();
    while confirmed().await != first_end {
        assert!(asked.elapsed() < Duration::from_secs(20), "still at {}", confirmed().await);
        sleep(Duration::from_millis(10)).await;
    }
    sleep(Duration::from_secs(2)).await;
    assert_eq!(confirmed().await, first_end);
    drop(reader);

    // What was not acknowledged comes again.
    let mut reader = loop {
        let mut reader = read(&endpoint, &inspection, first_end, 1 << 20);
        match reader.next().await {
            Ok(_) => break reader,
            Err(error) => assert_says(&error.into(), Reason::SlotInUse, &[]),
        }
    };
    server.run("postgres", "INSERT INTO t VALUES (3, 'x')").await.unwrap();
    let (ids, end) = read_ids(&mut reader, 2).await;
    assert_eq!(ids, [2, 3]);
    reader.acknowledge(end);
    reader.close().await;
    assert_eq!(confirmed().await, end, "the last word counts");
}

#[tokio::test]
async fn an_idle_source_is_followed_by_keepalives_and_can_be_shut_down() {
    let server = Server::start(Version::V15).await.unwrap();
    let (endpoint, inspection, snapshot) = source(&server).await;
    let mut reader = read(&endpoint, &inspection, snapshot.consistent_point, 1 << 20);
    let other = "CREATE TABLE other (id int); INSERT INTO other SELECT generate_series(1, 1000)";
    server.run("postgres", other).await.unwrap();
    let end: Lsn = server.value("postgres", "SELECT pg_current_wal_lsn()").await.unwrap().parse().unwrap();
    let follow = async {
        let mut reached = Lsn(0);
        loop {
            match reader.next().await {
                Ok(Frame::Keepalive { wal_end }) => {
                    reached = reached.max(wal_end);
                    reader.acknowledge(wal_end);
                }
                Ok(Frame::Data { .. }) => {}
                Err(error) => return (reached, error),
            }
        }
    };
    let stop = async {
        sleep(Duration::from_secs(2)).await;
        let asked = Instant::now();
        server.stop().await.unwrap();
        asked.elapsed()
    };
    let ((reached, error), took) = tokio::join!(follow, stop);
    assert!(reached >= end, "{reached} < {end}");
    assert_says(&error.into(), Reason::SourceUnreachable, &[]);
    assert!(took < Duration::from_secs(30), "the shutdown waited {took:?}");
}

#[tokio::test]
async fn errors_come_out_of_next_and_come_again() {
    let server = Server::start(Version::V15).await.unwrap();
    let (endpoint, inspection, snapshot) = source(&server).await;
    let mut reader = read(&endpoint, &inspection, snapshot.consistent_point, 1 << 20);
    reader.next().await.unwrap();
    server.kill9();
    let first = loop {
        if let Err(error) = reader.next().await {
            break error;
        }
    };
    assert_says(&first.clone().into(), Reason::SourceUnreachable, &["reading changes"]);
    assert_eq!(reader.next().await.unwrap_err(), first);
    let mut reader = read(&endpoint, &inspection, snapshot.consistent_point, 1 << 20);
    let words = [server.port.to_string()];
    assert_says(&reader.next().await.unwrap_err().into(), Reason::SourceUnreachable, &[&words[0]]);
}

#[tokio::test]
async fn a_publication_dropped_under_the_stream_is_an_error() {
    for version in [Version::V15, Version::V17, Version::V18] {
        let server = Server::start(version).await.unwrap();
        let (endpoint, inspection, snapshot) = source(&server).await;
        let mut reader = read(&endpoint, &inspection, snapshot.consistent_point, 1 << 20);
        reader.next().await.unwrap();
        let drop =
            format!("DROP PUBLICATION {}; INSERT INTO t VALUES (1, 'x')", crate::kit::test_publication());
        server.run("postgres", &drop).await.unwrap();
        let read_to_the_end = async {
            loop {
                match reader.next().await {
                    Ok(Frame::Data { payload, .. }) => assert_eq!(inserted_id(&payload), None),
                    Ok(Frame::Keepalive { .. }) => {}
                    Err(error) => break error,
                }
            }
        };
        let error = timeout(Duration::from_secs(20), read_to_the_end).await.expect("no error within 20 s");
        assert_says(&error.into(), Reason::PublicationUnsuitable, &["was dropped", "lost"]);
    }
}
