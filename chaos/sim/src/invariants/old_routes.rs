//! A write that was routed by another epoch is refused where it is applied.
//!
//! The node that takes a write checks its epoch too, so that only a shard that changes between the
//! two checks shows the second one at work. Here the first one is gone around.

use std::sync::Arc;

use anchorhold_consensus::{ProposeError, Replica};
use anchorhold_model::{
    AnchorId, Command, Epoch, OperationId, Outcome, Rejection, RequestId, Write,
};

/// A write to an anchor of this replica by an epoch that the shard never had.
pub fn probe(replica: Arc<Replica>) -> Option<(Arc<Replica>, Command)> {
    let mut first: Option<AnchorId> = None;
    let scanned = replica.scan_records(
        &mut |anchor| {
            first.get_or_insert(anchor.id);
        },
        &mut |_, _, _| {},
    );
    scanned.ok()?;
    let current = replica.state().descriptor.epoch;
    // Further ahead than any split or merge that may be under way.
    let epoch = Epoch { version: current.version + 1_000, ..current };
    let operation = OperationId { request_id: RequestId(u128::MAX), item: 0 };
    let command =
        Command { operation, epoch, write: Write::Delete { id: first?, if_version: None } };
    Some((replica, command))
}

/// Judges what became of it.
///
/// # Errors
/// If it was not refused as stale.
pub fn check(answer: &Result<Vec<Outcome>, ProposeError>) -> Result<(), String> {
    let is_refused = |outcome: &Outcome| {
        matches!(outcome, Outcome::Rejected(Rejection::StaleEpoch { descriptor: _ }))
    };
    match answer {
        Ok(outcomes) if outcomes.iter().all(is_refused) => Ok(()),
        // The leadership moved meanwhile: nothing was applied.
        Err(_) => Ok(()),
        Ok(outcomes) => {
            Err(format!("old routes: a write of another epoch was applied: {outcomes:?}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_applied_write_is_found() {
        check(&Err(ProposeError::Stopped {
            shard: anchorhold_model::ShardId(1),
            reason: String::new(),
        }))
        .unwrap();
        check(&Ok(vec![Outcome::Ticked])).unwrap_err();
    }
}
