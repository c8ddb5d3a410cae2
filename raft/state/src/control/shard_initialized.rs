//! `ShardInitialized`: a shard's group has its first membership, so nobody may give it one again.

use super::Control;
use super::command::{Effect, Reply};
use super::step::Step;
use crate::{Reject, ShardId};

impl Control {
    pub(super) fn shard_initialized(&mut self, step: &mut Step, shard: ShardId) -> Result<Reply, Reject> {
        let record = self.shards.get(&shard).ok_or(Reject::ShardNotFound { shard })?;
        if record.initialized {
            return Ok(Reply::Done);
        }
        step.meta.epoch += 1;
        self.shards.change(shard, &mut step.changes, |record| record.initialized = true);
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
    fn is_noted_once() {
        let mut cluster = Cluster::of(1);
        let note = Command::ShardInitialized { shard: ShardId(2) };
        assert_eq!(cluster.run(note.clone()), Ok(Reply::Done));
        assert!(cluster.state.shard(ShardId(2)).expect("a shard").initialized);
        let epoch = cluster.state.epoch();
        assert_eq!(cluster.run(note), Ok(Reply::Done));
        assert_eq!(cluster.state.epoch(), epoch);
    }

    #[test]
    fn refuses_an_unknown_shard() {
        let note = Command::ShardInitialized { shard: ShardId(99) };
        assert_eq!(Cluster::of(1).run(note), Err(Reject::ShardNotFound { shard: ShardId(99) }));
    }
}
