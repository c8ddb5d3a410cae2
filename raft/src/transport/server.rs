//! The gRPC service that peers call.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use openraft::async_runtime::WatchReceiver as _;
use openraft::raft::{TransferLeaderError, TransferLeaderRequest, VoteRequest};
use parking_lot::RwLock;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

use super::inbound::{serve_appends, serve_heartbeats};
use super::link::going_down;
use super::{BoxIo, Hellos, MAX_MESSAGE_BYTES, PeerError, PeerHandler, Sender};
use crate::group::{Directory, Group, Running};
use crate::proto;
use crate::proto::peer_server::{Peer, PeerServer};
use crate::snapshot::receive_snapshot;
use crate::types::Vote;

/// A connection of a peer that does not answer a ping for this long is closed.
const KEEPALIVE: Duration = Duration::from_secs(5);
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// Frames of one stream that wait to be sent.
const REPLY_DEPTH: usize = 64;

/// What the service needs of the node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct PeerService {
    pub(crate) hellos: Arc<Hellos>,
    pub(crate) groups: Arc<Directory>,
    pub(crate) handler: Arc<RwLock<Option<Arc<dyn PeerHandler>>>>,
    /// Where the handler runs.
    pub(crate) node: Handle,
}

impl PeerService {
    fn check<T>(&self, request: &Request<T>) -> Result<Sender, Status> {
        self.hellos.check(request.metadata())
    }

    fn handler(&self) -> Result<Arc<dyn PeerHandler>, Status> {
        self.handler.read().clone().ok_or_else(|| Status::failed_precondition("the node does not answer calls yet"))
    }

    fn group(&self, route: Option<&proto::Route>) -> Result<Arc<Running>, Status> {
        self.groups.route(route).map_err(Status::not_found)
    }
}

fn missing(what: &str) -> Status {
    Status::invalid_argument(format!("a message without its {what}"))
}

fn stopped<E: std::fmt::Display>(error: E) -> Status {
    Status::unavailable(error.to_string())
}

type Frames<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send + 'static>>;

fn replies<T: Send + 'static>() -> (mpsc::Sender<Result<T, Status>>, Response<Frames<T>>) {
    let (sender, receiver) = mpsc::channel(REPLY_DEPTH);
    (sender, Response::new(Box::pin(ReceiverStream::new(receiver))))
}

#[async_trait]
impl Peer for PeerService {
    type HeartbeatsStream = Frames<proto::Outcomes>;
    type AppendStream = Frames<proto::Outcomes>;
    type SnapshotStream = Frames<proto::SnapshotReply>;
    type OpenStream = Frames<proto::StreamFrame>;

    async fn heartbeats(
        &self,
        request: Request<Streaming<proto::HeartbeatFrame>>,
    ) -> Result<Response<Self::HeartbeatsStream>, Status> {
        let sender = self.check(&request)?;
        let (replies, response) = replies();
        tokio::spawn(serve_heartbeats(self.groups.clone(), sender, request.into_inner(), replies));
        Ok(response)
    }

    async fn append(
        &self,
        request: Request<Streaming<proto::AppendFrame>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let sender = self.check(&request)?;
        let (replies, response) = replies();
        tokio::spawn(serve_appends(self.groups.clone(), sender, request.into_inner(), replies));
        Ok(response)
    }

    async fn vote(&self, request: Request<proto::VoteRequest>) -> Result<Response<proto::VoteReply>, Status> {
        self.check(&request)?;
        let request = request.into_inner();
        let group = self.group(request.route.as_ref())?;
        let asked: Vote = request.vote.ok_or_else(|| missing("vote"))?.into();
        let vote = group.raft.metrics().borrow_watched().vote;
        // A hand-over frees from what was promised to the leader that hands over, never to a later one.
        let leadership_transfer = request.transfer && vote.leader_id.term < asked.leader_id.term;
        let rpc = VoteRequest { vote: asked, last_log_id: request.last.map(Into::into), leadership_transfer };
        if group.rests() && !rpc.leadership_transfer {
            return Ok(Response::new(proto::VoteReply { vote: Some((&vote).into()), granted: false, last: None }));
        }
        let reply = if request.pre { group.raft.pre_vote(rpc).await } else { group.raft.vote(rpc).await };
        let reply = reply.map_err(stopped)?;
        #[cfg(feature = "planted")]
        let reply = crate::planted::granted_anyway(reply, asked);
        Ok(Response::new(proto::VoteReply {
            vote: Some((&reply.vote).into()),
            granted: reply.vote_granted,
            last: reply.last_log_id.as_ref().map(Into::into),
        }))
    }

    async fn transfer_leader(
        &self,
        request: Request<proto::TransferLeaderRequest>,
    ) -> Result<Response<proto::TransferLeaderReply>, Status> {
        use proto::transfer_leader_reply::Refusal;
        self.check(&request)?;
        let request = request.into_inner();
        let group = self.group(request.route.as_ref())?;
        let from: Vote = request.from_leader.ok_or_else(|| missing("vote"))?.into();
        let rpc = TransferLeaderRequest::new(from, request.to_replica, request.last.map(Into::into));
        let refusal = match group.raft.handle_transfer_leader(rpc).await.map_err(stopped)? {
            Ok(()) => None,
            Err(TransferLeaderError::VoteChanged { actual, .. }) => Some(Refusal::Vote((&actual).into())),
            Err(TransferLeaderError::LogNotFlushed { actual, .. }) => {
                Some(Refusal::Last(proto::Matched { at: actual.as_ref().map(Into::into) }))
            }
        };
        Ok(Response::new(proto::TransferLeaderReply { refusal }))
    }

    async fn read_position(
        &self,
        request: Request<proto::ReadPositionRequest>,
    ) -> Result<Response<proto::ReadPositionReply>, Status> {
        use proto::read_position_reply::Result as Answer;
        self.check(&request)?;
        let group = self.group(request.get_ref().route.as_ref())?;
        let answer = match Group::new(group).ask_position(true).await {
            Ok(position) => Answer::Position(position),
            Err(_) => Answer::NoLeader(true),
        };
        Ok(Response::new(proto::ReadPositionReply { result: Some(answer) }))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<proto::SnapshotFrame>>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        let sender = self.check(&request)?;
        let mut frames = request.into_inner();
        let (replies, response) = replies();
        let groups = self.groups.clone();
        tokio::spawn(async move {
            let Ok(Some(proto::SnapshotFrame { frame: Some(proto::snapshot_frame::Frame::Begin(begin)) })) =
                frames.message().await
            else {
                return;
            };
            match groups.route(begin.route.as_ref()) {
                Ok(group) => {
                    let stop = group.stop.clone();
                    stop.run_until_cancelled(receive_snapshot(group, begin, sender, frames, replies)).await;
                }
                Err(reason) => {
                    // The sender may be gone.
                    let _ = replies.send(Err(Status::not_found(reason))).await;
                }
            }
        });
        Ok(response)
    }

    async fn call(&self, request: Request<proto::CallRequest>) -> Result<Response<proto::CallReply>, Status> {
        let sender = self.check(&request)?;
        let handler = self.handler()?;
        let proto::CallRequest { kind, body } = request.into_inner();
        let kind = u16::try_from(kind).map_err(|_| Status::invalid_argument("no such kind of call"))?;
        let answered = self.node.spawn(async move { handler.call(sender.node, kind, body).await }).await;
        match answered {
            Ok(Ok(body)) => Ok(Response::new(proto::CallReply { body })),
            Ok(Err(PeerError::ShuttingDown)) => Err(going_down()),
            Ok(Err(PeerError::Refused { reason })) => Err(Status::failed_precondition(reason)),
            Ok(Err(error)) => Err(Status::failed_precondition(error.to_string())),
            Err(error) if error.is_cancelled() => Err(going_down()),
            Err(_) => Err(Status::data_loss("the handler of the call has failed")),
        }
    }

    async fn open(
        &self,
        request: Request<Streaming<proto::StreamFrame>>,
    ) -> Result<Response<Self::OpenStream>, Status> {
        let sender = self.check(&request)?;
        let handler = self.handler()?;
        let mut frames = request.into_inner();
        let (outbound, queue) = mpsc::channel::<Bytes>(REPLY_DEPTH);
        let (incoming, inbound) = mpsc::channel::<Bytes>(REPLY_DEPTH);
        self.node.spawn(async move {
            let Ok(Some(first)) = frames.message().await else { return };
            let Ok(kind) = u16::try_from(first.kind) else { return };
            let node = sender.node;
            let forward = async {
                while let Ok(Some(frame)) = frames.message().await {
                    if sender.check().is_err() || incoming.send(frame.body).await.is_err() {
                        break;
                    }
                }
                drop(incoming);
                // The handler ends the stream, not the caller's silence.
                std::future::pending::<()>().await
            };
            tokio::select! {
                () = handler.stream(node, kind, inbound, outbound) => {}
                () = forward => {}
            }
        });
        let frames = ReceiverStream::new(queue).map(|body| Ok(proto::StreamFrame { kind: 0, body }));
        Ok(Response::new(Box::pin(frames)))
    }
}

/// Serves connections until the stream of them ends or `stop` is cancelled, which closes them all.
pub(crate) async fn serve_peers(
    service: PeerService,
    incoming: impl Stream<Item = io::Result<BoxIo>> + Send + 'static,
    stop: CancellationToken,
) -> io::Result<()> {
    let cut = stop.clone();
    let incoming = incoming.filter_map(move |accepted| {
        std::future::ready(match accepted {
            Ok(io) => Some(Ok::<_, io::Error>(Incoming { io, cut: Box::pin(cut.clone().cancelled_owned()) })),
            Err(error) => {
                // One connection that could not be taken is no reason to stop taking others.
                tracing::debug!(%error, "a connection was not accepted");
                None
            }
        })
    });
    let service = PeerServer::new(service)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let serving = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .add_service(service)
        .serve_with_incoming(incoming);
    match stop.run_until_cancelled(serving).await {
        Some(served) => served.map_err(io::Error::other),
        None => Ok(()),
    }
}

/// A connection of any kind, as tonic wants it. It breaks when the server stops: the streams of peers have no end of
/// their own, and a peer must not go on talking to a node that has been replaced in the same process.
struct Incoming {
    io: BoxIo,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Connected for Incoming {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Incoming {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Incoming {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
