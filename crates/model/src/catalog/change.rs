use serde::{Deserialize, Serialize};

use super::{
    AccountRecord, CatalogOperation, ClassRecord, ClusterRecord, Counters, NodeRecord,
    OperatorRecord, RegionRecord, SchedulerRecord, ZoneRecord,
};
use crate::row::{self, DecodeError, Row};
use crate::{RequestId, ShardDescriptor, ShardId};

/// One changed entity of the catalog: one row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CatalogChange {
    /// The cluster is now so.
    Cluster(ClusterRecord),
    /// The counters are now so.
    Counters(Counters),
    /// A region is now so.
    Region(RegionRecord),
    /// A zone is now so.
    Zone(ZoneRecord),
    /// A node is now so.
    Node(NodeRecord),
    /// A class is now so.
    Class(ClassRecord),
    /// An account is now so.
    Account(AccountRecord),
    /// A shard is now so.
    Shard(ShardDescriptor),
    /// A shard is no more; its id is kept, so that it never returns.
    ShardRemoved(ShardId),
    /// A request's outcome is kept.
    Operation(CatalogOperation),
    /// A request's outcome is not kept any more.
    OperationForgotten(RequestId),
    /// An operator is under way.
    Operator(OperatorRecord),
    /// A shard's operator is through, or was given up.
    OperatorFinished(ShardId),
    /// What is planned by itself is now so.
    Scheduler(SchedulerRecord),
    /// A shard is part of another one.
    ShardMerged(ShardId, ShardId),
}

impl CatalogChange {
    /// The row as it is stored: its key (one byte of kind, then the entity's own key), and its
    /// value, `None` to remove the row.
    pub fn row(&self) -> Row {
        let value = match self {
            Self::OperationForgotten(_) | Self::OperatorFinished(_) => None,
            // As it is without a row.
            Self::Scheduler(scheduler) if *scheduler == SchedulerRecord::default() => None,
            Self::Cluster(_)
            | Self::Counters(_)
            | Self::Region(_)
            | Self::Zone(_)
            | Self::Node(_)
            | Self::Class(_)
            | Self::Account(_)
            | Self::Shard(_)
            | Self::ShardRemoved(_)
            | Self::ShardMerged(..)
            | Self::Operation(_)
            | Self::Operator(_)
            | Self::Scheduler(_) => Some(row::encode(self)),
        };
        (self.key(), value)
    }

    /// The change that a stored row is.
    ///
    /// # Errors
    /// [`DecodeError`] if the bytes are not what was written.
    pub fn from_row(key: &[u8], value: &[u8]) -> Result<Self, DecodeError> {
        let change: Self = row::decode(value)?;
        if change.key() == key {
            Ok(change)
        } else {
            Err(DecodeError::UnknownKey { length: key.len() })
        }
    }

    fn key(&self) -> Vec<u8> {
        let with = |kind: u8, rest: &[u8]| [&[kind], rest].concat();
        match self {
            Self::Cluster(_) => with(0, &[]),
            Self::Counters(_) => with(1, &[]),
            Self::Region(region) => with(2, region.name.as_bytes()),
            // Names hold no slash.
            Self::Zone(zone) => with(3, format!("{}/{}", zone.region, zone.name).as_bytes()),
            Self::Node(node) => with(4, &node.node_id.0.to_be_bytes()),
            Self::Class(class) => with(5, &class.class_id.0.to_be_bytes()),
            Self::Account(account) => with(6, &account.account.0.to_be_bytes()),
            Self::Shard(shard) => with(7, &shard.shard_id.0.to_be_bytes()),
            Self::ShardRemoved(shard_id) | Self::ShardMerged(shard_id, _) => {
                with(7, &shard_id.0.to_be_bytes())
            }
            Self::Operation(operation) => with(8, &operation.request_id.0.to_be_bytes()),
            Self::OperationForgotten(request_id) => with(8, &request_id.0.to_be_bytes()),
            Self::Operator(record) => with(9, &record.operator.shard_id.0.to_be_bytes()),
            Self::OperatorFinished(shard_id) => with(9, &shard_id.0.to_be_bytes()),
            Self::Scheduler(_) => with(10, &[]),
        }
    }
}
