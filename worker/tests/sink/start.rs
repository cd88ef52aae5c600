//! Who may take the fence, and what becomes of state when a pipeline goes.

use penstock_crds::report::Reason;
use penstock_worker::change::SourceIdentity;
use penstock_worker::lineage::Lineage;
use penstock_worker::sink::{self, Owner, TableMap, TableState};

use crate::support::*;

fn revision(name: &str, number: Option<i64>) -> Owner {
    Owner { revision: name.into(), revision_number: number, ..owner() }
}

#[tokio::test]
async fn many_workers_make_the_schema_at_once() {
    let database = Database::new().await;
    let starts = (0..12).map(|number| {
        let uid = format!("uid-{number}");
        database.try_start(Owner { lineage: Lineage::first(uid), ..owner() })
    });
    for started in futures::future::join_all(starts).await {
        assert_eq!(started.unwrap().1.epoch, 1);
    }
    assert_eq!(database.lines("SELECT version FROM penstock.version").await, ["2"]);
    assert_eq!(database.value("SELECT count(*) FROM penstock.checkpoint").await, "12");
}

#[tokio::test]
async fn schema_of_a_newer_worker_is_left_alone() {
    let database = Database::new().await;
    database.start(owner()).await;
    database.sql.run("UPDATE penstock.version SET version = 99").await.unwrap();
    database.start(owner()).await;
    assert_eq!(database.value("SELECT version FROM penstock.version").await, "99");
    database.sql.run("UPDATE penstock.version SET oldest_worker = 98").await.unwrap();
    let message = assert_failed(database.try_start(owner()).await, Reason::ManifestInvalid);
    assert!(message.contains("worker.image"), "{message}");
}

#[tokio::test]
async fn newer_revision_goes_on_where_the_older_stopped() {
    let database = Database::new().await;
    let (sink, first) = database.start(revision("r1", Some(1))).await;
    assert_eq!((first.checkpoint, first.moved_from_revision), (None, None));
    sink.writer(0).await.unwrap().commit(&after(5)).await.unwrap();
    let (_, same) = database.start(revision("r1", Some(1))).await;
    assert_eq!((same.checkpoint, same.moved_from_revision), (Some(after(5)), None));
    let (_, next) = database.start(revision("r2", Some(2))).await;
    assert_eq!((next.checkpoint, next.moved_from_revision), (Some(after(5)), Some("r1".into())));
    assert_eq!(database.value("SELECT count(*) FROM penstock.checkpoint").await, "1");
}

#[tokio::test]
async fn older_revision_cannot_take_the_row_back() {
    let database = Database::new().await;
    database.start(revision("r1", Some(1))).await;
    let (sink, _) = database.start(revision("r2", Some(2))).await;
    let mut writer = sink.writer(0).await.unwrap();
    writer.begin().await.unwrap();
    let message =
        tokio::time::timeout(std::time::Duration::from_secs(40), database.try_start(revision("r1", Some(1))));
    // It waits for the open transaction, and does not end it.
    let (message, committed) = tokio::join!(message, async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        writer.commit(&after(1)).await
    });
    committed.unwrap();
    assert_failed(message.unwrap(), Reason::Superseded);
    assert_eq!(database.value("SELECT revision || epoch FROM penstock.checkpoint").await, "r22");
}

#[tokio::test]
async fn run_without_a_number_takes_over_and_keeps_the_number() {
    let database = Database::new().await;
    database.start(revision("r2", Some(2))).await;
    database.start(revision("local", None)).await;
    assert_failed(database.try_start(revision("r1", Some(1))).await, Reason::Superseded);
    database.start(revision("r2", Some(2))).await;
}

#[tokio::test]
async fn another_source_is_refused_and_changes_nothing_but_the_note_of_it() {
    let database = Database::new().await;
    let (sink, _) = database.start(owner()).await;
    sink.writer(0).await.unwrap().commit(&after(5)).await.unwrap();
    let before = database.lines("SELECT * FROM penstock.checkpoint").await;
    let other = SourceIdentity { system_id: "7300000000000000002".into(), ..source() };
    let start = async || sink::start(database.endpoint().await, owner(), TableMap::default(), &other).await;
    let message = assert_failed(start().await, Reason::SourceChanged);
    assert!(message.contains("begin-anew"), "{message}");
    assert_eq!(database.lines("SELECT * FROM penstock.checkpoint").await, before);
    assert_eq!(database.lines("SELECT reason FROM penstock.dead_end").await, ["SourceChanged"]);
}

#[tokio::test]
async fn source_may_change_as_long_as_nothing_was_read_from_it() {
    let database = Database::new().await;
    database.start(owner()).await;
    let other = SourceIdentity { system_id: "7300000000000000002".into(), ..source() };
    sink::start(database.endpoint().await, owner(), TableMap::default(), &other).await.unwrap();
    let held = database.value("SELECT source_system_id FROM penstock.checkpoint").await;
    assert_eq!(held, other.system_id);
}

#[tokio::test]
async fn adopter_takes_over_all_and_the_old_pipeline_stops() {
    let database = Database::new().await;
    let (mut sink, _) = database.start(Owner { revision_number: Some(7), ..owner() }).await;
    ensure(&mut sink, &[t()]).await;
    sink.mark_ready(&t().name, after(1).end_lsn).await.unwrap();
    sink.writer(0).await.unwrap().commit(&after(5)).await.unwrap();

    let adopter = Owner { adopt: Some("uid-a".into()), ..other_owner() };
    let (mut sink, started) = database.start(adopter.clone()).await;
    assert_eq!(started.checkpoint, Some(after(5)));
    assert_eq!((started.names_uid.as_str(), started.slot.as_str()), ("uid-a", "penstock_a_0"));
    let states = sink.ensure_tables(&[t()], sink::FirstCopy::Copied).await.unwrap();
    assert_eq!(states[&t().name], TableState::Ready(after(1).end_lsn));

    assert_failed(database.try_start(owner()).await, Reason::Superseded);
    let (_, again) = database.start(adopter).await;
    assert_eq!((again.epoch, again.names_uid.as_str()), (started.epoch + 1, "uid-a"));
    let names = sink::names_uid(&database.endpoint().await, "uid-b").await.unwrap();
    assert_eq!(names.as_deref(), Some("uid-a"));
}

#[tokio::test]
async fn state_of_another_number_of_shards_is_not_adopted() {
    let database = Database::new().await;
    let of_two = || Owner { shards: 2, ..owner() };
    database.start(of_two()).await;
    let (mut second, _) = database.start(Owner { shard: 1, ..of_two() }).await;
    second.begin_at(&after(5)).await.unwrap();
    let adopter = Owner { adopt: Some("uid-a".into()), ..other_owner() };
    let message = assert_failed(database.try_start(adopter.clone()).await, Reason::ManifestInvalid);
    assert!(message.contains("uid-a has 2 shards") && message.contains("worker.shards to 2"), "{message}");
    for shard in [1, 0] {
        let (_, started) = database.start(Owner { shards: 2, shard, ..adopter.clone() }).await;
        assert_eq!(started.checkpoint.is_some(), shard == 1);
    }
}

#[tokio::test]
async fn nothing_to_adopt_is_said() {
    let database = Database::new().await;
    let adopter = Owner { adopt: Some("uid-gone".into()), ..owner() };
    let message = assert_failed(database.try_start(adopter).await, Reason::ManifestInvalid);
    assert!(message.contains("uid-gone"), "{message}");
    assert_eq!(database.value("SELECT count(*) FROM penstock.checkpoint").await, "0");
}

#[tokio::test]
async fn clean_up_removes_this_pipelines_state_and_no_rows() {
    let database = Database::new().await;
    let endpoint = database.endpoint().await;
    sink::clean_up(&endpoint, "uid-a").await.unwrap();
    let (mut sink, _) = database.start(owner()).await;
    ensure(&mut sink, &[t()]).await;
    sink.assign(&[(t().name, 0)].into()).await.unwrap();
    database.start(other_owner()).await;
    let mut writer = sink.writer(0).await.unwrap();
    writer.describe(&id_and_note()).await.unwrap();
    writer.write(vec![insert([note(1, "one")])]).await.unwrap();
    writer.commit(&after(1)).await.unwrap();

    sink::clean_up(&endpoint, "uid-a").await.unwrap();
    sink::clean_up(&endpoint, "uid-a").await.unwrap();
    for table in ["checkpoint", "table_state", "assignment", "ownership"] {
        let sql = format!("SELECT count(*) FROM penstock.{table} WHERE uid = 'uid-a'");
        assert_eq!(database.value(&sql).await, "0", "{table}");
    }
    assert_eq!(database.value("SELECT uid FROM penstock.checkpoint").await, "uid-b");
    assert_failed(writer.begin().await, Reason::Fenced);

    sink::clean_up(&endpoint, "uid-b").await.unwrap();
    assert_eq!(database.value("SELECT count(*) FROM pg_namespace WHERE nspname = 'penstock'").await, "0");
    assert_eq!(database.lines("SELECT * FROM t").await, ["1|one"]);
}

#[tokio::test]
async fn clean_up_leaves_what_others_put_into_the_schema() {
    let database = Database::new().await;
    database.start(owner()).await;
    database.sql.run("CREATE VIEW penstock.mine AS SELECT 1 AS one").await.unwrap();
    sink::clean_up(&database.endpoint().await, "uid-a").await.unwrap();
    assert_eq!(database.value("SELECT one FROM penstock.mine").await, "1");
    database.start(owner()).await;
}

#[tokio::test]
async fn role_without_privileges_is_told_what_it_needs() {
    let database = Database::new().await;
    let role = format!("poor_{}", database.name);
    database.sql.run(&format!("CREATE ROLE {role} LOGIN")).await.unwrap();
    let endpoint = database.endpoint_at(server().await.port, &role);
    let start = async || sink::start(endpoint.clone(), owner(), TableMap::default(), &source()).await;
    let message = assert_failed(start().await, Reason::SinkPrivilegeMissing);
    assert!(message.contains("CREATE on the database"), "{message}");

    // An administrator may make the empty schema instead.
    database.sql.run(&format!("CREATE SCHEMA penstock AUTHORIZATION {role}")).await.unwrap();
    let (mut sink, _) = start().await.unwrap();
    let message = assert_failed(
        sink.ensure_tables(&[t()], sink::FirstCopy::Copied).await,
        Reason::SinkPrivilegeMissing,
    );
    assert!(message.contains("public"), "{message}");
    sink::clean_up(&endpoint, "uid-a").await.unwrap();
    assert_eq!(database.value("SELECT count(*) FROM pg_namespace WHERE nspname = 'penstock'").await, "0");
}
