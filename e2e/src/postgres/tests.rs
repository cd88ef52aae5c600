use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Server, ServerTls, Version, processes};

#[tokio::test(flavor = "multi_thread")]
async fn every_version_starts_with_logical_decoding() {
    for version in Version::ALL {
        let server = Server::start(version).await.unwrap();
        server.create_database("shop").await.unwrap();
        let client = server.connect("shop").await.unwrap();
        assert_eq!(client.value("SHOW wal_level").await.unwrap(), "logical");
        assert!(client.value("SHOW server_version").await.unwrap().starts_with(&version.to_string()));
        client.run("SELECT pg_create_logical_replication_slot('probe', 'pgoutput')").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_server_leaves_neither_process_nor_folder() {
    let server = Server::start(Version::V15).await.unwrap();
    let data = server.data();
    let pids = processes::find(&data);
    assert!(pids.len() > 1, "the postmaster and its children are found");
    drop(server);
    assert!(pids.into_iter().all(has_ended));
    assert!(!data.parent().unwrap().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_servers_have_their_own_ports_and_identities() {
    const SERVERS: usize = 6;
    let starts = (0..SERVERS).map(|_| Server::start(Version::V17));
    let servers = futures::future::try_join_all(starts).await.unwrap();
    let identities = futures::future::try_join_all(
        servers
            .iter()
            .map(|server| server.value("postgres", "SELECT system_identifier FROM pg_control_system()")),
    );
    let identities: std::collections::BTreeSet<_> = identities.await.unwrap().into_iter().collect();
    let ports: std::collections::BTreeSet<_> = servers.iter().map(|server| server.port).collect();
    assert_eq!((identities.len(), ports.len()), (SERVERS, SERVERS));
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_server_keeps_its_data_and_port_over_a_restart() {
    let server = Server::start(Version::V16).await.unwrap();
    server.run("postgres", "CREATE TABLE kept AS SELECT 42 AS value").await.unwrap();
    let port = server.port;
    server.kill9();
    assert!(server.connect("postgres").await.is_err());
    assert_eq!(processes::find(&server.data()), []);
    server.restart().await.unwrap();
    assert_eq!(server.port, port);
    assert_eq!(server.value("postgres", "SELECT value FROM kept").await.unwrap(), "42");
    server.stop().await.unwrap();
    assert!(server.connect("postgres").await.is_err());
    server.restart().await.unwrap();
    assert_eq!(server.value("postgres", "SELECT value FROM kept").await.unwrap(), "42");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_and_hba_lines_hold() {
    let server = Server::builder(Version::V18)
        .setting("wal_sender_timeout", "7s")
        .fsync(true)
        .hba("host all all 127.0.0.1/32 scram-sha-256")
        .start()
        .await
        .unwrap();
    assert_eq!(server.value("postgres", "SHOW wal_sender_timeout").await.unwrap(), "7s");
    assert_eq!(server.value("postgres", "SHOW fsync").await.unwrap(), "on");
    server.run("postgres", "CREATE ROLE anna LOGIN PASSWORD 'right'").await.unwrap();
    let mut config = server.config("postgres");
    config.user("anna").password("wrong");
    assert!(super::Client::connect(&config).await.is_err());
    let mut config = server.config("postgres");
    config.user("anna").password("right");
    let client = super::Client::connect(&config).await.unwrap();
    assert_eq!(client.value("SELECT current_user").await.unwrap(), "anna");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_offered_exactly_where_asked_for() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = made.cert.pem();
    let tls = ServerTls {
        client_ca: Some(certificate.clone()),
        certificate,
        key: made.signing_key.serialize_pem(),
    };
    let with = Server::builder(Version::V17).tls(tls).start().await.unwrap();
    let without = Server::start(Version::V17).await.unwrap();
    assert_eq!((answer_to_ssl_request(&with).await, answer_to_ssl_request(&without).await), (b'S', b'N'));
    assert_eq!(with.value("postgres", "SHOW ssl_ca_file").await.unwrap(), "ca.crt");
}

/// `S` or `N`: <https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-SSL>
async fn answer_to_ssl_request(server: &Server) -> u8 {
    const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
    let mut stream = TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
    stream.write_all(&SSL_REQUEST).await.unwrap();
    stream.read_u8().await.unwrap()
}

/// Run by the next test in a process of its own; alone it does nothing.
#[tokio::test(flavor = "multi_thread")]
async fn owner_that_is_going_to_be_killed() {
    let Ok(told) = std::env::var("PENSTOCK_TEST_TELL_DATA") else { return };
    let server = Server::start(Version::V15).await.unwrap();
    std::fs::write(&told, server.data().to_str().unwrap()).unwrap();
    tokio::time::sleep(Duration::from_mins(2)).await;
}

#[test]
fn server_of_a_killed_owner_is_ended_by_the_watchdog() {
    let told = tempfile::NamedTempFile::new().unwrap();
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["owner_that_is_going_to_be_killed", "--nocapture"])
        .env("PENSTOCK_TEST_TELL_DATA", told.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let data = wait_for(|| std::fs::read_to_string(told.path()).ok().filter(|text| !text.is_empty()));
    let data = Path::new(&data);
    let pids = processes::find(data);
    assert!(!pids.is_empty());
    owner.kill().unwrap();
    owner.wait().unwrap();
    wait_for(|| (!data.parent().unwrap().exists()).then_some(()));
    assert!(pids.into_iter().all(has_ended));
}

/// Not asked by folder: a process whose folder was removed is no longer found there. A zombie has no folder at all.
fn has_ended(pid: Pid) -> bool {
    std::fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero())).is_err()
}

fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited a minute");
        std::thread::sleep(Duration::from_millis(20));
    }
}
