//! Writes and linearizable reads of an anchor are linearizable.
//!
//! Versions give the order, so it is enough to hold that order against time: whatever ended before
//! an operation began has a version no newer than the operation's (older, if that is a write), and
//! nothing is seen before it was sent. With versions that is the whole of linearizability of a
//! register.

use std::collections::BTreeMap;

use crate::history::{ABSENT, Action, History, Operation};

/// Judges a whole history.
///
/// # Errors
/// The first anchor that does not bear it.
pub fn check(history: &History) -> Result<(), String> {
    for (anchor, operations) in history.by_anchor().iter().enumerate() {
        let known = &history.anchors[anchor];
        check_order(operations)
            .and_then(|()| check_sent(operations, &history.sent_us, known.delete_sent_us))
            .map_err(|what| format!("linearizability: anchor {}: {what}", known.id))?;
    }
    Ok(())
}

fn check_order(operations: &[&Operation]) -> Result<(), String> {
    let counts = |operation: &&&Operation| matches!(operation.action, Action::Write | Action::Read);
    let mut by_start: Vec<&Operation> = operations.iter().filter(counts).copied().collect();
    let mut by_end = by_start.clone();
    by_start.sort_by_key(|operation| operation.start_us);
    by_end.sort_by_key(|operation| operation.end_us);
    let mut ended = by_end.into_iter().peekable();
    let mut newest: Option<&Operation> = None;
    for operation in by_start {
        while let Some(before) = ended.next_if(|before| before.end_us < operation.start_us) {
            if newest.is_none_or(|newest| newest.version < before.version) {
                newest = Some(before);
            }
        }
        let Some(newest) = newest else { continue };
        let is_late = match operation.action {
            Action::Write => operation.version <= newest.version,
            Action::Read | Action::StaleRead { .. } => operation.version < newest.version,
        };
        if is_late {
            return Err(format!("{operation:?} began after {newest:?} had ended"));
        }
    }
    Ok(())
}

/// Nothing is seen before it was sent.
fn check_sent(
    operations: &[&Operation],
    sent_us: &BTreeMap<u64, u64>,
    delete_sent_us: Option<u64>,
) -> Result<(), String> {
    for operation in operations {
        let sent = if operation.version == ABSENT {
            delete_sent_us
        } else {
            sent_us.get(&operation.value).copied()
        };
        if sent.is_none_or(|sent| operation.end_us < sent) {
            return Err(format!("{operation:?} saw what nobody had sent"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_operations(operations: &[(Action, u64, u64, u64)]) -> Result<(), String> {
        let mut history = History::default();
        let anchor = history.anchor("a", (0.0, 0.0));
        for &(action, start_us, end_us, version) in operations {
            let value = if version == ABSENT { 0 } else { version };
            history.operations.push(Operation { anchor, action, start_us, end_us, version, value });
            if action == Action::Write && version == ABSENT {
                history.anchors[anchor].delete_sent_us = Some(start_us);
            } else if action == Action::Write {
                history.sent_us.insert(value, start_us);
            }
        }
        check(&history)
    }

    #[test]
    fn a_read_that_is_older_than_an_ended_write_is_found() {
        let write = [(Action::Write, 0, 1, 1), (Action::Write, 5, 9, 2)];
        let with = |read| check_operations(&[write[0], write[1], read]);
        with((Action::Read, 6, 7, 1)).unwrap();
        with((Action::Read, 6, 7, 2)).unwrap();
        with((Action::Read, 10, 12, 2)).unwrap();
        with((Action::Read, 10, 12, 1)).unwrap_err();
    }

    #[test]
    fn a_read_that_is_older_than_an_ended_read_is_found() {
        let operations = [
            (Action::Write, 0, 1, 1),
            (Action::Write, 5, 20, 2),
            (Action::Read, 6, 7, 2),
            (Action::Read, 8, 9, 1),
        ];
        check_operations(&operations[..3]).unwrap();
        check_operations(&operations).unwrap_err();
    }

    #[test]
    fn what_is_gone_stays_gone() {
        let gone = [(Action::Write, 0, 1, 1), (Action::Write, 2, 3, ABSENT)];
        let with = |next| check_operations(&[gone[0], gone[1], next]);
        with((Action::Read, 5, 6, ABSENT)).unwrap();
        with((Action::Read, 5, 6, 1)).unwrap_err();
        with((Action::Write, 5, 6, 2)).unwrap_err();
    }

    #[test]
    fn what_nobody_sent_is_found() {
        check_operations(&[(Action::Write, 0, 1, 1), (Action::Read, 2, 3, ABSENT)]).unwrap_err();
        check_operations(&[(Action::Write, 0, 1, 1), (Action::Read, 2, 3, 4)]).unwrap_err();
    }
}
