//! Who speaks: checked on every request, and on every message of a stream.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use prost::Message as _;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use super::PeerError;
use crate::identity::{Identity, IdentityError};
use crate::ids::{ClusterId, NodeId};
use crate::proto;

const HEADER: &str = "quorate-peer-bin";

/// This node's identity and what it has seen of the others.
pub(crate) struct Hellos {
    identity: RwLock<Identity>,
    /// The highest incarnation seen of each node.
    seen: Mutex<HashMap<NodeId, Arc<AtomicU64>>>,
}

/// A checked sender of a request or stream.
pub(crate) struct Sender {
    pub(crate) node: NodeId,
    incarnation: u64,
    newest: Arc<AtomicU64>,
}

impl Sender {
    /// Fails once a later incarnation of the sender has been heard: what this one still says is refused.
    pub(crate) fn check(&self) -> Result<(), Status> {
        let newest = self.newest.load(Ordering::Acquire);
        if newest > self.incarnation {
            return Err(Status::failed_precondition(format!(
                "node {} is in incarnation {newest}; incarnation {} is refused",
                self.node, self.incarnation
            )));
        }
        Ok(())
    }
}

impl Hellos {
    pub(crate) fn new(identity: Identity) -> Self {
        Hellos { identity: RwLock::new(identity), seen: Mutex::default() }
    }

    pub(crate) fn identity(&self) -> Identity {
        self.identity.read().clone()
    }

    pub(crate) fn adopt_cluster(&self, cluster: ClusterId) -> Result<(), IdentityError> {
        self.identity.write().adopt_cluster(cluster)
    }

    /// The request, with the header that says who sends it to `to`.
    pub(crate) fn sign<T>(&self, to: NodeId, message: T) -> Result<tonic::Request<T>, PeerError> {
        let identity = self.identity.read();
        let Some(cluster) = identity.cluster else {
            return Err(PeerError::Refused { reason: "this node is not a member of a cluster yet".to_owned() });
        };
        let hello =
            proto::Hello { cluster: cluster.0, node: identity.node.0, incarnation: identity.incarnation, to: to.0 };
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert_bin(HEADER, MetadataValue::from_bytes(&hello.encode_to_vec()));
        Ok(request)
    }

    /// Checks the header of a request that arrived here.
    pub(crate) fn check(&self, metadata: &MetadataMap) -> Result<Sender, Status> {
        let hello = decode(metadata).ok_or_else(|| Status::invalid_argument("the header of the peer is missing"))?;
        let identity = self.identity.read();
        let Some(cluster) = identity.cluster else {
            return Err(Status::failed_precondition("this node is not a member of a cluster yet"));
        };
        if hello.cluster != cluster.0 {
            let ours = proto::Hello { cluster: cluster.0, node: identity.node.0, incarnation: 0, to: hello.node };
            let mut status = Status::permission_denied(format!("this node belongs to cluster {cluster}"));
            status.metadata_mut().insert_bin(HEADER, MetadataValue::from_bytes(&ours.encode_to_vec()));
            return Err(status);
        }
        if hello.to != identity.node.0 {
            return Err(Status::failed_precondition(format!(
                "this is node {}, not {}",
                identity.node,
                NodeId(hello.to)
            )));
        }
        let node = NodeId(hello.node);
        let newest = self.seen.lock().entry(node).or_default().clone();
        newest.fetch_max(hello.incarnation, Ordering::AcqRel);
        let sender = Sender { node, incarnation: hello.incarnation, newest };
        sender.check()?;
        Ok(sender)
    }

    /// What a refusal means to the caller.
    pub(crate) fn error(&self, node: NodeId, address: &str, status: &Status) -> PeerError {
        let theirs = (status.code() == Code::PermissionDenied).then(|| decode(status.metadata())).flatten();
        if let (Some(theirs), Some(ours)) = (theirs, self.identity.read().cluster) {
            return PeerError::OtherCluster { ours, theirs: ClusterId(theirs.cluster) };
        }
        match status.code() {
            // The handler was reached, and how far it came is not known: it panicked, or its answer was too large.
            Code::DeadlineExceeded | Code::Cancelled | Code::DataLoss | Code::OutOfRange => PeerError::TimedOut,
            Code::Aborted => PeerError::ShuttingDown,
            Code::Unavailable | Code::Unknown | Code::Internal => {
                PeerError::Unreachable { node, address: address.to_owned(), reason: status.message().to_owned() }
            }
            _ => PeerError::Refused { reason: status.message().to_owned() },
        }
    }
}

fn decode(metadata: &MetadataMap) -> Option<proto::Hello> {
    let bytes = metadata.get_bin(HEADER)?.to_bytes().ok()?;
    proto::Hello::decode(bytes).ok()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step fails the test")]
mod tests {
    use super::*;

    fn hellos(node: u64, cluster: Option<u64>, incarnation: u64) -> Hellos {
        Hellos::new(Identity::fixed(NodeId(node), cluster.map(ClusterId), incarnation))
    }

    fn say(from: &Hellos, to: u64) -> MetadataMap {
        from.sign(NodeId(to), ()).unwrap().metadata().clone()
    }

    #[test]
    fn a_node_without_a_cluster_neither_speaks_nor_listens() {
        let member = hellos(1, Some(7), 1);
        let empty = hellos(2, None, 1);
        assert!(matches!(empty.sign(NodeId(1), ()), Err(PeerError::Refused { .. })));
        assert!(empty.check(&say(&member, 2)).is_err());
    }

    #[test]
    fn another_cluster_is_refused_and_named() {
        let (ours, theirs) = (hellos(1, Some(7), 1), hellos(2, Some(8), 1));
        let status = theirs.check(&say(&ours, 2)).err().unwrap();
        let error = ours.error(NodeId(2), "there:1", &status);
        assert!(matches!(error, PeerError::OtherCluster { ours: ClusterId(7), theirs: ClusterId(8) }), "{error}");
    }

    #[test]
    fn a_message_for_another_node_is_refused() {
        let (one, two) = (hellos(1, Some(7), 1), hellos(2, Some(7), 1));
        assert!(two.check(&say(&one, 3)).is_err());
        assert!(two.check(&say(&one, 2)).is_ok());
    }

    #[test]
    fn a_lower_incarnation_is_refused_also_on_a_stream_that_is_open() {
        let (first, second, server) = (hellos(1, Some(7), 1), hellos(1, Some(7), 2), hellos(2, Some(7), 1));
        let open = server.check(&say(&first, 2)).unwrap();
        assert!(open.check().is_ok());
        let newer = server.check(&say(&second, 2)).unwrap();
        assert!(newer.check().is_ok());
        assert!(open.check().is_err());
        assert!(server.check(&say(&first, 2)).is_err());
    }
}
