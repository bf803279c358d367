//! Anchors that come and go, and those who look at them.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rand::Rng;

use super::running::ClientTask;
use super::wire::{Draft, Write};
use super::{ExpiryConfig, ListConfig, NearestConfig, SetConfig};
use crate::clock::nanoseconds;
use crate::history::{Action, Level, Outcome, Position};

/// Own anchors that a client remembers, to read or delete them later.
const OWN_MAX: usize = 20_000;

/// An anchor that this client was acknowledged and has not deleted.
#[derive(Clone, Copy, Debug)]
struct Own {
    id: u128,
    /// When it expires, in nanoseconds since the run's start; the end of time if never.
    expire_ns: u64,
}

/// Somewhere on Earth, evenly.
pub(super) fn anywhere(rng: &mut impl Rng) -> Position {
    Position {
        latitude_deg: f64::asin(rng.random_range(-1.0..1.0)).to_degrees(),
        longitude_deg: rng.random_range(-180.0..180.0),
        height_m: 0.0,
    }
}

/// Venues: dense neighbourhoods far from each other, one across the antimeridian, one at a pole.
const VENUES: [(f64, f64); 5] =
    [(48.137, 11.575), (37.775, -122.419), (-36.848, 174.763), (0.0, 179.9999), (89.9999, 20.0)];
/// Half the size of a venue in degrees: about 100 m.
const VENUE_DEG: f64 = 0.001;

fn in_venue(rng: &mut impl Rng) -> Position {
    let (latitude_deg, longitude_deg) = VENUES[rng.random_range(0..VENUES.len())];
    let mut off = || rng.random_range(-VENUE_DEG..VENUE_DEG);
    let (latitude_deg, longitude_deg) = (latitude_deg + off(), longitude_deg + off());
    Position {
        latitude_deg: latitude_deg.clamp(-90.0, 90.0),
        longitude_deg: if longitude_deg < 180.0 { longitude_deg } else { longitude_deg - 360.0 },
        height_m: rng.random_range(0.0..30.0),
    }
}

/// Creates write-once anchors, deletes some, reads some back.
pub(super) async fn set(mut task: ClientTask, config: SetConfig) -> anyhow::Result<()> {
    let mut own = Vec::new();
    while task.turn().await {
        let what: f64 = task.rng.random();
        if what < config.delete_share && !own.is_empty() {
            delete_one(&mut task, &mut own).await?;
        } else if what < config.delete_share + config.read_share && !own.is_empty() {
            read_one(&mut task, &own).await?;
        } else {
            let batch = config.batch.max(1);
            let drafts: Vec<Draft> = (0..batch)
                .map(|_| Draft {
                    value: task.next_value(),
                    position: anywhere(&mut task.rng),
                    expire: None,
                })
                .collect();
            let write = match drafts.as_slice() {
                [draft] => Write::create(&mut task.rng, *draft),
                drafts => Write::create_all(&mut task.rng, drafts),
            };
            create(&mut task, write, &mut own).await?;
        }
    }
    Ok(())
}

/// Keeps a population and asks for neighbours.
pub(super) async fn nearest(
    mut task: ClientTask,
    config: NearestConfig,
    anchors: u32,
) -> anyhow::Result<()> {
    let mut own = Vec::new();
    for _ in 0..anchors {
        create_in(&mut task, in_venue, &mut own).await?;
    }
    while task.turn().await {
        if task.rng.random_bool(config.ask_share) {
            // Now and then from nowhere near, so that answers come from several shards.
            let is_near = task.rng.random_bool(0.8);
            let from = if is_near { in_venue(&mut task.rng) } else { anywhere(&mut task.rng) };
            task.stage.nearest(task.number, from, config.k).await?;
        } else {
            come_and_go(&mut task, anchors, in_venue, &mut own).await?;
        }
    }
    Ok(())
}

/// Keeps a population and lists it.
pub(super) async fn list(
    mut task: ClientTask,
    config: ListConfig,
    anchors: u32,
) -> anyhow::Result<()> {
    let mut own = Vec::new();
    for _ in 0..anchors {
        create_in(&mut task, anywhere, &mut own).await?;
    }
    while task.turn().await {
        if task.rng.random_bool(config.list_share) {
            task.stage.list(task.number, config.page_size).await?;
        } else {
            come_and_go(&mut task, anchors, anywhere, &mut own).await?;
        }
    }
    Ok(())
}

/// Creates anchors that expire and reads them until a while after that.
pub(super) async fn expiry(mut task: ClientTask, config: ExpiryConfig) -> anyhow::Result<()> {
    const AFTERWARDS_NS: u64 = 5_000_000_000;
    let mut own: Vec<Own> = Vec::new();
    while task.turn().await {
        let now_ns = task.stage.clock.now_ns();
        own.retain(|anchor| now_ns < anchor.expire_ns.saturating_add(AFTERWARDS_NS));
        if own.is_empty() || task.rng.random_bool(0.2) {
            let live_ms = task.rng.random_range(config.live_ms_min..=config.live_ms_max);
            let live = Duration::from_millis(live_ms);
            // In this order: should the two clocks be read apart, the anchor lives longer.
            let expire_ns = task.stage.clock.now_ns() + nanoseconds(live);
            let expire = Some((expire_ns, wall_time_in(live)));
            let position = anywhere(&mut task.rng);
            let draft = Draft { value: task.next_value(), position, expire };
            let write = Write::create(&mut task.rng, draft);
            create(&mut task, write, &mut own).await?;
        } else {
            read_one(&mut task, &own).await?;
        }
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "an expiry is given in wall-clock time")]
fn wall_time_in(live: Duration) -> prost_types::Timestamp {
    (SystemTime::now() + live).into()
}

/// Creates while there are fewer than `anchors` own ones, then in turn with deleting.
async fn come_and_go(
    task: &mut ClientTask,
    anchors: u32,
    place: fn(&mut rand::rngs::StdRng) -> Position,
    own: &mut Vec<Own>,
) -> anyhow::Result<()> {
    if own.is_empty() || own.len() < anchors as usize {
        create_in(task, place, own).await
    } else {
        delete_one(task, own).await
    }
}

async fn create_in(
    task: &mut ClientTask,
    place: fn(&mut rand::rngs::StdRng) -> Position,
    own: &mut Vec<Own>,
) -> anyhow::Result<()> {
    let position = place(&mut task.rng);
    let draft = Draft { value: task.next_value(), position, expire: None };
    let write = Write::create(&mut task.rng, draft);
    create(task, write, own).await
}

async fn create(task: &mut ClientTask, write: Write, own: &mut Vec<Own>) -> anyhow::Result<()> {
    let expiries: Vec<u64> = write.actions.iter().map(expire_ns).collect();
    let written = task.stage.write(task.number, write).await?;
    for (outcome, expire_ns) in written.outcomes.iter().zip(expiries) {
        let Outcome::Written { id, .. } = outcome else { continue };
        let anchor = Own { id: *id, expire_ns };
        if own.len() < OWN_MAX {
            own.push(anchor);
        } else {
            let place = task.rng.random_range(0..own.len());
            own[place] = anchor;
        }
    }
    Ok(())
}

fn expire_ns(action: &Action) -> u64 {
    match action {
        Action::Create { expire_ns, .. } => expire_ns.unwrap_or(u64::MAX),
        Action::Update { .. }
        | Action::Delete { .. }
        | Action::Get { .. }
        | Action::List { .. }
        | Action::Nearest { .. } => u64::MAX,
    }
}

async fn delete_one(task: &mut ClientTask, own: &mut Vec<Own>) -> anyhow::Result<()> {
    let place = task.rng.random_range(0..own.len());
    let id = own.swap_remove(place).id;
    let write = Write::delete(&mut task.rng, id);
    task.stage.write(task.number, write).await?;
    Ok(())
}

async fn read_one(task: &mut ClientTask, own: &[Own]) -> anyhow::Result<()> {
    let id = own[task.rng.random_range(0..own.len())].id;
    let stage = task.stage.clone();
    stage.get(task.number, &stage.client, id, Level::Linearizable, Bytes::new()).await?;
    Ok(())
}
