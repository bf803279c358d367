//! Every workload of the chaos harness against real nodes, one of which is killed, and the verdict.

use std::collections::BTreeMap;
use std::path::Path;

use anchorhold_chaos::clock::RunClock;
use anchorhold_chaos::events::{Canary, EventKind, EventLog, FaultEvent, FaultStage};
use anchorhold_chaos::judge::{self, Invariant};
use anchorhold_chaos::report::{InvariantState, Report, Verdict};
use anchorhold_chaos::run_directory::{AskedOfRun, RUN_FORMAT, RunDescription, RunDirectory};
use anchorhold_chaos::workload::{
    self, ClusterAccess, NodeAccess, RunningWorkload, WorkloadConfig,
};
use anchorhold_proto::admin_v1;
use anchorhold_tests::cluster::TestCluster;
use anchorhold_tests::wait::until;

const WORKLOADS: [&str; 6] = [
    r#"{"kind": "register", "clients": 4, "keys": 12, "rate": 300}"#,
    r#"{"kind": "set", "clients": 3, "rate": 200}"#,
    r#"{"kind": "nearest", "clients": 2, "anchors": 120, "rate": 60}"#,
    r#"{"kind": "expiry", "clients": 2, "live_ms_max": 2000, "rate": 60}"#,
    r#"{"kind": "session", "clients": 3, "keys": 6, "rate": 150}"#,
    r#"{"kind": "list", "clients": 2, "anchors": 150, "page_size": 20, "rate": 60}"#,
];

async fn access(cluster: &TestCluster) -> ClusterAccess {
    let admin = cluster.admin(0);
    let request = admin.request(admin_v1::ListNodesRequest {});
    let listed = admin.clusters().list_nodes(request).await.unwrap().into_inner().nodes;
    let nodes = cluster.nodes().iter().map(|state| {
        let address = state.client_address.to_string();
        let node = listed.iter().find(|node| node.client_address == address).unwrap();
        NodeAccess {
            node_id: node.node_id,
            name: state.name.clone(),
            region: node.region.clone(),
            zone: node.zone.clone(),
            endpoint: address,
        }
    });
    let nodes: Vec<NodeAccess> = nodes.collect();
    ClusterAccess {
        admin_endpoints: nodes.iter().map(|node| node.endpoint.clone()).collect(),
        nodes,
        admin_key: cluster.admin_key().to_owned(),
        is_direct: true,
    }
}

fn describe(directory: &RunDirectory, access: &ClusterAccess) {
    let invariants = Invariant::ALL.iter().map(|one| one.name().to_owned()).collect();
    let zones = access.nodes.iter().map(|node| (node.name.clone(), node.zone.clone())).collect();
    let description = RunDescription {
        format: RUN_FORMAT,
        scenario: "every-workload".to_owned(),
        scenario_text: String::new(),
        topology_text: String::new(),
        seed: 7,
        driver: "process".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        binary: "anchorhold".to_owned(),
        replay: "cargo test -p anchorhold-tests judged".to_owned(),
        started_at_unix_ms: 0,
        invariants,
        budgets: BTreeMap::from([("write_gap_ms_max".to_owned(), 60_000.0)]),
        zones,
        mutants: Vec::new(),
        asked: AskedOfRun::default(),
    };
    directory.describe(&description).unwrap();
}

/// Waits until every workload has been acknowledged `more` operations than now.
async fn until_all_have(workloads: &[RunningWorkload], more: u64) {
    let before: Vec<u64> = workloads.iter().map(|one| one.progress().acknowledged).collect();
    until("every workload goes on", || async {
        let behind = workloads
            .iter()
            .zip(&before)
            .find(|(one, before)| one.progress().acknowledged < **before + more);
        behind.map_or(Ok(()), |(one, _)| Err(format!("{one:?}")))
    })
    .await;
}

/// Kills the first node and restarts it, as a fault of the run.
async fn kill_and_restart(
    cluster: &mut TestCluster,
    workloads: &[RunningWorkload],
    events: &EventLog,
    clock: RunClock,
) {
    let asked_ns = clock.now_ns();
    let killed = cluster.nodes()[0].name.clone();
    let event = |stage, applied_ns, healed_ns, canary| {
        EventKind::Fault(FaultEvent {
            id: 1,
            fault: "kill".to_owned(),
            target: "node".to_owned(),
            nodes: vec![killed.clone()],
            stage,
            asked_ns,
            applied_ns,
            healed_ns,
            canary,
            detail: "SIGKILL".to_owned(),
        })
    };
    events.append(event(FaultStage::Asked, None, None, Canary::None)).unwrap();
    cluster.kill(0).unwrap();
    let applied_ns = Some(clock.now_ns());
    events.append(event(FaultStage::Applied, applied_ns, None, Canary::Took)).unwrap();
    until_all_have(workloads, 100).await;
    cluster.restart(0).unwrap();
    cluster.wait_ready(&[0]).await.unwrap();
    let healed_ns = Some(clock.now_ns());
    events.append(event(FaultStage::Healed, applied_ns, healed_ns, Canary::None)).unwrap();
    until_all_have(workloads, 100).await;
}

/// Runs everything into a directory.
async fn run(path: &Path) -> RunDirectory {
    let mut cluster = TestCluster::start("").await.unwrap();
    let access = access(&cluster).await;
    let directory = RunDirectory::create(path).unwrap();
    describe(&directory, &access);
    let clock = RunClock::start();
    let events = EventLog::open(&directory.events_file(), clock).unwrap();
    let mut workloads = Vec::new();
    for (seed, config) in (1..).zip(WORKLOADS) {
        let config: WorkloadConfig = serde_json::from_str(config).unwrap();
        let started = workload::start(config, access.clone(), clock, &directory, seed);
        workloads.push(started.await.unwrap());
    }
    until_all_have(&workloads, 100).await;
    kill_and_restart(&mut cluster, &workloads, &events, clock).await;
    cluster.wait_healthy().await;
    for workload in workloads {
        workload.stop().await.unwrap();
    }
    judge::collect(&access, &directory).await.unwrap();
    directory
}

fn state(report: &Report, invariant: Invariant) -> InvariantState {
    report.invariants.iter().find(|one| one.invariant == invariant).unwrap().state
}

#[tokio::test(flavor = "multi_thread")]
async fn every_workload_keeps_every_promise_while_a_node_is_killed() {
    let place = tempfile::tempdir().unwrap();
    let directory = run(&place.path().join("run")).await;
    let report = judge::check(&directory).unwrap();
    judge::write(&report, &directory).unwrap();
    assert_eq!(report.verdict, Verdict::Pass, "{:#?} {:#?}", report.reasons, report.violations);
    for invariant in Invariant::ALL {
        assert_eq!(state(&report, *invariant), InvariantState::Kept, "{invariant}");
    }
    assert!(report.faults[0].measures.iter().any(|(name, _)| name == "write_gap_ms"));
    let page = std::fs::read_to_string(directory.report_html()).unwrap();
    assert!(page.contains("every-workload") && !page.contains("http://"));

    // The same record without one acknowledged anchor on one replica is no pass any more.
    let back = directory.last().join("set-1.bin");
    remove_a_row_read_back(&back);
    let report = judge::check(&directory).unwrap();
    assert_eq!(report.verdict, Verdict::InvariantBroken);
    assert_eq!(state(&report, Invariant::ReplicasComplete), InvariantState::Broken);
}

/// Rewrites what was read back without the last row of the last node.
fn remove_a_row_read_back(path: &Path) {
    use anchorhold_chaos::history::{HistoryReader, Outcome, Recorder};
    let mut reader = HistoryReader::open(path).unwrap();
    let header = reader.header().clone();
    let mut operations = Vec::new();
    while let Some(operation) = reader.next().unwrap() {
        operations.push(operation);
    }
    let rows = operations.iter_mut().rev().find_map(|operation| {
        let Outcome::Rows { rows, .. } = &mut operation.outcome else { return None };
        (!rows.is_empty()).then_some(rows)
    });
    rows.unwrap().pop();
    std::fs::remove_file(path).unwrap();
    let recorder = Recorder::create(path, &header).unwrap();
    operations.iter().for_each(|operation| recorder.record(operation).unwrap());
    recorder.finish().unwrap();
}
