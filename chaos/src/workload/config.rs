//! What a scenario can say of a workload. Each default is written once, here.

use serde::{Deserialize, Serialize};

/// One workload of a scenario: `{ kind = "register", clients = 8, rate = 400 }`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum WorkloadConfig {
    /// Reads, writes and compare-and-set of few anchors.
    Register(RegisterConfig),
    /// Write-once anchors, some of which are deleted.
    Set(SetConfig),
    /// The nearest anchors, while anchors come and go.
    Nearest(NearestConfig),
    /// Anchors that expire.
    Expiry(ExpiryConfig),
    /// Sessions that read any replica.
    Session(SessionConfig),
    /// Lists by page, while anchors come and go.
    List(ListConfig),
}

macro_rules! configs {
    ($($(#[$doc:meta])+ $name:ident { $($(#[$field_doc:meta])+ $field:ident: $type:ty = $default:expr;)* })+) => {
        $(
            $(#[$doc])+
            #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
            #[serde(default, deny_unknown_fields)]
            pub struct $name {
                /// Clients, each with one operation at a time.
                pub clients: u32,
                /// Operations per second of all clients together, at most. 0 sets no bound.
                pub rate: f64,
                /// How long one operation may take, the SDK's retries included, in milliseconds.
                pub deadline_ms: u64,
                /// Shards to lay the workload's account out over.
                pub shards: u32,
                $($(#[$field_doc])+ pub $field: $type,)*
            }

            impl Default for $name {
                fn default() -> Self {
                    Self { clients: 4, rate: 100.0, deadline_ms: 10_000, shards: 4, $($field: $default),* }
                }
            }
        )+
    };
}

configs! {
    /// Reads, writes and compare-and-set of few anchors.
    RegisterConfig {
        /// Anchors that all clients share.
        keys: u32 = 64;
        /// Share of operations that read, in [0, 1].
        read_share: f64 = 0.45;
        /// Share of operations that write only if the anchor is as the client saw it last.
        compare_and_set_share: f64 = 0.2;
        /// More clients, which only read: at BOUNDED_STALENESS, and now and then at LOCAL, each read
        /// at one node.
        weak_readers: u32 = 2;
        /// The bound that BOUNDED_STALENESS reads ask for, in milliseconds.
        staleness_max_ms: u64 = 1_000;
    }

    /// Write-once anchors, some of which are deleted.
    SetConfig {
        /// Anchors that one request creates, [1, 1,000].
        batch: u32 = 1;
        /// Share of operations that delete an anchor, in [0, 1].
        delete_share: f64 = 0.05;
        /// Share of operations that read an anchor back, in [0, 1].
        read_share: f64 = 0.1;
    }

    /// The nearest anchors, while anchors come and go.
    NearestConfig {
        /// Anchors before the first question.
        anchors: u32 = 400;
        /// Anchors that a question asks for.
        k: u32 = 10;
        /// Share of operations that ask, in [0, 1]; the others create and delete in turn.
        ask_share: f64 = 0.5;
    }

    /// Anchors that expire.
    ExpiryConfig {
        /// Least time to live, in milliseconds.
        live_ms_min: u64 = 500;
        /// Longest time to live, in milliseconds.
        live_ms_max: u64 = 5_000;
        /// How far the leader's clock may be off the harness's, in milliseconds. Within it an
        /// anchor may be there or not.
        clock_off_ms_max: u64 = 1_000;
    }

    /// Sessions that read any replica.
    SessionConfig {
        /// Anchors that all sessions share.
        keys: u32 = 16;
        /// Share of operations that read, in [0, 1].
        read_share: f64 = 0.7;
    }

    /// Lists by page, while anchors come and go.
    ListConfig {
        /// Anchors before the first list.
        anchors: u32 = 400;
        /// Anchors per page.
        page_size: u32 = 50;
        /// Share of operations that list everything, in [0, 1]; the others create and delete.
        list_share: f64 = 0.1;
    }
}

/// What every workload has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Common {
    pub(super) clients: u32,
    pub(super) rate: f64,
    pub(super) deadline_ms: u64,
    pub(super) shards: u32,
}

macro_rules! common {
    ($config:expr, $($kind:ident)+) => {
        match $config {
            $(WorkloadConfig::$kind(c) => Common {
                clients: c.clients,
                rate: c.rate,
                deadline_ms: c.deadline_ms,
                shards: c.shards,
            },)+
        }
    };
}

impl WorkloadConfig {
    pub(super) fn common(&self) -> Common {
        common!(self, Register Set Nearest Expiry Session List)
    }

    /// The kind, as scenarios write it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Register(_) => "register",
            Self::Set(_) => "set",
            Self::Nearest(_) => "nearest",
            Self::Expiry(_) => "expiry",
            Self::Session(_) => "session",
            Self::List(_) => "list",
        }
    }

    /// Says what cannot be run, in words for the scenario's author.
    ///
    /// # Errors
    /// The first problem.
    pub fn validate(&self) -> Result<(), String> {
        let Common { clients, rate, deadline_ms, shards } = self.common();
        positive("clients", clients)?;
        positive("shards", shards)?;
        if !rate.is_finite() || rate < 0.0 {
            return Err("rate must be 0 or more".to_owned());
        }
        if deadline_ms == 0 || 600_000 < deadline_ms {
            return Err("deadline_ms must be in [1, 600,000]".to_owned());
        }
        match self {
            Self::Register(c) => {
                positive("keys", c.keys)?;
                let sum = c.read_share + c.compare_and_set_share;
                in_unit(&[
                    ("read_share", c.read_share),
                    ("compare_and_set_share", c.compare_and_set_share),
                    ("read_share + compare_and_set_share", sum),
                ])
            }
            Self::Set(c) => {
                if !(1..=1_000).contains(&c.batch) {
                    return Err("batch must be in [1, 1,000]".to_owned());
                }
                let sum = c.delete_share + c.read_share;
                in_unit(&[
                    ("delete_share", c.delete_share),
                    ("read_share", c.read_share),
                    ("delete_share + read_share", sum),
                ])
            }
            Self::Nearest(c) => {
                positive("k", c.k)?;
                in_unit(&[("ask_share", c.ask_share)])
            }
            Self::Expiry(c) if c.live_ms_max < c.live_ms_min || c.live_ms_min == 0 => {
                Err("live_ms_min must be in [1, live_ms_max]".to_owned())
            }
            Self::Expiry(_) => Ok(()),
            Self::Session(c) => {
                positive("keys", c.keys)?;
                in_unit(&[("read_share", c.read_share)])
            }
            Self::List(c) => {
                positive("page_size", c.page_size)?;
                in_unit(&[("list_share", c.list_share)])
            }
        }
    }
}

fn positive(name: &str, value: u32) -> Result<(), String> {
    if value == 0 { Err(format!("{name} must be at least 1")) } else { Ok(()) }
}

fn in_unit(shares: &[(&str, f64)]) -> Result<(), String> {
    match shares.iter().find(|(_, share)| !(0.0..=1.0).contains(share)) {
        Some((name, share)) => Err(format!("{name} is {share}, not in [0, 1]")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<WorkloadConfig, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn a_workload_is_named_by_its_kind_and_filled_up_with_defaults() {
        let config = parse(r#"{"kind": "register", "keys": 3}"#).unwrap();
        let expected = RegisterConfig { keys: 3, ..RegisterConfig::default() };
        assert_eq!(config, WorkloadConfig::Register(expected));
        assert_eq!(config.kind(), "register");
        assert_eq!(config.validate(), Ok(()));
    }

    #[test]
    fn a_field_that_no_workload_has_is_refused() {
        assert!(parse(r#"{"kind": "register", "key": 3}"#).is_err());
        assert!(parse(r#"{"kind": "regster"}"#).is_err());
    }

    #[test]
    fn values_that_cannot_be_run_are_refused_in_words() {
        for (text, problem) in [
            (r#"{"kind": "set", "clients": 0}"#, "clients must be at least 1"),
            (r#"{"kind": "list", "list_share": 1.5}"#, "list_share is 1.5, not in [0, 1]"),
            (r#"{"kind": "session", "rate": -1}"#, "rate must be 0 or more"),
            (
                r#"{"kind": "expiry", "live_ms_min": 9000}"#,
                "live_ms_min must be in [1, live_ms_max]",
            ),
        ] {
            assert_eq!(parse(text).unwrap().validate(), Err(problem.to_owned()), "{text}");
        }
    }
}
