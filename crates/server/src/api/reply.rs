//! The parts that replies share.

use anchorhold_proto::convert::{duration_to_wire, role_to_wire};
use anchorhold_proto::v1;
use bytes::Bytes;

use crate::core::Core;
use crate::find::Contributions;
use crate::request::{Level, Served};

/// Who served.
pub(super) fn serving(core: &Core, contributions: &Contributions) -> v1::ServingInfo {
    v1::ServingInfo {
        node_id: core.place.node.0,
        zone: core.place.zone.clone(),
        region: core.place.region.clone(),
        shards: contributions.iter().map(shard_serving).collect(),
    }
}

fn shard_serving(served: &Served) -> v1::ShardServing {
    let consistency = match served.level {
        Level::Linearizable => v1::Consistency::Linearizable,
        Level::BoundedStaleness { .. } => v1::Consistency::BoundedStaleness,
        Level::Local => v1::Consistency::Local,
    };
    v1::ShardServing {
        shard_id: served.shard.0,
        incarnation: served.incarnation,
        revision: served.revision,
        staleness: served.staleness.map(duration_to_wire),
        consistency: consistency.into(),
        node_id: served.node.0,
        role: role_to_wire(served.role).into(),
        leader: served.leader,
    }
}

/// What the session has seen by this answer. Empty if it tells too many ranges apart: the client
/// then keeps what it had.
pub(super) fn session_token(contributions: &Contributions) -> Bytes {
    contributions.session().encode().unwrap_or_default()
}
