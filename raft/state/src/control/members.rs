//! The nodes of the cluster.

use crate::codec::{Decode, Encode};
use crate::records::Record;
use crate::{NodeId, ReplicaId};

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

/// How many replicas each group has in a cluster of so many nodes: the largest odd number up to three and to the number of
/// nodes.
pub fn replica_target(nodes: usize) -> usize {
    match nodes {
        0 => 0,
        1 | 2 => 1,
        _ => 3,
    }
}
