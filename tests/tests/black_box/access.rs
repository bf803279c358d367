//! Keys: none, wrong ones, another account's, revoked ones.

use anchorhold_proto::{Reason, admin_v1, reason_of};
use anchorhold_tests::cluster::shared;
use anchorhold_tests::rpc::{Rpc, geo_anchor, linearizable, request_id};
use anchorhold_tests::wait::until;
use bytes::Bytes;
use tonic::Code;

use crate::methods;

/// These take any valid key.
const FOR_ANY_KEY: [&str; 2] = ["GetServerInfo", "WhoAmI"];

async fn code_of(rpc: &Rpc, path: &str) -> (Code, Option<Reason>) {
    match rpc.raw(path, Bytes::new()).await {
        Ok(_) => (Code::Ok, None),
        Err(status) => (status.code(), reason_of(&status)),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_refuses_a_call_without_a_valid_key() {
    let cluster = shared().await;
    let account = cluster.account(0).await.unwrap();
    let (id_part, secret) = account.key.rsplit_once('_').unwrap();
    let other_secret: String = secret.chars().rev().collect();
    let wrong_keys = [
        String::new(),
        "nonsense".to_owned(),
        secret.to_owned(),
        format!("{id_part}_{other_secret}"),
        format!("ahk_nobody_{secret}"),
        format!("aha_{secret}"),
        format!("{}x", account.key),
        format!("{}x", cluster.admin_key()),
        "ahk_".repeat(1_000),
    ];
    for method in methods::all() {
        let keyless = cluster.rpc(0);
        let missing = code_of(&keyless, &method.path).await;
        assert_eq!(missing, (Code::Unauthenticated, Some(Reason::CredentialMissing)), "{method:?}");
        for (number, key) in wrong_keys.iter().enumerate() {
            let wrong = code_of(&keyless.with_key(key), &method.path).await;
            let expected = (Code::Unauthenticated, Some(Reason::CredentialInvalid));
            assert_eq!(wrong, expected, "{method:?} with wrong key {number}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_key_opens_no_operator_method_and_the_operator_key_opens_no_account() {
    let cluster = shared().await;
    let account = cluster.account(0).await.unwrap();
    for method in methods::all() {
        if FOR_ANY_KEY.iter().any(|name| method.path.ends_with(name)) {
            for rpc in [cluster.account_rpc(1, &account), cluster.admin(1)] {
                assert_eq!(code_of(&rpc, &method.path).await.0, Code::Ok, "{method:?}");
            }
            continue;
        }
        let wrong =
            if method.is_admin { cluster.account_rpc(1, &account) } else { cluster.admin(1) };
        let expected = (Code::PermissionDenied, Some(Reason::PermissionDenied));
        assert_eq!(code_of(&wrong, &method.path).await, expected, "{method:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_accounts_anchor_can_be_neither_seen_nor_touched() {
    let cluster = shared().await;
    let owner = cluster.account(0).await.unwrap();
    let stranger = cluster.account(0).await.unwrap();
    let anchor = geo_anchor(48.0, 11.0, 500.0);
    let stored =
        cluster.account_rpc(0, &owner).create(anchor, &request_id()).await.unwrap().anchor.unwrap();
    let absent = {
        let mut id = stored.id.clone();
        let last = if id.ends_with('0') { "1" } else { "0" };
        id.replace_range(id.len() - 1.., last);
        id
    };
    for index in 0..3 {
        let rpc = cluster.account_rpc(index, &stranger);
        // The answer must not tell whether the anchor exists.
        let mut answers = Vec::new();
        for id in [&stored.id, &absent] {
            let get = rpc.get(id, linearizable()).await.unwrap_err();
            let delete = rpc.delete(id, "", &request_id()).await.unwrap_err();
            let mut changed = geo_anchor(48.0, 11.0, 501.0);
            changed.id.clone_from(id);
            let update = rpc.update(changed, &["pose"], &request_id()).await.unwrap_err();
            for status in [&get, &delete, &update] {
                assert_eq!(reason_of(status), Some(Reason::WrongAccount), "{status:?}");
            }
            answers.push(
                [get, delete, update].map(|status| (status.code(), status.message().to_owned())),
            );
        }
        assert_eq!(answers[0], answers[1]);
        assert!(rpc.list(Default::default()).await.unwrap().anchors.is_empty());
    }
    let owned = cluster.account_rpc(2, &owner).get(&stored.id, linearizable()).await.unwrap();
    assert_eq!(owned.anchor.unwrap(), stored);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_key_leaves_two_valid_and_a_revoked_one_stops_on_every_node() {
    let cluster = shared().await;
    let account = cluster.account(0).await.unwrap();
    let admin = cluster.admin(0);
    let rotate = || async {
        let message =
            admin_v1::RotateApiKeyRequest { account: account.number, request_id: request_id() };
        admin.accounts().rotate_api_key(admin.request(message)).await.unwrap().into_inner()
    };
    let works = |index: usize, key: String| {
        let rpc = cluster.rpc(index).with_key(&key);
        async move { rpc.list(Default::default()).await.map(|_| ()) }
    };
    let second = rotate().await;
    assert_eq!(second.revoked_key_id, "");
    for index in 0..3 {
        until("the new key works", || works(index, second.api_key.clone())).await;
        works(index, account.key.clone()).await.expect("the old key works beside it");
    }
    let third = rotate().await;
    assert_ne!(third.revoked_key_id, "");
    for index in 0..3 {
        until("the newest key works", || works(index, third.api_key.clone())).await;
        works(index, second.api_key.clone()).await.expect("the second key still works");
        until("the first key stops to work", || async {
            match works(index, account.key.clone()).await {
                Err(status) if status.code() == Code::Unauthenticated => Ok(()),
                other => Err(other),
            }
        })
        .await;
    }
}

/// As a client does that hears nothing from the first node for a while.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_asked_for_on_every_node_at_once_is_made_once_and_shown_once() {
    let cluster = shared().await;
    for _ in 0..10 {
        let account = cluster.account(0).await.unwrap();
        let id = request_id();
        let ask = |index: usize| {
            let (admin, request_id) = (cluster.admin(index), id.clone());
            async move {
                let message = admin_v1::CreateApiKeyRequest { account: account.number, request_id };
                admin.accounts().create_api_key(admin.request(message)).await.unwrap().into_inner()
            }
        };
        let answers = <[_; 3]>::from(tokio::join!(ask(0), ask(1), ask(2)));
        let shown: Vec<_> = answers.iter().filter(|answer| !answer.api_key.is_empty()).collect();
        assert_eq!(shown.len(), 1, "{answers:?}");
        for answer in &answers {
            let key_id = &answer.key.as_ref().expect("each answer names the key").key_id;
            assert!(shown[0].api_key.starts_with(&format!("ahk_{key_id}_")), "{answers:?}");
        }
        let rpc = cluster.rpc(2).with_key(&shown[0].api_key);
        until("the key works", || rpc.list(Default::default())).await;
    }
}
