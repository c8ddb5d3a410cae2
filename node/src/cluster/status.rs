//! The cluster as one node sees it, now, with or without a quorum: its own knowledge, and short questions to the others.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::join_all;
use quorate_api::v1::{GroupStatus, Health, NodeStatus, StatusResponse};
use quorate_state::ReplicaId;
use quorate_state::control::{MemberRecord, ReplicaState, ShardRecord};

use super::plan::{largest_odd, majority};
use super::{in_raft, report};
use crate::context::Context;
use crate::limits::CONTROL_VOTERS;

/// Describes the cluster. Never waits for a quorum; takes at most about a second for nodes that do not answer.
pub async fn status(context: &Context) -> StatusResponse {
    let own = report::local(context);
    let members: Vec<MemberRecord> = context.control.read(|control| control.members().cloned().collect());
    let records: Vec<ShardRecord> = context.control.read(|control| control.shards().cloned().collect());
    let target = context.control.read(|control| control.replica_target());
    if own.cluster_id.is_empty() {
        return outside(own);
    }
    let others = members.iter().map(|member| in_raft(member.node.node)).filter(|node| *node != context.node);
    let answers = join_all(others.map(|node| async move { report::fetch(context, node).await.ok() })).await;
    let mut reports = vec![own.clone()];
    reports.extend(answers.into_iter().flatten().filter(|report| report.cluster_id == own.cluster_id));

    let control = merge(reports.iter().filter_map(|report| report.control.as_ref()));
    let shards: Vec<GroupStatus> = records
        .iter()
        .map(|record| {
            let views = reports.iter().flat_map(|report| &report.shards).filter(|view| view.group == record.shard.0);
            merge(views).unwrap_or_else(|| GroupStatus { group: record.shard.0, ..GroupStatus::default() })
        })
        .collect();
    let nodes = nodes(&members, &reports, control.as_ref(), &shards, &records);
    let mut findings = Findings::default();
    findings.replicas(&reports);
    if members.is_empty() && !own.problems.is_empty() {
        findings.blind(&own);
    } else {
        findings.control(control.as_ref(), &nodes);
    }
    findings.nodes(&nodes);
    findings.shards(&shards, &records, target, &nodes);
    StatusResponse {
        cluster_id: own.cluster_id,
        answering_node_id: own.answering_node_id,
        health: findings.health().into(),
        problems: findings.problems,
        next_steps: findings.next_steps,
        nodes,
        control,
        shards,
    }
}

/// The status of a node that belongs to no cluster.
fn outside(own: StatusResponse) -> StatusResponse {
    StatusResponse {
        health: Health::NoQuorum.into(),
        problems: vec!["This node belongs to no cluster yet.".into()],
        next_steps: vec![
            "Run `quorate cluster init` on it to make a new cluster, or `quorate cluster join SEED` to join one."
                .into(),
        ],
        ..own
    }
}

/// Of several views of a group, that of its leader in the newest term, else the one that knows most; and what each replica
/// says of itself: its hash, or why it is quarantined.
fn merge<'a>(views: impl Iterator<Item = &'a GroupStatus>) -> Option<GroupStatus> {
    let views: Vec<&GroupStatus> = views.collect();
    let leaders_own = |view: &GroupStatus| view.replicas.iter().any(|replica| replica.matched_position > 0);
    let rank =
        |view: &&&GroupStatus| (!view.leader_node_id.is_empty(), view.term, leaders_own(view), view.last_position);
    let mut merged = (*views.iter().max_by_key(rank)?).clone();
    let said = views.iter().flat_map(|view| &view.replicas);
    for own in said.filter(|replica| replica.hash_position > 0 || !replica.quarantined.is_empty()) {
        match merged.replicas.iter_mut().find(|replica| replica.replica_id == own.replica_id) {
            Some(replica) => {
                replica.quarantined.clone_from(&own.quarantined);
                (replica.hash_position, replica.state_hash) = (own.hash_position, own.state_hash);
            }
            None if !own.quarantined.is_empty() => merged.replicas.push(own.clone()),
            None => {}
        }
    }
    Some(merged)
}

fn nodes(
    members: &[MemberRecord],
    reports: &[StatusResponse],
    control: Option<&GroupStatus>,
    shards: &[GroupStatus],
    records: &[ShardRecord],
) -> Vec<NodeStatus> {
    let answered: BTreeMap<&str, &NodeStatus> = reports
        .iter()
        .flat_map(|report| report.nodes.first().map(|node| (report.answering_node_id.as_str(), node)))
        .collect();
    // Before this node has read the members it knows at least itself.
    let alone = if members.is_empty() { reports[0].nodes.clone() } else { Vec::new() };
    let known = members.iter().map(|member| report::node_status(Some(member)));
    let mut nodes: Vec<NodeStatus> = known.chain(alone).collect();
    for node in &mut nodes {
        if let Some(own) = answered.get(node.node_id.as_str()) {
            node.reachable = true;
            node.version.clone_from(&own.version);
            node.disk_stalled_ms = own.disk_stalled_ms;
        }
        // A replica that was replaced counts as a voter until the group has let go of it, and it will never vote.
        let current = members.iter().find(|member| member.node.node.to_string() == node.node_id);
        let replica = current.map(|member| member.control_replica);
        node.control_voter = control.is_some_and(|control| votes(control, &node.node_id, replica));
        node.control_leader = control.is_some_and(|control| control.leader_node_id == node.node_id);
        node.shard_leaders = count(shards.iter().filter(|shard| shard.leader_node_id == node.node_id));
        let held = records.iter().flat_map(|record| &record.replicas);
        node.shard_replicas = count(held.filter(|replica| replica.node.to_string() == node.node_id));
    }
    nodes
}

fn votes(group: &GroupStatus, node: &str, current: Option<ReplicaId>) -> bool {
    group.replicas.iter().any(|replica| {
        let is_current = current.is_none_or(|current| replica.replica_id == current);
        replica.voter && replica.node_id == node && is_current && replica.quarantined.is_empty()
    })
}

fn count<T>(things: impl Iterator<Item = T>) -> u32 {
    u32::try_from(things.count()).unwrap_or(u32::MAX)
}

/// What is wrong, in sentences.
#[derive(Default)]
struct Findings {
    no_quorum: bool,
    problems: Vec<String>,
    next_steps: Vec<String>,
}

impl Findings {
    fn health(&self) -> Health {
        match (self.no_quorum, self.problems.is_empty()) {
            (true, _) => Health::NoQuorum,
            (false, false) => Health::Degraded,
            (false, true) => Health::Healthy,
        }
    }

    /// What the nodes say of their own replicas.
    fn replicas(&mut self, reports: &[StatusResponse]) {
        for report in reports {
            self.problems.extend(report.problems.iter().cloned());
            self.next_steps.extend(report.next_steps.iter().cloned());
        }
    }

    /// The answering node has no replica of control, so it cannot even tell who the members are.
    fn blind(&mut self, own: &StatusResponse) {
        self.no_quorum = true;
        let node = own.nodes.first().map(name).unwrap_or_default();
        self.problems.push(format!("{node} cannot see the rest of its cluster without a replica of control."));
        self.next_steps.push("Ask another node how the cluster is.".into());
    }

    fn control(&mut self, control: Option<&GroupStatus>, nodes: &[NodeStatus]) {
        let leader = control.map(|control| control.leader_node_id.as_str()).unwrap_or_default();
        let leader_answers = nodes.iter().any(|node| node.node_id == leader && node.reachable);
        let voters: Vec<&NodeStatus> = nodes.iter().filter(|node| node.control_voter).collect();
        let there = voters.iter().filter(|node| node.reachable).count();
        if voters.is_empty() || there < majority(voters.len()) {
            self.no_quorum = true;
            self.problems.push(format!(
                "Control has no quorum: {there} of its {} voters can be reached, {} are needed. Nothing can be written.",
                voters.len(),
                majority(voters.len())
            ));
            let away: Vec<String> = voters.iter().filter(|node| !node.reachable).map(|node| name(node)).collect();
            self.next_steps.push(format!("Start {} again, or mend the network to it.", list(&away)));
        } else if leader.is_empty() || !leader_answers {
            self.no_quorum = true;
            self.problems.push("Control has no leader now; an election takes about a second.".into());
            self.next_steps.push("Ask again in a moment; if it stays so, look at the logs of the voters.".into());
        }
        let staying = nodes.iter().filter(|node| !node.leaving).count();
        let wanted = largest_odd(staying.min(CONTROL_VOTERS));
        if !self.no_quorum && voters.len() < wanted {
            self.problems.push(format!("Control has {} voters and should have {wanted}.", voters.len()));
            self.next_steps.push("Wait until the new nodes have caught up.".into());
        }
    }

    fn nodes(&mut self, nodes: &[NodeStatus]) {
        for node in nodes.iter().filter(|node| !node.reachable) {
            self.problems.push(format!("{} at {} does not answer.", name(node), node.peer_address));
            self.next_steps.push(format!(
                "Start {} again; if it is gone for good, run `quorate cluster leave {}`.",
                name(node),
                node.node_id
            ));
        }
        for node in nodes.iter().filter(|node| node.leaving) {
            self.problems.push(format!("{} is leaving and holds {} replicas.", name(node), node.shard_replicas));
            self.next_steps.push(format!("Wait until {} is gone from this list before you stop it.", name(node)));
        }
    }

    fn shards(&mut self, shards: &[GroupStatus], records: &[ShardRecord], target: usize, nodes: &[NodeStatus]) {
        let reachable: BTreeSet<&str> =
            nodes.iter().filter(|node| node.reachable).map(|node| node.node_id.as_str()).collect();
        let led = |shard: &&GroupStatus| reachable.contains(shard.leader_node_id.as_str());
        let headless: Vec<String> =
            shards.iter().filter(|shard| !led(shard)).map(|shard| shard.group.to_string()).collect();
        if !headless.is_empty() {
            self.problems.push(format!("Without a leader that can be reached: shard {}.", headless.join(", ")));
            self.next_steps.push("Start the nodes that hold these shards, or wait for their election.".into());
        }
        let voters = |record: &ShardRecord| {
            record.replicas.iter().filter(|replica| replica.state == ReplicaState::Voter).count()
        };
        let thin: Vec<String> = records
            .iter()
            .filter(|record| voters(record) < target)
            .map(|record| format!("{} ({} of {target})", record.shard, voters(record)))
            .collect();
        if !thin.is_empty() {
            self.problems.push(format!("Fewer replicas than there should be: shard {}.", thin.join(", ")));
            self.next_steps.push("Wait until the new replicas have caught up.".into());
        }
    }
}

/// A node as sentences call it.
pub(super) fn name(node: &NodeStatus) -> String {
    if node.label.is_empty() {
        format!("node {}", node.node_id)
    } else {
        format!("node {} ({})", node.node_id, node.label)
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "the other nodes".into() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use quorate_api::v1::ReplicaStatus;

    use super::*;

    fn node(id: &str, reachable: bool) -> NodeStatus {
        NodeStatus { node_id: id.into(), reachable, control_voter: true, ..NodeStatus::default() }
    }

    fn control(leader: &str) -> GroupStatus {
        GroupStatus { leader_node_id: leader.into(), ..GroupStatus::default() }
    }

    #[test]
    fn a_lost_quorum_is_said_with_numbers_and_a_way_out() {
        let mut findings = Findings::default();
        findings.control(Some(&control("")), &[node("a", true), node("b", false), node("c", false)]);
        assert_eq!(findings.health(), Health::NoQuorum);
        assert!(findings.problems[0].contains("1 of its 3 voters"), "{:?}", findings.problems);
        assert!(findings.next_steps[0].contains("node b, node c"), "{:?}", findings.next_steps);
    }

    #[test]
    fn a_missing_node_degrades_and_names_the_command() {
        let mut findings = Findings::default();
        let nodes = [node("a", true), node("b", true), node("c", false)];
        findings.control(Some(&control("a")), &nodes);
        findings.nodes(&nodes);
        assert_eq!(findings.health(), Health::Degraded);
        assert!(findings.next_steps[0].contains("quorate cluster leave c"), "{:?}", findings.next_steps);
    }

    #[test]
    fn what_a_replica_says_of_itself_is_in_the_merged_view() {
        let of = |replica_id| ReplicaStatus { replica_id, voter: true, ..ReplicaStatus::default() };
        let hashed = |replica_id| ReplicaStatus { hash_position: 7, state_hash: 0xff, ..of(replica_id) };
        let leaders = GroupStatus {
            term: 2,
            leader_node_id: "a".into(),
            replicas: vec![hashed(1), of(2), of(3)],
            ..GroupStatus::default()
        };
        let follower = GroupStatus { term: 2, replicas: vec![of(1), hashed(2), of(3)], ..GroupStatus::default() };
        let damaged = ReplicaStatus { replica_id: 3, quarantined: "flipped".into(), ..ReplicaStatus::default() };
        let forgotten = ReplicaStatus { replica_id: 9, quarantined: "gone".into(), ..ReplicaStatus::default() };
        let out = GroupStatus { replicas: vec![damaged, forgotten], ..GroupStatus::default() };
        let merged = merge([&out, &leaders, &follower].into_iter()).expect("there are views");
        let said: Vec<_> = merged
            .replicas
            .iter()
            .map(|replica| (replica.replica_id, replica.voter, replica.state_hash, replica.quarantined.as_str()))
            .collect();
        assert_eq!(said, [(1, true, 0xff, ""), (2, true, 0xff, ""), (3, true, 0, "flipped"), (9, false, 0, "gone")]);
    }

    #[test]
    fn a_replaced_replica_of_control_is_no_voter_of_its_node() {
        let of =
            |replica_id| ReplicaStatus { replica_id, node_id: "b".into(), voter: true, ..ReplicaStatus::default() };
        let group = GroupStatus { replicas: vec![of(2)], ..GroupStatus::default() };
        assert!(votes(&group, "b", Some(2)) && votes(&group, "b", None));
        assert!(!votes(&group, "b", Some(4)), "4 is what it has now");
    }

    #[test]
    fn all_well_is_healthy_and_silent() {
        let mut findings = Findings::default();
        let nodes = [node("a", true), node("b", true), node("c", true)];
        findings.control(Some(&control("b")), &nodes);
        findings.nodes(&nodes);
        findings.shards(&[], &[], 3, &nodes);
        assert_eq!(findings.health(), Health::Healthy);
        assert!(findings.problems.is_empty() && findings.next_steps.is_empty());
    }

    #[test]
    fn the_leaders_view_in_the_newest_term_wins() {
        let old = GroupStatus { term: 1, leader_node_id: "a".into(), last_position: 90, ..GroupStatus::default() };
        let followers =
            GroupStatus { term: 2, leader_node_id: "b".into(), last_position: 95, ..GroupStatus::default() };
        let leaders = GroupStatus {
            term: 2,
            leader_node_id: "b".into(),
            last_position: 91,
            replicas: vec![ReplicaStatus { matched_position: 91, ..ReplicaStatus::default() }],
            ..GroupStatus::default()
        };
        assert_eq!(merge([&old, &leaders, &followers].into_iter()), Some(leaders));
        assert_eq!(merge([].into_iter()), None);
    }
}
