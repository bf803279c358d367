//! Retries, redirects and deadlines against scripted nodes in this process.

mod fake;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anchorhold_model::{AccountNumber, AnchorId, KeyRange, RequestId, Version};
use anchorhold_proto::failure::METADATA_LEADER;
use anchorhold_proto::{Failure, SessionToken, convert};
use futures::future::join_all;
use tokio::net::TcpListener;
use tonic::Code;

use crate::{Client, ClientConfig, Reason, RetryConfig, v1};
use fake::{ACCOUNT, Answer, Node};

/// Patient by default: no test may fail because the machine is slow.
fn config(nodes: &[Node]) -> ClientConfig {
    ClientConfig {
        endpoints: nodes.iter().map(|node| node.address.to_string()).collect(),
        api_key: "ahk_k1_0123456789abcdef".into(),
        deadline: Duration::from_secs(60),
        retry: RetryConfig {
            attempt_timeout: Duration::from_secs(60),
            hedge_after: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(60),
            keepalive: Duration::from_secs(60),
            // Long enough that a node at fault rests for the whole test.
            node_rest: Duration::from_secs(600),
            ..RetryConfig::default()
        },
        seed: Some(1),
        ..ClientConfig::default()
    }
}

async fn connect(nodes: &[Node]) -> Client {
    Client::connect(config(nodes)).await.unwrap()
}

fn anchor() -> v1::Anchor {
    v1::Anchor { pose: Some(v1::Pose::on_earth(52.5, 13.4, 80.0)), ..v1::Anchor::default() }
}

fn anchor_id() -> String {
    let pose = convert::pose_from_wire(anchor().pose).unwrap();
    AnchorId::derive(AccountNumber(ACCOUNT), &pose, RequestId(1), 0, 0).to_string()
}

fn fail(reason: Reason) -> Answer {
    Answer::Fail(Failure::new(reason, "scripted"))
}

fn counts(nodes: &[Node]) -> Vec<usize> {
    nodes.iter().map(Node::received_count).collect()
}

#[tokio::test]
async fn a_write_goes_straight_to_the_leader_with_key_and_time_limit() {
    let nodes = fake::start(3).await;
    let client = connect(&nodes).await;
    for _ in 0..5 {
        client.create_anchor(anchor()).await.unwrap();
    }
    assert_eq!(counts(&nodes), [5, 0, 0]);
    let metadata = nodes[0].metadata.lock().clone().unwrap();
    assert_eq!(metadata.get("authorization").unwrap(), "Bearer ahk_k1_0123456789abcdef");
    assert!(metadata.contains_key("grpc-timeout"));
}

#[tokio::test]
async fn a_write_with_an_unknown_outcome_is_sent_again_under_the_same_request_id() {
    let nodes = fake::start(1).await;
    let client = connect(&nodes).await;
    nodes[0].script([fail(Reason::CommitUnknown), fail(Reason::NoLeader)]);
    client.create_anchor(anchor()).await.unwrap();
    let received = nodes[0].received.lock().clone();
    assert_eq!(received.len(), 3);
    assert!(received.iter().all(|id| *id == received[0]), "{received:?}");
    client.create_anchor(anchor()).await.unwrap();
    assert_ne!(nodes[0].received.lock()[3], received[0]);
}

#[tokio::test]
async fn a_request_id_of_the_callers_own_is_kept() {
    let nodes = fake::start(1).await;
    let client = connect(&nodes).await;
    let request_id = "00000000-0000-4000-8000-000000000001".to_owned();
    let request = v1::CreateAnchorRequest { request_id: request_id.clone(), ..anchor().into() };
    client.create_anchor(request).await.unwrap();
    assert_eq!(*nodes[0].received.lock(), [request_id]);
}

#[tokio::test]
async fn a_named_leader_is_asked_next_and_remembered() {
    let nodes = fake::start(3).await;
    let client = connect(&nodes).await;
    let leader = nodes[2].address.to_string();
    let moved = Failure::new(Reason::NotLeader, "moved").with(METADATA_LEADER, leader);
    nodes[0].script([Answer::Fail(moved)]);
    *nodes[2].serving_leader.lock() = 3;
    client.create_anchor(anchor()).await.unwrap();
    client.create_anchor(anchor()).await.unwrap();
    assert_eq!(counts(&nodes), [1, 0, 2]);
}

#[tokio::test]
async fn a_reply_that_names_another_leader_corrects_the_route() {
    let nodes = fake::start(3).await;
    let client = connect(&nodes).await;
    // Node 1 forwarded the first write.
    *nodes[0].serving_leader.lock() = 2;
    *nodes[1].serving_leader.lock() = 2;
    client.create_anchor(anchor()).await.unwrap();
    client.create_anchor(anchor()).await.unwrap();
    assert_eq!(counts(&nodes), [1, 1, 0]);
}

#[tokio::test]
async fn a_stale_epoch_makes_the_client_learn_the_routes_again() {
    let nodes = fake::start(3).await;
    let client = connect(&nodes).await;
    for node in &nodes {
        *node.routes.lock() = fake::routes(&nodes, 2);
    }
    nodes[0].script([fail(Reason::StaleEpoch)]);
    client.create_anchor(anchor()).await.unwrap();
    assert_eq!(counts(&nodes), [1, 1, 0]);
    let asked = nodes.iter().map(|node| node.routes_asked.load(Ordering::Relaxed)).sum::<usize>();
    assert_eq!(asked, 2);
}

#[tokio::test]
async fn an_error_that_no_retry_can_mend_is_returned_at_once() {
    let nodes = fake::start(2).await;
    let client = connect(&nodes).await;
    nodes[0].script([fail(Reason::EtagMismatch)]);
    let error = client.create_anchor(anchor()).await.unwrap_err();
    assert_eq!((error.reason(), error.code()), (Some(Reason::EtagMismatch), Code::Aborted));
    assert_eq!((error.attempts(), error.unknown_request_id()), (1, None));
    assert_eq!(counts(&nodes), [1, 0]);
}

#[tokio::test]
async fn a_broken_leader_is_passed_over_and_left_in_peace() {
    let nodes = fake::start(3).await;
    let client = connect(&nodes).await;
    let broken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut routes = fake::routes(&nodes, 1);
    routes.nodes[0].address = broken.local_addr().unwrap().to_string();
    for node in &nodes {
        *node.routes.lock() = routes.clone();
    }
    let dropped = Arc::new(AtomicUsize::new(0));
    let counter = dropped.clone();
    tokio::spawn(async move {
        while broken.accept().await.is_ok() {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    nodes[0].script([fail(Reason::StaleEpoch)]);
    client.create_anchor(anchor()).await.unwrap();
    let dropped_first = dropped.load(Ordering::Relaxed);
    assert!(0 < dropped_first);
    for _ in 0..4 {
        client.create_anchor(anchor()).await.unwrap();
    }
    assert_eq!(dropped.load(Ordering::Relaxed), dropped_first);
    assert_eq!(counts(&nodes).iter().sum::<usize>(), 6);
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_is_replaced_by_another_at_connect() {
    let nodes = fake::start(1).await;
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for seed in 0..8 {
        let mut config = config(&nodes);
        config.endpoints.push(dead.to_string());
        config.seed = Some(seed);
        let client = Client::connect(config).await.unwrap();
        assert_eq!(client.account(), Some(ACCOUNT));
    }
}

#[tokio::test]
async fn a_node_that_hangs_is_replaced_by_another_one() {
    let nodes = fake::start(2).await;
    let mut config = config(&nodes);
    config.retry.attempt_timeout = Duration::from_millis(100);
    let client = Client::connect(config).await.unwrap();
    nodes[0].script([Answer::Hang, Answer::Hang, Answer::Hang, Answer::Hang]);
    client.create_anchor(anchor()).await.unwrap();
    let (hung, served) = (nodes[0].received.lock().clone(), nodes[1].received.lock().clone());
    assert_eq!(hung[0], *served.last().unwrap());
}

#[tokio::test]
async fn another_node_is_asked_while_one_is_silent_and_the_first_answer_counts() {
    let nodes = fake::start(3).await;
    let mut config = config(&nodes);
    config.retry.hedge_after = Duration::from_millis(50);
    let client = Client::connect(config).await.unwrap();
    // Nobody takes the first try back: a time limit of its own would end it after a minute.
    nodes[0].script(vec![Answer::Hang; 4]);
    client.create_anchor(anchor()).await.unwrap();
    let hung = nodes[0].received.lock().clone();
    let served: Vec<_> = nodes[1..].iter().flat_map(|node| node.received.lock().clone()).collect();
    assert!(served.contains(&hung[0]), "under the same request id: {hung:?} {served:?}");
    // The silent one rests: the next write does not wait for it.
    client.create_anchor(anchor()).await.unwrap();
    assert_eq!(nodes[0].received_count(), 1);
}

#[tokio::test]
async fn a_refusal_is_an_answer_also_while_another_node_is_silent() {
    let nodes = fake::start(2).await;
    let mut config = config(&nodes);
    config.retry.hedge_after = Duration::from_millis(50);
    let client = Client::connect(config).await.unwrap();
    nodes[0].script([Answer::Hang]);
    nodes[1].script([fail(Reason::NoLeader), fail(Reason::EtagMismatch)]);
    let error = client.create_anchor(anchor()).await.unwrap_err();
    assert_eq!((error.reason(), error.attempts()), (Some(Reason::EtagMismatch), 3));
}

#[tokio::test]
async fn a_write_that_runs_out_of_time_says_that_it_may_have_been_done() {
    let nodes = fake::start(1).await;
    let client = connect(&nodes).await.with_deadline(Duration::from_millis(100));
    nodes[0].script(vec![Answer::Hang; 100]);
    let error = client.create_anchor(anchor()).await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::CommitUnknown));
    assert_eq!(error.unknown_request_id(), Some(nodes[0].received.lock()[0].as_str()));
    let error = client.get_anchor(anchor_id().as_str()).await.unwrap_err();
    assert_eq!((error.reason(), error.unknown_request_id()), (None, None));
    assert_eq!(error.code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn a_write_that_never_left_is_certain_not_to_have_been_done() {
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut config = config(&[]);
    config.endpoints = vec![dead.to_string()];
    config.direct = false;
    config.deadline = Duration::from_millis(100);
    let client = Client::connect(config).await.unwrap();
    let error = client.create_anchor(anchor()).await.unwrap_err();
    assert_eq!((error.code(), error.unknown_request_id()), (Code::Unavailable, None));
    assert!(1 < error.attempts());
}

#[tokio::test]
async fn a_connection_that_breaks_leaves_the_outcome_unknown() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = config(&[]);
    config.endpoints = vec![listener.local_addr().unwrap().to_string()];
    config.direct = false;
    config.deadline = Duration::from_millis(200);
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            connection.readable().await.unwrap();
        }
    });
    let client = Client::connect(config).await.unwrap();
    let error = client.create_anchor(anchor()).await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::CommitUnknown), "{error:?}");
    assert!(error.unknown_request_id().is_some());
}

#[tokio::test]
async fn a_pause_that_outlasts_the_deadline_is_not_made() {
    let nodes = fake::start(1).await;
    let client = connect(&nodes).await;
    let later = Failure::new(Reason::OperationsFull, "").retry_after(Duration::from_secs(900));
    nodes[0].script([Answer::Fail(later)]);
    let error = client.create_anchor(anchor()).await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::OperationsFull));
    assert_eq!(error.retry_after(), Some(Duration::from_secs(900)));
}

#[tokio::test]
async fn a_read_that_may_be_stale_goes_to_the_callers_own_zone() {
    let nodes = fake::start(3).await;
    let mut config = config(&nodes);
    config.zone = Some("z3".into());
    let client = Client::connect(config).await.unwrap();
    let read = |read| v1::GetAnchorRequest { id: anchor_id(), read: Some(read) };
    client.get_anchor(read(v1::ReadOptions::local())).await.unwrap();
    let fresh = v1::ReadOptions::bounded_staleness(Duration::from_secs(1));
    client.get_anchor(read(fresh)).await.unwrap();
    assert_eq!(counts(&nodes), [0, 0, 2]);
    client.get_anchor(anchor_id().as_str()).await.unwrap();
    assert_eq!(counts(&nodes), [1, 0, 2]);
}

#[tokio::test]
async fn reads_that_may_be_stale_are_spread_over_the_replicas() {
    let nodes = fake::start(3).await;
    let client = connect(&nodes).await;
    for _ in 0..30 {
        let read = Some(v1::ReadOptions::local());
        client.get_anchor(v1::GetAnchorRequest { id: anchor_id(), read }).await.unwrap();
    }
    assert_eq!(counts(&nodes), [10, 10, 10]);
}

#[tokio::test]
async fn a_session_demands_what_it_has_written_and_seen() {
    let nodes = fake::start(1).await;
    let client = connect(&nodes).await;
    let session = client.session();
    session.create_anchor(anchor()).await.unwrap();
    session.get_anchor(anchor_id().as_str()).await.unwrap();
    session.get_anchor(anchor_id().as_str()).await.unwrap();
    client.get_anchor(anchor_id().as_str()).await.unwrap();
    let token = |revision| {
        let mut token = SessionToken::default();
        let range = KeyRange::of_account(AccountNumber(ACCOUNT));
        token.note(&range, Version { incarnation: 0, revision });
        token
    };
    assert_eq!(*nodes[0].tokens.lock(), [token(1), token(2), SessionToken::default()]);
}

#[tokio::test]
async fn a_listing_goes_through_empty_pages_to_the_end() {
    let nodes = fake::start(1).await;
    let client = connect(&nodes).await;
    let mut pages = client.list_all(v1::ListAnchorsRequest::default());
    let mut ids = Vec::new();
    while let Some(anchor) = pages.next().await.unwrap() {
        ids.push(anchor.id);
    }
    assert_eq!(ids, ["first", "last"]);
    assert_eq!(*nodes[0].received.lock(), ["", "second", "third"]);
}

#[tokio::test]
async fn a_thousand_callers_share_one_connection_to_the_leader() {
    let nodes = fake::start(1).await;
    let client = connect(&nodes).await;
    let calls = join_all((0..1_000).map(|_| client.create_anchor(anchor()))).await;
    assert!(calls.iter().all(Result::is_ok));
    assert_eq!(nodes[0].received_count(), 1_000);
    assert_eq!(nodes[0].connections.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_configuration_that_cannot_work_is_refused() {
    let good = config(&fake::start(1).await);
    for bad in [
        ClientConfig { endpoints: vec![], ..good.clone() },
        ClientConfig { endpoints: vec!["not an address".into()], ..good.clone() },
        ClientConfig { endpoints: vec!["https://127.0.0.1:1".into()], ..good.clone() },
        ClientConfig { api_key: String::new(), ..good.clone() },
        ClientConfig { deadline: Duration::ZERO, ..good.clone() },
    ] {
        let error = Client::connect(bad).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
    }
    assert!(!format!("{good:?}").contains("0123456789"));
}

#[tokio::test]
async fn calls_can_be_made_from_spawned_tasks() {
    let nodes = fake::start(1).await;
    let client = connect(&nodes).await;
    let task = tokio::spawn(async move { client.create_anchor(anchor()).await });
    task.await.unwrap().unwrap();
}
