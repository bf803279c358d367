//! How the cluster is: the catalog as known here, and what each node says of itself.
//!
//! [`Survey`] is a plain value; everything that is derived from it is pure. Reports are asked when
//! someone wants to know, not kept.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anchorhold_consensus::{Trouble, node_of_catalog_replica};
use anchorhold_model::catalog::{CatalogState, DEFAULT_CLASS, NodeRecord, NodeState};
use anchorhold_model::{
    KeyRange, NodeId, Replica, ReplicaId, ReplicaRole, ShardDescriptor, ShardId,
};
use futures::future::join_all;

use crate::core::Core;
use crate::report::{NodeReport, ReplicaReport};
use crate::request::{self, NodeReply, NodeRequest};

/// Voters that a shard should have, if there are as many zones.
const VOTERS: usize = 3;
/// How long a node may take to say how it is.
const REPORT_TIMEOUT: Duration = Duration::from_secs(1);

/// The cluster at one moment, as seen from one node.
pub struct Survey {
    /// The catalog.
    pub catalog: Arc<CatalogState>,
    /// What the nodes that answered say.
    pub reports: BTreeMap<NodeId, NodeReport>,
}

/// One shard, put together from its replicas' reports.
pub struct ShardSurvey<'a> {
    /// The shard.
    pub descriptor: ShardDescriptor,
    /// The replica that leads, if one says so and no other says so in a later term.
    pub leader: Option<(NodeId, &'a ReplicaReport)>,
    /// What each node says of its replica.
    pub replicas: BTreeMap<NodeId, &'a ReplicaReport>,
    /// Whether it misses a live voter or does not spread over as many zones as it should.
    pub degraded: bool,
}

/// How well the cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Every shard has a leader and all its replicas.
    Healthy,
    /// Everything is served, but a further failure may not be survived.
    Degraded,
    /// Some shard has no leader.
    Unavailable,
}

impl Core {
    /// Asks every node how it is.
    pub async fn survey(&self) -> Survey {
        let catalog = self.catalog();
        let is_other =
            |node: &NodeRecord| node.state != NodeState::Removed && node.node_id != self.place.node;
        self.known_reports.keep(|node_id| catalog.nodes.get(&node_id).is_some_and(is_other));
        let others = catalog.nodes.values().filter(|node| is_other(node));
        let asked = others.map(|node| async move { self.ask_report(node.node_id).await });
        let answers = join_all(asked).await;
        let own = self.report();
        let reports = answers.into_iter().flatten().chain([own]);
        let reports = reports.map(|report| (report.node, report)).collect();
        Survey { catalog, reports }
    }

    async fn ask_report(&self, node: NodeId) -> Option<NodeReport> {
        let asked = self.known_reports.ask(node);
        let question = request::encode(&NodeRequest::Status { known: asked.mark() }).ok()?;
        let answer = self.host.call(node, question, REPORT_TIMEOUT).await.ok()?;
        match request::decode::<NodeReply>(&answer).ok()? {
            NodeReply::Status(difference) => self.known_reports.answer(&asked, *difference),
            NodeReply::Shard(_)
            | NodeReply::BallastReleased(_)
            | NodeReply::Operated(_)
            | NodeReply::Digested(_) => None,
        }
    }
}

impl Survey {
    /// The nodes that have not left, by id.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeRecord> {
        self.catalog.nodes.values().filter(|node| node.state != NodeState::Removed)
    }

    /// Whether a node answered.
    pub fn is_up(&self, node: NodeId) -> bool {
        self.reports.contains_key(&node)
    }

    /// The catalog's own group. Its members are in no descriptor: they are what its replicas say,
    /// and each replica's id names its node. A silent member counts as a voter as long as voters are
    /// missing.
    pub fn catalog_shard(&self) -> ShardSurvey<'_> {
        let found = ShardDescriptor::found(ShardId::CATALOG, KeyRange::EMPTY, DEFAULT_CLASS, &[]);
        let mut survey = self.shard(&found);
        let heard = survey.leader.iter().flat_map(|(_, leader)| &leader.matched);
        let mut members: BTreeSet<NodeId> =
            heard.map(|(id, _)| node_of_catalog_replica(*id)).collect();
        members.extend(survey.replicas.keys());
        let live = survey.replicas.values().filter(|replica| replica.votes).count();
        let wanted = VOTERS.min(self.nodes().count());
        let mut missing = wanted.saturating_sub(live);
        for node_id in members {
            let is_voter = match survey.replicas.get(&node_id) {
                Some(replica) => replica.votes,
                None => {
                    let counts = 0 < missing;
                    missing = missing.saturating_sub(1);
                    counts
                }
            };
            let role = if is_voter { ReplicaRole::Voter } else { ReplicaRole::Learner };
            let found = survey.replicas.get(&node_id);
            let replica_id = found.map_or(ReplicaId(node_id.0), |replica| replica.replica);
            survey.descriptor.replicas.push(Replica { replica_id, node_id, role });
        }
        survey.degraded = self.is_degraded(&survey.descriptor, &survey.replicas)
            || survey.descriptor.voters().count() < wanted;
        survey
    }

    /// The shards by key range.
    pub fn shards(&self) -> Vec<ShardSurvey<'_>> {
        let mut shards: Vec<_> =
            self.catalog.shards.values().map(|known| self.shard(known)).collect();
        shards.sort_by_key(|shard| (shard.descriptor.range.start, shard.descriptor.shard_id));
        shards
    }

    fn shard(&self, known: &ShardDescriptor) -> ShardSurvey<'_> {
        let mut replicas = BTreeMap::new();
        for (node, report) in &self.reports {
            let found = report.replicas.get(&known.shard_id);
            replicas.extend(found.map(|replica| (*node, &**replica)));
        }
        let leads = replicas.iter().filter(|(_, replica)| replica.leads && !replica.stopped);
        let leader = leads.max_by_key(|(_, replica)| replica.term);
        let leader = leader.map(|(node, replica)| (*node, *replica));
        // The leader knows the shard best.
        let newest = leader.map(|(_, replica)| &replica.descriptor);
        let newest = newest.filter(|newest| known.epoch < newest.epoch);
        let descriptor = newest.unwrap_or(known).clone();
        let degraded = self.is_degraded(&descriptor, &replicas);
        ShardSurvey { descriptor, leader, replicas, degraded }
    }

    fn is_degraded(
        &self,
        shard: &ShardDescriptor,
        replicas: &BTreeMap<NodeId, &ReplicaReport>,
    ) -> bool {
        let is_live = |node: &NodeId| replicas.get(node).is_some_and(|replica| !replica.stopped);
        let voters: Vec<NodeId> = shard.voters().map(|replica| replica.node_id).collect();
        let zones: BTreeSet<_> = self.nodes().map(|node| (&node.region, &node.zone)).collect();
        let spread: BTreeSet<_> = voters
            .iter()
            .filter_map(|node| self.catalog.nodes.get(node))
            .map(|node| (&node.region, &node.zone))
            .collect();
        let wanted = VOTERS.min(zones.len());
        voters.is_empty() || !voters.iter().all(is_live) || spread.len() < wanted
    }

    /// How well it is, and why not better, worst first.
    pub fn health(&self) -> (Health, Vec<String>) {
        let mut unavailable = Vec::new();
        let mut degraded = Vec::new();
        let catalog = self.catalog_shard();
        if catalog.leader.is_none() {
            unavailable.push("the catalog has no leader".to_owned());
        } else if catalog.degraded {
            degraded.push("the catalog misses a voter or a zone".to_owned());
        }
        for shard in self.shards() {
            if shard.leader.is_none() {
                unavailable.push(format!("shard {} has no leader", shard.descriptor.shard_id));
            } else if shard.degraded {
                let id = shard.descriptor.shard_id;
                degraded.push(format!("shard {id} misses a live voter or a zone"));
            }
        }
        for (node, report) in &self.reports {
            for replica in report.replicas.values() {
                let shard = replica.shard;
                let words = |problem| format!("node {node}, replica of shard {shard}: {problem}");
                degraded.extend(replica.problem.as_ref().map(words));
            }
        }
        // What is down and holds nothing endangers nothing.
        let held: BTreeSet<NodeId> = self
            .shards()
            .iter()
            .flat_map(|shard| shard.descriptor.replicas.iter().map(|replica| replica.node_id))
            .collect();
        let is_missed =
            |node: &NodeRecord| node.state != NodeState::Down || held.contains(&node.node_id);
        let silent = self.nodes().filter(|node| !self.is_up(node.node_id) && is_missed(node));
        let silent: Vec<_> = silent
            .map(|node| format!("node {} in zone {} does not answer", node.node_id, node.zone))
            .collect();
        for report in self.reports.values() {
            let node = report.node;
            let damage = report.damage.iter();
            degraded.extend(damage.map(|found| format!("node {node} has damaged data: {found}")));
            degraded.extend(report.troubles.iter().map(|trouble| describe(report, *trouble)));
        }
        let health = match (unavailable.is_empty(), degraded.is_empty() && silent.is_empty()) {
            (false, _) => Health::Unavailable,
            (true, false) => Health::Degraded,
            (true, true) => Health::Healthy,
        };
        unavailable.extend(silent);
        unavailable.extend(degraded);
        unavailable.truncate(PROBLEMS_MAX);
        (health, unavailable)
    }

    /// Whether every shard would keep a quorum if a zone were lost now.
    pub fn survives_without(&self, region: &str, zone: &str) -> bool {
        self.catalog_survives_without(region, zone)
            && self.shards().iter().all(|shard| self.keeps_quorum_without(shard, region, zone))
    }

    /// Whether the catalog would keep a quorum if a zone were lost now.
    pub fn catalog_survives_without(&self, region: &str, zone: &str) -> bool {
        self.keeps_quorum_without(&self.catalog_shard(), region, zone)
    }

    fn keeps_quorum_without(&self, shard: &ShardSurvey<'_>, region: &str, zone: &str) -> bool {
        let is_lost = |node: &NodeId| {
            let record = self.catalog.nodes.get(node);
            record.is_none_or(|node| node.region == region && node.zone == zone)
        };
        let stays = |node: &NodeId| {
            let replica = shard.replicas.get(node);
            !is_lost(node) && replica.is_some_and(|replica| !replica.stopped)
        };
        let voters = || shard.descriptor.voters().map(|replica| replica.node_id);
        voters().count() / 2 < voters().filter(stays).count()
    }
}

/// A node's trouble and what to do about it, for people.
fn describe(report: &NodeReport, trouble: Trouble) -> String {
    let node = report.node;
    let free = report.disk_bytes_free >> 20;
    match trouble {
        Trouble::DiskAlmostFull => format!(
            "node {node}: its disk is almost full ({free} MiB free); it takes no new data, deletes \
             work: add space or delete anchors"
        ),
        Trouble::DiskFull => format!(
            "node {node}: its disk is full ({free} MiB free): add space, or give it {} MiB by \
             `anchorhold node release-ballast {}`",
            report.ballast_bytes >> 20,
            node
        ),
        Trouble::DiskStalled => {
            format!("node {node}: its disk does not answer in time; look at its kernel log")
        }
        Trouble::ClockOff => format!(
            "node {node}: its clock is {} ms off the median of all: is its time service running?",
            report.clock_offset_ms.unwrap_or(0)
        ),
    }
}

/// Problems that are listed, at most.
const PROBLEMS_MAX: usize = 32;

#[cfg(test)]
pub(crate) mod tests {
    use anchorhold_model::catalog::CatalogChange;
    use anchorhold_model::{Key, Timestamp};

    use super::*;

    pub(crate) fn replica(descriptor: &ShardDescriptor, node: u64, leads: bool) -> ReplicaReport {
        ReplicaReport {
            shard: descriptor.shard_id,
            replica: descriptor
                .replica_on(NodeId(node))
                .map_or(ReplicaId(node), |replica| replica.replica_id),
            leads,
            votes: true,
            stopped: false,
            lost: false,
            is_joint: false,
            load: 0,
            problem: None,
            leader: None,
            term: 3,
            last_index: Some(9),
            applied_index: Some(9),
            matched: [1, 2, 3].map(|id| (ReplicaId(id), None)).to_vec(),
            revision: 1,
            anchors: 1,
            bytes: 1,
            descriptor: descriptor.clone(),
        }
    }

    /// Three nodes in three zones, one shard; `up` answer, the first of them leads.
    pub(crate) fn survey(up: &[u64]) -> Survey {
        let mut catalog = CatalogState::default();
        let nodes = [1, 2, 3].map(NodeId);
        for node in nodes {
            catalog.absorb(&CatalogChange::Node(NodeRecord {
                node_id: node,
                instance: u128::from(node.0),
                region: "here".to_owned(),
                zone: format!("z{}", node.0),
                peer_address: String::new(),
                client_address: String::new(),
                version: String::new(),
                state: NodeState::Up,
                wish: anchorhold_model::catalog::Wish::Serve,
                maintenance_until: None,
            }));
        }
        let range = KeyRange { start: Key(5), end: None };
        let shard = ShardDescriptor::found(ShardId(1), range, DEFAULT_CLASS, &nodes);
        let own = ShardDescriptor::found(ShardId::CATALOG, KeyRange::EMPTY, DEFAULT_CLASS, &[]);
        catalog.absorb(&CatalogChange::Shard(shard.clone()));
        let has_quorum = 2 <= up.len();
        let reports = up.iter().enumerate().map(|(position, node)| {
            let leads = position == 0 && has_quorum;
            let report = NodeReport {
                node: NodeId(*node),
                started: Timestamp(0),
                disk_bytes: 0,
                disk_bytes_free: 0,
                ballast_bytes: 0,
                disk: 0,
                troubles: Vec::new(),
                clock_offset_ms: Some(0),
                damage: Vec::new(),
                seen: BTreeMap::new(),
                fsync_p99_micros: None,
                replicas: [&own, &shard]
                    .map(|one| (one.shard_id, Arc::new(replica(one, *node, leads))))
                    .into(),
            };
            (report.node, report)
        });
        Survey { catalog: Arc::new(catalog), reports: reports.collect() }
    }

    #[test]
    fn three_nodes_that_answer_are_healthy_and_any_zone_may_go() {
        let survey = survey(&[1, 2, 3]);
        assert_eq!(survey.health(), (Health::Healthy, Vec::new()));
        assert!(survey.survives_without("here", "z2"));
        assert_eq!(survey.shards()[0].leader.unwrap().0, NodeId(1));
    }

    #[test]
    fn a_silent_node_degrades_its_shards_and_no_further_zone_may_go() {
        let survey = survey(&[1, 2]);
        let (health, problems) = survey.health();
        assert_eq!(health, Health::Degraded);
        assert!(problems.iter().any(|problem| problem.contains("node n3")), "{problems:?}");
        assert!(survey.shards()[0].degraded);
        assert!(!survey.survives_without("here", "z2"));
        assert!(survey.survives_without("here", "z3"));
        assert!(!survey.catalog_survives_without("here", "z2"));
    }

    #[test]
    fn a_node_that_should_not_lead_is_named_with_what_to_do() {
        let mut survey = survey(&[1, 2, 3]);
        let full = survey.reports.get_mut(&NodeId(2)).unwrap();
        full.troubles = vec![Trouble::DiskFull];
        full.ballast_bytes = 128 << 20;
        let (health, problems) = survey.health();
        assert_eq!((health, problems.len()), (Health::Degraded, 1));
        assert!(problems[0].contains("128 MiB by `anchorhold node release-ballast n2`"));
    }

    #[test]
    fn a_replica_that_lost_its_log_is_named_with_what_it_waits_for() {
        let mut survey = survey(&[1, 2, 3]);
        let report = survey.reports.get_mut(&NodeId(2)).unwrap();
        let replica = report.replicas.get_mut(&ShardId(1)).unwrap();
        Arc::make_mut(replica).problem = Some("it has no vote".to_owned());
        let (health, problems) = survey.health();
        assert_eq!(health, Health::Degraded);
        assert_eq!(problems, ["node n2, replica of shard s1: it has no vote"]);
    }

    #[test]
    fn a_shard_without_a_leader_is_unavailable_and_named_first() {
        let (health, problems) = survey(&[2]).health();
        assert_eq!(health, Health::Unavailable);
        assert_eq!(problems[0], "the catalog has no leader");
        assert_eq!(problems[1], "shard s1 has no leader");
    }
}
