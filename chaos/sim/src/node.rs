//! One process of a node, from its start to its crash.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anchorhold_consensus::ConsensusConfig;
#[cfg(feature = "mutants")]
use anchorhold_consensus::hooks::Hooks;
use anchorhold_server::{AdminKey, DiskConfig, Node, NodeConfig, NodeSeams, PlacementSettings};
use rand::Rng;
use tokio::sync::Notify;

use crate::disk::{SimStores, sync_forever};
use crate::seams::{Inline, SimClock, SimDial, SimExit, SimListen};
use crate::world::World;

/// The operators' key of every simulated cluster.
pub(crate) const ADMIN_KEY: &str = "aha_0123456789abcdef0123";
const CLIENT_PORT: u16 = 6480;
const PEER_PORT: u16 = 6481;

/// The simulated host of a node.
pub(crate) fn host(node: usize) -> String {
    format!("n{}", node + 1)
}

/// Where clients reach a node.
pub(crate) fn client_address(node: usize) -> String {
    format!("{}:{CLIENT_PORT}", host(node))
}

fn config(world: &World, node: usize) -> NodeConfig {
    let any = |port| SocketAddr::new(IpAddr::from([0, 0, 0, 0]), port);
    let peer = |node| format!("{}:{PEER_PORT}", host(node));
    NodeConfig {
        data_dir: world.sites[node].disk.directory.path().to_owned(),
        zone: format!("zone-{}", node + 1),
        client_address: any(CLIENT_PORT),
        peer_address: any(PEER_PORT),
        http_address: None,
        client_advertised: Some(client_address(node)),
        peer_advertised: Some(peer(node)),
        join: if node == 0 { Vec::new() } else { vec![peer(0)] },
        bootstrap: (node == 0).then(|| "simulated".to_owned()),
        insecure: true,
        admin_key: AdminKey { plain: Some(ADMIN_KEY.to_owned()), ..AdminKey::default() },
        consensus: ConsensusConfig {
            // Small, so that logs are purged and followers need snapshots within seconds.
            snapshot_entries: 24,
            snapshot_entries_kept: 6,
            checkpoint_interval_ms: 700,
            // Shards go to sleep between two operations, and faults meet them so.
            quiesce_after_ms: 500,
            ..ConsensusConfig::default()
        },
        // A split's child that lost what it begins with is built again soon enough to be waited for.
        placement: PlacementSettings {
            steady_ms: 1_000,
            absent_ms: 3_000,
            ..PlacementSettings::default()
        },
        // No ballast: the disk is never full here, and memory is dear.
        disk: DiskConfig { ballast_bytes: 0, ..DiskConfig::default() },
        ..NodeConfig::default()
    }
}

/// Runs a node until its host crashes.
///
/// # Errors
/// If it does not start.
pub(crate) async fn live(world: Arc<World>, node: usize) -> turmoil::Result {
    let start = world.sites[node].starts.fetch_add(1, Ordering::Relaxed);
    let mut random = world.random("node", start * 16 + node as u64);
    let waiting = Arc::new(Notify::new());
    let sync_random = world.random("sync", start * 16 + node as u64);
    tokio::spawn(sync_forever(Arc::clone(&world), node, Arc::clone(&waiting), sync_random));
    #[cfg(feature = "mutants")]
    let hooks = Hooks::default();
    #[cfg(feature = "mutants")]
    hooks.set_mutants(world.mutant.as_slice());
    let seams = NodeSeams {
        dial: Arc::new(SimDial),
        clock: Arc::new(SimClock { world: Arc::clone(&world), node }),
        offload: Arc::new(Inline),
        exit: Arc::new(SimExit { world: Arc::clone(&world), node }),
        seed: random.random(),
        open: Arc::new(SimStores {
            world: Arc::clone(&world),
            node,
            waiting,
            #[cfg(feature = "mutants")]
            hooks: hooks.clone(),
        }),
        listen: Arc::new(SimListen),
        #[cfg(feature = "mutants")]
        hooks,
    };
    let running = Node::build(config(&world, node), seams).await?;
    *world.sites[node].core.lock() = Arc::downgrade(running.core());
    world.note(format_args!("n{} serves", node + 1));
    std::future::pending::<()>().await;
    drop(running);
    Ok(())
}
