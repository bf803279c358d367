//! The anchors of one account.

use std::sync::Arc;
use std::time::Duration;

use anchorhold_model::{AnchorId, Key};
use anchorhold_proto::v1::locate_request::Criterion;
use anchorhold_proto::{convert, v1};
use prost::Message;
use tokio::time::Instant;

use crate::method::{self, Method};
use crate::routes::{self, Target};
use crate::session::Session;
use crate::transport::{Call, Transport};
use crate::{AnchorPages, ClientConfig, ClientError};

/// A handle on the anchors of the account that an API key belongs to. Cheap to clone.
///
/// Every method takes the RPC's request message, or something shorter that turns into it. A write
/// without a request id gets one, so that its retries have one effect. Methods return a
/// [`ClientError`] when the node refuses, or when the deadline is over.
#[derive(Clone)]
pub struct Client {
    transport: Arc<Transport>,
    session: Option<Arc<Session>>,
    deadline: Duration,
}

/// What replies say about themselves.
trait Served {
    fn serving(&self) -> Option<&v1::ServingInfo>;
    fn session_token(&self) -> &[u8];
}

macro_rules! served {
    ($($reply:ident)+) => {
        $(impl Served for v1::$reply {
            fn serving(&self) -> Option<&v1::ServingInfo> {
                self.serving.as_ref()
            }

            fn session_token(&self) -> &[u8] {
                &self.session_token
            }
        })+
    };
}

served! {
    CreateAnchorResponse BatchCreateAnchorsResponse GetAnchorResponse BatchGetAnchorsResponse
    UpdateAnchorResponse DeleteAnchorResponse ListAnchorsResponse LocateResponse
}

impl Client {
    /// Connects to a cluster: checks the key and learns the routes.
    ///
    /// # Errors
    /// If the configuration cannot work, no endpoint answers in time, or the key is refused.
    pub async fn connect(config: ClientConfig) -> Result<Self, ClientError> {
        let (deadline, is_direct) = (config.deadline, config.direct);
        let transport = Transport::new(config)?;
        if is_direct {
            transport.refresh(Instant::now()).await?;
        }
        Ok(Self { transport, session: None, deadline })
    }

    /// A handle whose reads see its own writes and never go back in time, on any replica. Handles
    /// cloned from it belong to the same session.
    #[must_use]
    pub fn session(&self) -> Self {
        Self { session: Some(Arc::default()), ..self.clone() }
    }

    /// A handle whose calls may take this long, retries included; at most 10 minutes.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { deadline, ..self.clone() }
    }

    /// The account's number; `None` if routes are not learnt, see [`ClientConfig::direct`].
    pub fn account(&self) -> Option<u32> {
        self.transport.routes().map(|routes| routes.account.0)
    }

    /// Creates an anchor.
    ///
    /// # Errors
    /// As [`Client`] says.
    pub async fn create_anchor(
        &self,
        request: impl Into<v1::CreateAnchorRequest>,
    ) -> Result<v1::CreateAnchorResponse, ClientError> {
        let mut request = request.into();
        self.name(&mut request.request_id);
        let target = self.target_of_new(request.anchor.as_ref());
        self.write(method::CREATE_ANCHOR, target, &request, &request.request_id).await
    }

    /// Creates up to 1,000 anchors; each succeeds or fails by itself.
    ///
    /// # Errors
    /// As [`Client`] says, if the request fails as a whole.
    pub async fn batch_create_anchors(
        &self,
        request: impl Into<v1::BatchCreateAnchorsRequest>,
    ) -> Result<v1::BatchCreateAnchorsResponse, ClientError> {
        let mut request = request.into();
        self.name(&mut request.request_id);
        let target = self.target_of_new(request.anchors.first());
        self.write(method::BATCH_CREATE_ANCHORS, target, &request, &request.request_id).await
    }

    /// Reads an anchor.
    ///
    /// # Errors
    /// As [`Client`] says; ANCHOR_NOT_FOUND if there is none.
    pub async fn get_anchor(
        &self,
        request: impl Into<v1::GetAnchorRequest>,
    ) -> Result<v1::GetAnchorResponse, ClientError> {
        let mut request = request.into();
        self.demand(&mut request.read);
        let target = read_target(key_of_id(&request.id), request.read.as_ref());
        self.read(method::GET_ANCHOR, target, &request).await
    }

    /// Reads up to 1,000 anchors; each is found or not by itself.
    ///
    /// # Errors
    /// As [`Client`] says, if the request fails as a whole.
    pub async fn batch_get_anchors(
        &self,
        request: impl Into<v1::BatchGetAnchorsRequest>,
    ) -> Result<v1::BatchGetAnchorsResponse, ClientError> {
        let mut request = request.into();
        self.demand(&mut request.read);
        let key = request.ids.first().and_then(|id| key_of_id(id));
        let target = read_target(key, request.read.as_ref());
        self.read(method::BATCH_GET_ANCHORS, target, &request).await
    }

    /// Changes parts of an anchor.
    ///
    /// # Errors
    /// As [`Client`] says; ETAG_MISMATCH if the anchor has changed since its etag was read.
    pub async fn update_anchor(
        &self,
        request: impl Into<v1::UpdateAnchorRequest>,
    ) -> Result<v1::UpdateAnchorResponse, ClientError> {
        let mut request = request.into();
        self.name(&mut request.request_id);
        let key = request.anchor.as_ref().and_then(|anchor| key_of_id(&anchor.id));
        let target = key.map_or(Target::Any, Target::Leader);
        self.write(method::UPDATE_ANCHOR, target, &request, &request.request_id).await
    }

    /// Removes an anchor.
    ///
    /// # Errors
    /// As [`Client`] says; ETAG_MISMATCH if the anchor has changed since its etag was read.
    pub async fn delete_anchor(
        &self,
        request: impl Into<v1::DeleteAnchorRequest>,
    ) -> Result<v1::DeleteAnchorResponse, ClientError> {
        let mut request = request.into();
        self.name(&mut request.request_id);
        let target = key_of_id(&request.id).map_or(Target::Any, Target::Leader);
        self.write(method::DELETE_ANCHOR, target, &request, &request.request_id).await
    }

    /// Lists one page of anchors.
    ///
    /// # Errors
    /// As [`Client`] says.
    pub async fn list_anchors(
        &self,
        mut request: v1::ListAnchorsRequest,
    ) -> Result<v1::ListAnchorsResponse, ClientError> {
        self.demand(&mut request.read);
        self.read(method::LIST_ANCHORS, Target::Any, &request).await
    }

    /// Lists all anchors, page by page.
    pub fn list_all(&self, request: v1::ListAnchorsRequest) -> AnchorPages {
        AnchorPages::new(self.clone(), request)
    }

    /// Finds anchors.
    ///
    /// # Errors
    /// As [`Client`] says; INCOMPLETE if a shard did not answer and the request demands all.
    pub async fn locate(
        &self,
        request: impl Into<v1::LocateRequest>,
    ) -> Result<v1::LocateResponse, ClientError> {
        let mut request = request.into();
        self.demand(&mut request.read);
        let key = self.key_of_criterion(request.criterion.as_ref());
        let target = read_target(key, request.read.as_ref());
        self.read(method::LOCATE, target, &request).await
    }

    /// Gives a write a request id if it has none.
    fn name(&self, request_id: &mut String) {
        if request_id.is_empty() {
            *request_id = self.transport.new_request_id();
        }
    }

    fn demand(&self, read: &mut Option<v1::ReadOptions>) {
        if let Some(session) = &self.session {
            session.demand(read);
        }
    }

    /// The leader of the shard that a new anchor will lie in.
    fn target_of_new(&self, anchor: Option<&v1::Anchor>) -> Target {
        let pose = anchor.and_then(|anchor| convert::pose_from_wire(anchor.pose).ok());
        match (pose, self.transport.routes()) {
            (Some(pose), Some(routes)) => {
                Target::Leader(routes::key_of_pose(routes.account, &pose))
            }
            (None, _) | (_, None) => Target::Any,
        }
    }

    fn key_of_criterion(&self, criterion: Option<&Criterion>) -> Option<Key> {
        match criterion? {
            Criterion::Ids(ids) => key_of_id(ids.ids.first()?),
            Criterion::NearPoint(near) => {
                let pose = match near.point? {
                    v1::near_point::Point::Geo(point) => {
                        v1::Pose::on_earth(point.latitude_deg, point.longitude_deg, point.height_m)
                    }
                    v1::near_point::Point::Local(point) => {
                        v1::Pose::in_space(point.space, [point.x_m, point.y_m, point.z_m])
                    }
                };
                let pose = convert::pose_from_wire(Some(pose)).ok()?;
                Some(routes::key_of_pose(self.transport.routes()?.account, &pose))
            }
            Criterion::Region(_) => None,
        }
    }

    async fn write<Reply>(
        &self,
        method: Method,
        target: Target,
        request: &impl Message,
        request_id: &str,
    ) -> Result<Reply, ClientError>
    where
        Reply: Served + Message + Default + 'static,
    {
        self.call(method, target, request, Some(request_id)).await
    }

    async fn read<Reply>(
        &self,
        method: Method,
        target: Target,
        request: &impl Message,
    ) -> Result<Reply, ClientError>
    where
        Reply: Served + Message + Default + 'static,
    {
        self.call(method, target, request, None).await
    }

    async fn call<Reply>(
        &self,
        method: Method,
        target: Target,
        request: &impl Message,
        request_id: Option<&str>,
    ) -> Result<Reply, ClientError>
    where
        Reply: Served + Message + Default + 'static,
    {
        let body = request.encode_to_vec().into();
        let deadline = self.deadline;
        let call = Call { method, target, body, request_id, deadline };
        let reply: Reply = self.transport.call(call).await?;
        if let Some(session) = &self.session {
            session.note(reply.session_token());
        }
        if let (Some(serving), Some(routes)) = (reply.serving(), self.transport.routes())
            && !routes.learn(serving)
        {
            self.transport.refresh_soon();
        }
        Ok(reply)
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("config", self.transport.config()).finish_non_exhaustive()
    }
}

fn key_of_id(id: &str) -> Option<Key> {
    id.parse::<AnchorId>().ok().map(AnchorId::key)
}

/// A read goes to a replica that can serve it without asking others, if it can.
fn read_target(key: Option<Key>, read: Option<&v1::ReadOptions>) -> Target {
    let Some(key) = key else { return Target::Any };
    match read.map_or(v1::Consistency::Linearizable, v1::ReadOptions::consistency) {
        v1::Consistency::Unspecified | v1::Consistency::Linearizable => Target::Leader(key),
        v1::Consistency::BoundedStaleness | v1::Consistency::Local => Target::Replica(key),
    }
}
