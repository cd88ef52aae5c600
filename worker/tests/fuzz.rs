//! Bytes that nobody meant: the decoder and the assembler, the checkpoint file, the HTTP API. No panic, no wrong word. Short
//! here; `make fuzz` runs the same for as long as it is told, and prints how many inputs that were.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use penstock_crds::directive::Directive;
use penstock_crds::report::Reason;
use penstock_worker::change::{Checkpoint, Lsn, Position, SourceIdentity};
use penstock_worker::checkpoint::{Identity, Record, Volume};
use penstock_worker::decode::{Assembler, decode};
use penstock_worker::serve::router;
use penstock_worker::status::Status;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

const RECORDED: [&[u8]; 4] = [
    include_bytes!("fixtures/pgoutput/pg15.bin"),
    include_bytes!("fixtures/pgoutput/pg16.bin"),
    include_bytes!("fixtures/pgoutput/pg17.bin"),
    include_bytes!("fixtures/pgoutput/pg18.bin"),
];

/// How long, and from which seed; both printed.
struct Campaign {
    name: &'static str,
    until: Instant,
    random: StdRng,
    inputs: u64,
}

impl Campaign {
    fn begin(name: &'static str) -> Self {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let seed = number("PENSTOCK_FUZZ_SEED").unwrap_or_else(|| rand::rng().random());
        let seconds = number("PENSTOCK_FUZZ_SECONDS").unwrap_or(3);
        println!("{name}: seed {seed}, {seconds} s");
        let until = Instant::now() + Duration::from_secs(seconds);
        Self { name, until, random: StdRng::seed_from_u64(seed), inputs: 0 }
    }

    fn goes_on(&mut self) -> bool {
        self.inputs += 1;
        Instant::now() < self.until
    }

    fn end(&self, least: u64) {
        println!("{}: {} inputs", self.name, self.inputs);
        assert!(self.inputs >= least, "{}: {} inputs prove nothing", self.name, self.inputs);
    }
}

/// A few bytes replaced, removed, doubled or put in.
fn mutate(random: &mut StdRng, bytes: &mut Vec<u8>) {
    for _ in 0..random.random_range(1..6) {
        let at = random.random_range(0..=bytes.len());
        let end = random.random_range(at..=bytes.len().min(at + 64));
        match random.random_range(0..6) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            3 => bytes.insert(at, random.random()),
            4 => bytes[at..end].fill([0, 0xff, b'x'][random.random_range(0..3)]),
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.random_range(0..8);
                }
            }
        }
    }
}

fn recorded(random: &mut StdRng) -> Vec<Vec<u8>> {
    let mut rest = Bytes::from_static(RECORDED[random.random_range(0..RECORDED.len())]);
    let mut payloads = Vec::new();
    while rest.has_remaining() {
        let length = rest.get_u32() as usize;
        payloads.push(rest.split_to(length).to_vec());
    }
    payloads
}

/// Messages altered, left out, repeated and exchanged: what the assembler lets pass stays in commit order.
#[test]
fn no_stream_makes_decoder_or_assembler_panic_or_go_back() {
    let mut campaign = Campaign::begin("decoder and assembler");
    while campaign.goes_on() {
        let random = &mut campaign.random;
        let mut payloads = recorded(random);
        for _ in 0..random.random_range(1..4) {
            let (a, b) = (random.random_range(0..payloads.len()), random.random_range(0..payloads.len()));
            match random.random_range(0..4) {
                0 => payloads.swap(a, b),
                1 => payloads[a] = payloads[b].clone(),
                2 if payloads.len() > 2 => drop(payloads.remove(a)),
                _ => mutate(random, &mut payloads[a]),
            }
        }
        let mut assembler = Assembler::new(Position::default());
        let (mut events, mut last) = (Vec::new(), Lsn(0));
        for payload in payloads {
            let Ok(message) = decode(Bytes::from(payload)) else { break };
            if assembler.accept(message, &mut events).is_err() {
                break;
            }
            for event in events.drain(..) {
                if let penstock_worker::decode::Event::Commit { position, end_lsn, .. } = event {
                    assert!(
                        position.commit_lsn > last && end_lsn > position.commit_lsn,
                        "{last} {position:?}"
                    );
                    last = position.commit_lsn;
                }
            }
        }
    }
    campaign.end(50);
}

fn identity() -> Identity {
    Identity { uid: "uid".into(), shard: 0 }
}

fn record(sequence: i64) -> Record {
    let end_lsn = Lsn(0x0100_0000 + sequence.cast_unsigned() * 16);
    let position = Position { commit_lsn: Lsn(end_lsn.0 - 8), xid: 700, ordinal: 1 };
    let source =
        SourceIdentity { system_id: "7300000000000000001".into(), timeline: 1, slot: "penstock_a_0".into() };
    Record { revision: "r1".into(), epoch: 3, checkpoint: Checkpoint { position, end_lsn, sequence }, source }
}

/// A volume that was garbled holds what was written to it at some time, or nothing, or says that it is unusable: never a
/// place where the shard never stood.
#[test]
fn no_garbled_checkpoint_file_says_where_the_shard_never_stood() {
    let mut campaign = Campaign::begin("checkpoint file");
    // In memory, where there is such a place: each input takes several fsyncs.
    let memory = Path::new("/dev/shm");
    let in_memory = tempfile::TempDir::new_in(memory).ok();
    let folder = in_memory.unwrap_or_else(|| tempfile::TempDir::new().unwrap());
    let written = folder.path().join("written");
    let mut volume = Volume::open(&written, &identity()).unwrap();
    volume.write(&record(1)).unwrap();
    for sequence in 2..40 {
        volume.advance(&record(sequence).checkpoint).unwrap();
    }
    // As a machine that loses power leaves it: the write-ahead log is there beside the file.
    let image = |name: &str| std::fs::read(written.join(name)).unwrap_or_default();
    let (file, wal) = (image("checkpoint.sqlite"), image("checkpoint.sqlite-wal"));
    drop(volume);
    let (mut intact, mut empty) = (0_u64, 0_u64);
    while campaign.goes_on() {
        let random = &mut campaign.random;
        let garbled = folder.path().join("garbled");
        std::fs::create_dir_all(&garbled).unwrap();
        let (mut file, mut wal) = (file.clone(), wal.clone());
        match random.random_range(0..4) {
            0 => mutate(random, &mut file),
            1 => mutate(random, &mut wal),
            // A page that was not written, or half.
            2 => {
                let at = random.random_range(0..file.len() / 512) * 512;
                file[at..at + 512].fill(0);
            }
            _ => (mutate(random, &mut file), mutate(random, &mut wal)).0,
        }
        std::fs::write(garbled.join("checkpoint.sqlite"), &file).unwrap();
        std::fs::write(garbled.join("checkpoint.sqlite-wal"), &wal).unwrap();
        match found(&garbled) {
            Some(checkpoint) => {
                intact += 1;
                let was_written = (1..40).any(|sequence| record(sequence).checkpoint == checkpoint);
                assert!(was_written, "{checkpoint:?}");
            }
            None => empty += 1,
        }
        std::fs::remove_dir_all(&garbled).unwrap();
    }
    println!("checkpoint file: {intact} intact, {empty} set aside or refused");
    assert!(intact > 0 && empty > 0, "{intact} intact, {empty} not");
    campaign.end(20);
}

fn found(folder: &Path) -> Option<Checkpoint> {
    let volume = match Volume::open(folder, &identity()) {
        Ok(volume) => volume,
        Err(failure) => {
            let is_said =
                matches!(failure.reason, Reason::VolumeFailed | Reason::VolumeForeign | Reason::VolumeFull);
            assert!(is_said, "{failure:?}");
            return None;
        }
    };
    match volume.record() {
        Ok(record) => record.map(|record| record.checkpoint),
        Err(failure) => {
            assert_eq!(failure.reason, Reason::VolumeFailed, "{failure}");
            None
        }
    }
}

static PANICS: AtomicU64 = AtomicU64::new(0);

const REQUESTS: [&str; 4] = [
    "GET /v1/report HTTP/1.1\r\nhost: w\r\nauthorization: Bearer secret-token\r\nconnection: close\r\n\r\n",
    "GET /v1/report HTTP/1.1\r\nhost: w\r\nauthorization: Bearer another\r\nconnection: close\r\n\r\n",
    "PUT /v1/directive HTTP/1.1\r\nhost: w\r\nauthorization: Bearer secret-token\r\nconnection: close\r\ncontent-length: 39\r\n\r\n{\"resnapshot\": \"t-1:public.a,sales.*\"} ",
    "PUT /v1/directive HTTP/1.1\r\nhost: w\r\nauthorization: Bearer secret-token\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{\"res\r\n0\r\n\r\n",
];

/// Whatever is sent: the server answers the next request, and says nothing to whoever lacks the token.
#[test]
fn no_request_makes_the_http_api_panic_or_talk_without_the_token() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().name().is_some_and(|name| name.starts_with("served")) {
            PANICS.fetch_add(1, Ordering::Relaxed);
        }
        before(panic);
    }));
    let folder = tempfile::TempDir::new().unwrap();
    std::fs::write(folder.path().join("token"), "secret-token").unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("served")
        .enable_all()
        .build()
        .unwrap();
    let (directive, _kept) = tokio::sync::watch::channel(Directive::default());
    let status = Status::new("uid-of-the-test".into(), "r1".into(), 0);
    let app = router(folder.path().to_owned(), status, directive);
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(async move { axum::serve(listener, app).await });

    let mut campaign = Campaign::begin("HTTP API");
    while campaign.goes_on() {
        let random = &mut campaign.random;
        let mut request = REQUESTS[random.random_range(0..REQUESTS.len())].as_bytes().to_vec();
        mutate(random, &mut request);
        let answer = send(address, &request, Duration::from_millis(50));
        let has_token = request.windows(12).any(|part| part == b"secret-token");
        assert!(has_token || !answer.contains("uid-of-the-test"), "{}", String::from_utf8_lossy(&request));
    }
    let patience = Duration::from_secs(10);
    let answer = send(address, REQUESTS[0].as_bytes(), patience);
    assert!(answer.contains("uid-of-the-test"), "the server is gone: {answer}");
    assert!(send(address, REQUESTS[1].as_bytes(), patience).contains("401"), "another token is taken");
    assert_eq!(PANICS.load(Ordering::Relaxed), 0, "requests made the server panic");
    campaign.end(20);
}

/// A request that is not whole is waited for in vain, so not for long.
fn send(address: SocketAddr, request: &[u8], patience: Duration) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(patience)).unwrap();
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}
