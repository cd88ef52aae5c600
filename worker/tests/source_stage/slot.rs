//! Slots: made, held, lost, dropped.

use penstock_crds::report::Reason;
use penstock_e2e::postgres::{Server, Version};
use penstock_worker::change::Lsn;
use penstock_worker::failure::Failure;
use penstock_worker::source::{
    Durability, create_slot, drop_slot, end_stale_walsender, slot_state, spawn_reader,
};

use crate::kit::{assert_says, endpoint, publish, session, stream_request, test_slot};

#[tokio::test]
async fn slots_of_both_kinds_are_made_by_every_version() {
    for version in Version::ALL {
        let server = Server::start(version).await.unwrap();
        let endpoint = endpoint(&server, "postgres");
        let (session, slot) = (session(&endpoint).await, test_slot());
        assert_eq!(slot_state(&session, &slot).await.unwrap(), None);

        let temporary = create_slot(&endpoint, &slot, Durability::Temporary).await.unwrap();
        assert!(temporary.consistent_point > Lsn(0));
        drop(temporary);
        let gone = "SELECT pg_sleep(0.01) FROM generate_series(1, 200) WHERE EXISTS \
                    (SELECT FROM pg_replication_slots)";
        server.run("postgres", gone).await.unwrap();

        let permanent = create_slot(&endpoint, &slot, Durability::Permanent).await.unwrap();
        let again = create_slot(&endpoint, &slot, Durability::Permanent).await.unwrap_err();
        assert_says(&again.into(), Reason::SlotInUse, &["exists already"]);
        let state = slot_state(&session, &slot).await.unwrap().unwrap();
        state.verify(&slot, "postgres").unwrap();
        assert_eq!(state.confirmed_flush, Some(permanent.consistent_point));
        assert_eq!((state.plugin.as_deref(), state.two_phase), (Some("pgoutput"), false));
        assert_says(
            &state.verify(&slot, "other").unwrap_err().into(),
            Reason::SlotInvalidated,
            &["postgres"],
        );

        drop(permanent);
        drop_slot(&session, &slot).await.unwrap();
        drop_slot(&session, &slot).await.unwrap();
        assert_eq!(slot_state(&session, &slot).await.unwrap(), None);
    }
}

#[tokio::test]
async fn without_a_free_slot_the_refusal_names_the_setting() {
    let server = Server::builder(Version::V15).setting("max_replication_slots", "1").start().await.unwrap();
    let take = "SELECT pg_create_logical_replication_slot('other', 'pgoutput')";
    server.run("postgres", take).await.unwrap();
    let refused = create_slot(&endpoint(&server, "postgres"), &test_slot(), Durability::Permanent).await;
    let words = ["max_replication_slots"];
    assert_says(&refused.unwrap_err().into(), Reason::NoFreeReplicationSlot, &words);
}

async fn streaming_server(version: Version) -> Server {
    let server = Server::start(version).await.unwrap();
    server.run("postgres", "CREATE TABLE t (id int PRIMARY KEY, x text)").await.unwrap();
    server
}

#[tokio::test]
async fn a_slot_held_by_a_dead_predecessor_is_freed_and_one_held_by_a_stranger_is_not() {
    let server = streaming_server(Version::V15).await;
    let endpoint = endpoint(&server, "postgres");
    let identity = publish(&endpoint, &["public.t"]).await.identity;
    let (session, slot) = (session(&endpoint).await, test_slot());
    let start = create_slot(&endpoint, &slot, Durability::Permanent).await.unwrap().consistent_point;
    let request = stream_request(&identity, start);

    let mut dead = spawn_reader(endpoint.clone(), request.clone());
    dead.next().await.unwrap();
    let mut successor = spawn_reader(endpoint.clone(), request.clone());
    let failure = Failure::from(successor.next().await.unwrap_err());
    assert_says(&failure, Reason::SlotInUse, &[slot.as_str(), "active for PID"]);
    end_stale_walsender(&session, &slot).await.unwrap();
    let mut successor = spawn_reader(endpoint.clone(), request.clone());
    successor.next().await.unwrap();
    assert_says(&dead.next().await.unwrap_err().into(), Reason::SourceUnreachable, &["57P01"]);
    successor.close().await;

    let stranger = endpoint.connect_replication("their-tool").await.unwrap();
    let start_sql = format!(
        "START_REPLICATION SLOT {slot} LOGICAL 0/0 (proto_version '1', publication_names '\"{}\"')",
        request.publication
    );
    let _held = stranger.start_copy_both(&start_sql).await.unwrap();
    for refused in [end_stale_walsender(&session, &slot).await, drop_slot(&session, &slot).await] {
        assert_says(&refused.unwrap_err().into(), Reason::SlotInUse, &["their-tool", "role postgres"]);
    }
    assert!(slot_state(&session, &slot).await.unwrap().unwrap().active_pid.is_some());
}

#[tokio::test]
async fn dropping_a_slot_ends_our_own_reader_first() {
    let server = streaming_server(Version::V15).await;
    let endpoint = endpoint(&server, "postgres");
    let identity = publish(&endpoint, &["public.t"]).await.identity;
    let (session, slot) = (session(&endpoint).await, test_slot());
    let start = create_slot(&endpoint, &slot, Durability::Permanent).await.unwrap().consistent_point;
    let mut reader = spawn_reader(endpoint.clone(), stream_request(&identity, start));
    reader.next().await.unwrap();
    drop_slot(&session, &slot).await.unwrap();
    assert_eq!(slot_state(&session, &slot).await.unwrap(), None);
}

#[tokio::test]
async fn a_slot_that_is_gone_passed_by_or_invalidated_is_never_read_as_if_nothing_happened() {
    for version in [Version::V15, Version::V18] {
        let server = Server::builder(version)
            .setting("max_slot_wal_keep_size", "1MB")
            .setting("max_wal_size", "32MB")
            .start()
            .await
            .unwrap();
        server.run("postgres", "CREATE TABLE t (id int PRIMARY KEY, x text)").await.unwrap();
        let endpoint = endpoint(&server, "postgres");
        let identity = publish(&endpoint, &["public.t"]).await.identity;
        let (session, slot) = (session(&endpoint).await, test_slot());

        let read = async |start: Lsn| {
            let mut reader = spawn_reader(endpoint.clone(), stream_request(&identity, start));
            Failure::from(reader.next().await.unwrap_err())
        };
        assert_says(&read(Lsn(1)).await, Reason::SlotMissing, &[slot.as_str()]);

        let start = create_slot(&endpoint, &slot, Durability::Permanent).await.unwrap().consistent_point;
        let before = Lsn(start.0 - 1);
        assert_says(&read(before).await, Reason::SinkLostCommits, &[&start.to_string(), &before.to_string()]);

        let bloat = "SELECT pg_switch_wal(); CREATE TABLE bloat AS SELECT repeat('x', 1000) FROM \
                     generate_series(1, 50000); SELECT pg_switch_wal()";
        for _ in 0..2 {
            server.run("postgres", bloat).await.unwrap();
            server.run("postgres", "DROP TABLE bloat; CHECKPOINT").await.unwrap();
        }
        let state = slot_state(&session, &slot).await.unwrap().unwrap();
        let failure = state.verify(&slot, "postgres").unwrap_err().into();
        assert_says(&failure, Reason::SlotInvalidated, &["Changes are lost"]);
        assert_says(&read(start).await, Reason::SlotInvalidated, &["Changes are lost"]);
    }
}

#[tokio::test]
async fn another_server_behind_the_same_address_is_refused() {
    let server = streaming_server(Version::V15).await;
    let endpoint = endpoint(&server, "postgres");
    let identity = publish(&endpoint, &["public.t"]).await.identity;
    let start = create_slot(&endpoint, &test_slot(), Durability::Permanent).await.unwrap().consistent_point;
    let mut other_system = stream_request(&identity, start);
    other_system.identity.system_id = "1".into();
    let mut other_timeline = stream_request(&identity, start);
    other_timeline.identity.timeline = 7;
    for (request, word) in [(other_system, "system identifier"), (other_timeline, "timeline 1")] {
        let mut reader = spawn_reader(endpoint.clone(), request);
        assert_says(&reader.next().await.unwrap_err().into(), Reason::SourceChanged, &[word]);
    }
}
