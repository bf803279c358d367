//! The command line against a real cluster: what it prints for programs, and how it ends.

use std::path::Path;
use std::process::{Command, Output};

use anchorhold_tests::binary;
use anchorhold_tests::cluster::{TestAccount, TestCluster, shared};
use anchorhold_tests::wait::until;
use serde_json::Value;

/// Shards move and nodes are missed soon.
const IMPATIENT: &str = "[placement]\ninterval_ms = 200\nsuspect_ms = 1000\nsteady_ms = 500\n\
                         settle_ms = 500\n";

/// How a command ends, see `anchorhold --help`.
const USAGE: i32 = 2;
const UNHEALTHY: i32 = 3;
const NOT_FOUND: i32 = 4;
const CONFLICT: i32 = 5;
const UNAVAILABLE: i32 = 6;

/// The binary with the addresses and keys of a cluster.
struct Shell {
    endpoints: String,
    admin_key: String,
    api_key: String,
}

impl Shell {
    fn new(cluster: &TestCluster, account: &TestAccount) -> Self {
        Self {
            endpoints: cluster.endpoints().join(","),
            admin_key: cluster.admin_key().to_owned(),
            api_key: account.key.clone(),
        }
    }

    fn run(&self, line: &[&str]) -> Output {
        let mut command = Command::new(binary::anchorhold().unwrap());
        command.args(line).args(["-o", "json"]);
        command.env("ANCHORHOLD_ENDPOINTS", &self.endpoints);
        command.env("ANCHORHOLD_ADMIN_KEY", &self.admin_key);
        command.env("ANCHORHOLD_API_KEY", &self.api_key);
        command.output().unwrap()
    }

    /// What a command prints that must succeed.
    #[track_caller]
    fn json(&self, line: &[&str]) -> Value {
        let output = self.run(line);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line:?}: {error}");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }

    /// Checks that a command ends with this code, and says these words on standard error.
    #[track_caller]
    fn fails(&self, line: &[&str], code: i32, words: &str) {
        let output = self.run(line);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{line:?}: {error}");
        assert!(error.contains(words), "{line:?}: {error}");
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("{value} is no list"))
}

/// Node ids and shard ids are given to commands as they are printed.
fn id(value: &Value) -> String {
    number(value).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn anchors_are_put_found_changed_and_removed_by_hand() {
    let cluster = shared().await;
    let account = cluster.account(2).await.unwrap();
    let shell = Shell::new(&cluster, &account);
    let put = |line: &[&str]| shell.json(&[&["anchor", "put"], line].concat());
    let fountain = put(&[
        "--lat=48.1",
        "--lon=-11.5",
        "--height=520",
        "--property=name=Fountain",
        "--tag=water",
    ]);
    let bench = put(&["--lat=48.1", "--lon=-11.5", "--height=530"]);
    let indoors = put(&["--space=7", "--x=1", "--y=-2", "--z=3"]);
    let (fountain_id, bench_id) = (text(&fountain["id"]), text(&bench["id"]));
    assert_eq!(fountain["properties"]["name"], "Fountain");
    assert_eq!(shell.json(&["anchor", "get", fountain_id]), fountain);
    let both = shell.json(&["anchor", "get", fountain_id, bench_id]);
    assert_eq!(list(&both), [fountain.clone(), bench.clone()]);

    let near = shell.json(&["locate", "--near=48.1,-11.5,529", "-k", "2"]);
    assert_eq!(near["complete"], true);
    let found = list(&near["anchors"]);
    assert_eq!(
        found.iter().map(|one| text(&one["id"])).collect::<Vec<_>>(),
        [bench_id, fountain_id]
    );
    let distance = found[1]["distance_m"].as_f64().unwrap();
    assert!((8.99..9.01).contains(&distance), "{distance}");
    let within = shell.json(&["locate", "--within=48,-12,49,-11", "--tag=water"]);
    assert_eq!(list(&within["anchors"]).len(), 1);
    let listed = shell.json(&["anchor", "list", "--space=7"]);
    assert_eq!(list(&listed), [indoors]);

    let etag = text(&fountain["etag"]);
    let change = |etag: &str| {
        let line = ["anchor", "put", "--id", fountain_id, "--etag", etag, "--property=dry=yes"];
        line.map(str::to_owned)
    };
    let changed = shell.json(&change(etag).each_ref().map(String::as_str));
    assert_eq!(changed["properties"]["dry"], "yes");
    assert_eq!(changed["latitude"], fountain["latitude"], "what is not given does not change");
    shell.fails(&change(etag).each_ref().map(String::as_str), CONFLICT, "ETAG_MISMATCH");
    shell.fails(&["anchor", "rm", fountain_id, "--etag", etag], CONFLICT, "ETAG_MISMATCH");
    assert!(shell.run(&["anchor", "rm", fountain_id]).status.success());
    shell.fails(&["anchor", "rm", fountain_id], NOT_FOUND, fountain_id);
    shell.fails(&["anchor", "get", fountain_id], NOT_FOUND, fountain_id);
    // Of several the others are shown all the same.
    let output = shell.run(&["anchor", "get", fountain_id, bench_id]);
    assert_eq!(output.status.code(), Some(NOT_FOUND));
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(list(&shown), std::slice::from_ref(&bench));

    shell.fails(&["anchor", "get", "nonsense"], USAGE, "nonsense");
    shell.fails(&["anchor", "put", "--lat=91", "--lon=0"], USAGE, "latitude");
    let stranger = Shell { api_key: "ahk_none_0123456789abcdef0123".to_owned(), ..shell };
    stranger.fails(&["anchor", "list"], 1, "CREDENTIAL_INVALID");
    // Nobody listens on a port that was just free.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let astray = Shell { endpoints: format!("127.0.0.1:{port}"), ..stranger };
    astray.fails(&["anchor", "list", "--timeout=1"], UNAVAILABLE, &port.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_imported_once_and_comes_back_by_an_export() {
    let cluster = shared().await;
    let (account, other) = (cluster.account(1).await.unwrap(), cluster.account(1).await.unwrap());
    let shell = Shell::new(&cluster, &account);
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let rows = (0..1_200).map(|row| {
        let latitude = if row == 700 { 91.0 } else { f64::from(row) * 0.05 - 30.0 };
        format!("{latitude},{},place {row},a;b\n", f64::from(row) * 0.1)
    });
    let rows: String = rows.collect();
    std::fs::write(path("places.csv"), format!("lat,lon,name,tags\n{rows}")).unwrap();
    let (places, again) = (path("places.csv"), path("again.geojson"));

    shell.fails(&["import", &places], USAGE, "places.csv:702: ");
    assert!(list(&shell.json(&["anchor", "list"])).is_empty(), "a bad row stores nothing");
    let import = ["import", &places, "--skip-bad", "--shards=3"];
    let first = shell.json(&import);
    assert_eq!((number(&first["anchors"]), number(&first["rows_skipped"])), (1_199, 1));
    let accounts = shell.json(&["account", "list"]);
    let of = |name: &str| list(&accounts).iter().find(|one| one["name"] == name).unwrap().clone();
    assert_eq!(number(&of(&account.name)["shards"]), 3);
    // With its progress, and as one whose progress is lost: then everything is sent again.
    let stored = |line: &[&str]| {
        let again = shell.json(line);
        (number(&again["anchors"]), number(&again["stored_before"]))
    };
    assert_eq!(stored(&import), (1_199, 1_199));
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "progress") {
            std::fs::remove_file(path).unwrap();
        }
    }
    assert_eq!(stored(&import), (1_199, 0));

    let lines = exported(&shell, &path("all.ndjson"), 1_199);
    assert!(shell.run(&["export", &again]).status.success());
    let shell = Shell { api_key: other.key, ..shell };
    assert_eq!(number(&shell.json(&["import", &again])["anchors"]), 1_199);
    let copied = exported(&shell, &path("copy.ndjson"), 1_199);
    assert_eq!(copied, lines, "a place, a name or a tag has changed on the way");
    shell.fails(&["export", &path("missing/file.csv")], 1, "missing/file.csv");
    shell.fails(&["import", &path("missing.csv")], 1, "missing.csv");
}

/// What an export holds, without what the store adds; sorted.
#[track_caller]
fn exported(shell: &Shell, file: &str, count: usize) -> Vec<String> {
    assert!(shell.run(&["export", file]).status.success());
    let content = std::fs::read_to_string(Path::new(file)).unwrap();
    let mut lines: Vec<String> = content
        .lines()
        .map(|line| {
            let mut anchor: Value = serde_json::from_str(line).unwrap();
            let members = anchor.as_object_mut().unwrap();
            for own in ["id", "create_time", "update_time", "etag", "revision"] {
                members.remove(own);
            }
            anchor.to_string()
        })
        .collect();
    lines.sort_unstable();
    assert_eq!(lines.len(), count);
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn benches_measure_what_they_say() {
    let cluster = shared().await;
    let account = cluster.account(2).await.unwrap();
    let shell = Shell::new(&cluster, &account);
    for kind in ["write", "read", "locate"] {
        for rate in [&[][..], &["--rate=50"]] {
            let line = [&["bench", kind, "--clients=4", "--duration=1"], rate].concat();
            let report = shell.json(&line);
            assert_eq!(report["kind"], kind);
            assert_eq!(report["errors"], serde_json::json!({}));
            assert!(0 < number(&report["requests"]), "{report}");
            let latency = &report["latency_us"];
            let ranks = ["p50", "p90", "p99", "p999", "max"].map(|rank| number(&latency[rank]));
            assert!(ranks.is_sorted() && 0 < ranks[0], "{latency}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_and_their_keys_are_made_and_revoked() {
    let cluster = shared().await;
    let account = cluster.account(0).await.unwrap();
    let shell = Shell::new(&cluster, &account);
    let made = shell.json(&["account", "create", "acme", "--shards=3"]);
    assert_eq!(number(&made["shards"]), 3);
    shell.fails(&["account", "create", "acme"], CONFLICT, "acme");
    let first = Shell { api_key: text(&made["api_key"]).to_owned(), ..shell };
    until("the first key opens", || async {
        let output = first.run(&["anchor", "list"]);
        if output.status.success() { Ok(()) } else { Err(format!("{output:?}")) }
    })
    .await;
    let rotated = first.json(&["account", "key", "rotate", "acme"]);
    assert_eq!(rotated.get("revoked_key_id"), None, "two are valid at once");
    first.fails(&["account", "key", "create", "acme"], CONFLICT, "2 valid keys");
    let first_id = text(&made["key_ids"][0]).to_owned();
    first.json(&["account", "key", "revoke", "acme", &first_id]);
    until("the first key is refused", || async {
        let output = first.run(&["anchor", "list"]);
        if output.status.code() == Some(1) { Ok(()) } else { Err(format!("{output:?}")) }
    })
    .await;
    let second = Shell { api_key: text(&rotated["api_key"]).to_owned(), ..first };
    second.json(&["anchor", "list"]);
    second.fails(&["account", "key", "revoke", "nobody", &first_id], NOT_FOUND, "nobody");
    let outsider = Shell { admin_key: "aha_0123456789abcdef0123".to_owned(), ..second };
    outsider.fails(&["account", "list"], 1, "CREDENTIAL_INVALID");
}

/// Waits until a command prints what is asked for; gives that.
async fn until_json<T>(
    shell: &Shell,
    what: &str,
    line: &[&str],
    look: impl Fn(&Value) -> Option<T>,
) -> T {
    until(what, || async {
        let output = shell.run(line);
        let printed: Value = serde_json::from_slice(&output.stdout)
            .map_err(|error| format!("{error}: {}", String::from_utf8_lossy(&output.stderr)))?;
        look(&printed).ok_or_else(|| printed.to_string())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_looks_at_nodes_and_lets_them_rest_and_return() {
    let mut cluster = TestCluster::start(IMPATIENT).await.unwrap();
    let account = cluster.account(6).await.unwrap();
    let shell = Shell::new(&cluster, &account);
    cluster.wait_healthy().await;
    let status = shell.json(&["cluster", "status", "--check"]);
    assert_eq!((number(&status["nodes_up"]), number(&status["zones_up"])), (3, 3));
    let nodes = shell.json(&["node", "list"]);
    let node = id(&list(&nodes)[2]["node_id"]);
    let zone = text(&list(&nodes)[2]["zone"]).to_owned();

    let leaders = |nodes: &Value| {
        let found = list(nodes).iter().find(|one| id(&one["node_id"]) == node);
        number(&found.unwrap()["leaders"])
    };
    assert_eq!(shell.json(&["node", "drain", &node, "--wait"])["wish"], "drained");
    until_json(&shell, "it leads nothing", &["node", "list"], |nodes| {
        (leaders(nodes) == 0).then_some(())
    })
    .await;
    assert_eq!(shell.json(&["node", "resume", &node])["wish"], "serving");
    until_json(&shell, "it leads again", &["node", "list"], |nodes| {
        (0 < leaders(nodes)).then_some(())
    })
    .await;
    let drained = shell.json(&["zone", "drain", &zone]);
    assert_eq!(id(&list(&drained)[0]["node_id"]), node);
    until_json(&shell, "its zone leads nothing", &["zone", "list"], |zones| {
        let found = list(zones).iter().find(|one| one["zone"] == zone.as_str()).unwrap();
        (number(&found["leaders"]) == 0).then_some(())
    })
    .await;
    shell.json(&["node", "resume", &node]);
    let rests = shell.json(&["node", "maintenance", &node, "--for=600"]);
    assert!(rests["until"].is_string(), "{rests}");
    shell.json(&["node", "resume", &node]);
    // Three replicas in three zones: nobody can take them.
    let departure = shell.json(&["node", "why-blocked", &node]);
    assert!(0 < number(&departure["replicas"]), "{departure}");
    assert_eq!(list(&shell.json(&["cluster", "headroom"])).len(), 3);

    shell.fails(&["node", "drain", "n99"], NOT_FOUND, "node list");
    shell.fails(&["zone", "drain", "nowhere"], NOT_FOUND, "zone list");
    shell.fails(&["zone", "kill", &zone], NOT_FOUND, "demo");
    cluster.kill(2).unwrap();
    until("the loss is reported", || async {
        let output = shell.run(&["cluster", "status", "--check"]);
        if output.status.code() == Some(UNHEALTHY) { Ok(()) } else { Err(format!("{output:?}")) }
    })
    .await;
    until_json(&shell, "no further zone may go", &["cluster", "headroom"], |zones| {
        let mut left = list(zones).iter().filter(|one| one["zone"] != zone.as_str());
        let names_catalog = |one: &Value| {
            list(&one["shard_ids_at_risk"])[..].first() == Some(&Value::from(0))
                && one["risks"].to_string().contains("the catalog would have no quorum")
        };
        left.all(names_catalog).then_some(())
    })
    .await;
    cluster.restart(2).unwrap();
    cluster.wait_ready(&[2]).await.unwrap();
    cluster.wait_healthy().await;
    shell.json(&["cluster", "status", "--check"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_moves_leaders_and_cuts_and_joins_shards() {
    let cluster = TestCluster::start(IMPATIENT).await.unwrap();
    let account = cluster.account(1).await.unwrap();
    let shell = Shell::new(&cluster, &account);
    cluster.wait_healthy().await;
    shell.json(&["bench", "write", "--clients=8", "--duration=1"]);
    let scheduler = shell.json(&["scheduler", "pause"]);
    assert_eq!(scheduler["paused"], true);
    let limited = shell.json(&["scheduler", "limit", "--operators=3"]);
    assert_eq!((&limited["paused"], number(&limited["operators_max"])), (&scheduler["paused"], 3));
    assert_eq!(shell.json(&["scheduler", "show"]), limited);

    let account_number = account.number.to_string();
    let own = ["shard", "list", "--account", &account_number];
    let shards = shell.json(&own);
    let [shard] = list(&shards) else { panic!("{shards}") };
    let shard_id = id(&shard["shard_id"]);
    let other = list(&shard["replicas"])
        .iter()
        .map(|replica| id(&replica["node_id"]))
        .find(|node| *node != id(&shard["leader_node_id"]))
        .unwrap();
    let transfer = shell.json(&["shard", "transfer", &shard_id, "--to", &other]);
    assert_eq!(id(&transfer["to_node_id"]), other);
    until_json(&shell, "it leads", &["shard", "show", &shard_id], |shard| {
        (id(&shard["leader_node_id"]) == other).then_some(())
    })
    .await;

    let split = shell.json(&["shard", "split", &shard_id]);
    let child = id(&split["new_shard_id"]);
    // Whoever is asked may hear of the child late.
    let detail =
        until_json(&shell, "it is shown", &["shard", "show", &child], |it| Some(it.clone())).await;
    assert_eq!(text(&detail["start"]), text(&split["at"]));
    assert_eq!(list(&detail["replicas"]).len(), 3);
    assert!(list(&detail["replicas"]).iter().all(|replica| replica["role"] == "voter"));
    assert_eq!(detail["operator"], Value::Null);
    until_json(&shell, "its replicas can be compared", &["shard", "compare", &child], |_| Some(()))
        .await;
    shell.fails(&["shard", "split", &shard_id, "--at=zz"], 1, "zz");
    let canceled = shell.json(&["operator", "cancel", &child]);
    assert_eq!(canceled["canceled"], false);
    let merged =
        until_json(&shell, "it is merged", &["shard", "merge", &child, "--wait"], |merged| {
            Some(merged.clone())
        })
        .await;
    assert_eq!(
        (id(&merged["into_shard_id"]), &merged["merged"]),
        (shard_id.clone(), &Value::Bool(true))
    );
    until_json(&shell, "one is listed", &own, |it| (list(it).len() == 1).then_some(())).await;
    shell.fails(&["shard", "show", &child], NOT_FOUND, "shard list");
    shell.json(&["scheduler", "resume"]);
    until_json(&shell, "nothing is to be done", &["plan", "explain"], |plan| {
        list(&plan["operators"]).is_empty().then_some(())
    })
    .await;
    assert_eq!(list(&shell.json(&["operator", "list"])), [] as [Value; 0]);
}
