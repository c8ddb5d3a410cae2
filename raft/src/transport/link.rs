//! The connections to one peer, and the handle on it that the node uses.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

use super::appends::{AppendCommand, run_appends};
use super::beats::{Beat, run_beats};
use super::{BoxIo, Connector, Hellos, MAX_MESSAGE_BYTES, PeerError};
use crate::ids::NodeId;
use crate::metrics::TransportMetrics;
use crate::proto;
use crate::proto::peer_client::PeerClient;

/// A peer that does not take a connection in this time is down.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_millis(250);
/// The first answer on a new stream.
pub(crate) const OPEN_TIMEOUT: Duration = Duration::from_millis(500);
/// A connection on which a ping is not answered in this time is dead.
const KEEPALIVE: Duration = Duration::from_secs(1);
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// Frames of one stream of the node that wait on either side.
const STREAM_DEPTH: usize = 64;

/// What a connection carries.
#[derive(Debug, Clone, Copy)]
enum Lane {
    Votes,
    Appends,
    Calls,
    Snapshots,
}

/// The links of this node, one for each peer.
pub(crate) struct Links {
    hellos: Arc<Hellos>,
    connector: Arc<dyn Connector>,
    runtime: Handle,
    metrics: TransportMetrics,
    links: Mutex<HashMap<NodeId, Arc<Link>>>,
}

impl Links {
    pub(crate) fn new(
        hellos: Arc<Hellos>,
        connector: Arc<dyn Connector>,
        runtime: Handle,
        metrics: TransportMetrics,
    ) -> Self {
        Links { hellos, connector, runtime, metrics, links: Mutex::default() }
    }

    /// The link to a node at an address. A node that moved gets a new link; the old one ends with its last user.
    pub(crate) fn link(&self, node: NodeId, address: &str) -> Arc<Link> {
        let mut links = self.links.lock();
        match links.get(&node) {
            Some(link) if link.address == address => link.clone(),
            _ => {
                let link = Arc::new(self.open(node, address));
                links.insert(node, link.clone());
                link
            }
        }
    }

    /// Forgets all links; they end with their last users.
    pub(crate) fn close(&self) {
        self.links.lock().clear();
    }

    fn open(&self, node: NodeId, address: &str) -> Link {
        // The drivers of the connections are spawned on Raft's runtime, whoever asks first.
        let _entered = self.runtime.enter();
        let client = |lane| self.client(lane, address);
        let (beats, beat_queue) = mpsc::unbounded_channel();
        let (appends, append_queue) = mpsc::unbounded_channel();
        let target =
            Target { node, address: address.to_owned(), hellos: self.hellos.clone(), metrics: self.metrics.clone() };
        let votes = client(Lane::Votes);
        self.runtime.spawn(run_beats(target.clone(), votes.clone(), beat_queue));
        self.runtime.spawn(run_appends(target, client(Lane::Appends), append_queue));
        Link {
            node,
            address: address.to_owned(),
            hellos: self.hellos.clone(),
            votes,
            calls: client(Lane::Calls),
            snapshots: client(Lane::Snapshots),
            beats,
            appends,
        }
    }

    fn client(&self, lane: Lane, address: &str) -> PeerClient<Channel> {
        let connector = self.connector.clone();
        let address: Arc<str> = address.into();
        let connect = tower::service_fn(move |_: Uri| {
            let (connector, address) = (connector.clone(), address.clone());
            async move {
                let connected = tokio::time::timeout(CONNECT_TIMEOUT, connector.connect(&address)).await;
                let io = connected.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))?;
                Ok::<TokioIo<BoxIo>, io::Error>(TokioIo::new(io))
            }
        });
        // The authority is a label: the connector above knows the address.
        let channel = Endpoint::from_static("http://peer")
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(matches!(lane, Lane::Votes | Lane::Appends))
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .connect_with_connector_lazy(connect);
        PeerClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }
}

/// What the tasks of a link know about its other end.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) node: NodeId,
    pub(crate) address: String,
    pub(crate) hellos: Arc<Hellos>,
    pub(crate) metrics: TransportMetrics,
}

/// The connections to one peer.
pub(crate) struct Link {
    pub(crate) node: NodeId,
    pub(crate) address: String,
    hellos: Arc<Hellos>,
    votes: PeerClient<Channel>,
    calls: PeerClient<Channel>,
    snapshots: PeerClient<Channel>,
    pub(crate) beats: mpsc::UnboundedSender<Beat>,
    pub(crate) appends: mpsc::UnboundedSender<AppendCommand>,
}

impl Link {
    pub(crate) async fn vote(
        &self,
        request: proto::VoteRequest,
        timeout: Duration,
    ) -> Result<proto::VoteReply, PeerError> {
        let mut client = self.votes.clone();
        let request = self.hellos.sign(self.node, request)?;
        self.within(timeout, client.vote(request)).await
    }

    pub(crate) async fn transfer_leader(
        &self,
        request: proto::TransferLeaderRequest,
        timeout: Duration,
    ) -> Result<proto::TransferLeaderReply, PeerError> {
        let mut client = self.votes.clone();
        let request = self.hellos.sign(self.node, request)?;
        self.within(timeout, client.transfer_leader(request)).await
    }

    pub(crate) async fn read_position(
        &self,
        request: proto::ReadPositionRequest,
        timeout: Duration,
    ) -> Result<proto::ReadPositionReply, PeerError> {
        let mut client = self.votes.clone();
        let request = self.hellos.sign(self.node, request)?;
        self.within(timeout, client.read_position(request)).await
    }

    /// Opens the stream of one snapshot.
    pub(crate) async fn snapshot(
        &self,
        frames: mpsc::Receiver<proto::SnapshotFrame>,
    ) -> Result<tonic::Streaming<proto::SnapshotReply>, PeerError> {
        let mut client = self.snapshots.clone();
        let request = self.hellos.sign(self.node, ReceiverStream::new(frames))?;
        self.within(OPEN_TIMEOUT, client.snapshot(request)).await
    }

    pub(crate) fn error(&self, status: &Status) -> PeerError {
        self.hellos.error(self.node, &self.address, status)
    }

    async fn within<T>(
        &self,
        timeout: Duration,
        answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, PeerError> {
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.error(&status)),
            Err(_) => Err(PeerError::TimedOut),
        }
    }
}

/// Another node. Cheap to clone; connections are shared and made when they are needed.
#[derive(Clone)]
pub struct Peer {
    link: Arc<Link>,
    runtime: Handle,
}

impl Peer {
    pub(crate) fn new(link: Arc<Link>, runtime: Handle) -> Self {
        Peer { link, runtime }
    }

    /// The node.
    pub fn node(&self) -> NodeId {
        self.link.node
    }

    /// Asks the peer's [`PeerHandler`](super::PeerHandler) once.
    pub async fn call(&self, kind: u16, body: Bytes, timeout: Duration) -> Result<Bytes, PeerError> {
        let mut client = self.link.calls.clone();
        let request = self.link.hellos.sign(self.link.node, proto::CallRequest { kind: kind.into(), body })?;
        Ok(self.link.within(timeout, client.call(request)).await?.body)
    }

    /// Opens a stream to the peer's [`PeerHandler`](super::PeerHandler). Dropping the sender ends it; the receiver ends
    /// when the peer ends it or is gone.
    pub async fn stream(&self, kind: u16) -> Result<(mpsc::Sender<Bytes>, mpsc::Receiver<Bytes>), PeerError> {
        let (outbound, queue) = mpsc::channel::<Bytes>(STREAM_DEPTH);
        let (answers, inbound) = mpsc::channel::<Bytes>(STREAM_DEPTH);
        let first = futures::stream::iter([proto::StreamFrame { kind: kind.into(), body: Bytes::new() }]);
        let rest = ReceiverStream::new(queue).map(|body| proto::StreamFrame { kind: 0, body });
        let mut client = self.link.calls.clone();
        let request = self.link.hellos.sign(self.link.node, first.chain(rest))?;
        let mut frames = self.link.within(OPEN_TIMEOUT, client.open(request)).await?;
        self.runtime.spawn(async move {
            loop {
                let frame = tokio::select! {
                    frame = frames.message() => frame,
                    () = answers.closed() => break,
                };
                let Ok(Some(frame)) = frame else { break };
                if answers.send(frame.body).await.is_err() {
                    break;
                }
            }
        });
        Ok((outbound, inbound))
    }
}

/// A status that says that this side is going down.
pub(crate) fn going_down() -> Status {
    Status::new(Code::Aborted, "shutting down")
}
