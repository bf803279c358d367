//! Proof that a link is as it was declared.
//!
//! Each link has one connection of the harness's own, which ends in an echo server instead of the
//! node and takes the same way through the proxy otherwise. A token sent over it either arrives or
//! not, comes back or not, and takes its time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::time::{Instant, timeout};

use super::LinkId;

/// What became of a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    /// Nobody listens at the link's port.
    pub is_refused: bool,
    /// The token got to the node's side.
    pub arrived: bool,
    /// The token came back after this time.
    pub returned: Option<Duration>,
}

/// Bytes of one token: a number and padding, so that bandwidth shows.
const TOKEN_BYTES: usize = 4 << 10;

/// Tokens that reached the echo server.
pub(super) type Arrivals = Arc<Mutex<BTreeSet<u64>>>;

/// Answers every token with the same token.
pub(super) struct EchoServer {
    address: SocketAddr,
    arrivals: Arrivals,
}

impl EchoServer {
    pub(super) async fn start(runtime: &Runtime) -> anyhow::Result<Self> {
        let bound = runtime.spawn(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).await?;
        let listener = bound.context("no port for the canaries")?;
        let address = listener.local_addr()?;
        let arrivals = Arrivals::default();
        let noted = Arc::clone(&arrivals);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(echo(stream, Arc::clone(&noted)));
            }
        });
        Ok(Self { address, arrivals })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn arrivals(&self) -> Arrivals {
        Arc::clone(&self.arrivals)
    }
}

async fn echo(mut stream: TcpStream, arrivals: Arrivals) {
    let mut token = [0; TOKEN_BYTES];
    while stream.read_exact(&mut token).await.is_ok() {
        arrivals.lock().insert(number_of(&token));
        if stream.write_all(&token).await.is_err() {
            return;
        }
    }
}

fn number_of(token: &[u8]) -> u64 {
    token.first_chunk().map_or(0, |number| u64::from_le_bytes(*number))
}

/// A link's connection; locked over a whole probe.
type Slot = Arc<tokio::sync::Mutex<Option<Connection>>>;

/// A connection, and what has been read of the next token.
struct Connection {
    stream: TcpStream,
    read: BytesMut,
}

/// One connection for each link, made when it is first needed and again when it is gone.
pub(super) struct Canaries {
    ports: Arc<Mutex<BTreeSet<u16>>>,
    arrivals: Arrivals,
    connections: Mutex<BTreeMap<LinkId, Slot>>,
    next: std::sync::atomic::AtomicU64,
}

impl Canaries {
    pub(super) fn new(ports: Arc<Mutex<BTreeSet<u16>>>, arrivals: Arrivals) -> Self {
        let next = std::sync::atomic::AtomicU64::new(1);
        Self { ports, arrivals, connections: Mutex::default(), next }
    }

    pub(super) async fn probe(&self, link: &LinkId, address: SocketAddr, wait: Duration) -> Probe {
        let slot = Arc::clone(self.connections.lock().entry(link.clone()).or_default());
        let mut connection = slot.lock().await;
        let number = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let start = Instant::now();
        let mut probe = Probe::default();
        // The old connection may be gone; then a new one is tried, once.
        for _ in 0..2 {
            if connection.is_none() {
                match self.connect(address).await {
                    Ok(stream) => {
                        *connection = Some(Connection { stream, read: BytesMut::new() });
                    }
                    Err(_) => return Probe { is_refused: true, ..probe },
                }
            }
            let Some(open) = connection.as_mut() else { break };
            let left = wait.saturating_sub(start.elapsed());
            match timeout(left, open.round_trip(number)).await {
                Ok(Ok(())) => {
                    probe.returned = Some(start.elapsed());
                    break;
                }
                Ok(Err(_)) => *connection = None,
                // It may come back later, and is skipped then.
                Err(_) => break,
            }
        }
        probe.arrived = self.arrivals.lock().remove(&number);
        probe
    }

    /// A connection that the proxy leads to the echo server.
    async fn connect(&self, address: SocketAddr) -> std::io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let port = socket.local_addr()?.port();
        self.ports.lock().insert(port);
        let connected = socket.connect(address).await;
        match connected {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                Ok(stream)
            }
            Err(error) => {
                self.ports.lock().remove(&port);
                Err(error)
            }
        }
    }
}

impl Connection {
    /// Sends a token and waits for it; older ones that come first are skipped. May be given up
    /// while it waits: what was read of a token by then is kept.
    async fn round_trip(&mut self, number: u64) -> std::io::Result<()> {
        let mut token = [0; TOKEN_BYTES];
        token[..8].copy_from_slice(&number.to_le_bytes());
        self.stream.write_all(&token).await?;
        loop {
            while TOKEN_BYTES <= self.read.len() {
                let token = self.read.split_to(TOKEN_BYTES);
                if number_of(&token) == number {
                    return Ok(());
                }
            }
            if self.stream.read_buf(&mut self.read).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}
