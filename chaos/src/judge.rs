//! Decides what a run showed.
//!
//! [`collect`] reads everything back from the healed cluster into the run's directory; [`check`]
//! takes that directory and nothing else, so that an old run can be judged again by a newer judge;
//! [`write()`] puts the [`Report`](crate::report::Report) beside it.
//!
//! Not here: the checks themselves (`checker`), how a report looks (`report`).

mod budget;
mod collect;
mod gaps;
mod matrix;
mod names;
mod sums;
mod timeline;
mod traffic;
mod verdict;
mod workload;

pub use self::collect::{
    DigestRead, FinalNode, FinalReplica, FinalShard, FinalState, collect, read_final_state,
};
pub(crate) use self::collect::{read_back_file, save_final_state};
pub use self::names::{BUDGETS, Budget, Invariant, Statistic};
pub use self::sums::Sums;
pub use self::verdict::{check, write};
