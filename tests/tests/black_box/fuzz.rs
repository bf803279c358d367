//! Bytes that no client of ours would send. A node answers each with a status, stays up, and goes on
//! serving everyone else.

use anchorhold_proto::{Reason, reason_of, v1};
use anchorhold_tests::cluster::{TestAccount, TestCluster, shared};
use anchorhold_tests::rpc::{geo_anchor, linearizable, request_id};
use bytes::Bytes;
use http_body_util::Full;
use prost::Message as _;
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use tonic::Code;
use tonic::codegen::Service as _;
use tonic::codegen::http::{Method, Request};

use crate::methods;

/// Everything below follows from it.
const SEED: u64 = 0x5eed_0007;
const ROUNDS_PER_METHOD: usize = 40;

/// What a node may answer to nonsense with a valid key. Not INTERNAL with our own reason, which
/// means a bug, and not UNAVAILABLE or DEADLINE_EXCEEDED, which mean that it hurt.
fn is_fair(code: Code, reason: Option<Reason>) -> bool {
    match code {
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::ResourceExhausted => true,
        // What gRPC itself answers to bytes that are no message.
        Code::Internal => reason.is_none(),
        Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::Unavailable
        | Code::DataLoss => false,
    }
}

/// Messages that would be valid, to be spoilt.
fn seeds() -> Vec<Vec<u8>> {
    let anchor = v1::Anchor {
        properties: [("name".to_owned(), "x".repeat(40))].into(),
        tags: vec!["a".to_owned(), "b".to_owned()],
        ..geo_anchor(47.0, 8.0, 400.0)
    };
    let point = v1::GeoPoint { latitude_deg: 47.0, longitude_deg: 8.0, height_m: 0.0 };
    let near = v1::NearPoint {
        point: Some(v1::near_point::Point::Geo(point)),
        k: 5,
        radius_m: Some(1_000.0),
    };
    vec![
        Vec::new(),
        v1::CreateAnchorRequest { anchor: Some(anchor.clone()), request_id: request_id() }
            .encode_to_vec(),
        v1::BatchCreateAnchorsRequest {
            anchors: vec![anchor.clone(); 3],
            request_id: request_id(),
            ids_only: true,
        }
        .encode_to_vec(),
        v1::GetAnchorRequest {
            id: "00000001-0000-8000-8000-000000000000".to_owned(),
            read: Some(linearizable()),
        }
        .encode_to_vec(),
        v1::UpdateAnchorRequest { anchor: Some(anchor), ..Default::default() }.encode_to_vec(),
        v1::LocateRequest {
            criterion: Some(v1::locate_request::Criterion::NearPoint(near)),
            ..Default::default()
        }
        .encode_to_vec(),
    ]
}

fn spoil(message: &[u8], rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = message.to_vec();
    for _ in 0..rng.random_range(1..6) {
        match rng.random_range(0..5) {
            0 if !bytes.is_empty() => {
                let index = rng.random_range(0..bytes.len());
                bytes[index] ^= 1 << rng.random_range(0..8);
            }
            1 => bytes.truncate(rng.random_range(0..=bytes.len())),
            2 => {
                let index = rng.random_range(0..=bytes.len());
                bytes.insert(index, rng.random());
            }
            3 => {
                let mut noise = vec![0; rng.random_range(0..200)];
                rng.fill_bytes(&mut noise);
                bytes.extend(noise);
            }
            // A group deeper than any parser should follow, or a length beyond the end.
            4 => bytes.extend(std::iter::repeat_n(0x0b, rng.random_range(1..300))),
            _ => bytes.extend([0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]),
        }
    }
    bytes
}

async fn serves_as_before(cluster: &TestCluster, account: &TestAccount, processes: &[u32]) {
    assert_eq!(cluster.process_ids().unwrap(), processes, "a node ended");
    for index in 0..3 {
        let rpc = cluster.account_rpc(index, account);
        let stored = rpc.create(geo_anchor(3.0, 4.0, 5.0), &request_id()).await.unwrap();
        let id = stored.anchor.unwrap().id;
        rpc.get(&id, linearizable()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn spoilt_messages_to_every_method_are_answered_and_hurt_nobody() {
    println!("seed {SEED:#x}");
    let cluster = shared().await;
    let account = cluster.account(2).await.unwrap();
    let processes = cluster.process_ids().unwrap();
    let mut rng = StdRng::seed_from_u64(SEED);
    let seeds = seeds();
    let mut answered = [0; 17];
    for method in methods::all() {
        for round in 0..ROUNDS_PER_METHOD {
            let message = spoil(&seeds[rng.random_range(0..seeds.len())], &mut rng);
            let index = round % 3;
            let rpc = if method.is_admin {
                cluster.admin(index)
            } else {
                cluster.account_rpc(index, &account)
            };
            let answer = rpc.raw(&method.path, Bytes::from(message.clone())).await;
            let (code, reason) = answer
                .map_or_else(|status| (status.code(), reason_of(&status)), |_| (Code::Ok, None));
            assert!(
                is_fair(code, reason),
                "{}: {code:?} {reason:?} for {message:02x?}",
                method.path
            );
            answered[usize::try_from(i32::from(code)).unwrap()] += 1;
        }
    }
    assert!(0 < answered[3] && 0 < answered[0], "codes seen: {answered:?}");
    serves_as_before(&cluster, &account, &processes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_no_grpc_are_answered_and_hurt_nobody() {
    let cluster = shared().await;
    let account = cluster.account(0).await.unwrap();
    let processes = cluster.process_ids().unwrap();
    let message = v1::CreateAnchorRequest {
        anchor: Some(geo_anchor(1.0, 2.0, 3.0)),
        request_id: request_id(),
    }
    .encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let framed = |flag: u8, length: [u8; 4], body: &[u8]| [&[flag][..], &length, body].concat();
    let bodies: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("half a frame head", vec![0, 0, 0]),
        ("a frame without its message", framed(0, length, &[])),
        ("half a message", framed(0, length, &message[..message.len() / 2])),
        ("a length of 4 GiB", framed(0, [255; 4], &message)),
        ("compressed, it says", framed(1, length, &message)),
        ("an unknown flag", framed(77, length, &message)),
        ("two messages", [framed(0, length, &message), framed(0, length, &message)].concat()),
        ("a megabyte of zeros", vec![0; 1 << 20]),
        ("HTML", b"<html><body>hello</body></html>".to_vec()),
    ];
    let path = "/anchorhold.v1.AnchorService/CreateAnchor";
    let kinds = ["application/grpc", "application/grpc-web+proto", "application/json", ""];
    for (label, body) in &bodies {
        for kind in kinds {
            for (method, path) in
                [(Method::POST, path), (Method::GET, path), (Method::POST, "/no.such.Service/Call")]
            {
                let mut channel = cluster.account_rpc(0, &account).channel();
                let key = format!("Bearer {}", account.key);
                let uri = format!("http://{}{path}", cluster.nodes()[0].client_address);
                let mut request = Request::builder().method(method).uri(uri);
                if !kind.is_empty() {
                    request = request.header("content-type", kind);
                }
                let body = tonic::body::Body::new(Full::new(Bytes::from(body.clone())));
                let request = request.header("authorization", key).body(body).unwrap();
                std::future::poll_fn(|context| channel.poll_ready(context)).await.unwrap();
                let answer = tokio::time::timeout(
                    anchorhold_tests::rpc::CALL_TIMEOUT,
                    channel.call(request),
                );
                // A refused stream is an answer; silence is not.
                let answer =
                    answer.await.unwrap_or_else(|_| panic!("no answer to {label} as {kind:?}"));
                if let Ok(response) = answer {
                    assert!(response.status().as_u16() < 500, "{label} as {kind:?}: {response:?}");
                }
            }
        }
    }
    serves_as_before(&cluster, &account, &processes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_the_limit_is_refused_and_the_connection_lives_on() {
    let cluster = shared().await;
    let account = cluster.account(0).await.unwrap();
    let rpc = cluster.account_rpc(0, &account);
    let large = Bytes::from(vec![0x7a; 40 << 20]);
    let status = rpc.raw("/anchorhold.v1.AnchorService/CreateAnchor", large).await.unwrap_err();
    assert!(
        matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted | Code::InvalidArgument),
        "{status:?}"
    );
    rpc.list(Default::default()).await.expect("the same connection still serves");
}
