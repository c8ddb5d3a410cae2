//! Which node should hold a replica of which shard: the control leader's changes of the shard map.
//!
//! Replicas are added before any is taken away, and taken away only when those that stay are voters. Nothing is moved
//! between nodes that stay: a shard keeps its replicas until one of their nodes leaves.

use std::collections::BTreeMap;

use quorate_state::control::{Command, Control, ReplicaRecord, ReplicaState, ShardRecord, replica_target};
use quorate_state::{NodeId, Operation, ShardId};

use crate::context::Context;
use crate::error::Error;

/// Changes of one round. More wait for the next one, so that a large cluster does not get them all in one entry.
const COMMANDS_A_ROUND: usize = 256;

/// Proposes what is missing in the shard map. Says whether there was anything.
pub async fn reconcile(context: &Context) -> Result<bool, Error> {
    let commands = context.control.read(plan_of);
    if commands.is_empty() {
        return Ok(false);
    }
    let operations = commands.into_iter().map(Operation::new).collect();
    for reply in context.control.propose(operations).await? {
        if let Err(reject) = reply {
            // The map has moved on since it was read; the next round reads it again.
            tracing::debug!(%reject, "a change of the shard map was refused");
        }
    }
    Ok(true)
}

fn plan_of(control: &Control) -> Vec<Command> {
    let nodes: BTreeMap<NodeId, bool> = control.members().map(|member| (member.node.node, member.leaving)).collect();
    let shards: Vec<&ShardRecord> = control.shards().collect();
    plan(&nodes, &shards)
}

/// The changes that bring `shards` nearer to what `nodes` (each with whether it is leaving) call for.
fn plan(nodes: &BTreeMap<NodeId, bool>, shards: &[&ShardRecord]) -> Vec<Command> {
    let staying: Vec<NodeId> = nodes.iter().filter(|(_, leaving)| !**leaving).map(|(node, _)| *node).collect();
    let target = replica_target(staying.len());
    let mut load: BTreeMap<NodeId, usize> = staying.iter().map(|node| (*node, 0)).collect();
    for replica in shards.iter().flat_map(|shard| &shard.replicas).filter(|replica| is_kept(replica)) {
        load.entry(replica.node).and_modify(|count| *count += 1);
    }
    let mut commands = Vec::new();
    for shard in shards {
        let good: Vec<&ReplicaRecord> =
            shard.replicas.iter().filter(|replica| is_kept(replica) && staying.contains(&replica.node)).collect();
        if good.len() < target {
            place(shard, target - good.len(), &mut load, &mut commands);
        }
        let voters = good.iter().filter(|replica| replica.state == ReplicaState::Voter).count();
        if shard.initialized && target > 0 && voters >= target {
            retire(shard, &good, target, &mut load, &mut commands);
        }
    }
    commands.truncate(COMMANDS_A_ROUND);
    commands
}

fn is_kept(replica: &ReplicaRecord) -> bool {
    replica.state != ReplicaState::Retiring
}

/// Places `missing` replicas on the nodes that hold least and nothing of this shard.
fn place(shard: &ShardRecord, missing: usize, load: &mut BTreeMap<NodeId, usize>, commands: &mut Vec<Command>) {
    let mut free: Vec<NodeId> = load.keys().copied().filter(|node| shard.replica_on(*node).is_none()).collect();
    free.sort_by_key(|node| (load[node], spread(*node, shard.shard)));
    for node in free.into_iter().take(missing) {
        load.entry(node).and_modify(|count| *count += 1);
        commands.push(Command::PlaceReplica { shard: shard.shard, node });
    }
}

/// Retires what is on leaving nodes, and of the rest what is more than the target: on the fullest node first.
fn retire(
    shard: &ShardRecord,
    good: &[&ReplicaRecord],
    target: usize,
    load: &mut BTreeMap<NodeId, usize>,
    commands: &mut Vec<Command>,
) {
    let leaving = shard.replicas.iter().filter(|replica| is_kept(replica) && !load.contains_key(&replica.node));
    let mut going: Vec<&ReplicaRecord> = leaving.collect();
    let mut surplus = good.to_vec();
    surplus.sort_by_key(|replica| {
        let voter = replica.state == ReplicaState::Voter;
        (voter, std::cmp::Reverse(load[&replica.node]), spread(replica.node, shard.shard))
    });
    going.extend(surplus.into_iter().take(good.len().saturating_sub(target)));
    for replica in going {
        load.entry(replica.node).and_modify(|count| *count -= 1);
        commands.push(Command::RetireReplica { shard: shard.shard, replica: replica.replica });
    }
}

/// Breaks ties differently for each shard, so that equal nodes share what comes.
fn spread(node: NodeId, shard: ShardId) -> u64 {
    (node.0 ^ u64::from(shard.0).wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xff51_afd7_ed55_8ccd)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(count: u64) -> BTreeMap<NodeId, bool> {
        (1..=count).map(|node| (NodeId(node), false)).collect()
    }

    fn shard(number: u32, replicas: &[(u64, ReplicaState)]) -> ShardRecord {
        ShardRecord {
            shard: ShardId(number),
            initialized: true,
            replicas: replicas
                .iter()
                .map(|(node, state)| ReplicaRecord {
                    replica: 100 * u64::from(number) + node,
                    node: NodeId(*node),
                    state: *state,
                })
                .collect(),
        }
    }

    fn plan_for(nodes: &BTreeMap<NodeId, bool>, shards: &[ShardRecord]) -> Vec<Command> {
        plan(nodes, &shards.iter().collect::<Vec<_>>())
    }

    fn placed(commands: &[Command]) -> BTreeMap<NodeId, usize> {
        let mut counts = BTreeMap::new();
        for command in commands {
            if let Command::PlaceReplica { node, .. } = command {
                *counts.entry(*node).or_default() += 1;
            }
        }
        counts
    }

    use ReplicaState::{Joining, Retiring, Voter};

    #[test]
    fn the_first_node_gets_one_replica_of_each_shard() {
        let shards: Vec<_> = (1..=8).map(|number| shard(number, &[])).collect();
        assert_eq!(placed(&plan_for(&nodes(1), &shards)), BTreeMap::from([(NodeId(1), 8)]));
    }

    #[test]
    fn two_nodes_keep_one_replica_and_three_get_three() {
        let shards: Vec<_> = (1..=8).map(|number| shard(number, &[(1, Voter)])).collect();
        assert_eq!(plan_for(&nodes(2), &shards), []);
        let grown = plan_for(&nodes(3), &shards);
        assert_eq!(placed(&grown), BTreeMap::from([(NodeId(2), 8), (NodeId(3), 8)]));
    }

    #[test]
    fn new_replicas_are_spread_evenly() {
        let shards: Vec<_> = (1..=8).map(|number| shard(number, &[])).collect();
        let counts = placed(&plan_for(&nodes(4), &shards));
        assert_eq!(counts.values().copied().collect::<Vec<_>>(), vec![6, 6, 6, 6]);
    }

    #[test]
    fn a_leaving_node_is_replaced_first_and_retired_when_the_others_vote() {
        let mut four = nodes(4);
        four.insert(NodeId(3), true);
        let full = [shard(1, &[(1, Voter), (2, Voter), (3, Voter)])];
        assert_eq!(plan_for(&four, &full), [Command::PlaceReplica { shard: ShardId(1), node: NodeId(4) }]);
        let joining = [shard(1, &[(1, Voter), (2, Voter), (3, Voter), (4, Joining)])];
        assert_eq!(plan_for(&four, &joining), []);
        let joined = [shard(1, &[(1, Voter), (2, Voter), (3, Voter), (4, Voter)])];
        assert_eq!(plan_for(&four, &joined), [Command::RetireReplica { shard: ShardId(1), replica: 103 }]);
        let retiring = [shard(1, &[(1, Voter), (2, Voter), (3, Retiring), (4, Voter)])];
        assert_eq!(plan_for(&four, &retiring), []);
    }

    #[test]
    fn three_nodes_shrink_to_two_with_one_replica_each_evenly() {
        let mut three = nodes(3);
        three.insert(NodeId(3), true);
        let shards: Vec<_> = (1..=8).map(|number| shard(number, &[(1, Voter), (2, Voter), (3, Voter)])).collect();
        let commands = plan_for(&three, &shards);
        assert_eq!(commands.len(), 16);
        let retired_on = |node: u64| {
            let going =
                |command: &&Command| matches!(command, Command::RetireReplica { replica, .. } if replica % 100 == node);
            commands.iter().filter(going).count()
        };
        assert_eq!([1, 2, 3].map(retired_on), [4, 4, 8]);
    }

    #[test]
    fn two_nodes_shrink_to_one_by_a_move() {
        let mut two = nodes(2);
        two.insert(NodeId(1), true);
        assert_eq!(
            plan_for(&two, &[shard(1, &[(1, Voter)])]),
            [Command::PlaceReplica { shard: ShardId(1), node: NodeId(2) }]
        );
        assert_eq!(
            plan_for(&two, &[shard(1, &[(1, Voter), (2, Voter)])]),
            [Command::RetireReplica { shard: ShardId(1), replica: 101 }]
        );
    }

    #[test]
    fn a_shard_without_data_yet_is_left_alone() {
        let mut two = nodes(2);
        two.insert(NodeId(1), true);
        let mut young = shard(1, &[(1, Voter), (2, Voter)]);
        young.initialized = false;
        assert_eq!(plan_for(&two, &[young]), []);
    }
}
