//! The gRPC server for clients: the four services of `quorate.v1`, health and reflection.

use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use quorate_api::v1::agents_service_server::AgentsServiceServer;
use quorate_api::v1::cluster_service_server::ClusterServiceServer;
use quorate_api::v1::memory_service_server::MemoryServiceServer;
use quorate_api::v1::tasks_service_server::TasksServiceServer;
use quorate_api::{FILE_DESCRIPTOR_SET, limits};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic::transport::server::{Connected, TcpIncoming};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::cluster::ClusterApi;
use crate::context::Context;
use crate::http::readiness;
use crate::memory::{Memory, MemoryApi};
use crate::tasks::{AgentsApi, Tasks, TasksApi};

const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Enough for a full message on each of many streams, so that a slow reader of one does not hold up the others.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
/// Calls in flight on one connection.
const STREAMS: u32 = 4_096;

/// Serves clients until `stop`; then calls under way have until the process ends.
///
/// # Errors
/// If the listener fails.
pub async fn serve(
    context: Context,
    cluster: ClusterApi,
    tasks: Arc<Tasks>,
    memory: Arc<Memory>,
    listener: TcpListener,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    serve_incoming(context, cluster, tasks, memory, incoming, stop).await
}

/// The same on any stream of connections, as of a simulated network.
///
/// # Errors
/// If the stream of connections fails.
pub async fn serve_incoming<IO, E>(
    context: Context,
    cluster: ClusterApi,
    tasks: Arc<Tasks>,
    memory: Arc<Memory>,
    incoming: impl Stream<Item = Result<IO, E>>,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error>
where
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (reporter, health) = tonic_health::server::health_reporter();
    tokio::spawn(report_health(context, reporter));
    let cluster = ClusterServiceServer::new(cluster)
        .max_decoding_message_size(limits::MESSAGE_BYTES)
        .max_encoding_message_size(limits::MESSAGE_BYTES);
    let memory = memory
        .service()
        .max_decoding_message_size(limits::MESSAGE_BYTES)
        .max_encoding_message_size(limits::MESSAGE_BYTES);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let invalid = "the descriptors are made at build time and valid";
    Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS)
        .add_service(health)
        .add_service(reflection().build_v1().expect(invalid))
        .add_service(reflection().build_v1alpha().expect(invalid))
        .add_service(cluster)
        .add_service(tasks.tasks_service())
        .add_service(tasks.agents_service())
        .add_service(memory)
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await
}

/// Keeps the health service right: all services are served, or none, as readiness says. The cluster service always is.
async fn report_health(context: Context, reporter: HealthReporter) {
    let mut leadership = context.control.leadership();
    reporter.set_service_status(<ClusterServiceServer<ClusterApi> as NamedService>::NAME, ServingStatus::Serving).await;
    loop {
        let status = if readiness(&context).is_ok() { ServingStatus::Serving } else { ServingStatus::NotServing };
        for name in [
            "",
            <TasksServiceServer<TasksApi> as NamedService>::NAME,
            <AgentsServiceServer<AgentsApi> as NamedService>::NAME,
            <MemoryServiceServer<MemoryApi> as NamedService>::NAME,
        ] {
            reporter.set_service_status(name, status).await;
        }
        tokio::select! {
            changed = leadership.changed() => if changed.is_err() { return },
            () = context.shutdown.cancelled(), if status == ServingStatus::Serving => {}
            () = context.shutdown.cancelled(), if status != ServingStatus::Serving => return,
        }
    }
}
