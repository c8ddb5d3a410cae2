//! openraft's network traits on the links.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{
    Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption, RPCTypes,
    RaftNetworkFactory,
};
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, StreamAppendError, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::appends::Session;
use super::beats::Beat;
use super::{Link, Links, PeerError};
use crate::checkpoints::Checkpoints;
use crate::followers::Followers;
use crate::ids::{GroupId, ReplicaId};
use crate::proto;
use crate::proto::outcome::Result as Outcome;
use crate::snapshot::{Checkpoint, Snapshot, send_snapshot};
use crate::types::{Member, TC, Vote};

/// Makes the clients of one group.
pub(crate) struct Networks {
    pub(crate) group: GroupId,
    pub(crate) replica: ReplicaId,
    pub(crate) links: Arc<Links>,
    pub(crate) snapshot_bytes_per_s: u64,
    /// A read waits for the next heartbeat: it must not wait for others.
    pub(crate) hurry: Arc<AtomicBool>,
    pub(crate) checkpoints: Arc<Checkpoints>,
    pub(crate) followers: Arc<Followers>,
}

impl Networks {
    fn network(&self, target: ReplicaId, member: &Member, heartbeats: bool) -> Network {
        Network {
            link: self.links.link(member.node, &member.address),
            route: proto::Route { group: self.group.0, from: self.replica, to: target },
            heartbeats,
            snapshot_bytes_per_s: self.snapshot_bytes_per_s,
            hurry: self.hurry.clone(),
            checkpoints: self.checkpoints.clone(),
            followers: self.followers.clone(),
        }
    }
}

impl RaftNetworkFactory<TC> for Networks {
    type Network = Network;

    async fn new_client(&mut self, target: ReplicaId, node: &Member) -> Network {
        self.network(target, node, false)
    }

    async fn new_heartbeat_client(&mut self, target: ReplicaId, node: &Member) -> Network {
        self.network(target, node, true)
    }
}

/// A client of one replica of one group.
pub(crate) struct Network {
    link: Arc<Link>,
    route: proto::Route,
    /// Appends are heartbeats: they carry no entries and are gathered with those of other groups.
    heartbeats: bool,
    snapshot_bytes_per_s: u64,
    hurry: Arc<AtomicBool>,
    checkpoints: Arc<Checkpoints>,
    followers: Arc<Followers>,
}

static NEXT_SESSION: AtomicU64 = AtomicU64::new(1);

type Appended<'s> = BoxStream<'s, Result<StreamAppendResult<TC>, RPCError<TC>>>;

impl Network {
    fn rpc_error(&self, action: RPCTypes, timeout: Duration, error: &PeerError) -> RPCError<TC> {
        match error {
            PeerError::TimedOut => {
                RPCError::Timeout(Timeout { action, id: self.route.from, target: self.route.to, timeout })
            }
            other => RPCError::Unreachable(Unreachable::new(other)),
        }
    }

    async fn beat(
        &self,
        request: AppendEntriesRequest<TC>,
        interval: Duration,
    ) -> Result<StreamAppendResult<TC>, RPCError<TC>> {
        let lost = || RPCError::Unreachable(Unreachable::from_string("no heartbeat stream"));
        let (sender, outcome) = oneshot::channel();
        let (term, sent) = (request.vote.leader_id.term, Instant::now());
        let hurry = self.hurry.load(Ordering::Acquire);
        let beat = Beat {
            heartbeat: proto::Heartbeat {
                id: 0,
                route: Some(self.route),
                vote: Some((&request.vote).into()),
                prev: request.prev_log_id.as_ref().map(Into::into),
                commit: request.leader_commit.as_ref().map(Into::into),
            },
            patience: if hurry { Duration::ZERO } else { interval / 8 },
            outcome: sender,
        };
        self.link.beats.send(beat).map_err(|_| lost())?;
        let outcome = outcome.await.map_err(|_| lost())?;
        if matches!(outcome, Outcome::Matched(_) | Outcome::Conflict(_)) {
            self.followers.answered(self.route.to, term, sent);
        }
        match outcome {
            Outcome::Matched(matched) => Ok(Ok(matched.at.map(Into::into))),
            Outcome::Conflict(at) => Ok(Err(StreamAppendError::Conflict(at.into()))),
            Outcome::Higher(vote) => Ok(Err(StreamAppendError::HigherVote(vote.into()))),
            Outcome::Refused(reason) => Err(RPCError::Unreachable(Unreachable::from_string(reason))),
        }
    }

    /// Whether the snapshot may be sent: a majority has confirmed it, and it reads.
    async fn is_good(&self, snapshot: &Snapshot) -> Result<(), PeerError> {
        if !self.checkpoints.is_confirmed(snapshot) {
            return Err(PeerError::Refused {
                reason: "no majority has confirmed the state of the checkpoint yet".into(),
            });
        }
        let verified = self.checkpoints.verify(snapshot).await;
        verified.map_err(|error| PeerError::Refused { reason: format!("the checkpoint cannot be read here: {error}") })
    }

    async fn ask_vote(
        &self,
        rpc: VoteRequest<TC>,
        pre: bool,
        option: RPCOption,
    ) -> Result<VoteResponse<TC>, RPCError<TC>> {
        let timeout = option.hard_ttl();
        let request = proto::VoteRequest {
            route: Some(self.route),
            vote: Some((&rpc.vote).into()),
            last: rpc.last_log_id.as_ref().map(Into::into),
            transfer: rpc.leadership_transfer,
            pre,
        };
        let reply = self.link.vote(request, timeout).await;
        let reply = reply.map_err(|error| self.rpc_error(RPCTypes::Vote, timeout, &error))?;
        let vote = reply.vote.map(Vote::from);
        let vote = vote.ok_or_else(|| RPCError::Network(NetworkError::from_string("a reply without a vote")))?;
        Ok(VoteResponse { vote, vote_granted: reply.granted, last_log_id: reply.last.map(Into::into) })
    }
}

impl NetStreamAppend<TC> for Network {
    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<Appended<'s>, RPCError<TC>>>
    where
        S: Stream<Item = AppendEntriesRequest<TC>> + Send + Unpin + 'static,
    {
        if self.heartbeats {
            return Box::pin(async move {
                // A heartbeat worker sends one request on each stream.
                let Some(request) = input.next().await else {
                    return Ok(futures::stream::empty().boxed());
                };
                let result = self.beat(request, option.hard_ttl()).await?;
                Ok(futures::stream::iter([Ok(result)]).boxed())
            });
        }
        let id = NEXT_SESSION.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            // openraft's pause after a failure is in the stream of requests: whoever connects before it has asked that
            // stream tries a dead peer again without any pause.
            let Some(first) = input.next().await else {
                return Ok(futures::stream::empty().boxed());
            };
            let input = futures::stream::iter([first]).chain(input);
            let session =
                Session::open(id, self.route, self.followers.clone(), input, self.link.appends.clone()).await?;
            Ok(session.boxed())
        })
    }
}

impl NetVote<TC> for Network {
    async fn vote(&mut self, rpc: VoteRequest<TC>, option: RPCOption) -> Result<VoteResponse<TC>, RPCError<TC>> {
        self.ask_vote(rpc, false, option).await
    }

    async fn pre_vote(&mut self, rpc: VoteRequest<TC>, option: RPCOption) -> Result<VoteResponse<TC>, RPCError<TC>> {
        self.ask_vote(rpc, true, option).await
    }
}

impl NetTransferLeader<TC> for Network {
    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TC>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TC>, RPCError<TC>> {
        use openraft::raft::TransferLeaderError;
        use proto::transfer_leader_reply::Refusal;

        let timeout = option.hard_ttl();
        let request = proto::TransferLeaderRequest {
            route: Some(self.route),
            from_leader: Some(req.from_leader().into()),
            to_replica: *req.to_node_id(),
            last: req.last_log_id().map(Into::into),
        };
        let reply = self.link.transfer_leader(request, timeout).await;
        let reply = reply.map_err(|error| self.rpc_error(RPCTypes::TransferLeader, timeout, &error))?;
        Ok(match reply.refusal {
            None => Ok(()),
            Some(Refusal::Vote(vote)) => {
                Err(TransferLeaderError::VoteChanged { expected: *req.from_leader(), actual: vote.into() })
            }
            Some(Refusal::Last(last)) => Err(TransferLeaderError::LogNotFlushed {
                expected: req.last_log_id().copied(),
                actual: last.at.map(Into::into),
            }),
        })
    }
}

impl NetSnapshot<TC> for Network {
    type SnapshotData = Arc<Checkpoint>;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TC>, StreamingError<TC>> {
        let timeout = option.hard_ttl();
        self.is_good(&snapshot).await.map_err(|error| self.rpc_error(RPCTypes::InstallSnapshot, timeout, &error))?;
        let sending = send_snapshot(
            &self.link,
            self.route,
            vote,
            &snapshot,
            &self.checkpoints,
            self.snapshot_bytes_per_s,
            timeout,
        );
        let sent = tokio::select! {
            closed = cancel => return Err(closed.into()),
            sent = sending => sent,
        };
        match sent {
            Ok(vote) => Ok(SnapshotResponse { vote }),
            Err(error) => {
                if matches!(error, PeerError::Refused { .. }) {
                    // It may have rotted since it was read.
                    snapshot.snapshot.doubt();
                }
                tracing::warn!(node = %self.link.node, %error, "a snapshot was not taken; it goes on where it stopped");
                Err(self.rpc_error(RPCTypes::InstallSnapshot, timeout, &error).into())
            }
        }
    }
}

impl NetBackoff<TC> for Network {
    /// 20, 40 ... and 200 ms from then on.
    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new((0..).map(|tries| Duration::from_millis((20_u64 << u32::min(tries, 4)).min(200)))))
    }
}
