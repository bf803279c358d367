//! Decides what a run showed.
//!
//! Input is a run's directory and nothing else, so that an old run can be judged again by a newer
//! judge; output is a report.
//!
//! Not here: the checks themselves (`checker`), how a report looks (`report`).

mod names;

pub use self::names::{BUDGETS, Budget, Invariant, Statistic};
