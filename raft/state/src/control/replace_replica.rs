//! `ReplaceReplica`: a damaged replica gets a successor on its node.

use super::Control;
use super::command::{Effect, Reply};
use super::shards::{ReplicaRecord, ReplicaState};
use super::step::Step;
use crate::{NodeId, Reject, ReplicaId, ShardId};

impl Control {
    pub(super) fn replace_replica(
        &mut self,
        step: &mut Step,
        shard: ShardId,
        node: NodeId,
        replica: ReplicaId,
    ) -> Result<Reply, Reject> {
        let record = self.shards.get(&shard).ok_or(Reject::ShardNotFound { shard })?;
        let member = self.members.get(&node).ok_or(Reject::NodeNotFound { node })?;
        match record.replica(replica) {
            Some(held) if held.node != node => return Err(Reject::ReplicaNotFound { shard, replica }),
            Some(held) if held.state != ReplicaState::Retiring => {}
            // It is on its way out, or forgotten: what has its place now is the answer.
            gone => {
                return match record.kept_on(node) {
                    Some(kept) => Ok(Reply::Replica { replica: kept.replica }),
                    None if gone.is_some() => Err(Reject::ReplicaRetiring { shard, replica }),
                    None => Err(Reject::ReplicaNotFound { shard, replica }),
                };
            }
        }
        if member.leaving {
            return Err(Reject::NodeLeaving { node });
        }
        if !record.votes_without(replica) {
            return Err(Reject::LastReplica { shard, replica });
        }
        let new = step.mint_replica();
        step.meta.epoch += 1;
        self.shards.change(shard, &mut step.changes, |record| {
            if let Some(held) = record.replica_mut(replica) {
                held.state = ReplicaState::Retiring;
            }
            record.replicas.push(ReplicaRecord { replica: new, node, state: ReplicaState::Joining });
        });
        step.effects.push(Effect::ShardMapChanged);
        Ok(Reply::Replica { replica: new })
    }
}

#[cfg(test)]
mod tests {
    use crate::control::testing::Cluster;
    use crate::control::{Command, ReplicaState, Reply, ShardRecord};
    use crate::{NodeId, Reject, ReplicaId, ShardId};

    const SHARD: ShardId = ShardId(1);

    fn replace(node: u64, replica: ReplicaId) -> Command {
        Command::ReplaceReplica { shard: SHARD, node: NodeId(node), replica }
    }

    /// A cluster with a voter of shard 1 on each node.
    fn voting(nodes: u64) -> (Cluster, Vec<ReplicaId>) {
        let mut cluster = Cluster::of(nodes);
        let replicas: Vec<ReplicaId> = (1..=nodes).map(|node| cluster.place(1, node)).collect();
        for replica in &replicas {
            cluster.run(Command::ReplicaJoined { shard: SHARD, replica: *replica }).expect("it is joining");
        }
        (cluster, replicas)
    }

    fn shard(cluster: &Cluster) -> &ShardRecord {
        cluster.state.shard(SHARD).expect("a shard")
    }

    #[test]
    fn the_successor_joins_on_the_same_node_under_a_new_id() {
        let (mut cluster, replicas) = voting(3);
        let epoch = cluster.state.epoch();
        let Ok(Reply::Replica { replica: new }) = cluster.run(replace(2, replicas[1])) else { panic!("refused") };
        assert!(replicas.iter().all(|old| *old < new));
        assert!(cluster.state.epoch() > epoch);
        let state = |replica| shard(&cluster).replica(replica).expect("a record").state;
        assert_eq!((state(replicas[1]), state(new)), (ReplicaState::Retiring, ReplicaState::Joining));
        let there = shard(&cluster).replica_on(NodeId(2)).expect("a replica");
        assert_eq!(there.replica, new, "the one that is kept");
    }

    #[test]
    fn asked_again_it_answers_with_what_has_the_place() {
        let (mut cluster, replicas) = voting(3);
        let first = cluster.run(replace(2, replicas[1]));
        let epoch = cluster.state.epoch();
        assert_eq!(cluster.run(replace(2, replicas[1])), first, "while the old one retires");
        cluster.run(Command::ForgetReplica { shard: SHARD, replica: replicas[1] }).expect("it is retiring");
        assert_eq!(cluster.run(replace(2, replicas[1])), first, "when it is forgotten");
        assert!(cluster.state.epoch() == epoch + 1 && shard(&cluster).replicas.len() == 3);
    }

    #[test]
    fn a_successor_that_is_damaged_too_is_replaced_while_the_first_one_retires() {
        let (mut cluster, replicas) = voting(3);
        let Ok(Reply::Replica { replica: second }) = cluster.run(replace(2, replicas[1])) else { panic!("refused") };
        let Ok(Reply::Replica { replica: third }) = cluster.run(replace(2, second)) else { panic!("refused") };
        assert_eq!(shard(&cluster).kept_on(NodeId(2)).map(|kept| kept.replica), Some(third));
        assert_eq!(cluster.run(replace(2, replicas[1])), Ok(Reply::Replica { replica: third }));
        for old in [replicas[1], second] {
            cluster.run(Command::ForgetReplica { shard: SHARD, replica: old }).expect("it is retiring");
        }
        assert_eq!(shard(&cluster).replicas.len(), 3);
    }

    #[test]
    fn the_last_one_with_the_data_is_kept() {
        let (mut cluster, replicas) = voting(1);
        let last = Reject::LastReplica { shard: SHARD, replica: replicas[0] };
        assert_eq!(cluster.run(replace(1, replicas[0])), Err(last));
        // One that only joins is replaced where another one votes, and not where none does.
        let (mut cluster, _) = voting(1);
        cluster.run(Command::AddMember { node: crate::control::testing::node(2) }).expect("a new node");
        let joining = cluster.place(1, 2);
        assert!(matches!(cluster.run(replace(2, joining)), Ok(Reply::Replica { .. })));
        let mut young = Cluster::of(1);
        let replica = young.place(1, 1);
        assert_eq!(young.run(replace(1, replica)), Err(Reject::LastReplica { shard: SHARD, replica }));
    }

    #[test]
    fn refuses_what_is_unknown_elsewhere_or_on_its_way_out() {
        let (mut cluster, replicas) = voting(4);
        let elsewhere = Reject::ReplicaNotFound { shard: SHARD, replica: replicas[0] };
        assert_eq!(cluster.run(replace(2, replicas[0])), Err(elsewhere));
        assert_eq!(cluster.run(replace(9, replicas[0])), Err(Reject::NodeNotFound { node: NodeId(9) }));
        let nowhere = Command::ReplaceReplica { shard: ShardId(99), node: NodeId(1), replica: 1 };
        assert_eq!(cluster.run(nowhere), Err(Reject::ShardNotFound { shard: ShardId(99) }));
        cluster.run(Command::RetireReplica { shard: SHARD, replica: replicas[3] }).expect("others vote");
        let retiring = Reject::ReplicaRetiring { shard: SHARD, replica: replicas[3] };
        assert_eq!(cluster.run(replace(4, replicas[3])), Err(retiring));
        cluster.run(Command::ForgetReplica { shard: SHARD, replica: replicas[3] }).expect("it is retiring");
        let gone = Reject::ReplicaNotFound { shard: SHARD, replica: replicas[3] };
        assert_eq!(cluster.run(replace(4, replicas[3])), Err(gone));
        cluster.run(Command::StartLeave { node: NodeId(3), allow_fewer: true }).expect("others stay");
        assert_eq!(cluster.run(replace(3, replicas[2])), Err(Reject::NodeLeaving { node: NodeId(3) }));
    }

    #[test]
    fn nothing_is_placed_beside_the_successor_and_a_member_stays_until_all_are_forgotten() {
        let (mut cluster, replicas) = voting(3);
        let Ok(Reply::Replica { replica: new }) = cluster.run(replace(2, replicas[1])) else { panic!("refused") };
        assert_eq!(cluster.place(1, 2), new);
        cluster.run(Command::RetireReplica { shard: SHARD, replica: new }).expect("it is not a voter");
        cluster.run(Command::ForgetReplica { shard: SHARD, replica: new }).expect("it is retiring");
        let remove = Command::RemoveMember { node: NodeId(2) };
        assert_eq!(cluster.run(remove.clone()), Err(Reject::StillHolding { node: NodeId(2), replicas: 1 }));
        cluster.run(Command::ForgetReplica { shard: SHARD, replica: replicas[1] }).expect("it is retiring");
        assert_eq!(cluster.run(remove), Ok(Reply::Done));
    }
}
