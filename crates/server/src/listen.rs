//! How a node is reached: the seam of its gRPC ports.
//!
//! A real node listens on TCP, a simulated one on a network in memory. Behind the seam a connection
//! is bytes and nothing else. The HTTP port of metrics and probes is not behind it: a simulated
//! node has none.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use anchorhold_consensus::seams::BoxFuture;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tonic::transport::server::{Connected, TcpIncoming};

/// Listens to addresses.
pub trait Listen: Send + Sync + 'static {
    /// Listens to an address; port 0 takes any free one.
    ///
    /// # Errors
    /// Whatever the network says.
    fn listen(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<Listening>>;
}

/// A port that is listened to.
pub struct Listening {
    /// The address, with the port that was taken.
    pub address: SocketAddr,
    /// Who connects.
    pub connections: BoxStream<'static, io::Result<Connection>>,
}

impl fmt::Debug for Listening {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Listening").field(&self.address).finish()
    }
}

/// What a connection must be able to do.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection, whatever carries it.
pub struct Connection(Box<dyn Duplex>);

impl Connection {
    /// Wraps what carries it.
    pub fn new(stream: impl Duplex + 'static) -> Self {
        Self(Box::new(stream))
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}

/// Listens on TCP.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpListen;

impl Listen for TcpListen {
    fn listen(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<Listening>> {
        Box::pin(async move {
            let listener = TcpListener::bind(address).await?;
            let address = listener.local_addr()?;
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            Ok(Listening { address, connections: incoming.map_ok(Connection::new).boxed() })
        })
    }
}
