//! Everything that differs between a real node and a simulated one.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anchorhold_model::{NodeId, Timestamp};
use anchorhold_storage::snapshot::SnapshotStore;
use anchorhold_storage::{LogStore, StateStore};

/// A boxed future, as trait objects need it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a node is built from.
#[derive(Clone)]
pub struct Seams {
    /// Connects to peers.
    pub dial: Arc<dyn Dial>,
    /// The wall clock and the monotonic clock.
    pub clock: Arc<dyn Clock>,
    /// Everything random is derived from this.
    pub seed: u64,
    /// Runs blocking work.
    pub offload: Arc<dyn Offload>,
    /// The shared log.
    pub log: Arc<dyn LogStore>,
    /// The applied state.
    pub state: Arc<dyn StateStore>,
    /// Snapshot files.
    pub snapshots: Arc<SnapshotStore>,
    /// Ends the process.
    pub exit: Arc<dyn Exit>,
    /// Bugs and stops on command.
    #[cfg(feature = "chaos")]
    pub hooks: crate::hooks::Hooks,
}

/// Which address leads to a peer. One address per pair of nodes, so that a proxy can stand between
/// any two.
pub trait Dial: Send + Sync + 'static {
    /// Opens a channel from this node to a peer at the address that it announced (`host:port`).
    /// Connects lazily; must not block.
    ///
    /// # Errors
    /// If the address is none.
    fn channel(&self, peer: NodeId, announced: &str) -> Result<tonic::transport::Channel, String>;
}

/// Time.
pub trait Clock: Send + Sync + 'static {
    /// Wall-clock time. May jump.
    fn wall(&self) -> Timestamp;
    /// Time since some fixed moment of this process. Never goes back.
    fn monotonic(&self) -> Duration;
}

/// Runs blocking work without blocking the async threads; inline in simulation.
pub trait Offload: Send + Sync + 'static {
    /// Runs `work` to its end before returning. For short work that may touch the disk.
    fn in_place(&self, work: &mut dyn FnMut());
    /// Runs `work` on another thread.
    fn spawn(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()>;
}

/// Ends the process when going on would break a promise.
pub trait Exit: Send + Sync + 'static {
    /// Says why and ends the process. In simulation the node is marked dead and this returns.
    fn exit(&self, reason: &str);
}
