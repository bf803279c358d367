//! How the cluster stands, asked of the nodes themselves.
//!
//! Nodes that are cut off from each other see different things. Each is asked by itself, past the
//! proxies; the one that sees most nodes is believed, and of two leaders the one of the later term.

use std::collections::BTreeMap;

use anchorhold_client::admin_v1;
use anyhow::Context as _;

use super::ProcessDriver;
use crate::events::Sample;
use crate::scenario::{Place, View};

/// What the nodes say.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// The figures.
    pub sample: Sample,
    /// Who leads each shard, by name; the catalog is 0.
    pub leaders: BTreeMap<u64, String>,
    /// Whether the best-informed node finds everything whole.
    pub is_healthy: bool,
    /// Its reasons if it does not.
    pub problems: Vec<String>,
}

/// One node's answers.
struct Answer {
    status: admin_v1::GetClusterStatusResponse,
    shards: Vec<admin_v1::Shard>,
    ids: BTreeMap<u64, String>,
}

/// Nodes asked in one survey, at most: each of them asks all others.
const ASKED_MAX: usize = 3;
const PAGE_SIZE: u32 = 1_000;

impl ProcessDriver {
    /// Asks some nodes how the cluster stands; `turn` says with which to begin.
    pub async fn survey(&self, turn: usize) -> Survey {
        let running: Vec<&String> =
            self.admins.keys().filter(|name| self.is_running_freely(name)).collect();
        let count = running.len();
        let asked = (0..count.min(ASKED_MAX)).map(|step| running[(turn + step) % count]);
        let answers = futures::future::join_all(asked.map(|name| self.ask(name))).await;
        let answers: Vec<Answer> = answers.into_iter().flatten().collect();
        self.merge(&answers)
    }

    /// A node that does not run, or is frozen, only costs time.
    fn is_running_freely(&self, name: &str) -> bool {
        matches!(self.process(name), Ok(Some(_))) && !self.is_frozen(name)
    }

    async fn ask(&self, name: &str) -> Option<Answer> {
        let admin = self.admins.get(name)?;
        let request = admin_v1::ListShardsRequest { page_size: PAGE_SIZE, ..Default::default() };
        let (status, shards, nodes) = tokio::join!(
            admin.get_cluster_status(admin_v1::GetClusterStatusRequest {}),
            admin.list_shards(request),
            admin.list_nodes(admin_v1::ListNodesRequest {}),
        );
        let ids = self.names_of(&nodes.ok()?.nodes);
        Some(Answer { status: status.ok()?, shards: shards.ok()?.shards, ids })
    }

    fn names_of(&self, nodes: &[admin_v1::Node]) -> BTreeMap<u64, String> {
        let named = nodes.iter().filter_map(|node| {
            let address = &node.peer_address;
            let known = self.nodes.iter().find(|known| known.peer_address.to_string() == *address);
            Some((node.node_id, known?.name.clone()))
        });
        named.collect()
    }

    /// The nodes' ids and names. A node that was wiped has several ids; the last one is its own.
    ///
    /// # Errors
    /// If no node answers.
    pub async fn node_ids(&self) -> anyhow::Result<BTreeMap<u64, String>> {
        for admin in self.admins.values() {
            if let Ok(reply) = admin.list_nodes(admin_v1::ListNodesRequest {}).await {
                return Ok(self.names_of(&reply.nodes));
            }
        }
        None.context("no node says who is in the cluster")
    }

    fn merge(&self, answers: &[Answer]) -> Survey {
        let Some(best) = answers.iter().max_by_key(|answer| answer.status.nodes_up) else {
            return Survey::default();
        };
        let mut leaders = BTreeMap::<u64, (u64, String)>::new();
        for answer in answers {
            for shard in answer.shards.iter().filter(|shard| shard.leader_node_id != 0) {
                let Some(name) = answer.ids.get(&shard.leader_node_id) else { continue };
                let known = leaders.entry(shard.shard_id).or_default();
                if known.0 <= shard.term {
                    *known = (shard.term, name.clone());
                }
            }
        }
        let mut leaders: BTreeMap<u64, String> =
            leaders.into_iter().map(|(shard, (_, name))| (shard, name)).collect();
        if let Some(name) = best.ids.get(&best.status.catalog_leader_node_id) {
            leaders.insert(0, name.clone());
        }
        let mut sample = Sample {
            shards_without_leader: best.status.shards_without_leader,
            nodes_up: best.status.nodes_up,
            answered: true,
            ..Sample::default()
        };
        let replicas = best.shards.iter().flat_map(|shard| &shard.replicas);
        let missing = replicas.filter(|replica| !replica.live).count();
        sample.replicas_missing = u32::try_from(missing).unwrap_or(u32::MAX);
        for (shard, name) in &leaders {
            *sample.leaders_per_node.entry(name.clone()).or_default() += 1;
            // The catalog stays where it is: nobody evens that out.
            if *shard == 0 {
                continue;
            }
            if let Ok(node) = self.node(name) {
                *sample.leaders_per_zone.entry(node.zone.clone()).or_default() += 1;
            }
        }
        Survey {
            sample,
            leaders,
            is_healthy: best.status.health() == admin_v1::Health::Healthy,
            problems: best.status.problems.clone(),
        }
    }

    /// What selectors are resolved against, now.
    pub async fn view(&self, round: usize) -> View {
        let survey = self.survey(round).await;
        let places = self.nodes.iter().map(|node| {
            let place = Place { region: node.region.clone(), zone: node.zone.clone() };
            (node.name.clone(), place)
        });
        View { places: places.collect(), leaders: survey.leaders, round }
    }
}
