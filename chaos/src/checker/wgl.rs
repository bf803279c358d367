//! Whether a register is linearizable, by values alone.
//!
//! The search of Wing and Gong with Lowe's memory: try to put the operations into one order that
//! agrees with real time and with a register, and remember which (set of operations, state) pairs
//! have led nowhere. It knows nothing of versions and so does not trust them. Its cost is
//! exponential in the number of operations that are open at once, so it runs on sampled windows and
//! gives up, undecided, after a bound of steps.
//!
//! Source: Wing and Gong, "Testing and Verifying Concurrent Objects", JPDC 17, 1993; Lowe, "Testing
//! for Linearizability", CCPE 29, 2017.

mod sample;

use std::collections::HashSet;

pub use self::sample::{Limits, Sampler};

/// One operation of a window, on one register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// When it was asked.
    pub start_ns: u64,
    /// When its outcome was known. The end of time if it is not: then it may take effect at any
    /// time from its start on, or never.
    pub end_ns: u64,
    /// What it did.
    pub what: Effect,
}

/// What an operation does to a register that holds a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Stores a value.
    Write(u64),
    /// Finds a value.
    Read(u64),
    /// Finds a value and stores another one.
    CompareAndSet {
        /// Found.
        expected: u64,
        /// Stored.
        value: u64,
    },
    /// Does not find a value.
    Refused {
        /// Not found.
        expected: u64,
    },
}

/// What a search came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is such an order.
    Linearizable,
    /// There is none.
    Violation,
    /// The bound of steps was reached before either was known.
    Unknown,
}

/// Searches for an order. `initial` is what the register holds in the beginning, `None` if that is
/// not known; `steps_max` bounds the search.
pub fn check(steps: &[Step], initial: Option<u64>, steps_max: u64) -> Verdict {
    let mut search = Search::new(steps);
    search.run(initial, steps_max)
}

/// A list of calls and returns in the order of time, doubly linked so that an operation can be taken
/// out and put back.
struct Search<'a> {
    steps: &'a [Step],
    entries: Vec<Entry>,
    /// Operations that must take effect and have not.
    due: usize,
    taken: Vec<u64>,
    dead_ends: HashSet<(Box<[u64]>, Option<u64>)>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    step: usize,
    /// Of a call: the entry of its return, if it must return.
    matching: Option<usize>,
    is_call: bool,
    before: usize,
    after: usize,
}

const HEAD: usize = 0;
const NONE: usize = usize::MAX;

impl<'a> Search<'a> {
    fn new(steps: &'a [Step]) -> Self {
        // A call before a return at the same time: such operations overlap.
        let mut times: Vec<(u64, u8, usize)> = Vec::with_capacity(steps.len() * 2);
        for (index, step) in steps.iter().enumerate() {
            times.push((step.start_ns, 0, index));
            if step.end_ns != u64::MAX {
                times.push((step.end_ns, 1, index));
            }
        }
        times.sort_unstable();
        let head = Entry { step: NONE, matching: None, is_call: false, before: NONE, after: NONE };
        let mut entries = vec![head];
        let mut calls = vec![NONE; steps.len()];
        for (_, kind, step) in times {
            let (place, is_call) = (entries.len(), kind == 0);
            entries[place - 1].after = place;
            entries.push(Entry { step, matching: None, is_call, before: place - 1, after: NONE });
            if is_call {
                calls[step] = place;
            } else {
                entries[calls[step]].matching = Some(place);
            }
        }
        let due = steps.iter().filter(|step| step.end_ns != u64::MAX).count();
        let taken = vec![0; steps.len().div_ceil(64)];
        Self { steps, entries, due, taken, dead_ends: HashSet::new() }
    }

    fn run(&mut self, initial: Option<u64>, steps_max: u64) -> Verdict {
        let mut state = initial;
        let mut stack: Vec<(usize, Option<u64>)> = Vec::new();
        let mut place = self.entries[HEAD].after;
        for _ in 0..steps_max {
            if self.due == 0 {
                return Verdict::Linearizable;
            }
            let is_at_end = place == NONE || !self.entries[place].is_call;
            if !is_at_end {
                let step = self.entries[place].step;
                if let Some(next) = apply(self.steps[step].what, state)
                    && self.is_new(step, next)
                {
                    stack.push((place, state));
                    state = next;
                    self.take(place);
                    place = self.entries[HEAD].after;
                } else {
                    place = self.entries[place].after;
                }
                continue;
            }
            // An operation returns here whose effect had no place before: take the last choice back.
            let Some((call, before)) = stack.pop() else { return Verdict::Violation };
            self.put_back(call);
            state = before;
            place = self.entries[call].after;
        }
        Verdict::Unknown
    }

    /// Whether this set of operations has not been reached with this state before.
    fn is_new(&mut self, step: usize, state: Option<u64>) -> bool {
        let mut taken: Box<[u64]> = self.taken.clone().into();
        taken[step / 64] |= 1 << (step % 64);
        self.dead_ends.insert((taken, state))
    }

    fn take(&mut self, call: usize) {
        let Entry { step, matching, .. } = self.entries[call];
        self.taken[step / 64] |= 1 << (step % 64);
        self.unlink(call);
        if let Some(matching) = matching {
            self.unlink(matching);
            self.due -= 1;
        }
    }

    fn put_back(&mut self, call: usize) {
        let Entry { step, matching, .. } = self.entries[call];
        self.taken[step / 64] &= !(1 << (step % 64));
        if let Some(matching) = matching {
            self.link(matching);
            self.due += 1;
        }
        self.link(call);
    }

    fn unlink(&mut self, place: usize) {
        let Entry { before, after, .. } = self.entries[place];
        self.entries[before].after = after;
        if after != NONE {
            self.entries[after].before = before;
        }
    }

    fn link(&mut self, place: usize) {
        let Entry { before, after, .. } = self.entries[place];
        self.entries[before].after = place;
        if after != NONE {
            self.entries[after].before = place;
        }
    }
}

/// The state afterwards, or `None` if the operation cannot have happened in this state.
fn apply(what: Effect, state: Option<u64>) -> Option<Option<u64>> {
    match (what, state) {
        (Effect::Write(value), _) => Some(Some(value)),
        (Effect::Read(value), None) => Some(Some(value)),
        (Effect::Read(value), Some(held)) => (value == held).then_some(state),
        (Effect::CompareAndSet { value, .. }, None) => Some(Some(value)),
        (Effect::CompareAndSet { expected, value }, Some(held)) => {
            (expected == held).then_some(Some(value))
        }
        (Effect::Refused { .. }, None) => Some(None),
        (Effect::Refused { expected }, Some(held)) => (expected != held).then_some(state),
    }
}

#[cfg(test)]
mod tests;
