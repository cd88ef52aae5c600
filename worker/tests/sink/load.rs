//! Chunks of the first load.

use bytes::Bytes;
use futures::stream;
use penstock_crds::report::Reason;
use penstock_worker::change::Lsn;
use penstock_worker::change::travel::Format;
use penstock_worker::failure::Failure;

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
            loader.load_chunk(&t().name, &columns(), Format::Text, data).await
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
    let outcome = loader.load_chunk(&t().name, &columns(), Format::Text, stream::iter(broken)).await;
    assert_failed(outcome, Reason::SourceUnreachable);
    assert_eq!(database.lines("SELECT * FROM t").await, [""; 0]);

    let good = stream::iter(lines(&["1\tone"]));
    assert_eq!(loader.load_chunk(&t().name, &columns(), Format::Text, good).await.unwrap(), 1);
}

#[tokio::test]
async fn restarted_copy_begins_empty() {
    let database = Database::new().await;
    let (mut sink, _) = database.start(owner()).await;
    ensure(&mut sink, &[t()]).await;
    let mut loader = sink.loader().await.unwrap();
    let data = stream::iter(lines(&["1\tone"]));
    loader.load_chunk(&t().name, &columns(), Format::Text, data).await.unwrap();
    sink.restart_copy(&t().name).await.unwrap();
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
    let outcome = loader.load_chunk(&t().name, &columns(), Format::Text, data).await;
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
    let outcome = loader.load_chunk(&t().name, &columns(), Format::Text, data).await;
    let message = assert_failed(outcome, Reason::SinkRejectedRow);
    assert!(message.contains("public.t") && !message.contains("hunter2"), "{message}");
}
