//! A whole scenario, as a user runs it: cluster, proxies, fault, heal, read-back, verdict, report.

use std::path::Path;
use std::process::{Command, Output};

use anchorhold_tests::binary;

fn chaos(arguments: &[&str]) -> Output {
    Command::new(binary::anchorhold().unwrap()).arg("chaos").args(arguments).output().unwrap()
}

fn words(output: &Output) -> String {
    let both = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8_lossy(&both).into_owned()
}

#[test]
fn a_scenario_is_run_judged_and_added_up() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    let path = run.to_str().unwrap();
    let ran = chaos(&["run", "calm", "--seed", "5", "--out", path]);
    // 3: the machine was too slow to decide something. Never 1, a broken promise, nor 4.
    let code = ran.status.code();
    assert!(matches!(code, Some(0 | 3)), "{code:?}: {}", words(&ran));
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(run.join("report.json")).unwrap()).unwrap();
    assert_eq!(report["totals"]["faults"], 1, "{}", words(&ran));
    assert!(500 < report["totals"]["acknowledged_writes"].as_u64().unwrap());
    let page = std::fs::read_to_string(run.join("report.html")).unwrap();
    assert!(page.contains("anchorhold chaos run calm --seed 5"), "it says how to run it again");
    // A page that fetches something is not self-contained.
    assert!(!page.contains("src=\"http") && !page.contains("href=\"http"));
    assert!(Path::new(&run.join("junit.xml")).is_file());
    assert_eq!(chaos(&["check", path]).status.code(), code, "the record alone says the same");
    let sum = chaos(&["sum", path]);
    assert_eq!(sum.status.code(), code);
    assert!(words(&sum).contains("pause"), "{}", words(&sum));
}

#[test]
fn without_a_run_there_is_nothing_to_judge() {
    for verb in ["check", "replay", "sum"] {
        let output = chaos(&[verb, "/nonexistent/run"]);
        assert_eq!(output.status.code(), Some(4), "{verb}: {}", words(&output));
    }
    let output = chaos(&["run", "calm", "--mutant", "no-such-bug"]);
    assert_eq!(output.status.code(), Some(2), "{}", words(&output));
    assert!(words(&output).contains("apply-skipped"), "it lists what there is");
}

/// Whether this machine lets the harness have a network of packets.
fn has_namespaces() -> bool {
    let told = chaos(&["doctor", "--output", "json"]);
    let abilities: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
    let of_driver = |ability: &&serde_json::Value| ability["name"] == "netns driver";
    let driver = abilities.as_array().unwrap().iter().find(of_driver).unwrap();
    if driver["is_there"] != true {
        eprintln!("SKIPPED: no network namespaces here: {}", driver["detail"]);
    }
    driver["is_there"] == true
}

const PACKETS: &str = r#"
name = "packets"
about = "A node is cut off, then packets are lost."
topology = "three-zones"
invariants = ["nothing_lost", "nothing_doubled", "replicas_complete", "replicas_equal"]

[[workload]]
kind = "set"
clients = 4
rate = 150
shards = 2

[[phase]]
name = "cut"
for_s = 4
fault = [{ kind = "one_way_out", target = "most_leaders", after_s = 1, for_s = 2 }]
wait = ["healthy", "writes"]

[[phase]]
name = "loss"
for_s = 3
fault = [{ kind = "lossy", target = "node=b1", loss = 0.2, after_s = 0.5, for_s = 2 }]
wait = ["healthy", "writes"]
"#;

#[test]
fn packets_are_dropped_in_a_network_of_the_harness_s_own() {
    if !has_namespaces() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let scenario = directory.path().join("packets.toml");
    std::fs::write(&scenario, PACKETS).unwrap();
    let (scenario, run) = (scenario.to_str().unwrap(), directory.path().join("run"));
    let run = run.to_str().unwrap();
    let ran = chaos(&["run", scenario, "--driver", "netns", "--seed", "5", "--out", run]);
    let code = ran.status.code();
    assert!(matches!(code, Some(0 | 3)), "{code:?}: {}", words(&ran));
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(format!("{run}/report.json")).unwrap()).unwrap();
    assert_eq!(report["run"]["driver"], "netns");
    for fault in report["faults"].as_array().unwrap() {
        assert_eq!(fault["took"], true, "{fault}");
    }
    let slow = PACKETS.replace("kind = \"lossy\"", "kind = \"slow\"").replace("loss = 0.2, ", "");
    std::fs::write(scenario, slow).unwrap();
    let refused = chaos(&["run", scenario, "--driver", "netns"]);
    assert_eq!(refused.status.code(), Some(4), "{}", words(&refused));
    assert!(words(&refused).contains("netns has no slow"), "{}", words(&refused));
}
