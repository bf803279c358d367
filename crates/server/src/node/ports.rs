//! The three ports of a node: clients, peers, HTTP.

use std::sync::Arc;
use std::time::Duration;

use anchorhold_proto::admin_v1::account_service_server::AccountServiceServer;
use anchorhold_proto::admin_v1::cluster_service_server::ClusterServiceServer;
use anchorhold_proto::admin_v1::placement_service_server::PlacementServiceServer;
use anchorhold_proto::v1::anchor_service_server::AnchorServiceServer;
use anchorhold_proto::v1::locate_service_server::LocateServiceServer;
use anchorhold_proto::v1::routing_service_server::RoutingServiceServer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::{HealthReporter, health_reporter};
use tonic_web::GrpcWebLayer;
use tower::util::option_layer;

use super::cors;
use crate::api::{Accounts, Anchors, Cluster, Door, Locates, Placement, Routing};
use crate::config::NodeConfig;
use crate::core::Core;
use crate::http;
use crate::listen::Listening;

/// Pings on an idle connection, and how long an answer may take.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Flow-control windows of the peer port: entries and snapshots are large.
const PEER_WINDOW_BYTES: u32 = 4 << 20;
/// Streams that one peer connection may have open: calls of many clients share it.
const PEER_STREAMS_MAX: u32 = 65_536;
/// Time between two looks at whether the node is ready.
const READINESS_INTERVAL: Duration = Duration::from_millis(250);

/// Serves the client and the HTTP port until `stopping` says so.
pub(super) fn serve(
    core: &Arc<Core>,
    client: Listening,
    http: Option<TcpListener>,
    config: &NodeConfig,
    stopping: &watch::Receiver<bool>,
) -> Vec<JoinHandle<()>> {
    let mut tasks = vec![tokio::spawn(serve_clients(
        Arc::clone(core),
        client,
        config.clone(),
        stopping.clone(),
    ))];
    if let Some(listener) = http {
        // So that what is counted from here on is counted.
        crate::telemetry::metrics();
        let router = http::router(Arc::clone(core));
        let stopping = stopping.clone();
        tasks.push(tokio::spawn(async move {
            let served = axum::serve(listener, router).with_graceful_shutdown(stopped(stopping));
            tokio::select! {
                served = served.into_future() => report("HTTP", served),
                () = crate::telemetry::keep_small() => {}
            }
        }));
    }
    tasks
}

async fn serve_clients(
    core: Arc<Core>,
    listener: Listening,
    config: NodeConfig,
    stopping: watch::Receiver<bool>,
) {
    let (reporter, health) = health_reporter();
    let watching = tokio::spawn(watch_readiness(Arc::clone(&core), reporter, stopping.clone()));
    let door = Door::new(core);
    let bytes_max = config.limits.message_bytes_max;
    macro_rules! sized {
        ($server:ident, $service:expr) => {
            $server::new($service)
                .max_decoding_message_size(bytes_max)
                .max_encoding_message_size(bytes_max)
        };
    }
    let streams_max = u32::try_from(config.limits.connection_requests_max).unwrap_or(u32::MAX);
    // Named one by one: the descriptors hold the peer service too, which is not served here.
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(anchorhold_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name(AnchorServiceServer::<Anchors>::NAME)
            .with_service_name(LocateServiceServer::<Locates>::NAME)
            .with_service_name(RoutingServiceServer::<Routing>::NAME)
            .with_service_name(AccountServiceServer::<Accounts>::NAME)
            .with_service_name(ClusterServiceServer::<Cluster>::NAME)
            .with_service_name(PlacementServiceServer::<Placement>::NAME)
            .with_service_name("grpc.health.v1.Health")
    };
    let (v1, v1alpha) = match (reflection().build_v1(), reflection().build_v1alpha()) {
        (Ok(v1), Ok(v1alpha)) => (Some(v1), Some(v1alpha)),
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%error, "no reflection: the descriptors cannot be read");
            (None, None)
        }
    };
    let served = Server::builder()
        .accept_http1(true)
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .max_concurrent_streams(streams_max)
        .layer(option_layer(cors::layer(&config.cors_origins)))
        .layer(GrpcWebLayer::new())
        .add_service(health)
        .add_optional_service(v1)
        .add_optional_service(v1alpha)
        .add_service(sized!(AnchorServiceServer, Anchors::new(door.clone())))
        .add_service(sized!(LocateServiceServer, Locates::new(door.clone())))
        .add_service(sized!(RoutingServiceServer, Routing::new(door.clone())))
        .add_service(sized!(AccountServiceServer, Accounts::new(door.clone())))
        .add_service(sized!(ClusterServiceServer, Cluster::new(door.clone())))
        .add_service(sized!(PlacementServiceServer, Placement::new(door)))
        .serve_with_incoming_shutdown(listener.connections, stopped(stopping))
        .await;
    watching.abort();
    report("client", served);
}

/// Serves the peer port until the task is aborted: links never end by themselves.
pub(super) async fn serve_peers(core: Arc<Core>, listener: Listening) {
    let served = Server::builder()
        .initial_stream_window_size(PEER_WINDOW_BYTES)
        .initial_connection_window_size(PEER_WINDOW_BYTES)
        .max_concurrent_streams(PEER_STREAMS_MAX)
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .add_service(core.host.peer_service())
        .serve_with_incoming(listener.connections)
        .await;
    report("peer", served);
}

async fn stopped(mut stopping: watch::Receiver<bool>) {
    // A node that was dropped without a word stops too.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

fn report<E: std::fmt::Display>(port: &str, served: Result<(), E>) {
    if let Err(error) = served {
        tracing::error!(%error, port, "a port is not served any more");
    }
}

/// Tells health checks whether the node is ready, per service and as a whole.
async fn watch_readiness(
    core: Arc<Core>,
    reporter: HealthReporter,
    mut stopping: watch::Receiver<bool>,
) {
    const SERVICES: [&str; 7] = [
        "",
        AnchorServiceServer::<Anchors>::NAME,
        LocateServiceServer::<Locates>::NAME,
        RoutingServiceServer::<Routing>::NAME,
        AccountServiceServer::<Accounts>::NAME,
        ClusterServiceServer::<Cluster>::NAME,
        PlacementServiceServer::<Placement>::NAME,
    ];
    let mut told = None;
    loop {
        let is_stopping = *stopping.borrow();
        let ready = !is_stopping && core.unready().is_none();
        if told != Some(ready) {
            let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
            for service in SERVICES {
                reporter.set_service_status(service, status).await;
            }
            told = Some(ready);
        }
        if is_stopping {
            return;
        }
        // Ends early when the node stops.
        let _ = tokio::time::timeout(READINESS_INTERVAL, stopping.changed()).await;
    }
}
