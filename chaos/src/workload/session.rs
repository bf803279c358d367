//! Sessions that read whatever replica they like and still see no less than they saw before.
//!
//! The token travels by hand, from each reply to the next request about that anchor, through another
//! node each time: what is tested is the cluster's promise, not the SDK's bookkeeping.

use std::collections::HashMap;

use bytes::Bytes;
use rand::Rng as _;

use super::SessionConfig;
use super::register::any_node;
use super::running::ClientTask;
use super::wire::Write;
use crate::history::Level;

/// One session.
pub(super) async fn run(
    mut task: ClientTask,
    config: SessionConfig,
    keys: Vec<u128>,
) -> anyhow::Result<()> {
    let mut tokens: HashMap<u128, Bytes> = HashMap::new();
    while task.turn().await {
        let id = keys[task.rng.random_range(0..keys.len())];
        let token = if task.rng.random_bool(config.read_share) {
            let token = tokens.get(&id).cloned().unwrap_or_default();
            let node = any_node(&mut task);
            task.stage.get(task.number, &node, id, Level::Session, token).await?.token
        } else {
            let value = task.next_value();
            let write = Write::update(&mut task.rng, id, value, None);
            task.stage.write(task.number, write).await?.token
        };
        if !token.is_empty() {
            tokens.insert(id, token);
        }
    }
    Ok(())
}
