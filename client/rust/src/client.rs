//! The client's handle and how it is made.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use quorate_api::limits;
use quorate_api::v1::agents_service_client::AgentsServiceClient;
use quorate_api::v1::cluster_service_client::ClusterServiceClient;
use quorate_api::v1::memory_service_client::MemoryServiceClient;
use quorate_api::v1::tasks_service_client::TasksServiceClient;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Channel;
use uuid::Uuid;

use crate::call::{MESSAGE_BYTES, Plan, deadline_in};
use crate::connector::{Connector, TcpConnector};
use crate::enqueue::Enqueuer;
use crate::error::Error;
use crate::nodes::{Nodes, Route};

/// A handle to a cluster through any of its nodes. Cheap to clone; all clones share channels and the known leader.
///
/// Every call has a deadline ([`limits::DEADLINE_DEFAULT`] unless [`Client::with_deadline`] says otherwise) and is
/// retried within it, mutations under one request id, so that each takes effect at most once.
#[derive(Clone)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
    deadline: Duration,
    request_id: Option<Uuid>,
}

pub(crate) struct Shared {
    pub(crate) nodes: Arc<Nodes>,
    pub(crate) enqueuer: Enqueuer,
    /// Ends the enqueue stream when the last handle is gone.
    _stop: DropGuard,
}

impl Client {
    /// A client of the cluster that the endpoints (`host:port` or `http://host:port`, any nodes of it) belong to. Connects
    /// at the first call.
    ///
    /// # Errors
    /// [`Error::InvalidEndpoint`] if an address cannot be one, or none is given.
    pub fn connect(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Result<Self, Error> {
        Self::connect_with(endpoints, TcpConnector)
    }

    /// The same over another network, e.g. a simulated one.
    ///
    /// # Errors
    /// [`Error::InvalidEndpoint`] if an address cannot be one, or none is given.
    pub fn connect_with(
        endpoints: impl IntoIterator<Item = impl Into<String>>,
        connector: impl Connector,
    ) -> Result<Self, Error> {
        let endpoints = endpoints.into_iter().map(Into::into).collect();
        let nodes = Arc::new(Nodes::new(endpoints, Arc::new(connector))?);
        let stop = CancellationToken::new();
        let enqueuer = Enqueuer::new(Arc::clone(&nodes), stop.clone());
        let shared = Shared { nodes, enqueuer, _stop: stop.drop_guard() };
        Ok(Self { shared: Arc::new(shared), deadline: limits::DEADLINE_DEFAULT, request_id: None })
    }

    /// The same client with another deadline for each call.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { deadline, ..self.clone() }
    }

    /// The same client for the retry of *one* mutation whose outcome is unknown: it carries the id of the earlier call, so
    /// that both together take effect once. Another mutation under the same id would be answered with the first one's
    /// reply.
    #[must_use]
    pub fn retry_as(&self, request_id: Uuid) -> Self {
        Self { request_id: Some(request_id), ..self.clone() }
    }

    /// The deadline of each call.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    pub(crate) fn until(&self) -> Instant {
        deadline_in(self.deadline)
    }

    /// A new request id, or the one of [`Client::retry_as`]. Version 7: its time tells the cluster how old it is.
    pub(crate) fn request_id(&self) -> String {
        #[cfg(feature = "planted")]
        if crate::planted::is("fresh-request-id") {
            return Uuid::now_v7().to_string();
        }
        self.request_id.unwrap_or_else(Uuid::now_v7).to_string()
    }

    pub(crate) fn read(&self, route: Route) -> Plan {
        Plan::read(route, self.until())
    }

    pub(crate) fn write(&self, request_id: &str) -> Plan {
        Plan::write(request_id, self.until())
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("nodes", &self.shared.nodes)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

pub(crate) fn tasks(channel: Channel) -> TasksServiceClient<Channel> {
    TasksServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES).max_encoding_message_size(MESSAGE_BYTES)
}

pub(crate) fn agents(channel: Channel) -> AgentsServiceClient<Channel> {
    AgentsServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES).max_encoding_message_size(MESSAGE_BYTES)
}

pub(crate) fn memory(channel: Channel) -> MemoryServiceClient<Channel> {
    MemoryServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES).max_encoding_message_size(MESSAGE_BYTES)
}

pub(crate) fn cluster(channel: Channel) -> ClusterServiceClient<Channel> {
    ClusterServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES).max_encoding_message_size(MESSAGE_BYTES)
}
