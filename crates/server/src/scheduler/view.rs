//! The planner's view of the cluster: the catalog, and what the nodes say. Pure.

use std::collections::BTreeMap;

use anchorhold_consensus::Trouble;
use anchorhold_model::ShardId;
use anchorhold_model::catalog::{CatalogState, NodeRecord};
use anchorhold_placement::{
    ClassView, ClusterView, DiskState, NodeStatus, ReplicaStatus, ShardStatus,
};

use super::observe::{ShardPast, lag_entries};
use crate::config::PlacementSettings;
use crate::report::{NodeReport, ReplicaReport};
use crate::survey::{ShardSurvey, Survey};

/// Bytes that a byte of rows takes on disk: 3.5 were measured, log and state engine together
/// (docs/measurements.md).
const DISK_BYTES_PER_ROW_BYTE: u64 = 4;

/// What the planner knows; `seen` is what was seen of the shards over time.
pub fn cluster_view(
    survey: &Survey,
    catalog: &CatalogState,
    settings: &PlacementSettings,
    seen: &BTreeMap<ShardId, ShardPast>,
) -> ClusterView {
    let mut view = ClusterView::new(settings.planning(&catalog.scheduler));
    for class in catalog.classes.values() {
        view.set_class(ClassView {
            class_id: class.class_id,
            kind: class.kind.clone(),
            home: class.home.clone(),
        });
    }
    for node in catalog.nodes.values() {
        view.set_node(node_status(node, survey.reports.get(&node.node_id), settings));
    }
    for shard in survey.shards() {
        let seen = seen.get(&shard.descriptor.shard_id).copied().unwrap_or_default();
        view.set_shard(shard_status(&shard, seen, settings.absent_ms));
    }
    for record in catalog.operators.values() {
        view.start(record.operator.clone());
    }
    view
}

fn node_status(
    node: &NodeRecord,
    report: Option<&NodeReport>,
    settings: &PlacementSettings,
) -> NodeStatus {
    use anchorhold_storage::DiskState as Stored;
    let disk = report.map(|report| Stored::from_number(report.disk));
    NodeStatus {
        node_id: node.node_id,
        region: node.region.clone(),
        zone: node.zone.clone(),
        state: node.state,
        disk: match disk {
            Some(Stored::Normal) | None => DiskState::Normal,
            Some(Stored::AlmostFull) => DiskState::AlmostFull,
            Some(Stored::Full) => DiskState::Full,
        },
        is_slow: report.is_some_and(|report| {
            let troubles = report.troubles.iter();
            let mut slow = troubles
                .filter(|trouble| matches!(trouble, Trouble::DiskStalled | Trouble::ClockOff));
            slow.next().is_some()
        }),
        capacity_bytes: report.map_or(0, capacity_bytes),
        load_max: settings.load_max,
    }
}

/// Bytes of rows that a node's disk can hold: what shards are measured in. What it has already, and
/// what its free space is good for.
fn capacity_bytes(report: &NodeReport) -> u64 {
    let rows: u64 = report.replicas.values().map(|replica| replica.bytes).sum();
    rows.saturating_add(report.disk_bytes_free / DISK_BYTES_PER_ROW_BYTE)
}

fn shard_status(shard: &ShardSurvey<'_>, seen: ShardPast, absent_ms: u64) -> ShardStatus {
    let descriptor = &shard.descriptor;
    let leader = shard.leader;
    // A replica that is behind may not have applied the last split yet.
    let figure = |figure: fn(&ReplicaReport) -> u64| {
        let largest = || shard.replicas.values().map(|replica| figure(replica)).max();
        leader.map(|(_, leader)| figure(leader)).or_else(largest).unwrap_or(0)
    };
    let replicas = descriptor.replicas.iter().map(|replica| {
        let report = shard.replicas.get(&replica.node_id);
        let report = report.filter(|report| report.replica == replica.replica_id);
        let leads = leader.is_some_and(|(node_id, _)| node_id == replica.node_id);
        let lag = leader.map_or(u64::MAX, |(_, leader)| {
            lag_entries(leader.last_index, &leader.matched, replica.replica_id)
        });
        ReplicaStatus {
            replica_id: replica.replica_id,
            node_id: replica.node_id,
            role: replica.role,
            is_live: report.is_some_and(|report| !report.stopped),
            is_lost: match report {
                Some(report) => report.lost,
                None => seen.is_absent(replica.replica_id, absent_ms),
            },
            lag_entries: if leads { 0 } else { lag },
        }
    });
    ShardStatus {
        shard_id: descriptor.shard_id,
        range: descriptor.range,
        class: descriptor.class,
        epoch: descriptor.epoch,
        replicas: replicas.collect(),
        is_joint: leader.is_some_and(|(_, leader)| leader.is_joint),
        leader: leader.map(|(node_id, _)| node_id),
        bytes: figure(|replica| replica.bytes),
        anchors: figure(|replica| replica.anchors),
        load: leader.map_or(0, |(_, leader)| past_load(seen).unwrap_or(leader.load)),
        change_time: seen.change_time,
        lead_time: seen.lead_time,
        busy_since: seen.busy_since,
        rest_until: seen.rest_until,
    }
}

/// How often a shard is asked per second, if somebody has looked for a while.
fn past_load(past: ShardPast) -> Option<u64> {
    past.leader.map(|_| past.load_milli.div_ceil(1_000))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use anchorhold_model::NodeId;

    use super::*;
    use crate::survey::tests::survey;

    #[test]
    fn a_disk_holds_the_rows_that_it_has_and_those_that_its_free_space_is_good_for() {
        let mut report = survey(&[1]).reports.remove(&NodeId(1)).unwrap();
        report.disk_bytes = 700;
        report.disk_bytes_free = 400;
        let replica = report.replicas.get_mut(&ShardId(1)).unwrap();
        Arc::make_mut(replica).bytes = 200;
        // One byte is the catalog's.
        assert_eq!(capacity_bytes(&report), 201 + 100);
    }
}
