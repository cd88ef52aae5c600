//! Credentials, and servers that do not answer.

use std::time::Instant;

use penstock_crds::report::Reason;
use penstock_e2e::postgres::{Server, Version};
use tokio::net::TcpListener;

use crate::kit::{assert_connects, assert_says, endpoint, endpoint_as, refusal, write};

const PASSWORD: &str = "s3cret-pass word'\"";

async fn server_with_password(method: &str) -> Server {
    let server = Server::builder(Version::V15)
        .hba(format!("host all,replication all 127.0.0.1/32 {method}"))
        .setting("password_encryption", if method == "md5" { "md5" } else { "scram-sha-256" })
        .start()
        .await
        .unwrap();
    let sql = format!("CREATE ROLE reader LOGIN REPLICATION PASSWORD '{}'", PASSWORD.replace('\'', "''"));
    server.run("postgres", &sql).await.unwrap();
    server
}

#[tokio::test]
async fn passwords_are_proved_by_scram_and_md5_and_a_wrong_one_is_named_without_showing_any() {
    for method in ["scram-sha-256", "md5"] {
        let server = server_with_password(method).await;
        assert_connects(&endpoint_as(&server, "postgres", "reader", PASSWORD)).await;

        let wrong = endpoint_as(&server, "postgres", "reader", "not-it-at-all");
        let failure = refusal(&wrong).await;
        assert_says(&failure, Reason::SourceAuthenticationFailed, &["shop-credentials", "28P01", "reader"]);
        for text in [failure.message, format!("{wrong:?}")] {
            assert!(!text.contains("not-it-at-all"), "{text}");
        }
    }
}

#[tokio::test]
async fn the_replication_connection_gives_no_password_away_in_cleartext() {
    let server = server_with_password("password").await;
    let error = endpoint_as(&server, "postgres", "reader", PASSWORD).connect_replication("test").await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("cleartext"), "{error}");
}

#[tokio::test]
async fn credentials_come_from_files_and_are_read_anew_by_every_connection() {
    let server = server_with_password("scram-sha-256").await;
    let folder = tempfile::tempdir().unwrap();
    let mut endpoint = endpoint(&server, "postgres");
    endpoint.files.environment = None;
    endpoint.files.credentials = folder.path().to_owned();

    let failure = refusal(&endpoint).await;
    let words = ["shop-credentials", "username", "PENSTOCK_SOURCE_USERNAME", "PENSTOCK_SOURCE_PASSWORD"];
    assert_says(&failure, Reason::CredentialsMissing, &words);

    write(folder.path(), "username", "reader\n");
    write(folder.path(), "password", "");
    assert_says(&refusal(&endpoint).await, Reason::CredentialsMissing, &["key password", "empty"]);
    write(folder.path(), "password", "old");
    assert_says(&refusal(&endpoint).await, Reason::SourceAuthenticationFailed, &[]);
    write(folder.path(), "password", &format!("{PASSWORD}\n"));
    assert_connects(&endpoint).await;
}

#[tokio::test]
async fn an_absent_server_host_or_database_is_unreachable_and_says_which() {
    let server = Server::start(Version::V15).await.unwrap();
    let mut endpoint = endpoint(&server, "no_such_db");
    let words = ["no_such_db", "3D000", "connection.database"];
    assert_says(&refusal(&endpoint).await, Reason::SourceUnreachable, &words);

    server.stop().await.unwrap();
    let words = [server.port.to_string(), "refused".to_owned()];
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    assert_says(&refusal(&endpoint).await, Reason::SourceUnreachable, &words);

    endpoint.connection.host = "no-such-host.invalid".into();
    let words = ["no-such-host.invalid", "resolved"];
    assert_says(&refusal(&endpoint).await, Reason::SourceUnreachable, &words);
}

#[tokio::test]
async fn a_server_that_accepts_and_says_nothing_is_given_up_after_ten_seconds() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Server::start(Version::V15).await.unwrap();
    let mut endpoint = endpoint(&server, "postgres");
    endpoint.connection.port = listener.local_addr().unwrap().port();
    let started = Instant::now();
    let (sql, replication) = tokio::join!(endpoint.connect("test"), endpoint.connect_replication("test"));
    for error in [sql.unwrap_err(), replication.unwrap_err()] {
        let failure = error.failure(endpoint.end, &endpoint.connection);
        assert_says(&failure, Reason::SourceUnreachable, &["10 s"]);
    }
    assert!((9..13).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_role_that_may_not_replicate_is_told_so_by_the_replication_connection() {
    let server = Server::start(Version::V15).await.unwrap();
    server.run("postgres", "CREATE ROLE plain LOGIN").await.unwrap();
    let endpoint = endpoint_as(&server, "postgres", "plain", "unused");
    let error = endpoint.connect_replication("test").await.unwrap_err();
    let failure = error.failure(endpoint.end, &endpoint.connection);
    assert_says(&failure, Reason::SourcePrivilegeMissing, &["REPLICATION"]);
}

#[tokio::test]
async fn settings_of_the_role_cannot_end_a_long_transaction_or_hide_rows() {
    let server = Server::start(Version::V15).await.unwrap();
    server
        .run(
            "postgres",
            "CREATE ROLE plain LOGIN; ALTER ROLE plain SET statement_timeout = 1; \
             ALTER ROLE plain SET idle_in_transaction_session_timeout = 1; ALTER ROLE plain SET datestyle = 'SQL'; \
             CREATE TABLE secret (id int); ALTER TABLE secret ENABLE ROW LEVEL SECURITY; \
             GRANT SELECT ON secret TO plain",
        )
        .await
        .unwrap();
    let session = endpoint_as(&server, "postgres", "plain", "unused").connect("test").await.unwrap();
    session.batch_execute("BEGIN; SELECT pg_sleep(0.1)").await.unwrap();
    let row = session.query_one("SELECT date '2020-01-31'::text", &[]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), "2020-01-31");
    let error = session.query("SELECT * FROM secret", &[]).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "42501", "a policy must fail the query, not filter it");
}
