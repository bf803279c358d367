//! The cached shard map: which node to ask about a key.
//!
//! Only an optimisation: a wrong route costs a hop. It is learnt by GetRoutes and corrected by what
//! replies say about who served them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anchorhold_model::{AccountNumber, AnchorId, Key, KeyRange, Pose, RequestId};
use anchorhold_proto::{convert, v1};

use crate::ClientError;
use crate::channel::{Node, Pool};

/// Where the shards of an account are.
pub(crate) struct Routes {
    /// The caller's account.
    pub(crate) account: AccountNumber,
    /// Sorted by range, disjoint.
    routes: Vec<Route>,
    /// Shard ids and the places of their routes, ordered by id.
    by_shard: Vec<(u64, usize)>,
    /// Every node that a route names, ordered by id.
    nodes: Vec<(u64, Arc<Node>, String)>,
    /// The same nodes, for those who do not care which.
    all: Vec<Arc<Node>>,
}

/// One shard.
struct Route {
    range: KeyRange,
    shard_id: u64,
    incarnation: u32,
    /// Node id, 0 if unknown.
    leader: AtomicU64,
    /// Those in the caller's zone first, and how many they are.
    replicas: Vec<Arc<Node>>,
    near: usize,
}

/// Who is to be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Any node.
    Any,
    /// The leader of the shard that owns a key.
    Leader(Key),
    /// Any replica of the shard that owns a key.
    Replica(Key),
}

impl Routes {
    /// Reads the reply of GetRoutes. Routes that cannot be read are left out: they cost a hop.
    pub(crate) fn new(
        reply: &v1::GetRoutesResponse,
        pool: &Pool,
        zone: Option<&str>,
    ) -> Result<Self, ClientError> {
        let mut nodes = Vec::with_capacity(reply.nodes.len());
        for node in &reply.nodes {
            nodes.push((node.node_id, pool.node(&node.address)?, node.zone.clone()));
        }
        nodes.sort_by_key(|(node_id, ..)| *node_id);
        let all = nodes.iter().map(|(_, node, _)| node.clone()).collect();
        let account = AccountNumber(reply.account);
        let mut map = Self { account, routes: Vec::new(), by_shard: Vec::new(), nodes, all };
        for route in &reply.routes {
            let range = route.range.as_ref().map(convert::range_from_wire);
            let Some(Ok(range)) = range else { continue };
            let mut replicas: Vec<_> = route
                .replicas
                .iter()
                .filter_map(|replica| map.named(replica.node_id))
                .map(|(_, node, in_zone)| (zone != Some(in_zone.as_str()), node.clone()))
                .collect();
            replicas.sort_by_key(|(is_far, _)| *is_far);
            let near = replicas.iter().filter(|(is_far, _)| !is_far).count();
            map.routes.push(Route {
                range,
                shard_id: route.shard_id,
                incarnation: route.epoch.unwrap_or_default().incarnation,
                leader: AtomicU64::new(route.leader_node_id),
                replicas: replicas.into_iter().map(|(_, node)| node).collect(),
                near,
            });
        }
        map.routes.sort_by_key(|route| route.range.start);
        let places = map.routes.iter().enumerate();
        map.by_shard = places.map(|(place, route)| (route.shard_id, place)).collect();
        map.by_shard.sort_unstable();
        Ok(map)
    }

    /// The nodes to ask first, best first as far as that is known; may be empty.
    pub(crate) fn candidates(&self, target: Target) -> &[Arc<Node>] {
        match target {
            Target::Any => &self.all,
            Target::Leader(key) => self.route(key).map_or(&self.all, |route| &route.replicas),
            Target::Replica(key) => match self.route(key) {
                Some(route) if 0 < route.near => &route.replicas[..route.near],
                Some(route) if !route.replicas.is_empty() => &route.replicas,
                Some(_) | None => &self.all,
            },
        }
    }

    /// The node that leads the shard of a key, if that is known.
    pub(crate) fn leader(&self, key: Key) -> Option<&Arc<Node>> {
        let leader = self.route(key)?.leader.load(Ordering::Relaxed);
        self.named(leader).map(|(_, node, _)| node)
    }

    /// Takes in who served a reply. `false` if the routes are out of date as a whole.
    pub(crate) fn learn(&self, serving: &v1::ServingInfo) -> bool {
        serving.shards.iter().all(|shard| {
            let place = self.by_shard.binary_search_by_key(&shard.shard_id, |(id, _)| *id);
            let route = place.ok().map(|place| &self.routes[self.by_shard[place].1]);
            let Some(route) = route.filter(|route| route.incarnation == shard.incarnation) else {
                return false;
            };
            if shard.leader && route.leader.load(Ordering::Relaxed) != shard.node_id {
                route.leader.store(shard.node_id, Ordering::Relaxed);
                return self.named(shard.node_id).is_some();
            }
            true
        })
    }

    /// Forgets who leads the shard of a key.
    pub(crate) fn forget_leader(&self, key: Key) {
        if let Some(route) = self.route(key) {
            route.leader.store(0, Ordering::Relaxed);
        }
    }

    fn route(&self, key: Key) -> Option<&Route> {
        let after = self.routes.partition_point(|route| route.range.start <= key);
        let route = self.routes.get(after.checked_sub(1)?)?;
        route.range.contains(key).then_some(route)
    }

    fn named(&self, node_id: u64) -> Option<&(u64, Arc<Node>, String)> {
        let place = self.nodes.binary_search_by_key(&node_id, |(node_id, ..)| *node_id).ok()?;
        self.nodes.get(place)
    }
}

/// A key in the home cell of a pose.
pub(crate) fn key_of_pose(account: AccountNumber, pose: &Pose) -> Key {
    AnchorId::derive(account, pose, RequestId(0), 0, 0).key()
}
