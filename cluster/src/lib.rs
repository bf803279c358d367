//! Topologies, and the launcher that starts them as real processes on this machine.
//!
//! A [`Topology`] says which regions, zones and nodes a cluster has. [`ProcessCluster`] starts one
//! `anchorhold start` process for each node, keeps what it knows in `cluster.json`
//! ([`ClusterState`]), and ends the processes when it is dropped. Other processes on this machine
//! read that file: `anchorhold zone kill b` in a second terminal works through it.
//!
//! Invariants:
//! * A process is only ever signalled if it is still the one that was started: same process id,
//!   same start time, same boot ([`ProcessIdentity`]).
//! * A node's process ends when its launcher ends, however that ends: it is started with
//!   `--exit-with-stdin`, and its standard input is a pipe that only the launcher holds.
//!
//! Not here: what a node does (`server`), talking to the cluster (`client`), faults (`chaos`).

mod files;
mod ports;
mod process;
mod ready;
mod state;
mod latency;
mod topology;
mod launcher;

pub use files::write_secret;
pub use latency::{Delay, Latency};
pub use launcher::{Event, LaunchConfig, LaunchError, NodeExtras, ProcessCluster, Progress};
pub use ports::pick as pick_ports;
pub use process::{Killed, ProcessIdentity, user_id};
pub use ready::{HttpAnswer, http_get, wait_until_ready};
pub use state::{ClusterState, NodeState, StateError, StateFile, Wanted};
pub use topology::{NodeSpec, Region, Topology, TopologyError, Zone};
