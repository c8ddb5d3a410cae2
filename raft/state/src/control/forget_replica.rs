//! `ForgetReplica`: a retiring replica is gone.

use super::Control;
use super::command::{Effect, Reply};
use super::shards::ReplicaState;
use super::step::Step;
use crate::{Reject, ReplicaId, ShardId};

impl Control {
    pub(super) fn forget_replica(
        &mut self,
        step: &mut Step,
        shard: ShardId,
        replica: ReplicaId,
    ) -> Result<Reply, Reject> {
        let record = self.shards.get(&shard).ok_or(Reject::ShardNotFound { shard })?;
        match record.replica(replica) {
            None => return Ok(Reply::Done),
            Some(held) if held.state != ReplicaState::Retiring => {
                return Err(Reject::ReplicaInUse { shard, replica });
            }
            Some(_) => {}
        }
        step.meta.epoch += 1;
        self.shards.change(shard, &mut step.changes, |record| record.replicas.retain(|held| held.replica != replica));
        step.effects.push(Effect::ShardMapChanged);
        Ok(Reply::Done)
    }
}

#[cfg(test)]
mod tests {
    use crate::control::testing::Cluster;
    use crate::control::{Command, Reply};
    use crate::{Reject, ShardId};

    #[test]
    fn only_what_is_retiring_is_forgotten() {
        let mut cluster = Cluster::of(1);
        let replica = cluster.place(1, 1);
        let forget = Command::ForgetReplica { shard: ShardId(1), replica };
        assert_eq!(cluster.run(forget.clone()), Err(Reject::ReplicaInUse { shard: ShardId(1), replica }));
        cluster.run(Command::RetireReplica { shard: ShardId(1), replica }).expect("it is not a voter");
        assert_eq!(cluster.run(forget.clone()), Ok(Reply::Done));
        assert!(cluster.state.shard(ShardId(1)).expect("a shard").replicas.is_empty());
        assert_eq!(cluster.run(forget), Ok(Reply::Done), "again is the same");
    }

    #[test]
    fn refuses_an_unknown_shard() {
        let forget = Command::ForgetReplica { shard: ShardId(99), replica: 1 };
        assert_eq!(Cluster::of(1).run(forget), Err(Reject::ShardNotFound { shard: ShardId(99) }));
    }
}
