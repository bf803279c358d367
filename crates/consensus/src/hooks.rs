//! Bugs and stops that a fault harness puts into a node. Compiled only with the feature `chaos`.
//!
//! [`Hooks`] belong to one node: several share a process in simulation, so nothing here is global.
//! A [`Mutant`] breaks one promise, to see that the harness notices. A failpoint is a named place
//! in the code; the harness counts who passes there, and can let the node end at it. Most of both
//! sit in two wrappers of the stores ([`HookedLog`], [`HookedState`]), the rest where only the code
//! itself knows what it is about to do.
//!
//! Not here: who decides what is on (`server::chaos`, the simulation).

mod log;
mod state;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anchorhold_model::{Entry, ShardState};
use parking_lot::Mutex;
use tokio::sync::watch;

pub use self::log::HookedLog;
pub use self::state::HookedState;

macro_rules! mutants {
    ($($(#[doc = $text:literal])+ $mutant:ident $name:literal;)+) => {
        /// A bug that is put in on purpose, to see that it is found.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Mutant {
            $($(#[doc = $text])+ $mutant,)+
        }

        impl Mutant {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$mutant),+];

            /// As commands and control files write it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$mutant => $name,)+
                }
            }
        }
    };
}

mutants! {
    /// The log calls everything durable as soon as it has taken it.
    AcknowledgeBeforeSync "acknowledge-before-sync";
    /// Entries are applied before this node's own log has them on disk.
    ApplyBeforeSync "apply-before-sync";
    /// A leader serves linearizable reads without asking a quorum whether it still leads.
    ReadWithoutQuorum "read-without-quorum";
    /// Now and then a replica records that it has applied an entry, and has not.
    ApplySkipped "apply-skipped";
    /// A write is applied whatever epoch it was routed by.
    EpochUnchecked "epoch-unchecked";
    /// A node that starts has forgotten which requests it has seen.
    OperationsForgotten "operations-forgotten";
    /// What a power cut leaves of the state is taken for whole: a batch is no longer one.
    StateTrusted "state-trusted";
    /// A vote is given and never written down.
    VoteNotPersisted "vote-not-persisted";
    /// Half of a snapshot's rows are loaded, and the load is called done.
    SnapshotHalf "snapshot-half";
    /// A read of bounded staleness is served however stale it is.
    StalenessUnchecked "staleness-unchecked";
}

impl Mutant {
    /// The mutant of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|mutant| mutant.name() == name)
    }

    fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// Called with the name of the failpoint at which the node shall end.
type OnEnd = dyn Fn(&str) + Send + Sync;

/// What is on in one node. Clones share it.
#[derive(Clone, Default)]
pub struct Hooks(Arc<Inner>);

#[derive(Default)]
struct Inner {
    mutants: AtomicU32,
    points: Mutex<Points>,
    on_end: Option<Box<OnEnd>>,
}

#[derive(Default)]
struct Points {
    hits: BTreeMap<&'static str, u64>,
    ends_at: Option<String>,
}

impl Hooks {
    /// Hooks of a node that ends by `on_end`; it is given the failpoint's name.
    pub fn new(on_end: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner { on_end: Some(Box::new(on_end)), ..Inner::default() }))
    }

    /// These mutants are on from now on, and no others.
    pub fn set_mutants(&self, mutants: &[Mutant]) {
        let bits = mutants.iter().fold(0, |bits, mutant| bits | mutant.bit());
        self.0.mutants.store(bits, Ordering::Relaxed);
    }

    /// Whether a mutant is on.
    pub fn has(&self, mutant: Mutant) -> bool {
        self.0.mutants.load(Ordering::Relaxed) & mutant.bit() != 0
    }

    /// The node ends when it next reaches this failpoint; `None` lets it live.
    pub fn end_at(&self, point: Option<&str>) {
        self.0.points.lock().ends_at = point.map(str::to_owned);
    }

    /// How often each failpoint was reached since the start.
    pub fn hits(&self) -> BTreeMap<&'static str, u64> {
        self.0.points.lock().hits.clone()
    }

    /// The code is at this place now.
    pub(crate) fn reach(&self, point: &'static str) {
        let ends = {
            let mut points = self.0.points.lock();
            *points.hits.entry(point).or_default() += 1;
            points.ends_at.take_if(|at| at == point).is_some()
        };
        if ends && let Some(on_end) = &self.0.on_end {
            on_end(point);
        }
    }

    /// What says how far the log is on disk: everything, if nobody shall wait for it.
    pub(crate) fn gate(&self, durable: watch::Receiver<u64>) -> watch::Receiver<u64> {
        if self.has(Mutant::ApplyBeforeSync) { watch::channel(u64::MAX).1 } else { durable }
    }

    /// How stale a read may be: any, if nobody shall check.
    pub(crate) fn staleness_max(&self, asked: Duration) -> Duration {
        if self.has(Mutant::StalenessUnchecked) { Duration::MAX } else { asked }
    }

    /// An entry as if all its commands had been routed by the shard's present epoch.
    pub(crate) fn reroute(&self, mut entry: Entry, shard: &ShardState) -> Entry {
        if self.has(Mutant::EpochUnchecked) {
            for command in &mut entry.commands {
                command.epoch = shard.descriptor.epoch;
            }
        }
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutant_has_its_own_name_and_bit() {
        let hooks = Hooks::default();
        for mutant in Mutant::ALL {
            assert_eq!(Mutant::named(mutant.name()), Some(*mutant));
            hooks.set_mutants(&[*mutant]);
            let on: Vec<_> = Mutant::ALL.iter().filter(|other| hooks.has(**other)).collect();
            assert_eq!(on, [mutant]);
        }
        assert_eq!(Mutant::named("none"), None);
    }

    #[test]
    fn a_node_ends_once_where_it_was_told_to_and_passes_are_counted() {
        let ended = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&ended);
        let hooks = Hooks::new(move |point| seen.lock().push(point.to_owned()));
        hooks.reach("one");
        hooks.end_at(Some("two"));
        hooks.reach("one");
        assert!(ended.lock().is_empty());
        hooks.reach("two");
        hooks.reach("two");
        assert_eq!(*ended.lock(), ["two"]);
        assert_eq!(hooks.hits(), BTreeMap::from([("one", 2), ("two", 2)]));
    }
}
