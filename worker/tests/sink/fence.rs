//! Only one run of a shard commits, and no batch twice.

use std::time::Duration;

use penstock_crds::report::{Policy, Reason};
use penstock_e2e::proxy::{Mode, Proxy};
use penstock_worker::change::ReplicaIdentity;
use penstock_worker::sink::{self, FirstCopy, TableMap};
use tokio::time::timeout;

use crate::support::*;

/// Longer than any answer takes that comes.
const NO_ANSWER: Duration = Duration::from_secs(2);

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

#[tokio::test]
async fn zombie_cannot_touch_tables() {
    let database = Database::new().await;
    let (mut zombie, _) = database.start(owner()).await;
    ensure(&mut zombie, &[t()]).await;
    let name = t().name;
    let (fresh, _) = database.start(owner()).await;
    // Its own session was ended; what it could still open is refused by the fence.
    let mut loader = zombie.loader().await.unwrap();
    let nothing = futures::stream::empty();
    let columns = ["id".to_owned(), "note".to_owned()];
    let format = sink::CopyFormat::Binary;
    assert_failed(loader.load_chunk(&name, &columns, format, nothing).await, Reason::Fenced);
    for result in [
        zombie.restart_copy(&name).await,
        zombie.mark_ready(&name, after(1).end_lsn).await,
        zombie.assign(&std::collections::BTreeMap::new()).await,
        zombie.ensure_tables(&[t()], FirstCopy::Copied).await.map(drop),
    ] {
        assert_eq!(result.unwrap_err().policy(), Policy::Retry);
    }
    drop(fresh);
}

/// The answer to COMMIT is lost, nobody knows whether it happened, and the same batch comes again.
#[tokio::test]
async fn lost_commit_answer_is_not_applied_twice() {
    // No key: nothing but the fence keeps the row from being doubled. COMMIT takes a moment.
    let database = Database::with(
        "CREATE TABLE t (id bigint, note text);
         CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.5); RETURN NULL; END';
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

    let lose_answer_of_commit = async {
        let committing = "SELECT count(*) FROM pg_stat_activity WHERE query = 'COMMIT' AND state = 'active' \
                          AND datname = current_database()";
        while database.value(committing).await == "0" {}
        proxy.set(Mode::DropAnswers);
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
