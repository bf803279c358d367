use std::time::Duration;

use anchorhold_model::ShardState;

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadLevel {
    /// Sees every write that was acknowledged before the read arrived.
    Linearizable,
    /// Misses at most the writes of this last while.
    BoundedStaleness {
        /// How old the view may be.
        staleness_max: Duration,
    },
    /// Whatever this replica has applied.
    Local,
}

/// The view that a read may be served from: everything applied at this moment.
#[derive(Clone, Debug)]
pub struct ReadView {
    /// The shard's state in that view.
    pub shard: std::sync::Arc<ShardState>,
    /// How old the view is at most; zero when linearizable, `None` when unknown.
    pub staleness: Option<Duration>,
    /// Whether this replica led the shard.
    pub leader: bool,
}
