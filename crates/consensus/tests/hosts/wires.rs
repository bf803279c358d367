//! Connections between nodes that can be cut in one direction or both: what is sent is held, as on
//! a link that has fallen silent.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anchorhold_consensus::Dial;
use anchorhold_model::NodeId;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

/// How often a held transfer looks whether the link is whole again.
const LOOK: Duration = Duration::from_millis(5);

/// Addresses from and to.
type Direction = (String, String);

/// All connections between the nodes of a cluster.
#[derive(Clone, Default)]
pub(crate) struct Wires(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    cut: BTreeSet<Direction>,
    refused: BTreeSet<Direction>,
    /// Bytes sent by who dialled.
    sent: BTreeMap<Direction, u64>,
}

impl Wires {
    /// Nothing that one node sends reaches the other any more.
    pub(crate) fn cut(&self, from: &str, to: &str) {
        self.0.lock().cut.insert((from.to_owned(), to.to_owned()));
    }

    /// No new connection from one node to the other comes about.
    pub(crate) fn refuse(&self, from: &str, to: &str) {
        self.0.lock().refused.insert((from.to_owned(), to.to_owned()));
    }

    /// All links are whole again.
    pub(crate) fn heal(&self) {
        self.0.lock().cut.clear();
    }

    /// Bytes that one node has sent to the other over connections that it made.
    pub(crate) fn sent(&self, from: &str, to: &str) -> u64 {
        self.0.lock().sent.get(&(from.to_owned(), to.to_owned())).copied().unwrap_or_default()
    }

    fn is_cut(&self, from: &str, to: &str) -> bool {
        self.0.lock().cut.contains(&(from.to_owned(), to.to_owned()))
    }
}

/// Dials as one node.
pub(crate) struct WireDial {
    pub(crate) own: String,
    pub(crate) wires: Wires,
}

impl Dial for WireDial {
    fn channel(&self, _peer: NodeId, announced: &str) -> Result<Channel, String> {
        let endpoint =
            Endpoint::from_shared(format!("http://{announced}")).map_err(|e| e.to_string())?;
        let ends = Arc::new((self.own.clone(), announced.to_owned()));
        let wires = self.wires.clone();
        let connect = service_fn(move |_| {
            let (ends, wires) = (ends.clone(), wires.clone());
            async move {
                if wires.0.lock().refused.contains(&*ends) {
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                let stream = TcpStream::connect(&ends.1).await?;
                Ok::<_, io::Error>(TokioIo::new(Wire { stream, ends, wires }))
            }
        });
        let endpoint = endpoint.connect_timeout(Duration::from_secs(1)).tcp_nodelay(true);
        Ok(endpoint.connect_with_connector_lazy(connect))
    }
}

/// A connection, from the end that dialled.
struct Wire {
    stream: TcpStream,
    ends: Arc<(String, String)>,
    wires: Wires,
}

impl Wire {
    /// Whether a direction is cut; then the task is woken to look again.
    fn is_held(&self, from: &str, to: &str, context: &Context<'_>) -> bool {
        let is_cut = self.wires.is_cut(from, to);
        if is_cut {
            let waker = context.waker().clone();
            tokio::spawn(async move {
                tokio::time::sleep(LOOK).await;
                waker.wake();
            });
        }
        is_cut
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_held(&self.ends.1, &self.ends.0, context) {
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_held(&self.ends.0, &self.ends.1, context) {
            return Poll::Pending;
        }
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if let Poll::Ready(Ok(count)) = written {
            *self.wires.0.lock().sent.entry((*self.ends).clone()).or_default() += count as u64;
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
