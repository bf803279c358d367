//! No acknowledged write is lost, none takes effect twice, nothing is resurrected.
//!
//! Every anchor is read once more after everything has healed; the last read of it must see the
//! newest acknowledged version or a newer one. And values and versions belong together one to one:
//! a retried write that took effect twice would show one value under two versions.

use std::collections::BTreeMap;

use crate::history::{ABSENT, Action, History, Operation};

/// Judges a whole history.
///
/// # Errors
/// The first anchor that does not bear it.
pub fn check(history: &History) -> Result<(), String> {
    for (anchor, operations) in history.by_anchor().iter().enumerate() {
        let id = &history.anchors[anchor].id;
        check_last(operations)
            .map_err(|what| format!("acknowledged write: anchor {id}: {what}"))?;
        check_once(operations).map_err(|what| format!("exactly once: anchor {id}: {what}"))?;
    }
    Ok(())
}

fn check_last(operations: &[&Operation]) -> Result<(), String> {
    let is_read = |operation: &&&Operation| operation.action == Action::Read;
    let last = operations.iter().filter(is_read).max_by_key(|read| read.start_us);
    let Some(last) = last else { return Err("it was never read back".to_owned()) };
    for write in operations.iter().filter(|operation| operation.action == Action::Write) {
        if write.end_us < last.start_us && last.version < write.version {
            return Err(format!("{write:?} was acknowledged, at the end there is {last:?}"));
        }
    }
    Ok(())
}

fn check_once(operations: &[&Operation]) -> Result<(), String> {
    let (mut by_version, mut by_value) = (BTreeMap::new(), BTreeMap::new());
    for operation in operations.iter().filter(|operation| operation.version != ABSENT) {
        let first = *by_version.entry(operation.version).or_insert(operation);
        let also = *by_value.entry(operation.value).or_insert(operation);
        if first.value != operation.value || also.version != operation.version {
            return Err(format!("{operation:?} does not go with {first:?} and {also:?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(operations: &[(Action, u64, u64, u64, u64)]) -> History {
        let mut history = History::default();
        let anchor = history.anchor("a", (0.0, 0.0));
        history.operations = operations
            .iter()
            .map(|&(action, start_us, end_us, version, value)| Operation {
                anchor,
                action,
                start_us,
                end_us,
                version,
                value,
            })
            .collect();
        history
    }

    #[test]
    fn a_write_that_is_gone_at_the_end_is_found() {
        let mut operations = vec![
            (Action::Write, 0, 1, 1, 1),
            (Action::Write, 2, 3, 2, 2),
            (Action::Read, 10, 11, 2, 2),
        ];
        check(&history(&operations)).unwrap();
        operations[2] = (Action::Read, 10, 11, 1, 1);
        check(&history(&operations)).unwrap_err();
    }

    #[test]
    fn a_deleted_anchor_that_is_there_at_the_end_is_found() {
        let read = |version, value| {
            history(&[
                (Action::Write, 0, 1, 1, 1),
                (Action::Write, 2, 3, ABSENT, 0),
                (Action::Read, 10, 11, version, value),
            ])
        };
        check(&read(ABSENT, 0)).unwrap();
        check(&read(1, 1)).unwrap_err();
    }

    #[test]
    fn a_write_that_took_effect_twice_is_found() {
        let reads = [(Action::Read, 2, 3, 2, 7), (Action::Read, 10, 11, 3, 7)];
        check(&history(&reads[..1])).unwrap();
        check(&history(&reads)).unwrap_err();
    }
}
