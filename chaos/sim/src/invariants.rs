//! What must hold, one file each.
//!
//! Those that look at nodes are fed while the run goes on and answer at once; those that look at
//! what clients were told judge the whole history at its end.

pub mod acknowledged_writes;
pub mod election_safety;
pub mod leader_completeness;
pub mod linearizable_reads;
pub mod liveness;
pub mod log_matching;
#[cfg(feature = "mutants")]
pub mod old_routes;
pub mod staleness;
pub mod state_equality;

use crate::history::History;

/// The invariants that are checked while a run goes on.
#[derive(Debug, Default)]
pub struct Invariants {
    /// At most one leader per group and term; one vote per replica and term.
    pub election_safety: election_safety::ElectionSafety,
    /// Equal index and term: equal entries, and equal logs up to there.
    pub log_matching: log_matching::LogMatching,
    /// A leader has every entry that was committed before.
    pub leader_completeness: leader_completeness::LeaderCompleteness,
    /// Equal applied index: equal state.
    pub state_equality: state_equality::StateEquality,
}

/// Judges what clients were told.
///
/// # Errors
/// The first thing that must not be.
pub fn judge_history(history: &History) -> Result<(), String> {
    acknowledged_writes::check(history)?;
    linearizable_reads::check(history)?;
    staleness::check(history)
}
