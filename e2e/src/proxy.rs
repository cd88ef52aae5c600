//! A TCP proxy that breaks connections in the ways a network does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

const CHUNK_BYTES: usize = 16 * 1024;

/// What the proxy does with every connection, existing and new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Passes everything.
    Pass,
    /// Passes nothing and keeps the connections open; what was sent meanwhile passes later.
    Stall,
    /// Closes the connections and every new one at once.
    Cut,
    /// Passes what the client sends and loses what the server answers, for good.
    DropAnswers,
}

#[derive(Clone, Copy, Debug)]
struct State {
    mode: Mode,
    /// Grows with every cut: connections of an older generation end.
    generation: u64,
}

/// A proxy on 127.0.0.1, which ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    target_port: Arc<AtomicU16>,
    state: watch::Sender<State>,
    listener: JoinHandle<()>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Request,
    Answer,
}

impl Proxy {
    /// Starts a proxy to the port on 127.0.0.1, passing.
    pub async fn start(target_port: u16) -> Result<Self> {
        let listener =
            TcpListener::bind(("127.0.0.1", 0)).await.context("cannot open a port for the proxy")?;
        let address = listener.local_addr()?;
        let (state, watch) = watch::channel(State { mode: Mode::Pass, generation: 0 });
        let target = Arc::new(AtomicU16::new(target_port));
        let target_port = target.clone();
        let listener = tokio::spawn(async move {
            // A connection that fails is a broken connection: that is what a proxy like this is for.
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, target.load(Ordering::Relaxed), watch.clone()));
            }
        });
        Ok(Self { address, target_port, state, listener })
    }

    /// Port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Leads new connections to another port from now on, and resets those that there are.
    pub fn redirect(&self, target_port: u16) {
        self.target_port.store(target_port, Ordering::Relaxed);
        self.cut_once();
    }

    /// Changes what happens to every connection from now on.
    pub fn set(&self, mode: Mode) {
        self.state.send_modify(|state| {
            state.mode = mode;
            state.generation += u64::from(mode == Mode::Cut);
        });
    }

    /// Closes the connections that exist; new ones pass.
    pub fn cut_once(&self) {
        self.state.send_modify(|state| *state = State { mode: Mode::Pass, generation: state.generation + 1 });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listener.abort();
        self.set(Mode::Cut);
    }
}

async fn serve(client: TcpStream, target_port: u16, state: watch::Receiver<State>) {
    let born = *state.borrow();
    if born.mode == Mode::Cut {
        return;
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", target_port)).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let requests = pump(Direction::Request, from_client, to_server, state.clone(), born.generation);
    let answers = pump(Direction::Answer, from_server, to_client, state, born.generation);
    // One side that closes ends both, as the end of a PostgreSQL session does.
    tokio::select! {
        () = requests => {}
        () = answers => {}
    }
}

/// Moves bytes one way until a side closes or the connection is cut.
async fn pump(
    direction: Direction,
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut state: watch::Receiver<State>,
    generation: u64,
) {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut pending = 0..0;
    loop {
        let now = *state.borrow_and_update();
        if now.generation != generation {
            return;
        }
        if now.mode == Mode::DropAnswers && direction == Direction::Answer {
            pending = 0..0;
        }
        let step = async {
            if now.mode == Mode::Stall {
                std::future::pending().await
            } else if pending.is_empty() {
                from.read(&mut chunk).await.map(|length| 0..length)
            } else {
                // Not `write_all`: a change of mode may interrupt it, and nothing may be sent twice.
                let end = pending.end;
                to.write(&chunk[pending.clone()]).await.map(|length| pending.start + length..end)
            }
        };
        let was_reading = pending.is_empty();
        tokio::select! {
            biased;
            changed = state.changed() => if changed.is_err() { return },
            moved = step => match moved {
                Ok(now_pending) if was_reading && now_pending.is_empty() => return,
                Ok(now_pending) => pending = now_pending,
                Err(_) => return,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_millis(200);

    /// An echo server behind a proxy, and a client's connection through it.
    async fn echo() -> (Proxy, TcpStream) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap().port()).await.unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    drop(tokio::io::copy(&mut from, &mut to).await);
                });
            }
        });
        let client = TcpStream::connect(proxy.address).await.unwrap();
        (proxy, client)
    }

    async fn say(client: &mut TcpStream, word: &[u8; 4]) {
        client.write_all(word).await.unwrap();
    }

    async fn hear(client: &mut TcpStream) -> Option<[u8; 4]> {
        let mut word = [0; 4];
        timeout(SOON, client.read_exact(&mut word)).await.ok()?.ok().map(|_| word)
    }

    #[tokio::test]
    async fn stalled_bytes_arrive_later_and_once() {
        let (proxy, mut client) = echo().await;
        say(&mut client, b"ping").await;
        assert_eq!(hear(&mut client).await, Some(*b"ping"));
        proxy.set(Mode::Stall);
        say(&mut client, b"late").await;
        assert_eq!(hear(&mut client).await, None);
        proxy.set(Mode::Pass);
        assert_eq!(hear(&mut client).await, Some(*b"late"));
        assert_eq!(hear(&mut client).await, None);
    }

    #[tokio::test]
    async fn cut_closes_old_and_new_connections() {
        let (proxy, mut client) = echo().await;
        say(&mut client, b"ping").await;
        assert_eq!(hear(&mut client).await, Some(*b"ping"));
        proxy.set(Mode::Cut);
        assert_eq!(timeout(SOON, client.read(&mut [0])).await.unwrap().unwrap_or(0), 0);
        let mut second = TcpStream::connect(proxy.address).await.unwrap();
        assert_eq!(timeout(SOON, second.read(&mut [0])).await.unwrap().unwrap_or(0), 0);
        proxy.cut_once();
        let mut third = TcpStream::connect(proxy.address).await.unwrap();
        say(&mut third, b"back").await;
        assert_eq!(hear(&mut third).await, Some(*b"back"));
    }

    #[tokio::test]
    async fn dropped_answers_are_lost_though_the_request_arrived() {
        let (proxy, mut client) = echo().await;
        proxy.set(Mode::DropAnswers);
        say(&mut client, b"lost").await;
        assert_eq!(hear(&mut client).await, None);
        proxy.set(Mode::Pass);
        say(&mut client, b"next").await;
        assert_eq!(
            hear(&mut client).await,
            Some(*b"next"),
            "the request of the lost answer was passed before"
        );
    }
}
