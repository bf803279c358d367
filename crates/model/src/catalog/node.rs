use super::{
    CatalogChange, CatalogOutcome, CatalogRejection, ClassRecord, Draft, NodeRecord, NodeState,
    RegionRecord, Wish, ZoneRecord, check_name,
};
use crate::{NodeId, Timestamp};

impl Draft<'_> {
    /// `node` comes without an id, and in the state of a new node.
    pub(super) fn register_node(
        &mut self,
        cluster_epoch: u16,
        mut node: NodeRecord,
    ) -> Result<CatalogOutcome, CatalogRejection> {
        check_name(&node.region)?;
        check_name(&node.zone)?;
        if let Some(known) = self.state.node_by_instance(node.instance) {
            check_same_place(known, &node)?;
            node.node_id = known.node_id;
            node.state = known.state;
            node.wish = known.wish;
            node.maintenance_until = known.maintenance_until;
            if *known != node {
                self.changes.push(CatalogChange::Node(node.clone()));
            }
            return Ok(CatalogOutcome::NodeRegistered { node_id: node.node_id });
        }
        self.add_place(&node);
        self.take_over_address(&node);
        node.node_id = NodeId::new(cluster_epoch, self.counters.next_node);
        self.counters.next_node += 1;
        let outcome = CatalogOutcome::NodeRegistered { node_id: node.node_id };
        self.changes.push(CatalogChange::Node(node));
        Ok(outcome)
    }

    /// Makes a node's region and zone known. The first region is home of the classes without one.
    fn add_place(&mut self, node: &NodeRecord) {
        if !self.state.regions.contains_key(&node.region) {
            let region = RegionRecord { name: node.region.clone(), pair: None };
            self.changes.push(CatalogChange::Region(region));
        }
        let zone = (node.region.clone(), node.zone.clone());
        if !self.state.zones.contains_key(&zone) {
            let (region, name) = zone;
            self.changes.push(CatalogChange::Zone(ZoneRecord { region, name }));
        }
        let homeless = self.state.classes.values().filter(|class| class.home.is_none());
        let homed = homeless.map(|class| {
            CatalogChange::Class(ClassRecord { home: Some(node.region.clone()), ..class.clone() })
        });
        self.changes.extend(homed);
    }

    /// A node that had a newcomer's peer address does not run any more: most likely its disk was
    /// emptied and this is its machine. It is down at once; should it come back, it returns.
    fn take_over_address(&mut self, newcomer: &NodeRecord) {
        let is_displaced = |node: &&NodeRecord| {
            node.peer_address == newcomer.peer_address
                && !matches!(node.state, NodeState::Removed | NodeState::Down)
        };
        let displaced = self.state.nodes.values().filter(is_displaced);
        let down = displaced
            .map(|node| CatalogChange::Node(NodeRecord { state: NodeState::Down, ..node.clone() }));
        self.changes.extend(down);
    }

    pub(super) fn set_node_wish(
        &mut self,
        node_id: NodeId,
        wish: Wish,
        maintenance_until: Option<Timestamp>,
    ) -> Result<CatalogOutcome, CatalogRejection> {
        let node =
            self.state.nodes.get(&node_id).ok_or(CatalogRejection::NodeNotFound { node_id })?;
        if node.state == NodeState::Removed {
            return Err(CatalogRejection::NodeRemoved { node_id });
        }
        if (node.wish, node.maintenance_until) != (wish, maintenance_until) {
            let node = NodeRecord { wish, maintenance_until, ..node.clone() };
            self.changes.push(CatalogChange::Node(node));
        }
        Ok(CatalogOutcome::NodeWishSet)
    }

    pub(super) fn set_node_state(
        &mut self,
        node_id: NodeId,
        state: NodeState,
    ) -> Result<CatalogOutcome, CatalogRejection> {
        let node =
            self.state.nodes.get(&node_id).ok_or(CatalogRejection::NodeNotFound { node_id })?;
        if node.state == NodeState::Removed && state != NodeState::Removed {
            return Err(CatalogRejection::NodeRemoved { node_id });
        }
        if node.state != state {
            self.changes.push(CatalogChange::Node(NodeRecord { state, ..node.clone() }));
        }
        Ok(CatalogOutcome::NodeStateSet)
    }
}

fn check_same_place(known: &NodeRecord, node: &NodeRecord) -> Result<(), CatalogRejection> {
    let node_id = known.node_id;
    if known.state == NodeState::Removed {
        return Err(CatalogRejection::NodeRemoved { node_id });
    }
    if (&known.region, &known.zone) != (&node.region, &node.zone) {
        let (region, zone) = (known.region.clone(), known.zone.clone());
        return Err(CatalogRejection::NodeMoved { node_id, region, zone });
    }
    Ok(())
}
