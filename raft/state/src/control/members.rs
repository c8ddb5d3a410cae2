//! The nodes of the cluster.

use crate::codec::{Decode, Encode};
use crate::records::Record;
use crate::{NodeId, Position, Reject, ReplicaId};

/// A node as it presents itself. Names and addresses are labels: they may change, the id does not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct NodeRecord {
    /// The id that the node minted for itself.
    pub node: NodeId,
    /// A name for people; may be empty.
    pub name: String,
    /// Where peers reach it, `host:port`.
    pub peer_address: String,
    /// Where clients reach its gRPC, `host:port`.
    pub client_address: String,
    /// Where its metrics and health are served, `host:port`; may be empty.
    pub http_address: String,
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct MemberRecord {
    /// The node.
    pub node: NodeRecord,
    /// Its replica of the control group.
    pub control_replica: ReplicaId,
    /// Whether it is on its way out.
    pub leaving: bool,
}

impl Record for MemberRecord {
    const TABLE: u8 = super::table::MEMBER;
    type Key = NodeId;
}

/// A node that was a member. It never is again: a join that is late, or that its node goes on with, must not undo the removal,
/// and a node that comes back comes with an empty data directory and so with another id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct RemovedNode {
    /// Where in the log it was removed.
    pub(super) at: Position,
}

impl Record for RemovedNode {
    const TABLE: u8 = super::table::REMOVED_NODE;
    type Key = NodeId;
}

/// So many removed nodes are remembered; of more the oldest are forgotten, whose joins are long over.
pub(super) const MAX_REMOVED: usize = 4_096;

/// How many replicas each group has in a cluster of so many nodes: the largest odd number up to three and to the number of
/// nodes.
pub fn replica_target(nodes: usize) -> usize {
    match nodes {
        0 => 0,
        1 | 2 => 1,
        _ => 3,
    }
}

/// The longest name or address of a node, bytes.
const MAX_ADDRESS_BYTES: usize = 256;

impl NodeRecord {
    /// Refuses a node that could not be told apart or not be reached.
    pub(super) fn check(&self) -> Result<(), Reject> {
        if self.node == NodeId(0) {
            return Err(Reject::invalid("a node's id is not 0"));
        }
        if self.peer_address.is_empty() || self.client_address.is_empty() {
            return Err(Reject::invalid("a node needs an address for peers and one for clients, each host:port"));
        }
        let texts = [&self.name, &self.peer_address, &self.client_address, &self.http_address];
        if texts.iter().any(|text| text.len() > MAX_ADDRESS_BYTES) {
            return Err(Reject::invalid(format!(
                "names and addresses of a node have at most {MAX_ADDRESS_BYTES} bytes"
            )));
        }
        Ok(())
    }
}
