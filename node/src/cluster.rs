//! How a cluster forms, grows, shrinks and describes itself.
//!
//! What should be is written in the control state: members, who of them is leaving, and the shard map. What is, is known
//! to Raft: the members and voters of each group. Everything here compares the two and does the next step:
//!
//! | loop                | runs on             | brings in line                                                    |
//! |---------------------|---------------------|-------------------------------------------------------------------|
//! | [`hosting`]         | every node          | the groups that run here with the shard map                       |
//! | [`shards`]          | a shard's leader    | the group's members and voters with its record in the shard map   |
//! | [`voters`]          | the control leader  | control's members and voters with the members of the cluster      |
//! | [`placement`]       | the control leader  | the shard map with the members that stay                          |
//! | [`presence`]        | every node          | this node's record with its addresses; notices that it was removed |
//! | [`healing`]         | every node          | this node's replica of control with a disk that has lost it       |
//! | [`divergence`]      | every node          | the replicas here with the state of the majority of their groups  |
//! | [`stalls`]          | every node          | who leads with whose disk answers                                 |
//!
//! A step is idempotent and remembered nowhere else, so a crash at any point leaves work that the next round, or the
//! next leader, finds again. The order within a leave follows from the conditions: a node is removed only when the shard
//! map places nothing on it, and a replica goes only when those that stay are voters.

pub mod contacts;
pub mod divergence;
pub mod formation;
pub mod healing;
pub mod hosting;
pub mod leave;
pub mod placement;
pub mod plan;
pub mod presence;
pub mod report;
pub mod service;
pub mod shards;
pub mod stalls;
pub mod status;
pub mod supervisor;
pub mod voters;

use quorate_raft::{GroupId, NodeId};
use quorate_state::ShardId;
use quorate_state::control::NodeRecord;

use crate::context::Context;
use crate::request::new_request_id;

pub use service::ClusterApi;
pub use supervisor::Supervisor;

/// The node id as the replicated state writes it.
pub fn in_state(node: NodeId) -> quorate_state::NodeId {
    quorate_state::NodeId(node.0)
}

/// The node id as Raft writes it.
pub fn in_raft(node: quorate_state::NodeId) -> NodeId {
    NodeId(node.0)
}

/// The group of a shard: both have the same number.
pub fn group_of(shard: ShardId) -> GroupId {
    GroupId(shard.0)
}

/// The request id of an operation that a node asks for itself.
fn new_request(context: &Context) -> Option<quorate_state::RequestId> {
    Some(new_request_id(context.now_us()))
}

/// This node as it presents itself to the cluster.
fn own_record(context: &Context) -> NodeRecord {
    NodeRecord {
        node: in_state(context.node),
        name: context.config.label.clone(),
        peer_address: context.addresses.peer.clone(),
        client_address: context.addresses.client.clone(),
        http_address: context.addresses.http.clone(),
    }
}
