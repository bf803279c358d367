//! Nodes die under load; what was acknowledged is there, and everybody comes back by himself.

use anchorhold_chaos::ledger::Ledger;
use anchorhold_chaos::load::Load;
use anchorhold_client::{Client, ClientConfig};
use anchorhold_tests::cluster::{TestAccount, TestCluster};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};

const SEED: u64 = 0xfa11_0001;
const CLIENTS: u32 = 4;

pub(crate) async fn client(cluster: &TestCluster, account: &TestAccount) -> Client {
    let config = ClientConfig {
        endpoints: cluster.endpoints(),
        api_key: account.key.clone(),
        ..ClientConfig::default()
    };
    Client::connect(config).await.expect("a node answers")
}

#[track_caller]
fn assert_nothing_lost(ledger: &Ledger, lost: &[anchorhold_chaos::ledger::Lost]) {
    let acknowledged = ledger.acknowledged();
    assert!(lost.is_empty(), "{} of {acknowledged} lost: {:?}", lost.len(), lost.first());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_node_in_turn_is_killed_under_load_and_nothing_is_lost() {
    let mut cluster = TestCluster::start("").await.unwrap();
    let account = cluster.account(4).await.unwrap();
    let client = client(&cluster, &account).await;
    let load = Load::start(&client, CLIENTS, SEED);
    for victim in 0..3 {
        load.wait_for_each(10).await.unwrap();
        cluster.kill(victim).unwrap();
        load.wait_for_each(20).await.expect("writes go on with two of three zones");
        cluster.restart(victim).unwrap();
        cluster.wait_ready(&[victim]).await.unwrap();
        cluster.wait_healthy().await;
    }
    let ledger = load.stop().await.unwrap();
    assert_nothing_lost(&ledger, &ledger.verify(&client).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_are_killed_at_once_and_nothing_is_lost() {
    let mut cluster = TestCluster::start("").await.unwrap();
    let account = cluster.account(4).await.unwrap();
    let client = client(&cluster, &account).await;
    let load = Load::start(&client, CLIENTS, SEED + 1);
    for _ in 0..2 {
        load.wait_for_each(20).await.unwrap();
        for index in 0..3 {
            cluster.kill(index).unwrap();
        }
        for index in 0..3 {
            cluster.restart(index).unwrap();
        }
        cluster.wait_ready(&[0, 1, 2]).await.expect("all come back");
        load.wait_for_each(5).await.expect("writes go on");
    }
    let ledger = load.stop().await.unwrap();
    assert_nothing_lost(&ledger, &ledger.verify(&client).await.unwrap());
}

/// Small segments of work between checkpoints and snapshots, so that kills hit those too.
const BUSY_DISK: &str = "[consensus]\nsnapshot_entries = 60\nsnapshot_entries_kept = 20\n\
                         checkpoint_interval_ms = 200\n";

/// Kills in every run, and with `ANCHORHOLD_LONG=1`.
const KILLS: usize = 30;
const KILLS_LONG: usize = 400;

#[tokio::test(flavor = "multi_thread")]
async fn kills_at_random_moments_lose_nothing_and_every_start_succeeds() {
    let is_long = std::env::var_os("ANCHORHOLD_LONG").is_some();
    let kills_max = if is_long { KILLS_LONG } else { KILLS };
    println!("seed {SEED:#x}");
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut cluster = TestCluster::start(BUSY_DISK).await.unwrap();
    let account = cluster.account(3).await.unwrap();
    let client = client(&cluster, &account).await;
    let load = Load::start(&client, CLIENTS, SEED + 2);
    let (mut kills, mut rounds) = (0, 0);
    while kills < kills_max {
        rounds += 1;
        load.wait_for_more(rng.random_range(0..60)).await.unwrap();
        let mut victims = [0, 1, 2];
        victims.shuffle(&mut rng);
        let victims = &victims[..rng.random_range(1..=3)];
        for victim in victims {
            cluster.kill(*victim).unwrap();
            kills += 1;
        }
        for victim in victims {
            cluster.restart(*victim).unwrap();
        }
        let started = cluster.wait_ready(victims).await;
        started.unwrap_or_else(|error| panic!("after {kills} kills: {error:#}"));
    }
    load.wait_for_each(5).await.unwrap();
    let ledger = load.stop().await.unwrap();
    let acknowledged = ledger.acknowledged();
    println!("{rounds} rounds, {kills} kills, {acknowledged} writes acknowledged");
    assert_nothing_lost(&ledger, &ledger.verify(&client).await.unwrap());
}
