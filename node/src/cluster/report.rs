//! What one node knows of itself, as others may ask: the smaller half of a status.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use prost::Message as _;
use quorate_api::v1::{GroupStatus, NodeStatus, ReplicaStatus, StatusResponse};
use quorate_raft::{Group, NodeId};
use quorate_state::control::MemberRecord;

use super::{group_of, in_state};
use crate::context::Context;
use crate::error::Error;
use crate::peers::{CallHandler, kind};

/// How long a node may take to answer before it counts as unreachable.
const PROBE_TIMEOUT: Duration = Duration::from_millis(1_000);

/// This node's own part of a status: itself as the only node, and its replicas. Asks nobody, waits for nothing.
pub fn local(context: &Context) -> StatusResponse {
    let shards = context.control.read(|control| control.shards().map(|shard| shard.shard).collect::<Vec<_>>());
    let groups = shards.into_iter().filter_map(|shard| context.groups.group(group_of(shard)));
    let me = in_state(context.node);
    let record = context.control.read(|control| control.member(me).cloned());
    let mut own = node_status(record.as_ref());
    own.node_id = context.node.to_string();
    own.label = context.config.label.clone();
    own.client_address = context.addresses.client.clone();
    own.peer_address = context.addresses.peer.clone();
    own.version = env!("CARGO_PKG_VERSION").to_owned();
    own.reachable = true;
    StatusResponse {
        cluster_id: context.groups.identity().cluster.map(|cluster| cluster.to_string()).unwrap_or_default(),
        answering_node_id: context.node.to_string(),
        nodes: vec![own],
        control: context.control.group().as_ref().map(group_status),
        shards: groups.map(|group| group_status(&group)).collect(),
        ..StatusResponse::default()
    }
}

/// A member as the control state knows it.
pub fn node_status(member: Option<&MemberRecord>) -> NodeStatus {
    let Some(member) = member else { return NodeStatus::default() };
    NodeStatus {
        node_id: member.node.node.to_string(),
        label: member.node.name.clone(),
        client_address: member.node.client_address.clone(),
        peer_address: member.node.peer_address.clone(),
        leaving: member.leaving,
        ..NodeStatus::default()
    }
}

fn group_status(group: &Group) -> GroupStatus {
    let view = group.status();
    // A leader that has lost its quorum still takes itself for one until its lease is over.
    let leads = view.leader.as_ref().is_some_and(|(replica, _)| *replica == group.replica());
    let leader = view.leader.filter(|_| !leads || group.lease_valid());
    GroupStatus {
        group: group.id().0,
        term: view.term,
        leader_node_id: leader.map(|(_, member)| member.node.to_string()).unwrap_or_default(),
        last_position: view.last_position,
        applied_position: view.applied,
        replicas: view
            .members
            .iter()
            .map(|(replica, member)| ReplicaStatus {
                replica_id: *replica,
                node_id: member.node.to_string(),
                voter: view.voters.contains(replica),
                matched_position: view.matched.get(replica).copied().unwrap_or_default(),
            })
            .collect(),
    }
}

/// Asks a member for its part.
///
/// # Errors
/// If it does not answer within a second.
pub async fn fetch(context: &Context, node: NodeId) -> Result<StatusResponse, Error> {
    let answer = context.peers.call(node, kind::NODE_STATUS, Bytes::new(), PROBE_TIMEOUT).await?;
    StatusResponse::decode(answer).map_err(Error::internal)
}

/// Answers [`fetch`].
pub struct Reports {
    context: Context,
}

impl Reports {
    /// For this node.
    pub fn new(context: Context) -> Arc<Reports> {
        Arc::new(Reports { context })
    }
}

#[async_trait]
impl CallHandler for Reports {
    async fn call(&self, _from: NodeId, _body: Bytes) -> Result<Bytes, Error> {
        Ok(local(&self.context).encode_to_vec().into())
    }
}
