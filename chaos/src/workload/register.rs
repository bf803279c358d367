//! Few anchors that everybody reads and writes.

use std::collections::HashMap;

use anchorhold_client::Client;
use anchorhold_model::Version;
use anyhow::bail;
use bytes::Bytes;
use rand::Rng as _;

use super::RegisterConfig;
use super::population::anywhere;
use super::running::ClientTask;
use super::wire::{Draft, Write};
use crate::history::{Level, Outcome};

/// Tries to make each anchor beforehand.
const PREPARE_TRIES: usize = 10;
/// Share of the weak reads that are LOCAL.
const LOCAL_SHARE: f64 = 0.15;

/// Makes the anchors, spread over Earth and so over the account's shards.
pub(super) async fn prepare(task: &mut ClientTask, keys: u32) -> anyhow::Result<Vec<u128>> {
    let mut ids = Vec::new();
    for _ in 0..keys {
        ids.push(prepare_one(task).await?);
    }
    Ok(ids)
}

async fn prepare_one(task: &mut ClientTask) -> anyhow::Result<u128> {
    for _ in 0..PREPARE_TRIES {
        let position = anywhere(&mut task.rng);
        let draft = Draft { value: task.next_value(), position, expire: None };
        let write = Write::create(&mut task.rng, draft);
        let written = task.stage.write(task.number, write).await?;
        if let Some(Outcome::Written { id, .. }) = written.outcomes.first() {
            return Ok(*id);
        }
    }
    bail!("an anchor could not be made in {PREPARE_TRIES} tries")
}

/// Reads, writes and compares-and-sets, linearizably.
pub(super) async fn write(
    mut task: ClientTask,
    config: RegisterConfig,
    keys: Vec<u128>,
) -> anyhow::Result<()> {
    // What this client saw last, for compare-and-set.
    let mut seen: HashMap<u128, (Version, u64)> = HashMap::new();
    while task.turn().await {
        let id = keys[task.rng.random_range(0..keys.len())];
        let what: f64 = task.rng.random();
        let is_compared = what < config.read_share + config.compare_and_set_share;
        let expected = if is_compared { seen.get(&id).copied() } else { None };
        if what < config.read_share || (is_compared && expected.is_none()) {
            let stage = task.stage.clone();
            let level = Level::Linearizable;
            let read = stage.get(task.number, &stage.client, id, level, Bytes::new()).await?;
            if let Outcome::Found { version, value } = read.outcome {
                seen.insert(id, (version, value));
            }
            continue;
        }
        let value = task.next_value();
        let write = Write::update(&mut task.rng, id, value, expected);
        let written = task.stage.write(task.number, write).await?;
        match written.outcomes.first() {
            Some(Outcome::Written { version: Some(version), .. }) => {
                seen.insert(id, (*version, value));
            }
            _ => drop(seen.remove(&id)),
        }
    }
    Ok(())
}

/// Reads at weaker levels, each time at one certain node.
pub(super) async fn read(
    mut task: ClientTask,
    config: RegisterConfig,
    keys: Vec<u128>,
) -> anyhow::Result<()> {
    let bounded = Level::Bounded { staleness_max_ms: config.staleness_max_ms };
    while task.turn().await {
        let id = keys[task.rng.random_range(0..keys.len())];
        let level = if task.rng.random_bool(LOCAL_SHARE) { Level::Local } else { bounded };
        let node = any_node(&mut task);
        task.stage.get(task.number, &node, id, level, Bytes::new()).await?;
    }
    Ok(())
}

/// A client that talks to one node only.
pub(super) fn any_node(task: &mut ClientTask) -> Client {
    let node = task.rng.random_range(0..task.stage.nodes.len());
    task.stage.nodes[node].clone()
}
