//! `anchorhold bench split`: splits the largest shard under a write load, merges it again if asked to,
//! and says for how long the keys of each side took no write. The scheduler rests meanwhile.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anchorhold_client::{AdminClient, Client, admin_v1, v1};
use anyhow::{Context as _, anyhow};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::Serialize;
use tokio::time::Instant;

use crate::bench::load::{self, Load};
use crate::bench::{random_anchor, text};
use crate::context::Context;
use crate::output::{self, facts, thousands};

/// Anchors sent together while the shard is filled.
const FILL_BATCH: usize = 1_000;
/// Bytes of properties in each anchor.
const PROPERTY_BYTES: usize = 64;
/// What part of the measured time passes before the split.
const BEFORE: f64 = 0.3;
/// What part of it passes before the merge.
const BEFORE_MERGE: f64 = 0.6;
/// How often a merge that is under way is looked at.
const MERGE_POLL: Duration = Duration::from_millis(20);

/// One acknowledged write: when, and where its key lies.
type Answer = (Instant, u128);

/// What was found.
#[derive(Debug, Serialize)]
struct SplitReport {
    shard_id: u64,
    new_shard_id: u64,
    /// Anchors in the shard before the split.
    anchors: u64,
    /// Requests open at once, at most.
    clients: u32,
    /// Requests per second that were due, in an open loop.
    rate: Option<f64>,
    /// Writes acknowledged.
    writes: u64,
    /// From asking for the split to its answer, in milliseconds: counting goes first.
    split_ms: f64,
    /// Longest time without an acknowledged write to a key of either side, in milliseconds.
    before: Gaps,
    /// The same from the moment that the split was asked for, to the merge if there is one.
    since: Gaps,
    /// From asking for the merge until the new shard is gone, in milliseconds: its own beginning must
    /// be on disk first.
    merge_ms: Option<f64>,
    /// The same from the moment that the merge was asked for.
    since_merge: Option<Gaps>,
    /// Failed writes by what they said.
    errors: std::collections::BTreeMap<String, u64>,
}

/// Longest times without a write, in milliseconds.
#[derive(Debug, Serialize)]
struct Gaps {
    /// Keys that stay.
    parent_ms_max: f64,
    /// Keys of the new shard.
    child_ms_max: f64,
}

/// What to do.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    /// Anchors that the shard holds at least.
    pub(crate) anchors: u64,
    /// Whether its sides are merged again.
    pub(crate) merge: bool,
    /// Makes places repeatable.
    pub(crate) seed: u64,
}

/// Runs the benchmark.
///
/// # Errors
/// If the cluster cannot be reached, there is no shard to split, or it cannot be split.
pub(crate) async fn run(
    context: &Context,
    client: Client,
    load: Load,
    plan: Plan,
) -> anyhow::Result<()> {
    let admin = context.admin()?;
    let known = admin.get_scheduler(admin_v1::GetSchedulerRequest {}).await?;
    let known = known.scheduler.unwrap_or_default();
    let set = async |paused| {
        let scheduler = Some(admin_v1::Scheduler { paused, ..known });
        admin.update_scheduler(admin_v1::UpdateSchedulerRequest { scheduler }).await
    };
    // A shard of that size is about to be split anyway: not while it is measured.
    set(true).await?;
    let measured = tokio::select! {
        measured = measure(context, &admin, client, load, plan) => measured,
        _ = tokio::signal::ctrl_c() => Err(anyhow!("interrupted")),
    };
    set(known.paused)
        .await
        .context("the scheduler stays paused: `anchorhold scheduler resume` lets it go on")?;
    measured
}

async fn measure(
    context: &Context,
    admin: &AdminClient,
    client: Client,
    load: Load,
    plan: Plan,
) -> anyhow::Result<()> {
    let seed = plan.seed;
    let held = fill(&client, admin, plan.anchors, seed).await?;
    let shard = largest(admin).await?;
    let answers: Arc<Mutex<Vec<Answer>>> = Arc::default();
    let noted = Arc::clone(&answers);
    let writes = load::run(load, async {}, move |_, number| {
        let (client, noted) = (client.clone(), Arc::clone(&noted));
        async move {
            let mut rng = StdRng::seed_from_u64(seed.rotate_left(32) ^ number ^ 1 << 63);
            let anchor = Some(random_anchor(&mut rng, PROPERTY_BYTES));
            let request = v1::CreateAnchorRequest { anchor, ..Default::default() };
            let reply = client.create_anchor(request).await.map_err(|error| text(&error))?;
            let id = reply.anchor.map(|anchor| anchor.id.replace('-', "")).unwrap_or_default();
            let key = u128::from_str_radix(&id, 16).map_err(|error| error.to_string())?;
            if let Ok(mut noted) = noted.lock() {
                noted.push((Instant::now(), key));
            }
            Ok(())
        }
    });
    let start = Instant::now();
    let split = async {
        tokio::time::sleep(load.warm_up + load.duration.mul_f64(BEFORE)).await;
        let begun = Instant::now();
        let version = shard.epoch.unwrap_or_default().version;
        let request =
            admin_v1::SplitShardRequest { shard_id: shard.shard_id, version, ..Default::default() };
        let done = admin.split_shard(request).await?;
        let taken = begun.elapsed();
        let merge_at = start + load.warm_up + load.duration.mul_f64(BEFORE_MERGE);
        let merged = if plan.merge {
            tokio::time::sleep_until(merge_at).await;
            let asked = Instant::now();
            merge(admin, done.new_shard_id).await?;
            Some((asked, asked.elapsed()))
        } else {
            None
        };
        anyhow::Ok((begun, taken, done, merged))
    };
    let begun = start + load.warm_up;
    let (measured, split) = tokio::join!(writes, split);
    let (measured, (asked, taken, done, merged)) =
        (measured?, split.context("the shard is not split, or not merged again")?);
    let cut = done.at.iter().fold(0_u128, |key, byte| key << 8 | u128::from(*byte));
    let answers = answers.lock().map(|answers| answers.clone()).unwrap_or_default();
    let end = begun + load.duration;
    let gaps = |from: Instant, to: Instant| Gaps {
        parent_ms_max: gap_ms(&answers, from, to, |key| key < cut),
        child_ms_max: gap_ms(&answers, from, to, |key| cut <= key),
    };
    let report = SplitReport {
        shard_id: done.shard_id,
        new_shard_id: done.new_shard_id,
        anchors: held,
        clients: load.clients,
        rate: load.rate,
        writes: measured.latency_us.len(),
        split_ms: taken.as_secs_f64() * 1e3,
        before: gaps(begun, asked),
        since: gaps(asked, merged.map_or(end, |(asked, _)| asked)),
        merge_ms: merged.map(|(_, taken)| taken.as_secs_f64() * 1e3),
        since_merge: merged.map(|(asked, _)| gaps(asked, end)),
        errors: measured.errors,
    };
    output::print(context.output, &report, || report.table())
}

impl SplitReport {
    fn table(&self) -> String {
        let gaps = |gaps: &Gaps| {
            format!(
                "{:.1} ms for keys that stay, {:.1} ms for keys that move",
                gaps.parent_ms_max, gaps.child_ms_max
            )
        };
        let mut lines = vec![
            ("shard", format!("{} anchors", thousands(self.anchors))),
            ("writes", thousands(self.writes)),
            ("split", format!("{:.0} ms from asking to the answer", self.split_ms)),
            ("longest write gap before", gaps(&self.before)),
            ("longest write gap since", gaps(&self.since)),
        ];
        if let (Some(merge_ms), Some(since)) = (self.merge_ms, &self.since_merge) {
            let merged = format!("{merge_ms:.0} ms from asking until the new shard is gone");
            lines.push(("merge", merged));
            lines.push(("longest write gap since", gaps(since)));
        }
        for (error, count) in &self.errors {
            lines.push(("failed", format!("{} × {error}", thousands(*count))));
        }
        facts(&lines)
    }
}

/// Merges a shard into its neighbour, and waits until it is.
async fn merge(admin: &AdminClient, shard_id: u64) -> anyhow::Result<()> {
    admin.merge_shard(admin_v1::MergeShardRequest { shard_id }).await?;
    loop {
        let mut request = admin_v1::ListShardsRequest { page_size: 1_000, ..Default::default() };
        let is_there = loop {
            let page = admin.list_shards(request.clone()).await?;
            if page.shards.iter().any(|shard| shard.shard_id == shard_id) {
                break true;
            }
            if page.next_page_token.is_empty() {
                break false;
            }
            request.page_token = page.next_page_token;
        };
        if !is_there {
            return Ok(());
        }
        tokio::time::sleep(MERGE_POLL).await;
    }
}

/// Writes anchors until the largest shard holds as many as asked for; how many it holds then.
async fn fill(
    client: &Client,
    admin: &AdminClient,
    anchors: u64,
    seed: u64,
) -> anyhow::Result<u64> {
    let mut rng = StdRng::seed_from_u64(seed);
    loop {
        let held = largest(admin).await?.anchors;
        if anchors <= held {
            return Ok(held);
        }
        let lots = (anchors - held).div_ceil(FILL_BATCH as u64).min(16);
        let mut sent = tokio::task::JoinSet::new();
        for _ in 0..lots {
            let anchors = (0..FILL_BATCH).map(|_| random_anchor(&mut rng, PROPERTY_BYTES));
            let request = v1::BatchCreateAnchorsRequest {
                anchors: anchors.collect(),
                ids_only: true,
                ..Default::default()
            };
            let client = client.clone();
            sent.spawn(async move { client.batch_create_anchors(request).await });
        }
        while let Some(reply) = sent.join_next().await {
            reply??;
        }
        // What nodes report of their shards is a moment old.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The shard with the most anchors.
async fn largest(admin: &AdminClient) -> anyhow::Result<admin_v1::Shard> {
    let mut request = admin_v1::ListShardsRequest { page_size: 1_000, ..Default::default() };
    let mut largest: Option<admin_v1::Shard> = None;
    loop {
        let page = admin.list_shards(request.clone()).await?;
        for shard in page.shards.into_iter().filter(|shard| shard.shard_id != 0) {
            if largest.as_ref().is_none_or(|known| known.anchors < shard.anchors) {
                largest = Some(shard);
            }
        }
        if page.next_page_token.is_empty() {
            return largest.context("there is no shard");
        }
        request.page_token = page.next_page_token;
    }
}

/// Longest time in a window without an answer for a key that passes, in milliseconds.
fn gap_ms(answers: &[Answer], from: Instant, to: Instant, passes: impl Fn(u128) -> bool) -> f64 {
    let passing = answers.iter().filter(|(at, key)| from <= *at && *at <= to && passes(*key));
    let mut times: Vec<Instant> = passing.map(|(at, _)| *at).collect();
    times.sort_unstable();
    let after = times.iter().copied().chain([to]);
    let before = [from].into_iter().chain(times.iter().copied());
    let gap = before.zip(after).map(|(before, after)| after.saturating_duration_since(before));
    gap.max().unwrap_or_default().as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn gaps_are_those_of_one_sides_keys_inside_the_window() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let answers = [(at(10), 1), (at(20), 9), (at(35), 1), (at(90), 9), (at(300), 1)];
        assert_eq!(gap_ms(&answers, at(0), at(100), |key| key < 5), 65.0);
        assert_eq!(gap_ms(&answers, at(0), at(100), |key| 5 <= key), 70.0);
        assert_eq!(gap_ms(&answers, at(40), at(60), |key| key < 5), 20.0);
    }
}
