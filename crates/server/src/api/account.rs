//! `AccountService`: accounts, their keys, their first layout.
//!
//! A secret is made here, shown once, and kept as a hash by the catalog. A retry of a request that
//! has succeeded is known by the catalog's memory of request ids; it cannot show the secret again.

use std::sync::Arc;
use std::time::Duration;

use anchorhold_consensus::{Host, ProposeError};
use anchorhold_model::catalog::{
    AccountRecord, ApiKey, CatalogCommand, CatalogOutcome, CatalogRejection, CatalogState,
    ClassRecord, DEFAULT_CLASS,
};
use anchorhold_model::{
    AccountNumber, Command, Key, KeyRange, OperationId, Outcome, RequestId, ShardDescriptor,
    Timestamp, Write,
};
use anchorhold_proto::admin_v1 as wire;
use anchorhold_proto::admin_v1::account_service_server::AccountService;
use anchorhold_proto::convert::{key_from_wire, request_id_from_wire, time_to_wire};
use anchorhold_proto::limits::{ACCOUNT_SHARDS_MAX, LAYOUT_SAMPLE_MAX, page_size};
use anchorhold_proto::{Failure, FieldError, PageToken, QueryHash, Reason};
use tonic::{Request, Response, Status};

use super::{Call, Door};
use crate::authorize::{Audience, account_digest, account_key, digest, to_hex};
use crate::layout;
use crate::request::{ShardReply, ShardRequest};

/// The service.
#[derive(Clone)]
pub struct Accounts {
    door: Door,
}

impl Accounts {
    /// The service behind a door.
    pub fn new(door: Door) -> Self {
        Self { door }
    }
}

/// How long an answer waits for this node's own catalog to show what was done.
const VISIBLE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an answer waits for the leaders of new shards.
const LED_TIMEOUT: Duration = Duration::from_secs(3);
/// Time between two looks at them.
const LED_CHECK_INTERVAL: Duration = Duration::from_millis(20);

#[tonic::async_trait]
impl AccountService for Accounts {
    async fn create_account(
        &self,
        request: Request<wire::CreateAccountRequest>,
    ) -> Result<Response<wire::CreateAccountResponse>, Status> {
        self.door.call("CreateAccount", Audience::Operators, request, create).await
    }

    async fn get_account(
        &self,
        request: Request<wire::GetAccountRequest>,
    ) -> Result<Response<wire::GetAccountResponse>, Status> {
        self.door
            .call("GetAccount", Audience::Operators, request, |call, request| async move {
                get(&call, request)
            })
            .await
    }

    async fn list_accounts(
        &self,
        request: Request<wire::ListAccountsRequest>,
    ) -> Result<Response<wire::ListAccountsResponse>, Status> {
        self.door
            .call("ListAccounts", Audience::Operators, request, |call, request| async move {
                list(&call, &request)
            })
            .await
    }

    async fn create_api_key(
        &self,
        request: Request<wire::CreateApiKeyRequest>,
    ) -> Result<Response<wire::CreateApiKeyResponse>, Status> {
        self.door.call("CreateApiKey", Audience::Operators, request, create_key).await
    }

    async fn rotate_api_key(
        &self,
        request: Request<wire::RotateApiKeyRequest>,
    ) -> Result<Response<wire::RotateApiKeyResponse>, Status> {
        self.door.call("RotateApiKey", Audience::Operators, request, rotate_key).await
    }

    async fn revoke_api_key(
        &self,
        request: Request<wire::RevokeApiKeyRequest>,
    ) -> Result<Response<wire::RevokeApiKeyResponse>, Status> {
        self.door.call("RevokeApiKey", Audience::Operators, request, revoke_key).await
    }

    async fn lay_out_account(
        &self,
        request: Request<wire::LayOutAccountRequest>,
    ) -> Result<Response<wire::LayOutAccountResponse>, Status> {
        self.door.call("LayOutAccount", Audience::Operators, request, lay_out).await
    }
}

async fn create(
    call: Call,
    request: wire::CreateAccountRequest,
) -> Result<wire::CreateAccountResponse, Failure> {
    let given = request_id_from_wire(&request.request_id)?;
    let request_id = call.request_id(given);
    if ACCOUNT_SHARDS_MAX < request.shards {
        let problem = format!("must be at most {ACCOUNT_SHARDS_MAX}");
        return Err(FieldError::invalid("shards", problem).into());
    }
    if let Some(account) = created_before(&call.core.catalog(), request_id, &request.name) {
        return Ok(wire::CreateAccountResponse { account: Some(account), api_key: String::new() });
    }
    let catalog = call.core.catalog();
    let class = class_of(&catalog, &request.placement_class)?;
    let shards = usize::try_from(request.shards.max(1)).unwrap_or(1);
    // The catalog puts the number in: it is not known before.
    let cuts = layout::even_cuts(AccountNumber(0), shards);
    let placements = placements(&call.core.host, &catalog, class, cuts.len() + 1)?;
    let (key, text) = make_key(&call, request_id);
    let command = CatalogCommand::CreateAccount {
        request_id,
        name: request.name.clone(),
        class: class.class_id,
        keys: vec![key],
        cuts,
        placements,
    };
    match propose(&call, command).await {
        Ok(CatalogOutcome::AccountCreated { account, .. }) => {
            let catalog = shown(&call, |catalog| catalog.accounts.contains_key(&account)).await;
            led(&call, account).await;
            let account = catalog.accounts.get(&account).map(|account| to_wire(&catalog, account));
            Ok(wire::CreateAccountResponse { account, api_key: text })
        }
        Ok(_) => Err(unexpected()),
        // A retry that another node got first: the key differs, so the content does.
        Err(failure) if failure.reason == Reason::RequestIdReused => {
            let is_there = |catalog: &CatalogState| {
                created_before(catalog, request_id, &request.name).is_some()
            };
            let catalog = shown(&call, is_there).await;
            let account = created_before(&catalog, request_id, &request.name).ok_or(failure)?;
            Ok(wire::CreateAccountResponse { account: Some(account), api_key: String::new() })
        }
        Err(failure) => Err(failure),
    }
}

/// The account that a request made before, if it had this name.
fn created_before(
    catalog: &CatalogState,
    request_id: RequestId,
    name: &str,
) -> Option<wire::Account> {
    let kept = catalog.operations.get(&request_id)?;
    let CatalogOutcome::AccountCreated { account, .. } = &kept.outcome else { return None };
    let record = catalog.accounts.get(account).filter(|record| record.name == name)?;
    Some(to_wire(catalog, record))
}

fn get(call: &Call, request: wire::GetAccountRequest) -> Result<wire::GetAccountResponse, Failure> {
    use wire::get_account_request::Account as Which;
    let catalog = call.core.catalog();
    let account = match request.account {
        None => {
            let problem = "must be set, either `number` or `name`";
            return Err(FieldError::invalid("account", problem).into());
        }
        Some(Which::Number(number)) => catalog.accounts.get(&AccountNumber(number)),
        Some(Which::Name(name)) => catalog.account_by_name(&name),
    };
    let account = account.ok_or_else(no_account)?;
    Ok(wire::GetAccountResponse { account: Some(to_wire(&catalog, account)) })
}

fn list(
    call: &Call,
    request: &wire::ListAccountsRequest,
) -> Result<wire::ListAccountsResponse, Failure> {
    let catalog = call.core.catalog();
    let query = QueryHash::of("ListAccounts", 0, &[]);
    let after = PageToken::decode(&request.page_token, query)?;
    let after = after.map_or(0, |token| u32::try_from(token.after).unwrap_or(u32::MAX));
    let size = page_size(request.page_size) as usize;
    let first = AccountNumber(after.saturating_add(1));
    let mut records = catalog.accounts.range(first..).map(|(_, record)| record);
    let page: Vec<_> = records.by_ref().take(size).collect();
    let next = records.next().and(page.last()).map(|last| u128::from(last.account.0));
    Ok(wire::ListAccountsResponse {
        accounts: page.into_iter().map(|record| to_wire(&catalog, record)).collect(),
        next_page_token: next.map(|after| PageToken { after }.encode(query)).unwrap_or_default(),
    })
}

async fn create_key(
    call: Call,
    request: wire::CreateApiKeyRequest,
) -> Result<wire::CreateApiKeyResponse, Failure> {
    let request_id = call.request_id(request_id_from_wire(&request.request_id)?);
    let account = AccountNumber(request.account);
    let add = |key| CatalogCommand::AddKey { request_id, account, key };
    let KeyAdded { key, api_key, .. } = add_key(&call, request_id, account, add).await?;
    Ok(wire::CreateApiKeyResponse { key, api_key })
}

async fn rotate_key(
    call: Call,
    request: wire::RotateApiKeyRequest,
) -> Result<wire::RotateApiKeyResponse, Failure> {
    let request_id = call.request_id(request_id_from_wire(&request.request_id)?);
    let account = AccountNumber(request.account);
    let rotate = |key| CatalogCommand::RotateKey { request_id, account, key };
    let KeyAdded { key, api_key, revoked_key_id } =
        add_key(&call, request_id, account, rotate).await?;
    Ok(wire::RotateApiKeyResponse { key, api_key, revoked_key_id })
}

/// What came of a request for a key.
struct KeyAdded {
    /// Its public part; `None` if it was revoked since.
    key: Option<wire::ApiKey>,
    /// All of it, the first time only.
    api_key: String,
    /// The key that made room for it, or nothing.
    revoked_key_id: String,
}

/// Adds a key, once per request.
async fn add_key(
    call: &Call,
    request_id: RequestId,
    account: AccountNumber,
    command: impl FnOnce(ApiKey) -> CatalogCommand,
) -> Result<KeyAdded, Failure> {
    if let Some(added) = added_before(&call.core.catalog(), request_id, account) {
        return Ok(added);
    }
    let (key, api_key) = make_key(call, request_id);
    let key_id = key.key_id.clone();
    match propose(call, command(key)).await {
        Ok(CatalogOutcome::KeyAdded { revoked }) => Ok(KeyAdded {
            key: Some(shown_key(call, account, &key_id).await),
            api_key,
            revoked_key_id: revoked.unwrap_or_default(),
        }),
        Ok(_) => Err(unexpected()),
        // A retry that another node got first: the secret differs, so the content does.
        Err(failure) if failure.reason == Reason::RequestIdReused => {
            let is_there =
                |catalog: &CatalogState| added_before(catalog, request_id, account).is_some();
            let catalog = shown(call, is_there).await;
            added_before(&catalog, request_id, account).ok_or(failure)
        }
        Err(failure) => Err(failure),
    }
}

/// What a request for a key has done before.
fn added_before(
    catalog: &CatalogState,
    request_id: RequestId,
    account: AccountNumber,
) -> Option<KeyAdded> {
    let kept = catalog.operations.get(&request_id)?;
    let CatalogOutcome::KeyAdded { revoked } = &kept.outcome else { return None };
    let key_id = key_id_of(request_id);
    let keys = &catalog.accounts.get(&account)?.keys;
    Some(KeyAdded {
        key: keys.iter().find(|key| key.key_id == key_id).map(key_to_wire),
        api_key: String::new(),
        revoked_key_id: revoked.clone().unwrap_or_default(),
    })
}

async fn revoke_key(
    call: Call,
    request: wire::RevokeApiKeyRequest,
) -> Result<wire::RevokeApiKeyResponse, Failure> {
    let request_id = call.request_id(request_id_from_wire(&request.request_id)?);
    let account = AccountNumber(request.account);
    let command = CatalogCommand::RevokeKey { request_id, account, key_id: request.key_id };
    propose(&call, command).await?;
    Ok(wire::RevokeApiKeyResponse {})
}

async fn lay_out(
    call: Call,
    request: wire::LayOutAccountRequest,
) -> Result<wire::LayOutAccountResponse, Failure> {
    let request_id = call.request_id(request_id_from_wire(&request.request_id)?);
    let account = AccountNumber(request.account);
    let catalog = call.core.catalog();
    if let Some(kept) = catalog.operations.get(&request_id)
        && let CatalogOutcome::LaidOut { shards } = &kept.outcome
    {
        return Ok(laid_out(shards));
    }
    let record = catalog.accounts.get(&account).ok_or_else(no_account)?;
    let class = catalog.classes.get(&record.class).ok_or_else(no_class)?;
    let cuts = cuts_of(account, request.layout)?;
    let current: Vec<_> = catalog.shards_of(account).cloned().collect();
    if call.core.has_anchors(account, &call.deadline).await? {
        let message = "the account holds anchors: it can be laid out only while it is empty";
        return Err(Failure::new(Reason::AccountNotEmpty, message));
    }
    let placements = placements(&call.core.host, &catalog, class, cuts.len() + 1)?;
    let mut retired_at = 0;
    for shard in &current {
        retired_at = retire(&call, shard).await?.max(retired_at);
    }
    let replaces = current.iter().map(|shard| (shard.shard_id, shard.epoch)).collect();
    let command =
        CatalogCommand::LayOut { request_id, account, replaces, retired_at, cuts, placements };
    let CatalogOutcome::LaidOut { shards } = propose(&call, command).await? else {
        return Err(unexpected());
    };
    shown(&call, |catalog| shards.iter().all(|id| catalog.shards.contains_key(id))).await;
    led(&call, account).await;
    Ok(laid_out(&shards))
}

/// Closes an empty shard to writes before its layout is replaced: without this, a write that is
/// acknowledged meanwhile would be lost with the shard. If the node ends after it, the shard stays
/// closed until the account is laid out again. Gives its last revision.
async fn retire(call: &Call, shard: &ShardDescriptor) -> Result<u64, Failure> {
    let operation = OperationId { request_id: RequestId(call.core.random()), item: 0 };
    let command = Command { operation, epoch: shard.epoch, write: Write::Retire };
    let request = ShardRequest::Write { commands: vec![command] };
    let shard = Arc::new(shard.clone());
    let reply = call.core.ask(&shard, request, &call.deadline).await;
    match reply.map_err(|error| call.core.failure(&error, None))? {
        ShardReply::Written { outcomes, .. } => match outcomes.first() {
            Some(Outcome::Retired { revision }) => Ok(*revision),
            Some(Outcome::Rejected(rejection)) => Err(super::refused(rejection)),
            Some(_) | None => Err(unexpected()),
        },
        ShardReply::Ticked
        | ShardReply::Got { .. }
        | ShardReply::Listed { .. }
        | ShardReply::Found { .. }
        | ShardReply::Split { .. }
        | ShardReply::Merged(_) => Err(unexpected()),
    }
}

fn laid_out(shards: &[anchorhold_model::ShardId]) -> wire::LayOutAccountResponse {
    wire::LayOutAccountResponse { shard_ids: shards.iter().map(|shard| shard.0).collect() }
}

fn cuts_of(
    account: AccountNumber,
    layout: Option<wire::lay_out_account_request::Layout>,
) -> Result<Vec<Key>, Failure> {
    use wire::lay_out_account_request::Layout;
    let whole = KeyRange::of_account(account);
    let read = |field: &str, keys: &[bytes::Bytes]| -> Result<Vec<Key>, FieldError> {
        let keys = keys.iter().enumerate().map(|(item, bytes)| {
            let field = format!("{field}[{item}]");
            let key = key_from_wire(bytes).map_err(|error| error.within(&field))?;
            if whole.contains(key) && whole.start < key {
                return Ok(key);
            }
            Err(FieldError::invalid(field, "must lie inside the account, after its first key"))
        });
        keys.collect()
    };
    match layout {
        None => {
            let problem = "must be set, either `cuts` or `sample`";
            Err(FieldError::invalid("layout", problem).into())
        }
        Some(Layout::Cuts(cuts)) => {
            if ACCOUNT_SHARDS_MAX as usize <= cuts.keys.len() {
                let problem = format!("must be fewer than {ACCOUNT_SHARDS_MAX}");
                return Err(FieldError::invalid("cuts.keys", problem).into());
            }
            let keys = read("cuts.keys", &cuts.keys)?;
            if keys.windows(2).any(|pair| pair[1] <= pair[0]) {
                let problem = "must be strictly ascending";
                return Err(FieldError::invalid("cuts.keys", problem).into());
            }
            Ok(keys)
        }
        Some(Layout::Sample(sample)) => {
            if !(1..=LAYOUT_SAMPLE_MAX).contains(&sample.keys.len()) {
                let problem = format!("must be 1 to {LAYOUT_SAMPLE_MAX} keys");
                return Err(FieldError::invalid("sample.keys", problem).into());
            }
            if !(1..=ACCOUNT_SHARDS_MAX).contains(&sample.shards) {
                let problem = format!("must be in [1, {ACCOUNT_SHARDS_MAX}]");
                return Err(FieldError::invalid("sample.shards", problem).into());
            }
            let keys = read("sample.keys", &sample.keys)?;
            Ok(layout::quantile_cuts(account, keys, sample.shards as usize))
        }
    }
}

/// The public part of the key that a request makes. A retry finds it by this, on every node.
fn key_id_of(request_id: RequestId) -> String {
    to_hex(&digest(&request_id.0.to_be_bytes())[..8])
}

/// A fresh key: what the catalog keeps, and the text that is shown once.
fn make_key(call: &Call, request_id: RequestId) -> (ApiKey, String) {
    let (key_id, secret) = (key_id_of(request_id), call.core.random::<u128>());
    let secret = format!("{secret:032x}");
    let hash = account_digest(&key_id, &secret);
    let text = account_key(&key_id, &secret);
    // The catalog sets the time.
    (ApiKey { key_id, hash, create_time: Timestamp(0) }, text)
}

fn class_of<'a>(catalog: &'a CatalogState, name: &str) -> Result<&'a ClassRecord, Failure> {
    let class = if name.is_empty() {
        catalog.classes.get(&DEFAULT_CLASS)
    } else {
        catalog.class_by_name(name)
    };
    class.ok_or_else(no_class)
}

fn placements(
    host: &Host,
    catalog: &CatalogState,
    class: &ClassRecord,
    shards: usize,
) -> Result<Vec<Vec<anchorhold_model::NodeId>>, Failure> {
    let has_room = |node| host.has_room(node);
    let placed = layout::place(catalog, class.home.as_deref(), shards, &has_room);
    if placed.len() == shards {
        return Ok(placed);
    }
    Err(Failure::new(Reason::NodeNotFound, "no node can take the account's shards"))
}

/// Proposes to the catalog. A refusal becomes a failure.
pub(super) async fn propose(
    call: &Call,
    command: CatalogCommand,
) -> Result<CatalogOutcome, Failure> {
    match call.core.host.propose_catalog(command, call.deadline.remaining()).await {
        Ok(CatalogOutcome::Rejected(rejection)) => Err(refused(&rejection)),
        Ok(outcome) => Ok(outcome),
        Err(error) => Err(match error {
            ProposeError::NotLeader { .. } | ProposeError::StaleEpoch { .. } => {
                Failure::new(Reason::CatalogUnavailable, "the catalog has no leader within reach")
            }
            ProposeError::Busy { .. } => {
                Failure::new(Reason::Overloaded, "too many changes wait for the catalog")
            }
            ProposeError::DiskFull { .. } => {
                Failure::new(Reason::DiskFull, "the disks have no room for more")
            }
            ProposeError::OutcomeUnknown { .. } | ProposeError::Stopped { .. } => {
                Failure::new(Reason::CommitUnknown, "whether the change was made is not known")
            }
        }
        .retry_after(Duration::from_millis(200))),
    }
}

fn refused(rejection: &CatalogRejection) -> Failure {
    let reason = match rejection {
        CatalogRejection::NotBootstrapped | CatalogRejection::AlreadyBootstrapped { .. } => {
            Reason::CatalogUnavailable
        }
        CatalogRejection::InvalidName { .. } => {
            return FieldError::invalid("name", rejection).into();
        }
        CatalogRejection::AccountNameTaken { .. } => Reason::AccountExists,
        CatalogRejection::AccountNotFound { .. } => Reason::AccountNotFound,
        CatalogRejection::ClassNotFound { .. } => Reason::ClassNotFound,
        CatalogRejection::NodeNotFound { .. }
        | CatalogRejection::NodeMoved { .. }
        | CatalogRejection::NodeRemoved { .. } => Reason::NodeNotFound,
        CatalogRejection::TooManyKeys { .. } => Reason::ApiKeysFull,
        CatalogRejection::KeyNotFound => Reason::ApiKeyNotFound,
        CatalogRejection::ShardsChanged
        | CatalogRejection::StaleDescriptor { .. }
        | CatalogRejection::ShardRemoved { .. }
        | CatalogRejection::ShardNotFound { .. } => Reason::StaleEpoch,
        CatalogRejection::RequestIdReused => Reason::RequestIdReused,
        CatalogRejection::OperationsFull => Reason::OperationsFull,
        CatalogRejection::InvalidKeyId
        | CatalogRejection::InvalidLayout { .. }
        | CatalogRejection::NumbersExhausted => Reason::Internal,
    };
    Failure::new(reason, rejection.to_string())
}

/// The catalog here once it shows something, or as it is when the wait is over.
async fn shown(
    call: &Call,
    is_there: impl Fn(&CatalogState) -> bool,
) -> std::sync::Arc<CatalogState> {
    let mut catalog = call.core.host.catalog();
    let timeout = call.deadline.remaining().min(VISIBLE_TIMEOUT);
    // Not in time is no failure: the change is made, other nodes have it.
    let _ = tokio::time::timeout(timeout, catalog.wait_for(|state| is_there(state))).await;
    std::sync::Arc::clone(&catalog.borrow())
}

/// Waits a little until the replicas here of an account's shards know a leader, so that the first
/// write after the answer finds one. Those that are elsewhere are not waited for.
async fn led(call: &Call, account: AccountNumber) {
    let core = &call.core;
    let timeout = call.deadline.remaining().min(LED_TIMEOUT);
    let all_led = async {
        loop {
            let catalog = core.catalog();
            let mut here = catalog
                .shards_of(account)
                .filter(|shard| shard.replica_on(core.place.node).is_some());
            let is_led = |id| core.host.replica(id).is_some_and(|one| one.leader().is_some());
            if here.all(|shard| is_led(shard.shard_id)) {
                return;
            }
            tokio::time::sleep(LED_CHECK_INTERVAL).await;
        }
    };
    // Not in time is no failure: writes wait for elections by themselves.
    let _ = tokio::time::timeout(timeout, all_led).await;
}

async fn shown_key(call: &Call, account: AccountNumber, key_id: &str) -> wire::ApiKey {
    let catalog = shown(call, |catalog| catalog.account_by_key_id(key_id).is_some()).await;
    let record = catalog.accounts.get(&account);
    let key = record.and_then(|record| record.keys.iter().find(|key| key.key_id == key_id));
    match key {
        Some(key) => key_to_wire(key),
        None => wire::ApiKey { key_id: key_id.to_owned(), create_time: None },
    }
}

fn to_wire(catalog: &CatalogState, account: &AccountRecord) -> wire::Account {
    let class = catalog.classes.get(&account.class);
    let shards = catalog.shards_of(account.account).count();
    wire::Account {
        number: account.account.0,
        name: account.name.clone(),
        placement_class: class.map(|class| class.name.clone()).unwrap_or_default(),
        create_time: Some(time_to_wire(account.create_time)),
        api_keys: account.keys.iter().map(key_to_wire).collect(),
        shards: u32::try_from(shards).unwrap_or(u32::MAX),
    }
}

fn key_to_wire(key: &ApiKey) -> wire::ApiKey {
    wire::ApiKey { key_id: key.key_id.clone(), create_time: Some(time_to_wire(key.create_time)) }
}

fn no_account() -> Failure {
    Failure::new(Reason::AccountNotFound, "there is no such account")
}

fn no_class() -> Failure {
    Failure::new(Reason::ClassNotFound, "there is no such placement class")
}

fn unexpected() -> Failure {
    Failure::new(Reason::Internal, "the catalog answered another question")
}
