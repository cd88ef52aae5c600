//! Chunks of the first load.

use bytes::Bytes;
use futures::stream;
use penstock_crds::report::Reason;
use penstock_worker::change::Lsn;
use penstock_worker::change::travel::Format;
use penstock_worker::failure::Failure;
use penstock_worker::incremental::{KeyColumn, KeyOrder};
use penstock_worker::sink::{ChunkEnd, FirstCopy, Progress, Sink, TableState};

use crate::support::*;

fn columns() -> Vec<String> {
    vec!["id".into(), "note".into()]
}

fn lines(lines: &[&str]) -> Vec<Result<Bytes, Failure>> {
    lines.iter().map(|line| Ok(Bytes::from(format!("{line}\n")))).collect()
}

#[tokio::test]
async fn loaders_copy_chunks_side_by_side() {
    let database = Database::new().await;
    let (mut sink, _) = database.start(owner()).await;
    ensure(&mut sink, &[t()]).await;
    let chunks = (0..4).map(|chunk| {
        let sink = &sink;
        async move {
            let mut loader = sink.loader().await?;
            let ids = (0..250).map(|id| format!("{}\tnote {id}", chunk * 250 + id)).collect::<Vec<_>>();
            let data = stream::iter(ids.into_iter().map(|line| Ok(Bytes::from(line + "\n"))));
            loader.load_chunk(&t().name, &columns(), Format::Text, None, data).await
        }
    });
    for rows in futures::future::join_all(chunks).await {
        assert_eq!(rows.unwrap(), 250);
    }
    assert_eq!(database.value("SELECT count(DISTINCT id) FROM t").await, "1000");
    let noted = "SELECT state, chunks_copied, rows_copied FROM penstock.table_state";
    assert_eq!(database.lines(noted).await, ["copying|4|1000"]);
}

#[tokio::test]
async fn chunk_that_fails_in_the_middle_leaves_nothing() {
    let database = Database::new().await;
    let (mut sink, _) = database.start(owner()).await;
    ensure(&mut sink, &[t()]).await;
    let mut loader = sink.loader().await.unwrap();
    let mut broken = lines(&["1\tone", "2\ttwo"]);
    broken.push(Err(Failure::new(Reason::SourceUnreachable, "the source went away")));
    let outcome = loader.load_chunk(&t().name, &columns(), Format::Text, None, stream::iter(broken)).await;
    assert_failed(outcome, Reason::SourceUnreachable);
    assert_eq!(database.lines("SELECT * FROM t").await, [""; 0]);

    let good = stream::iter(lines(&["1\tone"]));
    assert_eq!(loader.load_chunk(&t().name, &columns(), Format::Text, None, good).await.unwrap(), 1);
}

#[tokio::test]
async fn restarted_copy_begins_empty() {
    let database = Database::new().await;
    let (mut sink, _) = database.start(owner()).await;
    ensure(&mut sink, &[t()]).await;
    let mut loader = sink.loader().await.unwrap();
    let data = stream::iter(lines(&["1\tone"]));
    loader.load_chunk(&t().name, &columns(), Format::Text, None, data).await.unwrap();
    sink.restart_copy(&t().name, None).await.unwrap();
    assert_eq!(database.lines("SELECT * FROM t").await, [""; 0]);
    let noted = "SELECT state, chunks_copied, rows_copied FROM penstock.table_state";
    assert_eq!(database.lines(noted).await, ["copying|0|0"]);
}

#[tokio::test]
async fn nothing_is_copied_into_a_table_that_is_ready() {
    let database = Database::new().await;
    let (mut sink, _) = database.start(owner()).await;
    ensure(&mut sink, &[t()]).await;
    sink.mark_ready(&t().name, Lsn(100)).await.unwrap();
    let mut loader = sink.loader().await.unwrap();
    let data = stream::iter(lines(&["1\tone"]));
    let outcome = loader.load_chunk(&t().name, &columns(), Format::Text, None, data).await;
    assert_failed(outcome, Reason::Fenced);
    assert_eq!(database.lines("SELECT * FROM t").await, [""; 0]);
}

#[tokio::test]
async fn value_that_the_sink_refuses_is_not_told() {
    let database = Database::new().await;
    let (mut sink, _) = database.start(owner()).await;
    ensure(&mut sink, &[t()]).await;
    let mut loader = sink.loader().await.unwrap();
    let data = stream::iter(lines(&["hunter2\tone"]));
    let outcome = loader.load_chunk(&t().name, &columns(), Format::Text, None, data).await;
    let message = assert_failed(outcome, Reason::SinkRejectedRow);
    assert!(message.contains("public.t") && !message.contains("hunter2"), "{message}");
}

/// As the next run finds it.
async fn state_of_t(sink: &mut Sink) -> TableState {
    sink.ensure_tables(&[t()], FirstCopy::Copied).await.unwrap().remove(&t().name).unwrap()
}

#[tokio::test]
async fn of_a_load_that_was_cut_short_only_what_has_no_gap_before_it_is_kept() {
    let database = Database::new().await;
    let (mut sink, _) = database.start(owner()).await;
    ensure(&mut sink, &[t()]).await;
    let key = ["id".to_owned()];
    sink.restart_copy(&t().name, Some(&key)).await.unwrap();
    let mut loader = sink.loader().await.unwrap();
    for (number, id) in [(1, "20"), (3, "40"), (0, "10")] {
        let data = stream::iter(lines(&[&format!("{id}\tnote")]));
        let end = ChunkEnd { number, key: &[id.to_owned()] };
        loader.load_chunk(&t().name, &columns(), Format::Text, Some(end), data).await.unwrap();
    }
    let data = stream::iter(lines(&["-7\tpart of a chunk without an end"]));
    loader.load_chunk(&t().name, &columns(), Format::Text, None, data).await.unwrap();

    let progress = Progress { key: key.to_vec(), last: Some(vec!["20".into()]) };
    let columns = [KeyColumn { name: "id".into(), type_sql: "bigint".into(), order: KeyOrder::Signed }];
    assert_eq!(state_of_t(&mut sink).await, TableState::CutShort(progress.clone()));
    sink.keep_copied(&t().name, &columns, &["20".to_owned()]).await.unwrap();
    assert_eq!(database.lines("SELECT id FROM t ORDER BY id").await, ["-7", "10", "20"]);
    assert_eq!(state_of_t(&mut sink).await, TableState::Incremental(progress.clone()));
    assert_failed(sink.keep_copied(&t().name, &columns, &["20".to_owned()]).await, Reason::Fenced);
    let noted =
        "SELECT state, rows_copied, (SELECT count(*) FROM penstock.copied_chunk) FROM penstock.table_state";
    assert_eq!(database.lines(noted).await, ["incremental|3|0"]);
}

#[tokio::test]
async fn a_load_that_was_cut_short_before_its_first_range_begins_anew() {
    let database = Database::new().await;
    let (mut sink, _) = database.start(owner()).await;
    ensure(&mut sink, &[t()]).await;
    sink.restart_copy(&t().name, Some(&["id".to_owned()])).await.unwrap();
    assert_eq!(state_of_t(&mut sink).await, TableState::Copying);
    let mut loader = sink.loader().await.unwrap();
    let end = ChunkEnd { number: 1, key: &["20".to_owned()] };
    let data = stream::iter(lines(&["20\tnote"]));
    loader.load_chunk(&t().name, &columns(), Format::Text, Some(end), data).await.unwrap();
    assert_eq!(state_of_t(&mut sink).await, TableState::Stale);
}
