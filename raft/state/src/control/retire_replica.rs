//! `RetireReplica`: a replica is to go.

use super::Control;
use super::command::{Effect, Reply};
use super::shards::ReplicaState;
use super::step::Step;
use crate::{Reject, ReplicaId, ShardId};

impl Control {
    pub(super) fn retire_replica(
        &mut self,
        step: &mut Step,
        shard: ShardId,
        replica: ReplicaId,
    ) -> Result<Reply, Reject> {
        let record = self.shards.get(&shard).ok_or(Reject::ShardNotFound { shard })?;
        let held = record.replica(replica).ok_or(Reject::ReplicaNotFound { shard, replica })?;
        if held.state == ReplicaState::Retiring {
            return Ok(Reply::Done);
        }
        let voters = record.replicas.iter().filter(|held| held.state == ReplicaState::Voter).count();
        if held.state == ReplicaState::Voter && voters == 1 {
            return Err(Reject::LastReplica { shard, replica });
        }
        step.meta.epoch += 1;
        self.shards.change(shard, &mut step.changes, |record| {
            if let Some(held) = record.replica_mut(replica) {
                held.state = ReplicaState::Retiring;
            }
        });
        step.effects.push(Effect::ShardMapChanged);
        Ok(Reply::Done)
    }
}

#[cfg(test)]
mod tests {
    use crate::control::testing::Cluster;
    use crate::control::{Command, Reply};
    use crate::{Reject, ShardId};

    fn retire(replica: u64) -> Command {
        Command::RetireReplica { shard: ShardId(1), replica }
    }

    #[test]
    fn keeps_the_last_voter() {
        let mut cluster = Cluster::of(2);
        let (first, second) = (cluster.place(1, 1), cluster.place(1, 2));
        cluster.run(Command::ReplicaJoined { shard: ShardId(1), replica: first }).expect("it is joining");
        assert_eq!(cluster.run(retire(first)), Err(Reject::LastReplica { shard: ShardId(1), replica: first }));
        cluster.run(Command::ReplicaJoined { shard: ShardId(1), replica: second }).expect("it is joining");
        assert_eq!(cluster.run(retire(first)), Ok(Reply::Done));
        assert_eq!(cluster.run(retire(first)), Ok(Reply::Done), "again is the same");
        assert_eq!(cluster.run(retire(second)), Err(Reject::LastReplica { shard: ShardId(1), replica: second }));
    }

    #[test]
    fn refuses_what_is_unknown() {
        let mut cluster = Cluster::of(1);
        assert_eq!(cluster.run(retire(50)), Err(Reject::ReplicaNotFound { shard: ShardId(1), replica: 50 }));
        let elsewhere = Command::RetireReplica { shard: ShardId(99), replica: 1 };
        assert_eq!(cluster.run(elsewhere), Err(Reject::ShardNotFound { shard: ShardId(99) }));
    }
}
