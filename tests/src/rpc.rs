//! Calls to one node through the generated stubs: no retry, no routing, every status shown.

use std::time::Duration;

use anchorhold_proto::admin_v1::account_service_client::AccountServiceClient;
use anchorhold_proto::admin_v1::cluster_service_client::ClusterServiceClient;
use anchorhold_proto::admin_v1::placement_service_client::PlacementServiceClient;
use anchorhold_proto::v1;
use anchorhold_proto::v1::anchor_service_client::AnchorServiceClient;
use anchorhold_proto::v1::locate_service_client::LocateServiceClient;
use anchorhold_proto::v1::routing_service_client::RoutingServiceClient;
use bytes::{Buf, BufMut, Bytes};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Status};

/// How long one call may take on a busy machine.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// Largest reply that is read, in bytes.
const REPLY_BYTES_MAX: usize = 64 << 20;

/// One node, and the key to call it with.
#[derive(Clone, Debug)]
pub struct Rpc {
    channel: Channel,
    authorization: Option<MetadataValue<Ascii>>,
}

impl Rpc {
    /// Calls through `channel` without a key.
    pub fn new(channel: Channel) -> Self {
        Self { channel, authorization: None }
    }

    /// The same node with a key.
    ///
    /// # Panics
    /// If the key cannot be metadata.
    #[must_use]
    pub fn with_key(&self, key: &str) -> Self {
        let value = format!("Bearer {key}").parse().expect("keys are ASCII");
        Self { authorization: Some(value), ..self.clone() }
    }

    /// The connection itself.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A request with the key and a deadline.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(CALL_TIMEOUT);
        if let Some(value) = &self.authorization {
            request.metadata_mut().insert("authorization", value.clone());
        }
        request
    }

    /// The anchor service.
    pub fn anchors(&self) -> AnchorServiceClient<Channel> {
        AnchorServiceClient::new(self.channel()).max_decoding_message_size(REPLY_BYTES_MAX)
    }

    /// The locate service.
    pub fn locates(&self) -> LocateServiceClient<Channel> {
        LocateServiceClient::new(self.channel()).max_decoding_message_size(REPLY_BYTES_MAX)
    }

    /// The routing service.
    pub fn routing(&self) -> RoutingServiceClient<Channel> {
        RoutingServiceClient::new(self.channel())
    }

    /// The operators' account service.
    pub fn accounts(&self) -> AccountServiceClient<Channel> {
        AccountServiceClient::new(self.channel())
    }

    /// The operators' cluster service.
    pub fn clusters(&self) -> ClusterServiceClient<Channel> {
        ClusterServiceClient::new(self.channel())
    }

    /// Where replicas and leaders are, and why.
    pub fn placements(&self) -> PlacementServiceClient<Channel> {
        PlacementServiceClient::new(self.channel())
    }

    /// CreateAnchor.
    ///
    /// # Errors
    /// The node's status.
    pub async fn create(
        &self,
        anchor: v1::Anchor,
        request_id: &str,
    ) -> Result<v1::CreateAnchorResponse, Status> {
        let message =
            v1::CreateAnchorRequest { anchor: Some(anchor), request_id: request_id.to_owned() };
        Ok(self.anchors().create_anchor(self.request(message)).await?.into_inner())
    }

    /// BatchCreateAnchors; every item must succeed.
    ///
    /// # Errors
    /// The node's status, or the first failed item as one.
    pub async fn create_all(
        &self,
        anchors: Vec<v1::Anchor>,
        request_id: &str,
    ) -> Result<(Vec<v1::Anchor>, Bytes), Status> {
        let request_id = request_id.to_owned();
        let message = v1::BatchCreateAnchorsRequest { anchors, request_id, ids_only: false };
        let reply = self.anchors().batch_create_anchors(self.request(message)).await?.into_inner();
        let stored = reply.results.into_iter().map(|result| match result.result {
            Some(v1::batch_create_anchors_result::Result::Anchor(anchor)) => Ok(anchor),
            Some(v1::batch_create_anchors_result::Result::Error(error)) => {
                Err(Status::new(error.code.into(), format!("{}: {}", error.reason, error.message)))
            }
            None => Err(Status::internal("an item without a result")),
        });
        Ok((stored.collect::<Result<_, _>>()?, reply.session_token))
    }

    /// GetAnchor.
    ///
    /// # Errors
    /// The node's status.
    pub async fn get(
        &self,
        id: &str,
        read: v1::ReadOptions,
    ) -> Result<v1::GetAnchorResponse, Status> {
        let message = v1::GetAnchorRequest { id: id.to_owned(), read: Some(read) };
        Ok(self.anchors().get_anchor(self.request(message)).await?.into_inner())
    }

    /// UpdateAnchor.
    ///
    /// # Errors
    /// The node's status.
    pub async fn update(
        &self,
        anchor: v1::Anchor,
        paths: &[&str],
        request_id: &str,
    ) -> Result<v1::UpdateAnchorResponse, Status> {
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        let message = v1::UpdateAnchorRequest {
            anchor: Some(anchor),
            update_mask: Some(prost_types::FieldMask { paths }),
            request_id: request_id.to_owned(),
        };
        Ok(self.anchors().update_anchor(self.request(message)).await?.into_inner())
    }

    /// DeleteAnchor.
    ///
    /// # Errors
    /// The node's status.
    pub async fn delete(
        &self,
        id: &str,
        etag: &str,
        request_id: &str,
    ) -> Result<v1::DeleteAnchorResponse, Status> {
        let message = v1::DeleteAnchorRequest {
            id: id.to_owned(),
            etag: etag.to_owned(),
            request_id: request_id.to_owned(),
        };
        Ok(self.anchors().delete_anchor(self.request(message)).await?.into_inner())
    }

    /// ListAnchors, one page.
    ///
    /// # Errors
    /// The node's status.
    pub async fn list(
        &self,
        message: v1::ListAnchorsRequest,
    ) -> Result<v1::ListAnchorsResponse, Status> {
        Ok(self.anchors().list_anchors(self.request(message)).await?.into_inner())
    }

    /// Locate.
    ///
    /// # Errors
    /// The node's status.
    pub async fn locate(&self, message: v1::LocateRequest) -> Result<v1::LocateResponse, Status> {
        Ok(self.locates().locate(self.request(message)).await?.into_inner())
    }

    /// Any unary method, by its path, with any bytes as the message.
    ///
    /// # Errors
    /// The node's status.
    pub async fn raw(&self, path: &str, message: Bytes) -> Result<Bytes, Status> {
        let path = PathAndQuery::try_from(path)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let mut grpc = tonic::client::Grpc::new(self.channel());
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(grpc.unary(self.request(message), path, BytesCodec).await?.into_inner())
    }
}

/// Messages as they are on the wire.
#[derive(Clone, Copy, Debug, Default)]
struct BytesCodec;

impl Codec for BytesCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// LINEARIZABLE.
pub fn linearizable() -> v1::ReadOptions {
    read_options(v1::Consistency::Linearizable, None, Bytes::new())
}

/// LOCAL, at least as new as the token.
pub fn local(session_token: Bytes) -> v1::ReadOptions {
    read_options(v1::Consistency::Local, None, session_token)
}

/// BOUNDED_STALENESS, at least as new as the token.
pub fn bounded(max_staleness: Duration, session_token: Bytes) -> v1::ReadOptions {
    read_options(v1::Consistency::BoundedStaleness, Some(max_staleness), session_token)
}

fn read_options(
    consistency: v1::Consistency,
    max_staleness: Option<Duration>,
    session_token: Bytes,
) -> v1::ReadOptions {
    v1::ReadOptions {
        consistency: consistency.into(),
        max_staleness: max_staleness.map(|bound| prost_types::Duration {
            seconds: i64::try_from(bound.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(bound.subsec_nanos()).unwrap_or(0),
        }),
        session_token,
    }
}

/// An anchor at a place on Earth: degrees and meters above the ellipsoid.
pub fn geo_anchor(latitude_deg: f64, longitude_deg: f64, height_m: f64) -> v1::Anchor {
    let geo = v1::GeoPose { latitude_deg, longitude_deg, height_m, orientation: None };
    let pose = v1::Pose { frame: Some(v1::pose::Frame::Geo(geo)) };
    v1::Anchor { pose: Some(pose), ..v1::Anchor::default() }
}

/// An anchor in a local map, in meters.
pub fn local_anchor(space: u32, x_m: f64, y_m: f64, z_m: f64) -> v1::Anchor {
    let local = v1::LocalPose { space, x_m, y_m, z_m, orientation: None };
    let pose = v1::Pose { frame: Some(v1::pose::Frame::Local(local)) };
    v1::Anchor { pose: Some(pose), ..v1::Anchor::default() }
}

/// A request id that no other call uses.
pub fn request_id() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let count = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{:08x}-0000-4000-8000-{count:012x}", std::process::id())
}
