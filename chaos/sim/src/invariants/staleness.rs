//! A read of bounded staleness is never staler than it says, nor than was asked for.
//!
//! A node judges staleness by its own clock, which may run a little faster or slower than time.

use crate::history::{Action, History, Operation};

/// Clocks run at most this much too fast or too slow, in millionths.
pub const DRIFT_PPM_MAX: u64 = 10_000;
/// Time passes in steps of this many microseconds: two moments of one step look equal.
const STEP_US: u64 = 2_000;

/// Judges a whole history.
///
/// # Errors
/// The first read that was staler than it said.
pub fn check(history: &History) -> Result<(), String> {
    for (anchor, operations) in history.by_anchor().iter().enumerate() {
        for read in operations {
            let Action::StaleRead { staleness_us, allowed_us } = read.action else { continue };
            check_read(operations, read, staleness_us, allowed_us).map_err(|what| {
                format!("staleness: anchor {}: {what}", history.anchors[anchor].id)
            })?;
        }
    }
    Ok(())
}

fn check_read(
    operations: &[&Operation],
    read: &Operation,
    staleness_us: u64,
    allowed_us: u64,
) -> Result<(), String> {
    if allowed_us < staleness_us {
        return Err(format!("{read:?} admits to be staler than {allowed_us} us"));
    }
    let real = staleness_us + staleness_us * DRIFT_PPM_MAX / 1_000_000 + STEP_US;
    let fresh_as_of = read.start_us.saturating_sub(real);
    let missed = |before: &&&Operation| {
        matches!(before.action, Action::Write | Action::Read)
            && before.end_us < fresh_as_of
            && read.version < before.version
    };
    operations
        .iter()
        .find(missed)
        .map_or(Ok(()), |before| Err(format!("{read:?} misses {before:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_that_is_staler_than_it_says_is_found() {
        let mut history = History::default();
        let anchor = history.anchor("a", (0.0, 0.0));
        let operation = |action, start_us, end_us, version| Operation {
            anchor,
            action,
            start_us,
            end_us,
            version,
            value: version,
        };
        history.operations.push(operation(Action::Write, 0, 10, 1));
        history.operations.push(operation(Action::Write, 20, 100_000, 2));
        let mut read = |staleness_us, allowed_us| {
            history.operations.truncate(2);
            let action = Action::StaleRead { staleness_us, allowed_us };
            history.operations.push(operation(action, 1_000_000, 1_000_001, 1));
            check(&history)
        };
        read(950_000, 1_000_000).unwrap();
        read(800_000, 1_000_000).unwrap_err();
        read(950_000, 900_000).unwrap_err();
    }
}
