//! The simulated network, clocks and threads as a node's seams.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anchorhold_consensus::seams::BoxFuture;
use anchorhold_consensus::{Clock, Dial, Exit, Offload};
use anchorhold_model::{NodeId, Timestamp};
use anchorhold_server::{Connection, Listen, Listening};
use futures::{StreamExt, stream};
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::world::World;

/// Wall-clock time at which every run begins, in milliseconds since 1970: 2026-01-01.
const BEGINNING_MS: u64 = 1_767_225_600_000;

/// A channel to `host:port` that connects, and connects again, when it is used.
///
/// # Errors
/// If the address is none.
pub(crate) fn channel(address: &str) -> Result<Channel, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| format!("{address} is no address: {error}"))?
        .connect_timeout(Duration::from_millis(500))
        .http2_keep_alive_interval(Duration::from_secs(1))
        .keep_alive_timeout(Duration::from_secs(1))
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_with_connector_lazy(service_fn(connect)))
}

async fn connect(uri: Uri) -> io::Result<TokioIo<turmoil::net::TcpStream>> {
    let host = uri.host().unwrap_or_default();
    let stream = turmoil::net::TcpStream::connect((host, uri.port_u16().unwrap_or(80))).await?;
    Ok(TokioIo::new(stream))
}

/// Connects over the simulated network.
pub(crate) struct SimDial;

impl Dial for SimDial {
    fn channel(&self, _peer: NodeId, announced: &str) -> Result<Channel, String> {
        channel(announced)
    }
}

/// Listens on the simulated network.
pub(crate) struct SimListen;

impl Listen for SimListen {
    fn listen(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<Listening>> {
        Box::pin(async move {
            let listener = turmoil::net::TcpListener::bind(address).await?;
            let address = listener.local_addr()?;
            let connections = stream::unfold(listener, |listener| async move {
                let accepted = listener.accept().await.map(|(stream, _)| Connection::new(stream));
                Some((accepted, listener))
            });
            Ok(Listening { address, connections: connections.boxed() })
        })
    }
}

/// One node's clocks.
pub(crate) struct SimClock {
    pub(crate) world: Arc<World>,
    pub(crate) node: usize,
}

impl Clock for SimClock {
    fn wall(&self) -> Timestamp {
        let millis = u64::try_from(self.monotonic().as_millis()).unwrap_or(u64::MAX);
        let offset = self.world.sites[self.node].clock_offset_ms.load(Ordering::Relaxed);
        Timestamp((BEGINNING_MS + millis).saturating_add_signed(offset))
    }

    fn monotonic(&self) -> Duration {
        let micros = self.world.now_us();
        let drift = self.world.sites[self.node].clock_drift_ppm;
        let ahead = i64::try_from(micros).unwrap_or(i64::MAX).saturating_mul(drift) / 1_000_000;
        Duration::from_micros(micros.saturating_add_signed(ahead))
    }
}

/// Everything runs on the one thread there is.
pub(crate) struct Inline;

impl Offload for Inline {
    fn in_place(&self, work: &mut dyn FnMut()) {
        work();
    }

    fn spawn(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        work();
        Box::pin(std::future::ready(()))
    }
}

/// A node that would end its process: nothing here gives it a reason to.
pub(crate) struct SimExit {
    pub(crate) world: Arc<World>,
    pub(crate) node: usize,
}

impl Exit for SimExit {
    fn exit(&self, reason: &str) {
        self.world.violate(format!("node {} gave up: {reason}", self.node + 1));
    }
}
