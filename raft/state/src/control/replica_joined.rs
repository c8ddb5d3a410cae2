//! `ReplicaJoined`: a replica has become a voter of its group.

use super::Control;
use super::command::{Effect, Reply};
use super::shards::ReplicaState;
use super::step::Step;
use crate::{Reject, ReplicaId, ShardId};

impl Control {
    pub(super) fn replica_joined(
        &mut self,
        step: &mut Step,
        shard: ShardId,
        replica: ReplicaId,
    ) -> Result<Reply, Reject> {
        let record = self.shards.get(&shard).ok_or(Reject::ShardNotFound { shard })?;
        let held = record.replica(replica).ok_or(Reject::ReplicaNotFound { shard, replica })?;
        match held.state {
            ReplicaState::Voter => return Ok(Reply::Done),
            ReplicaState::Retiring => return Err(Reject::ReplicaRetiring { shard, replica }),
            ReplicaState::Joining => {}
        }
        step.meta.epoch += 1;
        self.shards.change(shard, &mut step.changes, |record| {
            if let Some(held) = record.replica_mut(replica) {
                held.state = ReplicaState::Voter;
            }
        });
        step.effects.push(Effect::ShardMapChanged);
        Ok(Reply::Done)
    }
}

#[cfg(test)]
mod tests {
    use crate::control::testing::Cluster;
    use crate::control::{Command, ReplicaState, Reply};
    use crate::{Reject, ShardId};

    fn joined(replica: u64) -> Command {
        Command::ReplicaJoined { shard: ShardId(1), replica }
    }

    #[test]
    fn makes_a_voter_once() {
        let mut cluster = Cluster::of(1);
        let replica = cluster.place(1, 1);
        assert_eq!(cluster.run(joined(replica)), Ok(Reply::Done));
        let epoch = cluster.state.epoch();
        assert_eq!(cluster.run(joined(replica)), Ok(Reply::Done));
        assert_eq!(cluster.state.epoch(), epoch);
        assert_eq!(cluster.state.shard(ShardId(1)).expect("a shard").replicas[0].state, ReplicaState::Voter);
    }

    #[test]
    fn refuses_a_replica_that_is_unknown_or_on_its_way_out() {
        let mut cluster = Cluster::of(1);
        assert_eq!(cluster.run(joined(77)), Err(Reject::ReplicaNotFound { shard: ShardId(1), replica: 77 }));
        let replica = cluster.place(1, 1);
        cluster.run(Command::RetireReplica { shard: ShardId(1), replica }).expect("it is not a voter");
        assert_eq!(cluster.run(joined(replica)), Err(Reject::ReplicaRetiring { shard: ShardId(1), replica }));
    }
}
