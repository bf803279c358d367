//! `demo --once`: kills a zone under load and proves that nothing was lost.
//!
//! Writers create anchors all the time, each its next one when the last one is acknowledged. A zone
//! is killed with SIGKILL, the one that leads most shards. Then every anchor that was ever
//! acknowledged is read back, LINEARIZABLE, while the zone is still down.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anchorhold_client::ClientError;
use anchorhold_model::Pose;
use anchorhold_proto::convert;

use super::*;

/// What was seen.
pub(super) struct Proof {
    zone: String,
    nodes_killed: usize,
    /// Anchors loaded, and how many of them are there.
    loaded: u64,
    listed: u64,
    /// Writes acknowledged by time.
    before: usize,
    after: usize,
    /// Acknowledged and not read back.
    lost: Vec<String>,
    /// Writes that failed in the end.
    failed: Vec<String>,
    /// Longest time between two acknowledged writes, of all writers together and of any one.
    gap_max: Duration,
    writer_gap_max: Duration,
    /// From the start of the zone to a whole cluster.
    caught_up: Duration,
}

/// Writers at work.
const WRITERS: usize = 8;
/// How long they write before the zone is killed.
const BEFORE: Duration = Duration::from_secs(2);
/// How long they go on with the zone down.
const AFTER: Duration = Duration::from_secs(8);
/// Between two writes of one writer: steady, not a benchmark.
const PAUSE: Duration = Duration::from_millis(2);
/// The tag of what they write.
const TAG: &str = "anchorhold-proof";
/// Ids read back at once.
const READ_BATCH: usize = 500;

/// What one writer saw.
#[derive(Default)]
struct Written {
    /// Ids of acknowledged anchors and when.
    acknowledged: Vec<(String, Instant)>,
    failed: Vec<String>,
}

/// Runs the proof. The cluster is whole again afterwards.
///
/// # Errors
/// If the cluster cannot be controlled or asked, or does not become whole again.
pub(super) async fn run(demo: &mut Demo) -> anyhow::Result<Proof> {
    let zone = leading_zone(&demo.admin).await?;
    let nodes_killed = demo.cluster.zone_nodes(&zone)?.len();
    let nodes = demo.cluster.state()?.nodes.len();
    let is_over = Arc::new(AtomicBool::new(false));
    let places: Arc<[Pose]> = demo.scanned.sample.clone().into();
    let writers = (0..WRITERS).map(|writer| {
        let (client, places, is_over) = (demo.client.clone(), places.clone(), is_over.clone());
        tokio::spawn(write(client, writer, places, is_over))
    });
    let writers: Vec<_> = writers.collect();
    eprintln!("{WRITERS} writers are at work");
    sleep(BEFORE).await;
    eprintln!("killing zone {zone} ({nodes_killed} of {nodes} nodes) with SIGKILL");
    let killed = Instant::now();
    demo.cluster.kill_zone(&zone)?;
    sleep(AFTER).await;
    is_over.store(true, Ordering::Relaxed);
    let mut written = Vec::with_capacity(WRITERS);
    for writer in writers {
        written.push(writer.await?);
    }
    eprintln!("reading every acknowledged anchor back, zone {zone} still down");
    let ids: Vec<String> = written.iter().flat_map(Written::ids).collect();
    let lost = missing(&demo.client, &ids).await?;
    let listed = listed_loaded(&demo.client).await?;
    eprintln!("starting zone {zone} again");
    let started = Instant::now();
    demo.cluster.start_zone(&zone).await?;
    wait_until_whole(&demo.admin, nodes).await?;
    let caught_up = started.elapsed();
    let times = |written: &Written| -> Vec<Instant> {
        written.acknowledged.iter().map(|(_, time)| *time).collect()
    };
    let all: Vec<Instant> = written.iter().flat_map(times).collect();
    Ok(Proof {
        zone,
        nodes_killed,
        loaded: demo.scanned.rows,
        listed,
        before: all.iter().filter(|time| **time <= killed).count(),
        after: all.iter().filter(|time| killed < **time).count(),
        lost,
        failed: written.iter().flat_map(|written| written.failed.clone()).collect(),
        writer_gap_max: written.iter().map(times).map(gap_max).max().unwrap_or_default(),
        gap_max: gap_max(all),
        caught_up,
    })
}

/// The zone that leads most shards; the first by name among equals.
async fn leading_zone(admin: &AdminClient) -> anyhow::Result<String> {
    let zones = admin.list_zones(admin_v1::ListZonesRequest {}).await?.zones;
    let first =
        zones.into_iter().min_by(|a, b| b.leaders.cmp(&a.leaders).then(a.zone.cmp(&b.zone)));
    Ok(first.context("the cluster lists no zone")?.zone)
}

async fn write(
    client: Client,
    writer: usize,
    places: Arc<[Pose]>,
    is_over: Arc<AtomicBool>,
) -> Written {
    let mut written = Written::default();
    let mut number = writer;
    while !is_over.load(Ordering::Relaxed) {
        // Strides over all places, and so over all shards.
        let place = places.get(number.wrapping_mul(7_919) % places.len().max(1));
        let anchor = v1::Anchor {
            pose: place.map(convert::pose_to_wire),
            tags: vec![TAG.to_owned()],
            properties: [("number".to_owned(), number.to_string())].into(),
            ..v1::Anchor::default()
        };
        number += WRITERS;
        let request = v1::CreateAnchorRequest { anchor: Some(anchor), ..Default::default() };
        match client.create_anchor(request).await {
            Ok(reply) => {
                let id = reply.anchor.unwrap_or_default().id;
                written.acknowledged.push((id, Instant::now()));
            }
            Err(error) => written.failed.push(error.to_string()),
        }
        sleep(PAUSE).await;
    }
    written
}

impl Written {
    fn ids(&self) -> impl Iterator<Item = String> + '_ {
        self.acknowledged.iter().map(|(id, _)| id.clone())
    }
}

/// Which of these ids a LINEARIZABLE read does not find.
async fn missing(client: &Client, ids: &[String]) -> anyhow::Result<Vec<String>> {
    let mut missing = Vec::new();
    for batch in ids.chunks(READ_BATCH) {
        let read = Some(crate::query::ReadLevel::Linearizable.to_wire());
        let mut left: Vec<String> = batch.to_vec();
        let deadline = Instant::now() + CALL_DEADLINE;
        while !left.is_empty() {
            let request = v1::BatchGetAnchorsRequest { ids: left.clone(), read: read.clone() };
            let reply = client.batch_get_anchors(request).await?;
            left.clear();
            for result in reply.results {
                match result.result {
                    Some(v1::batch_get_anchors_result::Result::Anchor(anchor))
                        if anchor.id == result.id => {}
                    Some(v1::batch_get_anchors_result::Result::Error(error))
                        if ClientError::from(&error).reason() != Some(Reason::AnchorNotFound) =>
                    {
                        // Its shard did not answer: that says nothing about the anchor.
                        if deadline < Instant::now() {
                            return Err(ClientError::from(&error).into());
                        }
                        left.push(result.id);
                    }
                    Some(_) | None => missing.push(result.id),
                }
            }
        }
    }
    Ok(missing)
}

/// How many anchors are listed that no proof has written, now or in an earlier run.
async fn listed_loaded(client: &Client) -> anyhow::Result<u64> {
    let request = v1::ListAnchorsRequest { page_size: 1_000, ..Default::default() };
    let (mut pages, mut count) = (client.list_all(request), 0);
    while !pages.is_at_end() {
        let page = pages.next_page().await?;
        count += page.iter().filter(|anchor| !anchor.tags.iter().any(|tag| tag == TAG)).count();
    }
    Ok(count as u64)
}

/// The longest time between two neighbours.
fn gap_max(mut times: Vec<Instant>) -> Duration {
    times.sort_unstable();
    let gaps = times.iter().zip(times.iter().skip(1)).map(|(before, after)| *after - *before);
    gaps.max().unwrap_or_default()
}

impl Proof {
    /// Prints what was seen: for people, and in one line of `name=value` for programs.
    pub(super) fn print(&self) {
        let milliseconds = |duration: Duration| format!("{} ms", thousands(millis(duration)));
        let acknowledged = (self.before + self.after) as u64;
        let facts = [
            ("zone killed", format!("{} (SIGKILL to {} node)", self.zone, self.nodes_killed)),
            (
                "writes acknowledged",
                format!(
                    "{} ({} before, {} with the zone down)",
                    thousands(acknowledged),
                    thousands(self.before as u64),
                    thousands(self.after as u64)
                ),
            ),
            (
                "read back",
                format!(
                    "{} of them and {} of {} loaded anchors, LINEARIZABLE",
                    thousands(acknowledged - self.lost.len() as u64),
                    thousands(self.listed),
                    thousands(self.loaded)
                ),
            ),
            ("lost", thousands(self.lost_count())),
            ("failed writes", thousands(self.failed.len() as u64)),
            (
                "largest gap",
                format!(
                    "{} between acknowledged writes, {} of one writer",
                    milliseconds(self.gap_max),
                    milliseconds(self.writer_gap_max)
                ),
            ),
            ("zone caught up", format!("{} after its start", milliseconds(self.caught_up))),
        ];
        println!("\n{}", crate::output::facts(&facts));
        for id in self.lost.iter().take(10) {
            println!("lost anchor {id}");
        }
        for error in self.failed.iter().take(3) {
            println!("failed write {error}");
        }
        println!(
            "\nproof: lost={} acknowledged={acknowledged} loaded={} largest_gap_ms={} \
             writer_gap_ms={} failed={} caught_up_ms={}",
            self.lost_count(),
            self.listed,
            millis(self.gap_max),
            millis(self.writer_gap_max),
            self.failed.len(),
            millis(self.caught_up)
        );
    }

    /// Whether the promise held.
    ///
    /// # Errors
    /// What was lost, or that too little was tried.
    pub(super) fn verdict(&self) -> anyhow::Result<()> {
        if self.lost_count() != 0 {
            bail!("{} acknowledged anchors were lost", self.lost_count());
        }
        if self.after == 0 {
            bail!("no write was acknowledged while zone {} was down", self.zone);
        }
        Ok(())
    }

    fn lost_count(&self) -> u64 {
        self.lost.len() as u64 + self.loaded.saturating_sub(self.listed)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proof() -> Proof {
        Proof {
            zone: "b".to_owned(),
            nodes_killed: 1,
            loaded: 10,
            listed: 10,
            before: 5,
            after: 5,
            lost: Vec::new(),
            failed: Vec::new(),
            gap_max: Duration::ZERO,
            writer_gap_max: Duration::ZERO,
            caught_up: Duration::ZERO,
        }
    }

    #[test]
    fn a_lost_write_or_a_lost_loaded_anchor_fails_the_proof() {
        assert!(proof().verdict().is_ok());
        let lost = Proof { lost: vec!["x".to_owned()], ..proof() };
        assert_eq!(lost.verdict().unwrap_err().to_string(), "1 acknowledged anchors were lost");
        assert!(Proof { listed: 8, ..proof() }.verdict().is_err());
    }

    #[test]
    fn a_proof_without_writes_under_the_failure_proves_nothing() {
        assert!(Proof { after: 0, ..proof() }.verdict().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn the_largest_gap_lies_between_neighbours_in_time() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(gap_max(vec![at(50), at(0), at(10)]), Duration::from_millis(40));
        assert_eq!(gap_max(vec![at(50)]), Duration::ZERO);
    }
}
