//! The names that scenarios use: invariants and budgets.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! invariants {
    ($($variant:ident $name:literal $text:literal;)+) => {
        /// What must hold, whatever happens to nodes and links.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Invariant {
            $(#[doc = $text] $variant,)+
        }

        impl Invariant {
            /// All of them, in the order in which reports show them.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// As scenarios and reports write it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What it says, for people.
            pub fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

invariants! {
    NothingLost "nothing_lost" "What was acknowledged is there: through the API, during faults and after them.";
    NothingResurrected "nothing_resurrected" "What was deleted stays deleted, and nothing is there that nobody wrote.";
    NothingDoubled "nothing_doubled" "One request has one effect, however often it was sent.";
    ReplicasComplete "replicas_complete" "Every replica, read by itself after the heal, holds what was acknowledged.";
    Linearizable "linearizable" "Reads, writes and compare-and-set of an anchor follow one order that agrees with real time; checked for all operations by version.";
    LinearizableSampled "linearizable_sampled" "The same, judged by values alone, without trusting versions; checked for sampled windows.";
    StalenessBounded "staleness_bounded" "A read is never staler than it asked for, nor than the reply says.";
    SessionsKept "sessions_kept" "A session reads its own writes and never goes back in time, on any replica.";
    NearestExact "nearest_exact" "The nearest anchors are those that a search of every anchor finds.";
    ExpiryOnTime "expiry_on_time" "An anchor is visible until it expires and not afterwards, within the stated tolerance of clocks.";
    ListedOnce "listed_once" "A list by page holds everything that was there throughout exactly once.";
    OneLeader "one_leader" "After the heal each shard has exactly one leader and all its replicas.";
    ReplicasEqual "replicas_equal" "After the heal all replicas of a shard hold the same state, bit by bit.";
    KeysCoveredOnce "keys_covered_once" "After the heal each key of every account belongs to exactly one shard.";
    ZonesDistinct "zones_distinct" "After the heal the voters of a shard stand in different zones.";
}

impl Invariant {
    /// What a workload of a kind tests. What is not in any list is tested by reading the healed
    /// cluster.
    pub fn tested_by(kind: &str) -> &'static [Self] {
        match kind {
            "register" => &[
                Self::NothingDoubled,
                Self::ReplicasComplete,
                Self::Linearizable,
                Self::LinearizableSampled,
                Self::StalenessBounded,
            ],
            "session" => &[
                Self::NothingDoubled,
                Self::ReplicasComplete,
                Self::Linearizable,
                Self::SessionsKept,
            ],
            "set" => &[
                Self::NothingLost,
                Self::NothingResurrected,
                Self::NothingDoubled,
                Self::ReplicasComplete,
            ],
            "nearest" => &[
                Self::NothingLost,
                Self::NothingDoubled,
                Self::ReplicasComplete,
                Self::NearestExact,
            ],
            "list" => {
                &[Self::NothingLost, Self::NothingDoubled, Self::ReplicasComplete, Self::ListedOnce]
            }
            "expiry" => &[Self::ExpiryOnTime],
            _ => &[],
        }
    }

    /// Whether reading the healed cluster tests it, whatever the workloads.
    pub fn is_of_cluster(self) -> bool {
        matches!(
            self,
            Self::OneLeader | Self::ReplicasEqual | Self::KeysCoveredOnce | Self::ZonesDistinct
        )
    }

    /// The invariant of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|invariant| invariant.name() == name)
    }
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which figure of all rounds a budget bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Statistic {
    /// The median.
    P50,
    /// The 99th percentile.
    P99,
    /// The largest.
    Max,
}

/// A measure of recovery that a scenario can bound. In `run.json` a bound is named by measure and
/// statistic, `shard_gap_ms_max`; units are in the names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Of the measure.
    pub name: &'static str,
    /// What is measured, for people.
    pub text: &'static str,
}

/// The measures, in the order in which reports show them. A gap is the largest time between two
/// acknowledged writes around a fault; "the first acknowledgement after the kill" would hide outages
/// behind acknowledgements that were under way.
pub const BUDGETS: &[Budget] = &[
    Budget { name: "write_gap_ms", text: "longest time without any acknowledged write" },
    Budget {
        name: "client_gap_ms",
        text: "longest wait of one client between two acknowledged writes",
    },
    Budget {
        name: "shard_gap_ms",
        text: "longest time without an acknowledged write in one shard",
    },
    Budget { name: "unaffected_shard_gap_ms", text: "the same, only shards that no hit node led" },
    Budget { name: "leaders_ms", text: "until every shard had a leader again" },
    Budget { name: "replication_ms", text: "from the heal until no replica was missing" },
    Budget {
        name: "rebuilt_ms",
        text: "until no replica was missing, the fault being on: the rest stood in for it",
    },
    Budget {
        name: "spread_ms",
        text: "from the heal of such a fault until every zone led its share again, give or take a tenth \
               or one shard; as long as was looked, if it never did",
    },
    Budget {
        name: "before_p99_ms",
        text: "99th percentile of the writes in the 8 s before such a fault",
    },
    Budget {
        name: "spreading_p99_ms",
        text: "the same from its heal until every zone led its share again",
    },
    Budget { name: "write_ms", text: "time that one acknowledged write took, of the whole run" },
    Budget { name: "read_ms", text: "time that one answered read took, of the whole run" },
];

impl Statistic {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::P50, Self::P99, Self::Max];

    /// As it stands at the end of a budget's name.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::P50 => "p50",
            Self::P99 => "p99",
            Self::Max => "max",
        }
    }
}

impl Budget {
    /// The measure and statistic that a budget of `run.json` bounds.
    pub fn named(name: &str) -> Option<(&'static Self, Statistic)> {
        let (measure, suffix) = name.rsplit_once('_')?;
        let statistic = Statistic::ALL.into_iter().find(|one| one.suffix() == suffix)?;
        Some((BUDGETS.iter().find(|budget| budget.name == measure)?, statistic))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_invariant_is_found_by_its_name_and_written_alike_in_json() {
        for invariant in Invariant::ALL {
            assert_eq!(Invariant::named(invariant.name()), Some(*invariant));
            let json = serde_json::to_string(invariant).unwrap();
            assert_eq!(json, format!("{:?}", invariant.name()));
        }
        assert_eq!(Invariant::named("no_such"), None);
    }

    #[test]
    fn a_budget_is_named_by_measure_and_statistic() {
        let (budget, statistic) = Budget::named("unaffected_shard_gap_ms_max").unwrap();
        assert_eq!((budget.name, statistic), ("unaffected_shard_gap_ms", Statistic::Max));
        assert!(Budget::named("write_gap_ms").is_none());
        assert!(Budget::named("no_gap_ms_max").is_none());
    }
}
