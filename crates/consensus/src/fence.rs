//! What a replica may do whose log has lost something.
//!
//! Entries lost, hard state known: it follows, and neither votes nor campaigns until its log has
//! come as far again as it ever was ([`Lost::to`]). A hard state that may be lost: it takes part
//! in nothing, because it may have promised a later leader not to follow an earlier one.
//!
//! Not here: finding out what is lost (`anchorhold_storage::log`), replacing replicas.

use std::fmt;
use std::sync::Arc;

use anchorhold_storage::{GroupId, LogPosition, LogStore, LogWrite, Lost, StateError};
use tokio::sync::oneshot;

use crate::machine::damaged;

/// Why a replica does less than the others of its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    /// It has lost entries, and has no vote until it has all of them again.
    CatchingUp {
        /// The index that its log must reach.
        index: u64,
    },
    /// It may have forgotten a vote: it takes part in nothing until it is replaced.
    Closed,
}

impl fmt::Display for Fence {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CatchingUp { index } => write!(
                formatter,
                "the disk lost entries of its log: it has no vote until its peers have sent them \
                 again (up to {index}, or anything of a later leader)"
            ),
            Self::Closed => formatter.write_str(
                "the disk may have lost its vote: it takes part in nothing until it is replaced",
            ),
        }
    }
}

/// The fence that a group's log calls for.
pub(crate) fn of(log: &dyn LogStore, group: GroupId) -> Option<Fence> {
    let lost = log.group(group)?.lost?;
    Some(match lost {
        Lost { hard_state_known: false, .. } => Fence::Closed,
        Lost { to, .. } => Fence::CatchingUp { index: to.index },
    })
}

/// At the start: notes that a group which should be in the log has lost everything, if the log is
/// damaged in a way that allows for that.
///
/// # Errors
/// If that cannot be stored.
pub(crate) async fn close_if_forgotten(
    log: &Arc<dyn LogStore>,
    group: GroupId,
) -> Result<(), StateError> {
    if log.group(group).is_some() || !log.unknown_groups_may_be_lost() {
        return Ok(());
    }
    close(log, group).await
}

/// Notes that a group has lost everything, its vote included.
///
/// # Errors
/// If that cannot be stored.
pub(crate) async fn close(log: &Arc<dyn LogStore>, group: GroupId) -> Result<(), StateError> {
    let to = LogPosition { term: u64::MAX, index: u64::MAX >> 1 };
    let lost = Lost { to, hard_state_known: false };
    let (done, waiting) = oneshot::channel();
    let write = LogWrite::MarkLost { group, from: 0, lost };
    log.submit(write, Box::new(move |result| drop(done.send(result))));
    match waiting.await {
        Ok(result) => result.map_err(damaged),
        Err(_) => Err(damaged("the log's writer has stopped")),
    }
}
