//! `PlaceReplica`: a shard gets another replica.

use super::Control;
use super::command::{Effect, Reply};
use super::shards::{ReplicaRecord, ReplicaState};
use super::step::Step;
use crate::{NodeId, Reject, ShardId};

impl Control {
    pub(super) fn place_replica(&mut self, step: &mut Step, shard: ShardId, node: NodeId) -> Result<Reply, Reject> {
        let Some(record) = self.shards.get(&shard) else {
            return Err(Reject::ShardNotFound { shard });
        };
        let Some(member) = self.members.get(&node) else {
            return Err(Reject::NodeNotFound { node });
        };
        match record.replica_on(node) {
            Some(held) if held.state == ReplicaState::Retiring => {
                return Err(Reject::ReplicaRetiring { shard, replica: held.replica });
            }
            Some(held) => return Ok(Reply::Replica { replica: held.replica }),
            None if member.leaving => return Err(Reject::NodeLeaving { node }),
            None => {}
        }
        let replica = step.mint_replica();
        step.meta.epoch += 1;
        self.shards.change(shard, &mut step.changes, |record| {
            record.replicas.push(ReplicaRecord { replica, node, state: ReplicaState::Joining });
        });
        step.effects.push(Effect::ShardMapChanged);
        Ok(Reply::Replica { replica })
    }
}

#[cfg(test)]
mod tests {
    use crate::control::testing::Cluster;
    use crate::control::{Command, ReplicaState, Reply};
    use crate::{NodeId, Reject, ShardId};

    fn place(shard: u32, node: u64) -> Command {
        Command::PlaceReplica { shard: ShardId(shard), node: NodeId(node) }
    }

    #[test]
    fn mints_an_id_for_each_shard_and_node_once() {
        let mut cluster = Cluster::of(2);
        assert_eq!(cluster.run(place(1, 1)), Ok(Reply::Replica { replica: 3 }));
        assert_eq!(cluster.run(place(1, 2)), Ok(Reply::Replica { replica: 4 }));
        assert_eq!(cluster.run(place(2, 1)), Ok(Reply::Replica { replica: 5 }));
        assert_eq!(cluster.run(place(1, 1)), Ok(Reply::Replica { replica: 3 }));
        let shard = cluster.state.shard(ShardId(1)).expect("a shard");
        assert!(shard.replicas.iter().all(|replica| replica.state == ReplicaState::Joining));
    }

    #[test]
    fn an_id_is_never_used_again() {
        let mut cluster = Cluster::of(2);
        let replica = cluster.place(1, 2);
        cluster.run(Command::RetireReplica { shard: ShardId(1), replica }).expect("it is not a voter");
        assert_eq!(cluster.run(place(1, 2)), Err(Reject::ReplicaRetiring { shard: ShardId(1), replica }));
        cluster.run(Command::ForgetReplica { shard: ShardId(1), replica }).expect("it is retiring");
        assert_eq!(cluster.run(place(1, 2)), Ok(Reply::Replica { replica: replica + 1 }));
    }

    #[test]
    fn refuses_what_is_unknown_or_leaving() {
        let mut cluster = Cluster::of(2);
        assert_eq!(cluster.run(place(99, 1)), Err(Reject::ShardNotFound { shard: ShardId(99) }));
        assert_eq!(cluster.run(place(1, 9)), Err(Reject::NodeNotFound { node: NodeId(9) }));
        cluster.run(Command::StartLeave { node: NodeId(2), allow_fewer: true }).expect("one stays");
        assert_eq!(cluster.run(place(1, 2)), Err(Reject::NodeLeaving { node: NodeId(2) }));
    }
}
