//! `anchorhold debug` on what a killed node leaves: it sees everything, says what is damaged, and
//! changes nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anchorhold_tests::binary;
use anchorhold_tests::cluster::TestCluster;
use anchorhold_tests::rpc::{geo_anchor, request_id};
use anchorhold_tests::wait::until;

/// Short enough that a few hundred writes leave snapshots behind.
const SHORT_LOG: &str = "[consensus]\nsnapshot_entries = 50\nsnapshot_entries_kept = 10\n\
                         checkpoint_interval_ms = 100\n";

fn debug(data_dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary::anchorhold().unwrap());
    command.arg("debug").args(arguments).arg("--data-dir").arg(data_dir);
    command.args(["-o", "json"]).output().unwrap()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[track_caller]
fn assert_exit(output: &Output, code: i32, words: &str) {
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{error}");
    assert!(error.contains(words), "{error}");
}

/// Every file below a directory, with its content.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    found
}

/// The only file of a directory whose name ends so and that holds most.
fn largest(dir: &Path, ending: &str) -> PathBuf {
    let files = contents(dir).into_iter();
    let matching = files.filter(|(path, _)| path.to_string_lossy().ends_with(ending));
    matching.max_by_key(|(_, bytes)| bytes.len()).expect("there is one").0
}

/// Damages a file for as long as `look` runs.
fn while_damaged(path: &Path, damage: impl FnOnce(&mut Vec<u8>), look: impl FnOnce()) {
    let intact = std::fs::read(path).unwrap();
    let mut bytes = intact.clone();
    damage(&mut bytes);
    std::fs::write(path, bytes).unwrap();
    look();
    std::fs::write(path, intact).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_node_leaves_is_inspected_and_not_changed() {
    let mut cluster = TestCluster::start(SHORT_LOG).await.unwrap();
    let account = cluster.account(2).await.unwrap();
    let rpc = cluster.account_rpc(0, &account);
    for number in 0..120 {
        let anchor = geo_anchor(47.0, 8.0 + f64::from(number) * 1e-4, 0.0);
        let id = request_id();
        until("a write", || rpc.create(anchor.clone(), &id)).await;
    }
    let dir = cluster.nodes()[2].data_dir.clone();
    assert_exit(&debug(&dir, &["log", "verify"]), 5, "a node runs");
    assert_exit(&debug(&dir.join("nowhere"), &["log", "ls"]), 4, "no node's data directory");

    cluster.kill(2).unwrap();
    let before = contents(&dir);
    let groups = json(&debug(&dir, &["log", "ls"]));
    let shards: Vec<_> = groups.as_array().unwrap().iter().map(|one| &one["shard"]).collect();
    assert!(3 <= shards.len() && shards[0] == 0, "{groups}");
    let log = debug(&dir, &["log", "verify"]);
    assert_exit(&log, 0, "");
    assert!(json(&log)["entries"].as_u64().unwrap() > 10, "{log:?}");
    let shard = groups[1]["shard"].to_string();
    let entries = json(&debug(&dir, &["log", "dump", "--shard", &shard]));
    let kinds: Vec<_> = entries.as_array().unwrap().iter().map(|one| &one["kind"]).collect();
    assert!(!kinds.is_empty() && kinds.iter().all(|kind| *kind != "??"), "{entries}");
    let state = debug(&dir, &["state", "verify"]);
    assert_exit(&state, 0, "");
    assert_eq!(json(&state)["replicas"].as_array().unwrap().len(), shards.len());
    let snapshots = debug(&dir, &["snapshot", "verify"]);
    assert_exit(&snapshots, 0, "");
    let shown = json(&snapshots);
    assert!(shown.as_array().unwrap().iter().any(|one| 10 < one["index"].as_u64().unwrap_or(0)));
    assert!(contents(&dir) == before, "an inspection has changed something");

    let segment = largest(&dir.join("log"), "");
    while_damaged(
        &segment,
        |bytes| bytes[100] ^= 1,
        || {
            let output = debug(&dir, &["log", "verify"]);
            assert_exit(&output, 7, "damaged at offset");
            assert_exit(&output, 7, "node starts");
            assert_eq!(json(&output)["intact"], false);
        },
    );
    while_damaged(
        &segment,
        |bytes| bytes.truncate(bytes.len() / 2),
        || assert_exit(&debug(&dir, &["log", "verify"]), 7, "shorter than it was made"),
    );
    let snapshot = largest(&dir.join("snapshots"), ".snap");
    while_damaged(
        &snapshot,
        |bytes| bytes.truncate(bytes.len() - 3),
        || {
            assert_exit(&debug(&dir, &["snapshot", "verify"]), 7, "is damaged at byte");
        },
    );
    let engine = largest(&dir.join("state"), "db");
    while_damaged(
        &engine,
        |bytes| bytes.fill(0x5a),
        || {
            let output = debug(&dir, &["state", "verify"]);
            assert_exit(&output, 7, "discards it by itself");
            assert_eq!(json(&output)["intact"], false);
        },
    );

    // And the node starts as if nobody had looked.
    cluster.restart(2).unwrap();
    cluster.wait_ready(&[2]).await.unwrap();
}
