//! A shell script stands in for the binary: it answers nothing, but it is a real process.

use std::os::unix::fs::PermissionsExt;

use super::*;

/// A cluster in a temporary directory whose nodes run `script`.
fn config(directory: &Path, script: &str) -> LaunchConfig {
    let binary = directory.join("node.sh");
    fs::write(&binary, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
    LaunchConfig {
        binary,
        topology: Topology::three_zones(1),
        data_dir: directory.join("data"),
        node_arguments: Vec::new(),
        node_environment: Vec::new(),
        ready_timeout: Duration::from_secs(30),
        is_temporary: false,
    }
}

/// A cluster whose nodes only wait for the end of their standard input; never ready.
fn unready(directory: &Path) -> ProcessCluster {
    let config = config(directory, "exec cat");
    create_dir(&config.data_dir).unwrap();
    let state = founded(&config).unwrap();
    let file = StateFile::of(&config.data_dir);
    file.create(&state).unwrap();
    ProcessCluster { config, extras: BTreeMap::new(), file, children: vec![None, None, None] }
}

#[tokio::test]
async fn a_node_that_ends_at_start_is_reported_with_its_log() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path(), "echo the disk is on fire; exit 7");
    let error = ProcessCluster::start(config, |_| {}).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("node a1 ended at start (exit status: 7)"), "{text}");
    assert!(text.contains("the disk is on fire"), "{text}");
}

#[test]
fn a_killed_zone_stays_down_until_it_is_wanted_again() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = unready(directory.path());
    let started = cluster.reconcile().unwrap();
    assert_eq!(started.len(), 3);
    // As `zone kill b` in another terminal does it.
    let file = cluster.file().clone();
    file.update(|state| {
        assert!(state.zone_mut("b")?.into_iter().all(|node| node.kill().unwrap()));
        Ok(())
    })
    .unwrap();
    let mut events = Vec::new();
    while events.is_empty() {
        events = cluster.reconcile().unwrap();
    }
    assert_eq!(events, [Event::Stopped { node: "b1".to_owned() }]);
    assert_eq!(cluster.reconcile().unwrap(), []);
    file.update(|state| {
        state.node_mut("b1")?.wanted = Wanted::Running;
        Ok(())
    })
    .unwrap();
    assert_eq!(cluster.reconcile().unwrap(), [Event::Started { node: "b1".to_owned() }]);
    assert!(cluster.state().unwrap().nodes.iter().all(NodeState::is_alive));
}

#[test]
fn a_node_that_is_wanted_again_before_its_end_is_seen_is_started() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = unready(directory.path());
    cluster.reconcile().unwrap();
    // `zone kill b` and at once `zone start b`.
    let file = cluster.file().clone();
    file.update(|state| {
        let node = state.node_mut("b1")?;
        assert!(node.kill().unwrap());
        node.wanted = Wanted::Running;
        Ok(())
    })
    .unwrap();
    let mut events = Vec::new();
    while events.is_empty() {
        events = cluster.reconcile().unwrap();
    }
    events.extend(cluster.reconcile().unwrap());
    let node = "b1".to_owned();
    assert_eq!(events, [Event::Stopped { node: node.clone() }, Event::Started { node }]);
    assert!(cluster.state().unwrap().nodes.iter().all(NodeState::is_alive));
}

#[test]
fn a_node_that_dies_by_itself_is_told_from_one_that_was_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = unready(directory.path());
    cluster.reconcile().unwrap();
    let process = cluster.state().unwrap().nodes[2].process.clone().unwrap();
    process.kill().unwrap();
    let mut events = Vec::new();
    while events.is_empty() {
        events = cluster.reconcile().unwrap();
    }
    assert!(matches!(&events[..], [Event::Died { node, .. }] if node == "c1"), "{events:?}");
    assert!(!cluster.kill_node("c1").unwrap());
    assert!(cluster.kill_node("a1").unwrap());
}

#[test]
fn a_node_that_is_asked_to_stop_ends_by_itself_and_has_no_process_then() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = unready(directory.path());
    cluster.reconcile().unwrap();
    assert!(cluster.process("b1").unwrap().is_some());
    cluster.ask_to_stop("b1").unwrap();
    while cluster.process("b1").unwrap().is_some() {
        std::thread::yield_now();
    }
    assert!(cluster.process("a1").unwrap().is_some());
    let events = cluster.reconcile().unwrap();
    assert_eq!(events, [Event::Stopped { node: "b1".to_owned() }], "it was wanted");
}

#[tokio::test]
async fn a_node_gets_its_own_arguments_and_environment() {
    let directory = tempfile::tempdir().unwrap();
    let script = "echo $CHAOS $@ > $0.$CHAOS; mv $0.$CHAOS $0.$CHAOS.done; exec cat";
    let mut cluster = ProcessCluster::prepare(config(directory.path(), script)).unwrap();
    for (name, joins) in [("a1", true), ("b1", false)] {
        let arguments = vec![format!("--of={name}")];
        let environment = vec![("CHAOS".to_owned(), name.to_owned())];
        cluster.set_extras(name, NodeExtras { arguments, environment, joins });
        cluster.start_node(name).unwrap();
        let told = directory.path().join(format!("node.sh.{name}.done"));
        while !told.exists() {
            std::thread::yield_now();
        }
        let told = fs::read_to_string(told).unwrap();
        assert!(told.starts_with(&format!("{name} start")), "{told}");
        assert!(told.contains(&format!("--of={name}")), "{told}");
        assert!(told.contains("--join=") && !told.contains("--bootstrap"), "{told}");
    }
}

#[test]
fn dropping_a_cluster_ends_its_processes() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = unready(directory.path());
    cluster.reconcile().unwrap();
    let state = cluster.state().unwrap();
    assert!(state.is_owned());
    drop(cluster);
    assert!(!state.nodes.iter().any(NodeState::is_alive));
}

#[test]
fn a_cluster_is_continued_on_its_ports_and_only_in_its_shape() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = unready(directory.path());
    let state = cluster.state().unwrap();
    let mut config = cluster.config.clone();
    let error = taken_over(state.clone(), &config).unwrap_err();
    assert!(matches!(error, LaunchError::AlreadyRuns { .. }), "{error}");
    cluster.config.is_temporary = false;
    drop(cluster);
    let state = StateFile::of(&config.data_dir).read().unwrap().unwrap();
    let continued = taken_over(state.clone(), &config).unwrap();
    assert_eq!(continued.endpoints(), state.endpoints());
    config.topology = Topology::three_zones(2);
    let error = taken_over(state, &config).unwrap_err();
    assert!(matches!(error, LaunchError::OtherTopology { .. }), "{error}");
}
