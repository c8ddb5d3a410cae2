//! Calls and streams between nodes, by kind.
//!
//! `quorate-raft` carries opaque frames; here they get a kind, a handler and errors that arrive as they were sent: the
//! body of an answer is preceded by one byte, 0 for a result and 1 for an encoded `quorate.v1.Error`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{BufMut as _, Bytes, BytesMut};
use parking_lot::RwLock;
use prost::Message as _;
use quorate_raft::{Groups, NodeId, PeerError, PeerHandler};
use tokio::sync::mpsc;

use crate::control::ControlHandle;
use crate::error::{Error, ErrorReason};
use crate::metrics::Metrics;

/// The kinds of frames between nodes. A number is never used for another meaning.
pub mod kind {
    /// Operations for the leader of control.
    pub const CONTROL_PROPOSE: u16 = 1;
    /// The sessions of agents on one node, for the leader of control.
    pub const SESSION_RELAY: u16 = 2;
    /// A call to a shard's replica on another node.
    pub const SHARD_CALL: u16 = 3;
    /// A read at the leader of control.
    pub const CONTROL_READ: u16 = 4;
    /// What a node knows of itself.
    pub const NODE_STATUS: u16 = 5;
    /// A word of one node to another about the cluster: hosting, leaving.
    pub const CLUSTER: u16 = 6;
    /// The hashes of the states of replicas on another node.
    pub const STATE_HASHES: u16 = 7;
    /// A node whose replica of control is damaged asks for another one.
    pub const CONTROL_REPLICA: u16 = 8;
}

const OK: u8 = 0;
const FAILED: u8 = 1;

/// Answers calls of one kind.
#[async_trait]
pub trait CallHandler: Send + Sync + 'static {
    /// Answers one call of the node `from`.
    async fn call(&self, from: NodeId, body: Bytes) -> Result<Bytes, Error>;
}

/// Serves streams of one kind.
#[async_trait]
pub trait StreamHandler: Send + Sync + 'static {
    /// Serves a stream of the node `from` until this returns. `inbound` ends when the other side closes or is gone.
    async fn stream(&self, from: NodeId, inbound: mpsc::Receiver<Bytes>, outbound: mpsc::Sender<Bytes>);
}

#[derive(Default)]
struct Handlers {
    calls: RwLock<HashMap<u16, Arc<dyn CallHandler>>>,
    streams: RwLock<HashMap<u16, Arc<dyn StreamHandler>>>,
}

/// Finds the handler of a frame from another node. Cheap to clone.
#[derive(Clone)]
pub struct Dispatch {
    handlers: Arc<Handlers>,
    metrics: Arc<Metrics>,
}

impl Dispatch {
    /// Without any handler yet.
    pub fn new(metrics: Arc<Metrics>) -> Dispatch {
        Dispatch { handlers: Arc::default(), metrics }
    }

    /// Sets who answers calls of `kind`.
    pub fn on_call(&self, kind: u16, handler: Arc<dyn CallHandler>) {
        self.handlers.calls.write().insert(kind, handler);
    }

    /// Sets who serves streams of `kind`.
    pub fn on_stream(&self, kind: u16, handler: Arc<dyn StreamHandler>) {
        self.handlers.streams.write().insert(kind, handler);
    }

    /// Forgets all handlers, and with them the parts of the node that they hold.
    pub fn clear(&self) {
        self.handlers.calls.write().clear();
        self.handlers.streams.write().clear();
    }
}

#[async_trait]
impl PeerHandler for Dispatch {
    async fn call(&self, from: NodeId, kind: u16, body: Bytes) -> Result<Bytes, PeerError> {
        let handler = self.handlers.calls.read().get(&kind).cloned();
        let Some(handler) = handler else {
            return Err(PeerError::Refused { reason: format!("calls of kind {kind} are not served here") });
        };
        self.metrics.peer_calls.with_label_values(&[&kind.to_string()]).inc();
        Ok(frame(handler.call(from, body).await))
    }

    async fn stream(&self, from: NodeId, kind: u16, inbound: mpsc::Receiver<Bytes>, outbound: mpsc::Sender<Bytes>) {
        let handler = self.handlers.streams.read().get(&kind).cloned();
        if let Some(handler) = handler {
            handler.stream(from, inbound, outbound).await;
        }
    }
}

fn frame(answer: Result<Bytes, Error>) -> Bytes {
    let mut framed = BytesMut::new();
    match answer {
        Ok(body) => {
            framed.reserve(1 + body.len());
            framed.put_u8(OK);
            framed.put(body);
        }
        Err(error) => {
            framed.put_u8(FAILED);
            framed.put(error.to_wire().encode_to_vec().as_slice());
        }
    }
    framed.freeze()
}

fn unframe(mut framed: Bytes) -> Result<Bytes, Error> {
    if framed.is_empty() {
        return Err(Error::internal("a peer answered with an empty frame"));
    }
    let body = framed.split_off(1);
    match framed[0] {
        OK => Ok(body),
        FAILED => Err(quorate_api::v1::Error::decode(body).map_or_else(Error::internal, Error::from_wire)),
        other => Err(Error::internal(format!("a peer answered with a frame of the unknown kind {other}"))),
    }
}

/// Calls to other nodes. Cheap to clone.
#[derive(Clone)]
pub struct Peers {
    groups: Groups,
    control: ControlHandle,
}

impl Peers {
    /// Calls through `groups` to the members that `control` knows.
    pub fn new(groups: Groups, control: ControlHandle) -> Peers {
        Peers { groups, control }
    }

    /// Calls a member. Its error arrives as it was; without an answer the outcome is unknown.
    pub async fn call(&self, node: NodeId, kind: u16, body: Bytes, timeout: Duration) -> Result<Bytes, Error> {
        let address = self.address(node)?;
        self.call_at(node, &address, kind, body, timeout).await
    }

    /// The same for a node that is known with its address only, such as a leader seen by Raft.
    pub async fn call_at(
        &self,
        node: NodeId,
        address: &str,
        kind: u16,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, Error> {
        unframe(self.groups.peer(node, address).call(kind, body, timeout).await?)
    }

    /// Opens a stream to a member. Dropping the sender ends it.
    pub async fn stream(&self, node: NodeId, kind: u16) -> Result<(mpsc::Sender<Bytes>, mpsc::Receiver<Bytes>), Error> {
        let address = self.address(node)?;
        Ok(self.groups.peer(node, &address).stream(kind).await?)
    }

    fn address(&self, node: NodeId) -> Result<String, Error> {
        self.control.member_address(node).ok_or_else(|| {
            Error::new(ErrorReason::NodeNotFound, format!("node {node} is not a member, as far as this node knows"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_and_an_error_arrive_as_they_were() {
        assert_eq!(unframe(frame(Ok(Bytes::from_static(b"body")))), Ok(Bytes::from_static(b"body")));
        let error = Error::overloaded(Duration::from_millis(70)).with("shard", 3);
        assert_eq!(unframe(frame(Err(error.clone()))), Err(error));
    }

    #[test]
    fn nonsense_is_an_error_and_no_panic() {
        assert!(unframe(Bytes::new()).is_err());
        assert!(unframe(Bytes::from_static(b"\x07x")).is_err());
        assert!(unframe(Bytes::from_static(b"\x01\xff\xff")).is_err());
    }
}
