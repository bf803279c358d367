use rand::SeedableRng as _;

use super::*;

const HEAD: &str = "name = \"s\"\nabout = \"t\"\ntopology = \"three-zones\"\n";

#[track_caller]
fn check_error(body: &str, place: &str, words: &str) {
    let error = Scenario::parse("s.toml", &format!("{HEAD}{body}")).expect_err("must be refused");
    let text = error.to_string();
    assert!(text.starts_with(&format!("s.toml:{place}: ")), "{text}");
    assert!(text.contains(words), "{text}");
}

#[test]
fn every_shipped_scenario_is_valid_and_named_as_its_file() {
    for name in Scenario::shipped() {
        let (scenario, _) = Scenario::load(name).unwrap_or_else(|error| panic!("{error:#}"));
        assert_eq!(scenario.name, name);
        assert!(!scenario.about.is_empty() && !scenario.workloads.is_empty(), "{name}");
        assert!(!scenario.invariants.is_empty(), "{name} asks for nothing");
    }
}

#[test]
fn every_scenario_file_is_shipped() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let files = std::fs::read_dir(directory).unwrap();
    let files = files.map(|entry| entry.unwrap().path());
    let mut names: Vec<String> =
        files.map(|path| path.file_stem().unwrap().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    let mut shipped: Vec<&str> = Scenario::shipped().collect();
    shipped.sort_unstable();
    assert_eq!(names, shipped);
}

#[test]
fn one_scenario_hits_every_row_of_the_catalogue() {
    let (scenario, _) = Scenario::load("catalogue").unwrap();
    let faults = scenario.phases.iter().flat_map(|phase| &phase.faults);
    let hit = coverage(faults.map(|fault| fault.kind.row().name));
    let missed: Vec<_> = hit.into_iter().filter(|(_, count)| *count == 0).collect();
    assert_eq!(missed, []);
}

#[test]
fn a_scenario_says_what_it_says() {
    let text = format!(
        "{HEAD}rounds = 3\ninvariants = [\"nothing_lost\"]\n\
         [[workload]]\nkind = \"set\"\nclients = 2\n\
         [[phase]]\nname = \"lose\"\nfor_s = 9\nwait = [\"healthy\"]\nwait_max_s = 5\n\
         fault = [{{ kind = \"slow\", target = \"zone=turn\", after_s = 1, for_s = 2.5, delay_ms = 7 }}]\n\
         [budgets]\nwrite_gap_ms_max = 3000\n"
    );
    let scenario = Scenario::parse("s.toml", &text).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((scenario.rounds, scenario.workloads.len()), (3, 1));
    assert_eq!(scenario.budgets["write_gap_ms_max"], 3_000.0);
    let phase = &scenario.phases[0];
    assert_eq!((phase.waits.as_slice(), phase.wait_max.as_secs()), (&[Wait::Healthy][..], 5));
    let fault = &phase.faults[0];
    assert_eq!(fault.kind, FaultKind::Slow);
    assert_eq!(fault.target, Selector::Zone(Pick::Turn));
    assert_eq!((fault.after.as_millis(), fault.lasts.unwrap().as_millis()), (1_000, 2_500));
    assert_eq!((fault.settings.delay_ms, fault.settings.loss), (7.0, 0.05));
}

#[test]
fn a_region_is_lost_as_a_whole() {
    let (scenario, _) = Scenario::load("region-loss").unwrap();
    let view = View { places: scenario.places(), ..View::default() };
    let mut hit = BTreeMap::new();
    for fault in scenario.phases.iter().flat_map(|phase| &phase.faults) {
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        hit.insert(fault.target.to_string(), fault.target.resolve(&view, &mut rng).join(" "));
    }
    let expected =
        [("all", "a1 b1 c1 d1 e1 f1"), ("region=north", "a1 b1 c1"), ("region=south", "d1 e1 f1")];
    assert_eq!(hit, expected.map(|(target, nodes)| (target.to_owned(), nodes.to_owned())).into());
}

#[test]
fn a_latency_that_cannot_be_is_pointed_at_in_the_topology() {
    let directory = tempfile::tempdir().unwrap();
    let topology = "name = \"t\"\n[[region]]\nname = \"r\"\nzone = [{ name = \"a\", nodes = 1 }]\n\
        [latency]\nzone_ms = -1\n";
    std::fs::write(directory.path().join("far.toml"), topology).unwrap();
    let file = directory.path().join("s.toml").display().to_string();
    let text = HEAD.replace("three-zones", "far.toml");
    let error = Scenario::parse(&file, &text).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{file}:3:12: ")), "{error}");
    assert!(error.contains("far.toml:6:11: zone_ms is -1"), "{error}");
}

#[test]
fn mistakes_are_pointed_at_with_what_is_allowed() {
    check_error("rouns = 3\n", "4:1", "unknown field `rouns`");
    check_error("", "1:8", "add a [[phase]]");
    let phase = "[[phase]]\nname = \"p\"\nfor_s = 9\n";
    check_error(&format!("{phase}wait = [\"sun\"]\n"), "7:9", "healthy, leaders or writes");
    let fault = |inner: &str| format!("{phase}fault = [{{ {inner} }}]\n");
    check_error(&fault("kind = \"kil\""), "7:19", "write kill, power_loss");
    check_error(&fault("kind = \"kill\", target = \"zone=x\""), "7:36", "has a, b, c");
    check_error(&fault("kind = \"kill\", target = \"region=x\""), "7:36", "no region \"x\"");
    check_error(&fault("kind = \"kill\", loss = 1"), "7:27", "no `loss`: write kind, target");
    check_error(&fault("kind = \"lossy\", loss = 7"), "7:28", "a share from 0 to 1");
    check_error(&fault("kind = \"kill\", after_s = 8, for_s = 2"), "7:19", "at most 9");
    check_error(&fault("kind = \"kill\", after_s = -1"), "7:37", "seconds from 0");
    check_error(
        &fault("kind = \"bit_flip\", file = \"tree\""),
        "7:31",
        "\"log\", \"snapshot\" or \"state\"",
    );
}

#[test]
fn workloads_invariants_and_budgets_are_pointed_at_too() {
    let phase = "[[phase]]\nname = \"p\"\nfor_s = 9\n";
    check_error(&format!("invariants = [\"luck\"]\n{phase}"), "4:15", "nothing_lost");
    check_error(&format!("{phase}[budgets]\nluck_ms_max = 1\n"), "8:1", "write_gap_ms");
    check_error(
        &format!("{phase}[[workload]]\nkind = \"set\"\nkeys = 2\n"),
        "9:1",
        "unknown field `keys`",
    );
    check_error(&format!("{phase}[[workload]]\nkind = \"set\"\nclients = 0\n"), "9:1", "clients");
}

#[test]
fn a_swarm_is_drawn_into_faults_of_its_phase() {
    let (scenario, _) = Scenario::load("swarm").unwrap();
    let phase = scenario.phases.iter().find(|phase| phase.swarm.is_some()).unwrap();
    let faults = scenario.faults(phase, 0, 1);
    assert!(3 < faults.len());
    assert_eq!(faults, scenario.faults(phase, 0, 1));
    assert_ne!(faults, scenario.faults(phase, 1, 1), "each round draws anew");
    assert!(faults.iter().all(|fault| fault.after + fault.lasts.unwrap() <= phase.lasts));
}

#[test]
fn a_run_is_read_again_without_its_topology_s_file_and_takes_its_time() {
    let body = "[[phase]]\nname = \"p\"\nfor_s = 1\n";
    let text = format!(
        "name = \"s\"\nabout = \"t\"\ntopology = \"gone.toml\"\nrounds = 2\ntimeout_s = 100\n{body}"
    );
    assert!(Scenario::parse("/nowhere/s.toml", &text).is_err());
    let (_, topology) = super::topology_text("one-node", Path::new("")).unwrap();
    let mut scenario = Scenario::parse_with_topology("s.toml", &text, &topology).unwrap();
    assert_eq!(scenario.topology.nodes().len(), 1);
    scenario.set_rounds(20);
    assert_eq!((scenario.rounds, scenario.timeout), (20, Duration::from_secs(1_000)));
    scenario.set_rounds(1);
    assert_eq!((scenario.rounds, scenario.timeout), (1, Duration::from_secs(1_000)));
}
