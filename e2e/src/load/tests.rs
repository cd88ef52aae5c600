use super::*;
use crate::checker;
use crate::postgres::{Server, Version};

async fn shop(version: Version) -> Server {
    let server = Server::start(version).await.unwrap();
    server.create_database("shop").await.unwrap();
    let client = server.connect("shop").await.unwrap();
    create(&client).await.unwrap();
    fill(&client, Size::SMALL).await.unwrap();
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn load_is_bounded_and_has_every_kind_of_change() {
    let server = shop(Version::V16).await;
    let client = server.connect("shop").await.unwrap();
    client.run("CREATE PUBLICATION all_tables FOR ALL TABLES").await.unwrap();
    client.run("SELECT pg_create_logical_replication_slot('probe', 'pgoutput')").await.unwrap();
    let options = Options { transactions_max: 801, writers: 4, ..Options::default() };
    let report = run(&server.config("shop"), &options).await.unwrap();
    assert_eq!(report.committed + report.rolled_back + report.refused, 801, "{report:?}");
    assert!(report.committed > 600 && report.rolled_back > 0 && report.broken == 0, "{report:?}");

    // Messages by their first byte, key changes by the K after the relation's OID, unchanged TOAST by its u.
    let kinds = client
        .value(
            "SELECT string_agg(DISTINCT kind, ',' ORDER BY kind) FROM (
                 SELECT convert_from(substring(data, 1, 1), 'UTF8')
                     || CASE WHEN substring(data, 1, 1) = 'U' AND substring(data, 6, 1) = 'K' THEN 'K' ELSE '' END
                 FROM pg_logical_slot_peek_binary_changes('probe', NULL, NULL,
                     'proto_version', '1', 'publication_names', 'all_tables')) AS messages(kind)",
        )
        .await
        .unwrap();
    assert_eq!(kinds, "B,C,D,I,R,U,UK,Y");
    assert_ne!(
        client.value("SELECT count(*) FROM shop.products WHERE length(description) > 8000").await.unwrap(),
        "0"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn load_outlives_a_killed_server() {
    let server = shop(Version::V15).await;
    let options = Options { transactions_max: u64::MAX, ..Options::default() };
    let running = start(server.config("shop"), options);
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.kill9();
    server.restart().await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let report = running.stop().await.unwrap();
    assert!(report.broken > 0 && report.committed > 10, "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn native_replication_of_the_load_is_found_equal() {
    let (source, sink) = (shop(Version::V17).await, Server::start(Version::V15).await.unwrap());
    source.run("shop", "CREATE PUBLICATION p FOR TABLES IN SCHEMA shop").await.unwrap();
    sink.create_database("shop").await.unwrap();
    let (from, to) = (source.connect("shop").await.unwrap(), sink.connect("shop").await.unwrap());
    create(&to).await.unwrap();
    to.run(&format!(
        "CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1 port={} user=postgres dbname=shop' PUBLICATION p",
        source.port
    ))
    .await
    .unwrap();
    run(&source.config("shop"), &Options { transactions_max: 300, ..Options::default() }).await.unwrap();
    let compared = checker::wait_until_equal(&from, &to, &pairs(), Duration::from_mins(1)).await.unwrap();
    assert!(compared.iter().all(|table| table.source.rows > 0));
}
