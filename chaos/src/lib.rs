//! Faults on purpose, under load, and the check that the promise held.
//!
//! * [`load`] writes through the SDK and notes every acknowledgement.
//! * [`ledger`] knows what must be there, finds what is not, and measures how long clients waited.
//! * [`run_directory`], [`events`] and [`clock`]: what is kept of a run, and its one clock.
//! * [`workload`] does what clients do and records it; [`history`] is the record.
//! * [`checker`] holds the record against the promises; [`judge`] decides what a run showed.
//! * [`scenario`] says what goes wrong and when.
//! * [`network`] says what all links shall be like, [`proxy`] makes them so.
//! * [`mutants`]: bugs put in on purpose, and what must find each.
//! * [`etcd`]: the same faults on etcd, to compare with.
//! * [`failover`] kills the node that leads most shards, round after round; [`idle`] lets shards rest.
//!
//! Everything random follows from a seed that is part of every report. Processes are real, all
//! traffic stays on loopback.
//!
//! Not here: starting and killing processes (`cluster`).

pub mod clock;
pub mod events;
pub mod run_directory;
pub mod network;
pub mod proxy;
pub mod scenario;
pub mod cut;
pub mod control;
pub mod driver;
pub mod fault;
pub mod etcd;
pub mod mutants;
pub mod run;
pub mod failover;
pub mod idle;
pub mod ledger;
pub mod load;
pub mod workload;
pub mod history;
pub mod checker;
pub mod judge;
pub mod report;
