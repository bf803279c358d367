//! `AnchorService`: creating, reading, changing, removing and listing anchors.

use std::sync::Arc;

use anchorhold_model::{
    AccountNumber, Anchor, AnchorId, Key, OperationId, Outcome, Rejection, RequestId, Write,
};
use anchorhold_proto::convert::{
    AnchorDraft, anchor_id_from_wire, anchor_ids_from_wire, anchor_to_wire,
    anchor_update_from_wire, drafts_from_wire, list_from_wire, read_from_wire,
    request_id_from_wire,
};
use anchorhold_proto::v1::anchor_service_server::AnchorService;
use anchorhold_proto::{Failure, FieldError, PageToken, Reason, etag, v1};
use tonic::{Request, Response, Status};

use super::reply::{serving, session_token};
use super::{Call, Door, refused};
use crate::authorize::{Audience, own};
use crate::find::{Contributions, PageQuery, RoutedWrite};

/// The service.
#[derive(Clone)]
pub struct Anchors {
    door: Door,
}

impl Anchors {
    /// The service behind a door.
    pub fn new(door: Door) -> Self {
        Self { door }
    }
}

/// Ids that a create tries, at most: each only if another request's anchor has the one before.
const ATTEMPTS_MAX: u32 = 4;

#[tonic::async_trait]
impl AnchorService for Anchors {
    async fn create_anchor(
        &self,
        request: Request<v1::CreateAnchorRequest>,
    ) -> Result<Response<v1::CreateAnchorResponse>, Status> {
        self.door.call("CreateAnchor", Audience::Accounts, request, create).await
    }

    async fn batch_create_anchors(
        &self,
        request: Request<v1::BatchCreateAnchorsRequest>,
    ) -> Result<Response<v1::BatchCreateAnchorsResponse>, Status> {
        self.door.call("BatchCreateAnchors", Audience::Accounts, request, batch_create).await
    }

    async fn get_anchor(
        &self,
        request: Request<v1::GetAnchorRequest>,
    ) -> Result<Response<v1::GetAnchorResponse>, Status> {
        self.door.call("GetAnchor", Audience::Accounts, request, get).await
    }

    async fn batch_get_anchors(
        &self,
        request: Request<v1::BatchGetAnchorsRequest>,
    ) -> Result<Response<v1::BatchGetAnchorsResponse>, Status> {
        self.door.call("BatchGetAnchors", Audience::Accounts, request, batch_get).await
    }

    async fn update_anchor(
        &self,
        request: Request<v1::UpdateAnchorRequest>,
    ) -> Result<Response<v1::UpdateAnchorResponse>, Status> {
        self.door.call("UpdateAnchor", Audience::Accounts, request, update).await
    }

    async fn delete_anchor(
        &self,
        request: Request<v1::DeleteAnchorRequest>,
    ) -> Result<Response<v1::DeleteAnchorResponse>, Status> {
        self.door.call("DeleteAnchor", Audience::Accounts, request, delete).await
    }

    async fn list_anchors(
        &self,
        request: Request<v1::ListAnchorsRequest>,
    ) -> Result<Response<v1::ListAnchorsResponse>, Status> {
        self.door.call("ListAnchors", Audience::Accounts, request, list).await
    }
}

async fn create(
    call: Call,
    request: v1::CreateAnchorRequest,
) -> Result<v1::CreateAnchorResponse, Failure> {
    let account = call.account()?;
    let request_id = call.request_id(request_id_from_wire(&request.request_id)?);
    let wire = request.anchor.ok_or_else(|| FieldError::missing("anchor"))?;
    let draft = AnchorDraft::from_wire(wire).map_err(|error| error.within("anchor"))?;
    let (mut results, contributions) =
        create_all(&call, account, request_id, vec![Ok(draft)]).await;
    let anchor = results.pop().ok_or_else(lost)??;
    Ok(v1::CreateAnchorResponse {
        anchor: Some(anchor),
        serving: Some(serving(&call.core, &contributions)),
        session_token: session_token(&contributions),
    })
}

async fn batch_create(
    call: Call,
    request: v1::BatchCreateAnchorsRequest,
) -> Result<v1::BatchCreateAnchorsResponse, Failure> {
    use v1::batch_create_anchors_result::Result as Item;
    let account = call.account()?;
    let request_id = call.request_id(request_id_from_wire(&request.request_id)?);
    let drafts = drafts_from_wire(request.anchors)?;
    let (results, contributions) = create_all(&call, account, request_id, drafts).await;
    let results = results.into_iter().map(|result| {
        let item = match result {
            Ok(anchor) if request.ids_only => Item::Anchor(v1::Anchor {
                id: anchor.id,
                etag: anchor.etag,
                revision: anchor.revision,
                ..v1::Anchor::default()
            }),
            Ok(anchor) => Item::Anchor(anchor),
            Err(failure) => Item::Error(failure.into()),
        };
        v1::BatchCreateAnchorsResult { result: Some(item) }
    });
    Ok(v1::BatchCreateAnchorsResponse {
        results: results.collect(),
        serving: Some(serving(&call.core, &contributions)),
        session_token: session_token(&contributions),
    })
}

/// Creates anchors. The ids follow from the request id, so a retry meets its first try. Results are
/// in the order of the drafts.
async fn create_all(
    call: &Call,
    account: AccountNumber,
    request_id: RequestId,
    drafts: Vec<Result<AnchorDraft, FieldError>>,
) -> (Vec<Result<v1::Anchor, Failure>>, Contributions) {
    let mut all = Contributions::default();
    let mut results: Vec<Result<v1::Anchor, Failure>> = Vec::with_capacity(drafts.len());
    let mut open = Vec::new();
    for (item, draft) in drafts.into_iter().enumerate() {
        match draft {
            Ok(draft) => {
                open.push((item, draft));
                results.push(Err(lost()));
            }
            Err(error) => results.push(Err(error.into())),
        }
    }
    for attempt in 0..ATTEMPTS_MAX {
        let writes = open.iter().map(|(item, draft)| {
            // Batches are at most 1,000 items.
            let number = u32::try_from(*item).unwrap_or(u32::MAX);
            let id = AnchorId::derive(account, &draft.pose, request_id, number, attempt);
            RoutedWrite {
                key: id.key(),
                operation: OperationId { request_id, item: number },
                write: Write::Create(Box::new(draft.clone().into_anchor(id))),
            }
        });
        let writes: Vec<_> = writes.collect();
        let ids: Vec<Key> = writes.iter().map(|write| write.key).collect();
        let (outcomes, contributions) = call.core.write_all(writes, &call.deadline).await;
        contributions.iter().for_each(|served| all.note(*served));
        let mut taken = Vec::new();
        for (((item, draft), id), outcome) in open.into_iter().zip(ids).zip(outcomes) {
            if matches!(outcome, Ok(Outcome::Rejected(Rejection::AnchorExists))) {
                taken.push((item, draft));
                results[item] = Err(refused(&Rejection::AnchorExists));
            } else {
                results[item] = created(id, outcome);
            }
        }
        open = taken;
        if open.is_empty() {
            break;
        }
    }
    (results, all)
}

/// The anchor that a create left. One that is gone again is told by its id and version alone.
fn created(id: Key, outcome: Result<Outcome, Failure>) -> Result<v1::Anchor, Failure> {
    match outcome? {
        Outcome::Written { anchor: Some(anchor), .. } => Ok(anchor_to_wire(&anchor)),
        Outcome::Written { version, anchor: None, .. } => Ok(v1::Anchor {
            id: anchorhold_proto::text::uuid_text(id.0),
            etag: etag::of_version(version),
            revision: version.revision,
            ..v1::Anchor::default()
        }),
        Outcome::Rejected(rejection) => Err(refused(&rejection)),
        Outcome::Deleted { .. }
        | Outcome::Ticked
        | Outcome::Retired { .. }
        | Outcome::Swept { .. }
        | Outcome::SplitPrepared
        | Outcome::Merged(_)
        | Outcome::Split { .. } => Err(lost()),
    }
}

async fn get(call: Call, request: v1::GetAnchorRequest) -> Result<v1::GetAnchorResponse, Failure> {
    let account = call.account()?;
    let id = anchor_id_from_wire(&request.id).map_err(|error| error.within("id"))?;
    let id = own(account, id)?;
    let read = read_from_wire(request.read).map_err(|error| error.within("read"))?;
    let (mut results, contributions) = call.core.get_all(&[id], &read, &call.deadline).await;
    let anchor = results.pop().ok_or_else(lost)??.ok_or_else(not_found)?;
    Ok(v1::GetAnchorResponse {
        anchor: Some(anchor_to_wire(&anchor)),
        serving: Some(serving(&call.core, &contributions)),
        session_token: session_token(&contributions),
    })
}

async fn batch_get(
    call: Call,
    request: v1::BatchGetAnchorsRequest,
) -> Result<v1::BatchGetAnchorsResponse, Failure> {
    use v1::batch_get_anchors_result::Result as Item;
    let account = call.account()?;
    let ids = anchor_ids_from_wire(&request.ids)?;
    let read = read_from_wire(request.read).map_err(|error| error.within("read"))?;
    let owned: Vec<_> = ids.iter().copied().filter(|id| own(account, *id).is_ok()).collect();
    let (results, contributions) = call.core.get_all(&owned, &read, &call.deadline).await;
    let mut results = results.into_iter();
    let items = ids.into_iter().map(|id| {
        let result = own(account, id).and_then(|_| results.next().unwrap_or_else(|| Err(lost())));
        let item = match result {
            Ok(Some(anchor)) => Item::Anchor(anchor_to_wire(&anchor)),
            Ok(None) => Item::Error(not_found().into()),
            Err(failure) => Item::Error(failure.into()),
        };
        v1::BatchGetAnchorsResult { id: id.to_string(), result: Some(item) }
    });
    Ok(v1::BatchGetAnchorsResponse {
        results: items.collect(),
        serving: Some(serving(&call.core, &contributions)),
        session_token: session_token(&contributions),
    })
}

async fn update(
    call: Call,
    request: v1::UpdateAnchorRequest,
) -> Result<v1::UpdateAnchorResponse, Failure> {
    let account = call.account()?;
    let update = anchor_update_from_wire(request)?;
    let id = own(account, update.id)?;
    let write = Write::Update { id, patch: Box::new(update.patch), if_version: update.if_version };
    let (outcome, contributions) = write_one(&call, id, update.request_id, write).await?;
    let anchor = match outcome {
        Outcome::Written { anchor, .. } => anchor.map(|anchor| anchor_to_wire(&anchor)),
        Outcome::Rejected(rejection) => return Err(refused(&rejection)),
        Outcome::Deleted { .. }
        | Outcome::Ticked
        | Outcome::Retired { .. }
        | Outcome::Swept { .. }
        | Outcome::SplitPrepared
        | Outcome::Merged(_)
        | Outcome::Split { .. } => {
            return Err(lost());
        }
    };
    Ok(v1::UpdateAnchorResponse {
        anchor,
        serving: Some(serving(&call.core, &contributions)),
        session_token: session_token(&contributions),
    })
}

async fn delete(
    call: Call,
    request: v1::DeleteAnchorRequest,
) -> Result<v1::DeleteAnchorResponse, Failure> {
    let account = call.account()?;
    let id = anchor_id_from_wire(&request.id).map_err(|error| error.within("id"))?;
    let id = own(account, id)?;
    let write = Write::Delete { id, if_version: etag::to_version(&request.etag)? };
    let request_id = request_id_from_wire(&request.request_id)?;
    let (outcome, contributions) = write_one(&call, id, request_id, write).await?;
    match outcome {
        Outcome::Deleted { .. } => Ok(v1::DeleteAnchorResponse {
            serving: Some(serving(&call.core, &contributions)),
            session_token: session_token(&contributions),
        }),
        Outcome::Rejected(rejection) => Err(refused(&rejection)),
        Outcome::Written { .. }
        | Outcome::Ticked
        | Outcome::Retired { .. }
        | Outcome::Swept { .. }
        | Outcome::SplitPrepared
        | Outcome::Merged(_)
        | Outcome::Split { .. } => Err(lost()),
    }
}

async fn write_one(
    call: &Call,
    id: AnchorId,
    request_id: Option<RequestId>,
    write: Write,
) -> Result<(Outcome, Contributions), Failure> {
    let operation = OperationId { request_id: call.request_id(request_id), item: 0 };
    let routed = RoutedWrite { key: id.key(), operation, write };
    let (mut outcomes, contributions) = call.core.write_all(vec![routed], &call.deadline).await;
    Ok((outcomes.pop().ok_or_else(lost)??, contributions))
}

async fn list(
    call: Call,
    request: v1::ListAnchorsRequest,
) -> Result<v1::ListAnchorsResponse, Failure> {
    let account = call.account()?;
    let spec = list_from_wire(account.0, request)?;
    let query = PageQuery {
        account,
        space: spec.space,
        region: spec.region,
        filter: spec.filter,
        after: spec.page_token.map(|token| Key(token.after)),
        limit: spec.page_size,
        read: spec.read,
        passes_over: false,
    };
    let page = call.core.page(&query, &call.deadline).await;
    let next = match (page.next, page.failure) {
        (next, None) => next,
        // What was found is a page of its own; the next one meets the failure again, or not.
        (_, Some(_)) if !page.anchors.is_empty() => {
            page.anchors.last().map(|anchor| anchor.id.key())
        }
        (_, Some((_, failure))) => return Err(failure),
    };
    let token = next.map(|next| PageToken { after: next.0 }.encode(spec.query));
    let anchors: Vec<Arc<Anchor>> = page.anchors;
    Ok(v1::ListAnchorsResponse {
        anchors: anchors.iter().map(|anchor| anchor_to_wire(anchor)).collect(),
        next_page_token: token.unwrap_or_default(),
        serving: Some(serving(&call.core, &page.contributions)),
        session_token: session_token(&page.contributions),
    })
}

fn not_found() -> Failure {
    Failure::new(Reason::AnchorNotFound, "there is no anchor with this id")
}

/// Only a bug gets here: a shard answered something that does not fit.
fn lost() -> Failure {
    Failure::new(Reason::Internal, "a shard's answer does not fit its question")
}
