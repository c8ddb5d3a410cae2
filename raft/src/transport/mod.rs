//! Connections between nodes.
//!
//! To each peer there are up to four HTTP/2 connections ("lanes"), made when they are needed: heartbeats and votes,
//! appends, calls of the node, snapshots. They are apart so that a large message on one never delays another: a
//! heartbeat behind a megabyte of entries would cost the leader its lease.
//!
//! Heartbeats of all groups to a peer are gathered for a few milliseconds and travel in one frame (`beats`). Appends
//! of all groups to a peer share one long-lived stream, each group in a session of its own, many requests under way
//! (`appends`). Nothing is spawned for a message.

mod appends;
mod beats;
mod connect;
mod hello;
mod inbound;
mod link;
mod network;
mod server;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

pub(crate) use connect::prepare;
pub use connect::{BoxIo, Connector, Io, TcpConnector};
pub(crate) use hello::{Hellos, Sender};
pub use link::Peer;
pub(crate) use link::{Link, Links};
pub(crate) use network::Networks;
pub(crate) use server::{PeerService, serve_peers};

use crate::ids::{ClusterId, NodeId};

/// The largest message between peers, in bytes: the largest proposal and what stands around it.
pub(crate) const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// Answers the frames that other nodes send through [`Peer`]. Both methods run on the runtime on which
/// [`Groups::open`](crate::Groups::open) was called, never on Raft's.
#[async_trait]
pub trait PeerHandler: Send + Sync + 'static {
    /// Answers one call. `kind` says what `body` is; the two nodes agree on that, not this crate. An error reaches the
    /// caller as [`PeerError::Refused`], or as [`PeerError::ShuttingDown`] if it is that.
    async fn call(&self, from: NodeId, kind: u16, body: Bytes) -> Result<Bytes, PeerError>;
    /// Serves a stream until this returns. `inbound` ends when the other side closes or is gone.
    async fn stream(&self, from: NodeId, kind: u16, inbound: mpsc::Receiver<Bytes>, outbound: mpsc::Sender<Bytes>);
}

/// Why a peer did not answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PeerError {
    /// No connection. Nothing was done there, unless the connection broke after the request was sent.
    #[error("node {node} at {address} cannot be reached: {reason}")]
    Unreachable {
        /// The node.
        node: NodeId,
        /// Its address.
        address: String,
        /// What the network said.
        reason: String,
    },
    /// No answer in time. What was asked may have been done.
    #[error("no answer in time; what was asked may have been done")]
    TimedOut,
    /// The peer answered that it will not.
    #[error("refused by the peer: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// The peer is a member of another cluster.
    #[error("the peer belongs to cluster {theirs}, this node to {ours}")]
    OtherCluster {
        /// This node's cluster.
        ours: ClusterId,
        /// The cluster of the peer.
        theirs: ClusterId,
    },
    /// This node, or the peer, is going down.
    #[error("shutting down")]
    ShuttingDown,
}
