//! What one node knows of itself, as others may ask: the smaller half of a status.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use prost::Message as _;
use quorate_api::v1::{GroupStatus, NodeStatus, ReplicaStatus, StatusResponse};
use quorate_raft::{Group, GroupId, NodeId};
use quorate_state::control::MemberRecord;

use super::stalls::STALLED;
use super::{group_of, in_state};
use crate::context::Context;
use crate::error::Error;
use crate::peers::{CallHandler, kind};
use crate::quarantine::{Case, Stage};

/// How long a node may take to answer before it counts as unreachable.
const PROBE_TIMEOUT: Duration = Duration::from_millis(1_000);

/// This node's own part of a status: itself as the only node, its replicas, and what is wrong with them. Asks nobody, waits
/// for nothing.
pub fn local(context: &Context) -> StatusResponse {
    let shards = context.control.read(|control| control.shards().map(|shard| shard.shard).collect::<Vec<_>>());
    let mut shards: BTreeMap<GroupId, GroupStatus> = shards
        .into_iter()
        .filter_map(|shard| context.groups.group(group_of(shard)))
        .map(|group| (group.id(), group_status(&group)))
        .collect();
    let mut control = context.control.group().as_ref().map(group_status);
    let me = in_state(context.node);
    let record = context.control.read(|control| control.member(me).cloned());
    let mut own = node_status(record.as_ref());
    own.node_id = context.node.to_string();
    own.label = context.config.label.clone();
    own.client_address = context.addresses.client.clone();
    own.peer_address = context.addresses.peer.clone();
    own.version = env!("CARGO_PKG_VERSION").to_owned();
    own.reachable = true;
    let (mut problems, mut next_steps) = (Vec::new(), Vec::new());
    let stalled = context.groups.disk_stalled();
    if stalled >= STALLED {
        own.disk_stalled_ms = u64::try_from(stalled.as_millis()).unwrap_or(u64::MAX);
        let node = super::status::name(&own);
        problems.push(format!("The disk of {node} has not answered for {} s.", stalled.as_secs()));
        next_steps.push(format!(
            "Look at the disk of {node}: it serves again when that answers; restart it elsewhere if not."
        ));
    }
    for (group, case) in context.quarantine.cases() {
        let (problem, next_step) = told(&own, group, &case);
        problems.push(problem);
        next_steps.push(next_step);
        if matches!(case.stage, Stage::Succeeded(_)) {
            continue;
        }
        let out = out_of_service(group, &case, &own.node_id);
        if group == GroupId::CONTROL {
            control = Some(out);
        } else {
            shards.insert(group, out);
        }
    }
    StatusResponse {
        cluster_id: context.groups.identity().cluster.map(|cluster| cluster.to_string()).unwrap_or_default(),
        answering_node_id: context.node.to_string(),
        problems,
        next_steps,
        nodes: vec![own],
        control,
        shards: shards.into_values().collect(),
        ..StatusResponse::default()
    }
}

/// A group of which this node knows only that its own replica is out of service.
fn out_of_service(group: GroupId, case: &Case, node: &str) -> GroupStatus {
    let replica = ReplicaStatus {
        replica_id: case.replica.unwrap_or(0),
        node_id: node.to_owned(),
        quarantined: case.reason.clone(),
        ..ReplicaStatus::default()
    };
    GroupStatus { group: group.0, replicas: vec![replica], ..GroupStatus::default() }
}

/// What is wrong with a replica of this node and what to do about it, a sentence each.
fn told(own: &NodeStatus, group: GroupId, case: &Case) -> (String, String) {
    let group = if group == GroupId::CONTROL { "control".to_owned() } else { format!("shard {}", group.0) };
    let node = super::status::name(own);
    let replica = case.replica.map(|replica| format!(" {replica}")).unwrap_or_default();
    let by_itself = || format!("Wait until the replica of {group} on {node} is replaced; that happens by itself.");
    match case.stage {
        Stage::Found | Stage::Quarantined => (
            format!(
                "On {node} the replica{replica} of {group} is quarantined and neither votes nor answers: {}.",
                case.reason.trim_end_matches('.')
            ),
            case.held_up.as_ref().map_or_else(by_itself, |why| format!("On {node}: {}.", why.trim_end_matches('.'))),
        ),
        Stage::Succeeded(successor) => (
            format!("On {node} replica {successor} of {group} takes the place of a quarantined one and catches up."),
            by_itself(),
        ),
        Stage::Halted => (
            format!("On {node} the replica{replica} of {group} has stopped: {}.", case.reason),
            format!(
                "Keep the data directories of all nodes with {group} as they are and restore it from a backup; a restart of \
                 {node} only looks again."
            ),
        ),
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
    let (hash_position, state_hash) = group.hash().unwrap_or_default();
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
                hash_position: if *replica == group.replica() { hash_position } else { 0 },
                state_hash: if *replica == group.replica() { state_hash } else { 0 },
                ..ReplicaStatus::default()
            })
            .collect(),
        hash_position,
        state_hash,
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
