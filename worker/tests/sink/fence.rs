//! Only one run of a shard commits, and no batch twice.

use std::collections::BTreeMap;
use std::time::Duration;

use penstock_crds::report::{Policy, Reason};
use penstock_e2e::proxy::{Mode, Proxy};
use penstock_worker::change::ReplicaIdentity;
use penstock_worker::change::travel::Format;
use penstock_worker::sink::{self, FirstCopy, Sink, TableMap};
use tokio::time::timeout;

use crate::support::*;

/// Longer than any answer takes that comes.
const NO_ANSWER: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_mins(3);

#[tokio::test]
async fn rows_and_checkpoint_are_committed_together() {
    let database = Database::with(CREATE_ID_AND_NOTE).await;
    let (_sink, mut writer) = database.writer(&id_and_note()).await;
    writer.begin().await.unwrap();
    writer.write(vec![insert([note(1, "one")])]).await.unwrap();
    assert_eq!(database.lines("SELECT * FROM t").await, [""; 0], "not before the commit");
    writer.commit(&after(1)).await.unwrap();
    writer.write(vec![insert([note(2, "two")])]).await.unwrap();
    writer.commit(&after(2)).await.unwrap();
    assert_eq!(database.lines("SELECT * FROM t ORDER BY id").await, ["1|one", "2|two"]);

    let (_, started) = database.start(owner()).await;
    assert_eq!(started.checkpoint, Some(after(2)));
    assert_eq!(started.epoch, 2);
}

#[tokio::test]
async fn zombie_epoch_cannot_commit() {
    let database = Database::with(CREATE_ID_AND_NOTE).await;
    let (zombie, _) = database.start(owner()).await;
    let (_sink, mut writer) = database.writer(&id_and_note()).await;

    let mut late = zombie.writer(0).await.unwrap();
    late.describe(&id_and_note()).await.unwrap();
    assert_failed(late.begin().await, Reason::Fenced);
    assert_failed(late.write(vec![insert([note(1, "zombie")])]).await, Reason::Fenced);
    assert_failed(late.commit(&after(1)).await, Reason::Fenced);

    writer.write(vec![insert([note(1, "living")])]).await.unwrap();
    writer.commit(&after(1)).await.unwrap();
    assert_eq!(database.lines("SELECT * FROM t").await, ["1|living"]);
}

#[tokio::test]
async fn transaction_of_an_older_run_is_ended_by_the_next() {
    let database = Database::with(CREATE_ID_AND_NOTE).await;
    let (_frozen, mut writer) = database.writer(&id_and_note()).await;
    writer.write(vec![insert([note(1, "frozen")])]).await.unwrap();

    let next = timeout(Duration::from_secs(10), database.start(owner())).await;
    let (_, started) = next.expect("the frozen run's lock was waited for");
    assert_eq!(started.checkpoint, None);
    let failure = writer.commit(&after(1)).await.unwrap_err();
    assert_eq!(failure.policy(), Policy::Retry, "{failure}");
    assert_eq!(database.lines("SELECT * FROM t").await, [""; 0]);
}

/// A run whose sessions nobody can end: the next one has another role.
async fn zombie(database: &Database) -> Sink {
    let role = format!("zombie_{}", database.name);
    database.sql.run(&format!("CREATE ROLE {role} LOGIN SUPERUSER")).await.unwrap();
    let endpoint = database.endpoint_at(server().await.port, &role);
    sink::start(endpoint, owner(), TableMap::default(), &source()).await.unwrap().0
}

#[tokio::test]
async fn zombie_cannot_touch_tables() {
    let database = Database::new().await;
    let mut zombie = zombie(&database).await;
    ensure(&mut zombie, &[t()]).await;
    let name = t().name;
    let mut loader = zombie.loader().await.unwrap();
    let (_fresh, _) = database.start(owner()).await;
    let outcome =
        loader.load_chunk(&name, &["id".to_owned()], Format::Binary, None, futures::stream::empty()).await;
    assert_failed(outcome, Reason::Fenced);
    assert_failed(zombie.restart_copy(&name, None).await, Reason::Fenced);
    assert_failed(zombie.mark_ready(&name, after(1).end_lsn).await, Reason::Fenced);
    assert_failed(zombie.assign(&BTreeMap::new()).await, Reason::Fenced);
    assert_failed(
        zombie.ensure_tables(&[table("u", &[("id", INT8, "bigint")])], FirstCopy::Copied).await,
        Reason::Fenced,
    );
    assert_eq!(database.lines("SELECT state FROM penstock.table_state").await, ["copying"]);
}

#[tokio::test]
async fn zombie_is_told_that_it_is_one_and_not_that_the_sink_is_wrong() {
    let database = Database::with(CREATE_ID_AND_NOTE).await;
    let zombie = zombie(&database).await;
    let mut writer = zombie.writer(0).await.unwrap();
    database.start(owner()).await;
    database.sql.run("ALTER TABLE t DROP COLUMN note").await.unwrap();
    assert_failed(writer.describe(&id_and_note()).await, Reason::Fenced);
}

/// The sink is restored to before the last start: the next start gets the same epoch as the run that is still there.
#[tokio::test]
async fn run_from_before_a_restore_cannot_commit() {
    let database = Database::with(CREATE_ID_AND_NOTE).await;
    database.start(owner()).await;
    database.sql.run("CREATE TABLE backup AS SELECT * FROM penstock.checkpoint").await.unwrap();
    let zombie = zombie(&database).await;
    database
        .sql
        .run("DELETE FROM penstock.checkpoint; INSERT INTO penstock.checkpoint SELECT * FROM backup")
        .await
        .unwrap();
    database.start(owner()).await;
    assert_eq!(database.value("SELECT epoch FROM penstock.checkpoint").await, "2");
    assert_failed(zombie.writer(0).await.unwrap().begin().await, Reason::Fenced);
    assert_failed(zombie.writer(0).await.unwrap().commit(&after(1)).await, Reason::Fenced);
}

async fn wait_until(database: &Database, query: &str, expected: &str) {
    let wait = async {
        while database.value(query).await != expected {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{query}: never {expected}"));
}

/// The answer to COMMIT is lost, nobody knows whether it happened, and the same batch comes again.
#[tokio::test]
async fn lost_commit_answer_is_not_applied_twice() {
    // No key: nothing but the fence keeps the row from being doubled. COMMIT waits for a lock.
    let database = Database::with(
        "CREATE TABLE t (id bigint, note text);
         CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NULL; END';
         CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait()",
    )
    .await;
    let relation = relation(ReplicaIdentity::Full, &[("id", INT8), ("note", TEXT)]);
    let proxy = Proxy::start(server().await.port).await.unwrap();
    let endpoint = database.endpoint_at(proxy.port(), "postgres");
    let (sink, _) = sink::start(endpoint, owner(), TableMap::default(), &source()).await.unwrap();
    let mut writer = sink.writer(0).await.unwrap();
    writer.describe(&relation).await.unwrap();
    writer.write(vec![insert([note(1, "once")])]).await.unwrap();

    database.sql.run("SELECT pg_advisory_lock(7)").await.unwrap();
    let lose_answer_of_commit = async {
        let committing = "SELECT count(*) FROM pg_stat_activity WHERE query = 'COMMIT' AND wait_event = 'advisory' \
                          AND datname = current_database()";
        wait_until(&database, committing, "1").await;
        proxy.set(Mode::DropAnswers);
        database.sql.run("SELECT pg_advisory_unlock(7)").await.unwrap();
        wait_until(&database, "SELECT count(*) FROM t", "1").await;
    };
    let checkpoint = after(1);
    let commit = timeout(NO_ANSWER, writer.commit(&checkpoint));
    let (answer, ()) = tokio::join!(commit, lose_answer_of_commit);
    assert!(answer.is_err(), "the answer arrived: {answer:?}");
    proxy.cut_once();
    assert_eq!(database.lines("SELECT * FROM t").await, ["1|once"], "it did happen");

    // The same epoch: only the sequence tells.
    let mut again = sink.writer(0).await.unwrap();
    again.describe(&relation).await.unwrap();
    assert_failed(again.write(vec![insert([note(1, "once")])]).await, Reason::Fenced);
    // Through start, as every reconnect goes.
    let (_sink, started) = database.start(owner()).await;
    assert_eq!(started.checkpoint, Some(after(1)));
    assert_eq!(database.lines("SELECT * FROM t").await, ["1|once"]);
}

#[tokio::test]
async fn write_that_was_cut_short_cannot_be_committed() {
    let database = Database::with(
        "CREATE TABLE t (id bigint PRIMARY KEY, note text);
         CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(1); RETURN NEW; END';
         CREATE TRIGGER slow BEFORE INSERT ON t FOR EACH ROW WHEN (NEW.id = 2) EXECUTE FUNCTION wait()",
    )
    .await;
    let (_sink, mut writer) = database.writer(&id_and_note()).await;
    let batch = vec![insert([note(1, "one")]), insert([note(2, "two")])];
    assert!(timeout(Duration::from_millis(300), writer.write(batch)).await.is_err(), "nothing was cut short");
    let failure = writer.commit(&after(2)).await.unwrap_err();
    assert_eq!(failure.policy(), Policy::Retry, "{failure}");
    assert_eq!(database.lines("SELECT * FROM t").await, [""; 0]);
}

#[tokio::test]
async fn checkpoint_advances_without_changes_and_never_goes_back() {
    let database = Database::with(CREATE_ID_AND_NOTE).await;
    let (sink, mut writer) = database.writer(&id_and_note()).await;
    writer.commit(&after(1)).await.unwrap();
    let mut idle = after(1);
    idle.end_lsn.0 += 4096;
    writer.commit(&idle).await.unwrap();
    assert_failed(writer.commit(&after(1)).await, Reason::ProtocolViolation);
    drop((sink, writer));
    let (_, started) = database.start(owner()).await;
    assert_eq!(started.checkpoint, Some(idle));
}

#[tokio::test]
async fn dropped_writer_leaves_nothing() {
    let database = Database::with(CREATE_ID_AND_NOTE).await;
    let (sink, mut writer) = database.writer(&id_and_note()).await;
    writer.write(vec![insert([note(1, "one")])]).await.unwrap();
    drop(writer);
    let mut next = sink.writer(0).await.unwrap();
    timeout(Duration::from_secs(10), next.begin())
        .await
        .expect("the dropped writer holds the fence")
        .unwrap();
    assert_eq!(database.lines("SELECT * FROM t").await, [""; 0]);
}

/// After a failure the writer can be used again: nothing of the failed transaction is left.
#[tokio::test]
async fn failed_transaction_is_rolled_back_whole() {
    let database = Database::with(CREATE_ID_AND_NOTE).await;
    let (_sink, mut writer) = database.writer(&id_and_note()).await;
    writer.write(vec![insert([note(1, "one")])]).await.unwrap();
    assert_failed(writer.write(vec![delete([key(7)])]).await, Reason::SinkDiverged);
    writer.write(vec![insert([note(2, "two")])]).await.unwrap();
    writer.commit(&after(1)).await.unwrap();
    assert_eq!(database.lines("SELECT * FROM t").await, ["2|two"]);
}
