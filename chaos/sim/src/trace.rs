//! What happened, as one digest: equal runs have equal ones.

use std::fmt::Arguments;
use std::hash::{DefaultHasher, Hasher};

/// The digest of all events so far.
pub(crate) struct Trace {
    hasher: DefaultHasher,
    events: u64,
    prints: bool,
}

impl Trace {
    /// `prints`: write each event to standard error too.
    pub(crate) fn new(prints: bool) -> Self {
        Self { hasher: DefaultHasher::new(), events: 0, prints }
    }

    /// Takes the next event. `at`: microseconds of simulated time.
    pub(crate) fn note(&mut self, at: u64, event: Arguments<'_>) {
        let text = event.to_string();
        if self.prints {
            eprintln!("{:>10.3} {text}", at as f64 / 1e6);
        }
        self.hasher.write_u64(at);
        self.hasher.write(text.as_bytes());
        self.events += 1;
    }

    /// The digest so far.
    pub(crate) fn digest(&self) -> u64 {
        self.hasher.finish()
    }

    /// Events so far.
    pub(crate) fn events(&self) -> u64 {
        self.events
    }
}
