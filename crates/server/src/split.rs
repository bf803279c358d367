//! Splits a shard, wherever it is led, on behalf of an operator or of the planner.
//!
//! The child's id is reserved under a name made of the shard and its epoch: whoever repeats a split
//! gets the same id, and the epoch lets it take effect once.

use std::time::Duration;

use anchorhold_consensus::SplitDone;
use anchorhold_model::catalog::{CatalogCommand, CatalogOutcome};
use anchorhold_model::{Epoch, Key, RequestId, ShardDescriptor, ShardId};
use anchorhold_proto::{Failure, Reason};

use crate::clock::Deadline;
use crate::core::Core;
use crate::request::{ShardError, ShardReply, ShardRequest};

/// Longest wait for the catalog to show both sides: the split is made by then.
const SHOWN_TIMEOUT: Duration = Duration::from_secs(2);

impl Core {
    /// Splits a shard: the keys from `at` on, or from the median on, go to a new one. With the
    /// `version` of the shard's epoch it may be repeated: it has one effect and one answer.
    ///
    /// # Errors
    /// A [`Failure`]: `SHARD_NOT_FOUND`, `SPLIT_IMPOSSIBLE`, `STALE_EPOCH` if somebody else split it
    /// meanwhile, or what keeps the shard or the catalog from answering.
    pub async fn split_shard(
        &self,
        shard: ShardId,
        version: Option<u32>,
        at: Option<Key>,
        deadline: &Deadline,
    ) -> Result<SplitDone, Failure> {
        let not_found =
            || Failure::new(Reason::ShardNotFound, format!("there is no shard {shard}"));
        let descriptor = self.routes.table().of_id(shard).cloned().ok_or_else(not_found)?;
        let epoch =
            Epoch { version: version.unwrap_or(descriptor.epoch.version), ..descriptor.epoch };
        let child = self.reserve_child(shard, epoch, deadline).await?;
        if epoch.version < descriptor.epoch.version {
            let stale = ShardError::StaleEpoch { descriptors: Vec::new(), maybe_done: false };
            let stale = || self.failure(&stale, None);
            return self.split_made(shard, child).ok_or_else(stale);
        }
        if let Some(at) = at
            && (at <= descriptor.range.start || !descriptor.range.contains(at))
        {
            let message = format!("the key does not lie inside shard {shard}, after its first key");
            return Err(Failure::new(Reason::SplitImpossible, message));
        }
        let request = ShardRequest::Split { at, child };
        let done = match self.ask(&descriptor, request, deadline).await {
            Ok(ShardReply::Split { parent, child }) => SplitDone { parent: *parent, child: *child },
            Err(error @ ShardError::StaleEpoch { .. }) => {
                // It may have been this very split, tried before.
                self.split_made(shard, child).ok_or_else(|| self.failure(&error, None))?
            }
            Err(error) => return Err(self.failure(&error, None)),
            Ok(_) => return Err(Failure::new(Reason::Internal, "an answer to another question")),
        };
        self.routes.learn([done.parent.clone(), done.child.clone()]);
        let mut catalog = self.host.catalog();
        let is_shown = catalog.wait_for(|catalog| catalog.shards.contains_key(&child));
        // Not in time is no failure: the shards say it themselves.
        let _ = tokio::time::timeout(deadline.remaining().min(SHOWN_TIMEOUT), is_shown).await;
        Ok(done)
    }

    /// Both sides, if the shard was split with this child.
    fn split_made(&self, shard: ShardId, child: ShardId) -> Option<SplitDone> {
        let table = self.routes.table();
        let of = |shard| table.of_id(shard).map(|known| ShardDescriptor::clone(known));
        Some(SplitDone { parent: of(shard)?, child: of(child)? })
    }

    async fn reserve_child(
        &self,
        shard: ShardId,
        epoch: Epoch,
        deadline: &Deadline,
    ) -> Result<ShardId, Failure> {
        let version = u128::from(epoch.incarnation) << 32 | u128::from(epoch.version);
        let request_id = RequestId(u128::from(shard.0) << 64 | version);
        let command = CatalogCommand::ReserveShard { request_id };
        match self.host.propose_catalog(command, deadline.remaining()).await {
            Ok(CatalogOutcome::ShardReserved { shard_id }) => Ok(shard_id),
            Ok(outcome) => {
                tracing::error!(?outcome, "no id for a shard");
                Err(Failure::new(Reason::Internal, "the catalog gave no id for the new shard"))
            }
            Err(error) => {
                tracing::debug!(%error, "no id for a shard");
                let message = "the catalog has no leader within reach";
                Err(Failure::new(Reason::CatalogUnavailable, message)
                    .retry_after(Duration::from_millis(200)))
            }
        }
    }
}
