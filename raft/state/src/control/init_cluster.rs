//! `InitCluster`: the first entry of a cluster's life.

use super::Control;
use super::command::{Effect, Reply};
use super::members::{MemberRecord, NodeRecord};
use super::shards::ShardRecord;
use super::step::Step;
use crate::{Reject, ReplicaId, ShardId};

/// The most shards of a cluster.
const MAX_SHARDS: u32 = 1_024;

impl Control {
    pub(super) fn init_cluster(
        &mut self,
        step: &mut Step,
        cluster: u64,
        shards: u32,
        node: NodeRecord,
        control_replica: ReplicaId,
    ) -> Result<Reply, Reject> {
        if step.meta.cluster.is_some() {
            return Err(Reject::AlreadyInitialized);
        }
        if !(1..=MAX_SHARDS).contains(&shards) {
            return Err(Reject::invalid(format!("a cluster has 1 to {MAX_SHARDS} shards, not {shards}")));
        }
        if control_replica == 0 || control_replica == ReplicaId::MAX {
            return Err(Reject::invalid("the first replica id must be at least 1, and another one must fit above it"));
        }
        node.check()?;
        step.meta.cluster = Some(cluster);
        step.meta.next_replica = control_replica + 1;
        step.meta.epoch += 1;
        self.members.put(node.node, MemberRecord { node, control_replica, leaving: false }, &mut step.changes);
        for shard in (1..=shards).map(ShardId) {
            let record = ShardRecord { shard, initialized: false, replicas: Vec::new() };
            self.shards.put(shard, record, &mut step.changes);
        }
        step.effects.push(Effect::MembersChanged);
        step.effects.push(Effect::ShardMapChanged);
        Ok(Reply::Member { control_replica })
    }
}

#[cfg(test)]
mod tests {
    use crate::control::testing::{Cluster, node};
    use crate::control::{Command, Reply};
    use crate::{Reject, ShardId};

    fn init(shards: u32) -> Command {
        Command::InitCluster { cluster: 9, shards, node: node(1), control_replica: 1 }
    }

    #[test]
    fn makes_the_first_member_and_all_shards() {
        let mut cluster = Cluster::empty();
        assert_eq!(cluster.run(init(8)), Ok(Reply::Member { control_replica: 1 }));
        assert_eq!(cluster.state.cluster(), Some(9));
        assert_eq!(cluster.state.members().count(), 1);
        assert_eq!(
            cluster.state.shards().map(|shard| shard.shard).collect::<Vec<_>>(),
            (1..=8).map(ShardId).collect::<Vec<_>>()
        );
    }

    #[test]
    fn happens_once() {
        let mut cluster = Cluster::empty();
        cluster.run(init(8)).expect("the first time");
        assert_eq!(cluster.run(init(8)), Err(Reject::AlreadyInitialized));
    }

    #[test]
    fn refuses_a_senseless_number_of_shards() {
        let mut cluster = Cluster::empty();
        assert!(matches!(cluster.run(init(0)), Err(Reject::InvalidArgument { .. })));
        assert!(matches!(cluster.run(init(100_000)), Err(Reject::InvalidArgument { .. })));
        assert_eq!(cluster.state.cluster(), None);
    }
}
