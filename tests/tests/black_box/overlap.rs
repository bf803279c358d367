//! Faults of the harness that overlap, on a real process.

use std::sync::Arc;
use std::time::Duration;

use anchorhold_chaos::driver::{DriverConfig, DriverKind, ProcessDriver};
use anchorhold_chaos::events::Canary;
use anchorhold_chaos::fault::{self, ActiveFault, Seen};
use anchorhold_chaos::scenario::{Fault, FaultKind, FaultSettings, Scenario, Selector};
use anchorhold_tests::binary;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

const SCENARIO: &str = r#"
name = "one"
about = "A node."
topology = "one-node"

[[workload]]
kind = "set"

[[phase]]
name = "calm"
for_s = 1
"#;

async fn begin(driver: &Arc<ProcessDriver>, id: u32, kind: FaultKind) -> (ActiveFault, Seen) {
    let settings = FaultSettings { period_ms: 100.0, share: 0.5, ..FaultSettings::default() };
    let fault = Fault { kind, target: Selector::All, after: Duration::ZERO, lasts: None, settings };
    let mut random = StdRng::seed_from_u64(1);
    fault::apply(driver, id, &fault, driver.names(), &mut random).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_heal_of_one_fault_leaves_another_one_on() {
    let directory = tempfile::tempdir().unwrap();
    let scenario = Scenario::parse("one.toml", SCENARIO).unwrap();
    let config = DriverConfig {
        kind: DriverKind::Process,
        binary: binary::anchorhold().unwrap(),
        topology: scenario.topology,
        directory: directory.path().to_owned(),
        seed: 1,
        has_hooks: false,
        holds_unsynced: false,
        mutants: Vec::new(),
        node_arguments: Vec::new(),
    };
    let driver = Arc::new(ProcessDriver::start(config).await.unwrap());
    let name = driver.names()[0].clone();
    let process = || driver.process(&name).unwrap();

    let (pause, seen) = begin(&driver, 1, FaultKind::Pause).await;
    assert_eq!(seen.canary, Canary::Took, "{}", seen.detail);
    let (starve, _) = begin(&driver, 2, FaultKind::Starve).await;
    let (isolate, seen) = begin(&driver, 3, FaultKind::Isolate).await;
    assert_eq!(seen.canary, Canary::Took, "{}", seen.detail);
    isolate.heal(&driver, &[&pause, &starve]).await.unwrap();
    starve.heal(&driver, &[&pause]).await.unwrap();
    // A signal takes effect when the process is next scheduled.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(process().unwrap().is_paused(), "what froze it is still on");
    pause.heal(&driver, &[]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!process().unwrap().is_paused());

    let (kill, seen) = begin(&driver, 4, FaultKind::Kill).await;
    assert_eq!(seen.canary, Canary::Took, "{}", seen.detail);
    // Who is dead cannot be frozen: that is no fault that took, and no reason to give up.
    let (pause, seen) = begin(&driver, 5, FaultKind::Pause).await;
    assert_eq!(seen.canary, Canary::DidNotTake, "{}", seen.detail);
    pause.heal(&driver, &[&kill]).await.unwrap();
    assert!(process().is_none(), "what killed it is still on");
    kill.heal(&driver, &[]).await.unwrap();
    assert!(process().is_some());
    Arc::into_inner(driver).unwrap().stop().await;
}
