//! x
use super::StateStore;
/// Runs.
pub fn run(_open: impl Fn() -> Box<dyn StateStore>) {}
