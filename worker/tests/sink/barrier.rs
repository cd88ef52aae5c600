//! What a shard does at a barrier: the snapshot is the sink exactly there, or the arrival is void.

use std::time::Duration;

use penstock_worker::sink::{
    Arrival, BarrierId, BarrierKind, Barriers, LEASE, Registration, Writer, open_at_barrier, register,
};

use crate::support::*;

async fn arrival(registration: &Registration) -> Arrival {
    for _ in 0..200 {
        if let Some(arrival) = registration.arrivals(&registration.lineage).await.unwrap().remove(&0) {
            return arrival;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the shard did not say anything of the barrier");
}

/// Registers a barrier, and comes to it with a sink that stands there.
async fn come_to_a_barrier(database: &Database, writer: &mut Writer, sequence: i64) -> Registration {
    let registration = register(
        &database.endpoint().await,
        BarrierId::new(owner().lineage.key()),
        BarrierKind::Comparison,
        LEASE,
    )
    .await
    .unwrap();
    writer.note_arrival(&registration.id).await.unwrap();
    writer.commit(&after(sequence)).await.unwrap();
    registration
}

async fn meet(barriers: &mut Barriers, registration: &Registration, sequence: i64) -> Arrival {
    let opening = barriers.open();
    barriers.arrive(registration.id.clone(), after(sequence), opening).await;
    arrival(registration).await
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_of_a_barrier_is_the_sink_as_it_was_there() {
    let database = Database::with(CREATE_ID_AND_NOTE).await;
    let (sink, mut writer) = database.writer(&id_and_note()).await;
    writer.write(vec![insert([note(1, "before")])]).await.unwrap();
    let registration = come_to_a_barrier(&database, &mut writer, 1).await;
    let mut barriers = sink.barriers();
    let Arrival::Held { snapshot, .. } = meet(&mut barriers, &registration, 1).await else {
        panic!("the snapshot was not opened")
    };
    writer.write(vec![insert([note(2, "after")])]).await.unwrap();
    writer.commit(&after(2)).await.unwrap();
    let sessions = open_at_barrier(&database.endpoint().await, &snapshot, 2).await.unwrap();
    registration.end().await.unwrap();
    // Whoever took it over keeps it, whatever becomes of the worker.
    drop((barriers, writer, sink));
    for session in &sessions {
        let rows: i64 = session.query_one("SELECT count(*) FROM public.t", &[]).await.unwrap().get(0);
        assert_eq!(rows, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_arrival_at_another_position_than_the_checkpoint_is_void() {
    let database = Database::with(CREATE_ID_AND_NOTE).await;
    let (sink, mut writer) = database.writer(&id_and_note()).await;
    writer.commit(&after(1)).await.unwrap();
    let registration = come_to_a_barrier(&database, &mut writer, 2).await;
    let void = meet(&mut sink.barriers(), &registration, 1).await;
    assert!(matches!(&void, Arrival::Void(why) if why.contains("not at the barrier")), "{void:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_replaced_holds_no_snapshot() {
    let database = Database::with(CREATE_ID_AND_NOTE).await;
    let (sink, mut writer) = database.writer(&id_and_note()).await;
    let registration = come_to_a_barrier(&database, &mut writer, 1).await;
    let mut barriers = sink.barriers();
    let (_next, _) = database.start(owner()).await;
    let void = meet(&mut barriers, &registration, 1).await;
    assert!(matches!(&void, Arrival::Void(_)), "{void:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_arrival_whose_run_did_not_live_to_announce_it_is_void() {
    let database = Database::with(CREATE_ID_AND_NOTE).await;
    let (sink, mut writer) = database.writer(&id_and_note()).await;
    let registration = come_to_a_barrier(&database, &mut writer, 1).await;
    assert!(
        registration.arrivals(&registration.lineage).await.unwrap().is_empty(),
        "the run may still open its snapshot"
    );
    drop((writer, sink));
    let (_next, _) = database.start(owner()).await;
    let void = registration.arrivals(&registration.lineage).await.unwrap().remove(&0);
    assert!(matches!(&void, Some(Arrival::Void(why)) if why.contains("ended at the barrier")), "{void:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn registering_removes_barriers_that_nobody_waits_for() {
    let database = Database::with(CREATE_ID_AND_NOTE).await;
    let (_sink, mut writer) = database.writer(&id_and_note()).await;
    writer.commit(&after(1)).await.unwrap();
    let uid = owner().lineage.key().clone();
    let left = "INSERT INTO penstock.barrier (uid, nonce, kind, expires_at) SELECT uid, gen_random_uuid(), 'comparison', now() - interval '1 s' FROM penstock.checkpoint";
    database.sql.run(left).await.unwrap();
    let registration =
        register(&database.endpoint().await, BarrierId::new(&uid), BarrierKind::Comparison, LEASE)
            .await
            .unwrap();
    let nonce = registration.id.nonce.to_string();
    assert_eq!(database.lines("SELECT nonce FROM penstock.barrier").await, [nonce]);
    registration.end().await.unwrap();
    assert_eq!(database.lines("SELECT nonce FROM penstock.barrier").await, [""; 0]);
    let unknown =
        register(&database.endpoint().await, BarrierId::new("another"), BarrierKind::Comparison, LEASE)
            .await
            .unwrap_err();
    assert!(unknown.message.contains("holds no state of the pipeline"), "{unknown}");
}
