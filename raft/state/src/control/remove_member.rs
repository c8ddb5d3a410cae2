//! `RemoveMember`: a node that holds nothing is no member any more.

use super::Control;
use super::command::{Effect, Reply};
use super::members::{MAX_REMOVED, RemovedNode};
use super::step::Step;
use crate::{NodeId, Reject};

impl Control {
    pub(super) fn remove_member(&mut self, step: &mut Step, node: NodeId) -> Result<Reply, Reject> {
        if !self.members.contains(&node) {
            return Err(Reject::NodeNotFound { node });
        }
        if self.members.len() == 1 {
            return Err(Reject::LastNode { node });
        }
        let replicas = self.shards().filter(|shard| shard.replica_on(node).is_some()).count();
        if replicas > 0 {
            return Err(Reject::StillHolding { node, replicas: replicas as u32 });
        }
        step.meta.epoch += 1;
        self.members.remove(node, &mut step.changes);
        self.removed.put(node, RemovedNode { at: step.meta.position }, &mut step.changes);
        if self.removed.len() > MAX_REMOVED {
            let oldest = self.removed.iter().min_by_key(|(node, removed)| (removed.at, *node)).map(|(node, _)| node);
            oldest.map(|oldest| self.removed.remove(oldest, &mut step.changes));
        }
        step.effects.push(Effect::MembersChanged);
        Ok(Reply::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::MAX_REMOVED;
    use crate::control::testing::{Cluster, node};
    use crate::control::{Command, Reply};
    use crate::{NodeId, Reject, ShardId};

    #[test]
    fn waits_until_the_node_holds_nothing() {
        let mut cluster = Cluster::of(2);
        let replica = cluster.place(1, 2);
        let remove = Command::RemoveMember { node: NodeId(2) };
        assert_eq!(cluster.run(remove.clone()), Err(Reject::StillHolding { node: NodeId(2), replicas: 1 }));
        cluster.run(Command::RetireReplica { shard: ShardId(1), replica }).expect("it is not a voter yet");
        assert_eq!(cluster.run(remove.clone()), Err(Reject::StillHolding { node: NodeId(2), replicas: 1 }));
        cluster.run(Command::ForgetReplica { shard: ShardId(1), replica }).expect("it is retiring");
        assert_eq!(cluster.run(remove), Ok(Reply::Done));
        assert!(cluster.state.member(NodeId(2)).is_none());
    }

    #[test]
    fn remembers_a_bounded_number_of_removed_nodes() {
        let mut cluster = Cluster::of(1);
        for id in 2..MAX_REMOVED as u64 + 4 {
            cluster.run(Command::AddMember { node: node(id) }).expect("a new node");
            cluster.run(Command::RemoveMember { node: NodeId(id) }).expect("it holds nothing");
        }
        assert!(cluster.run(Command::AddMember { node: node(2) }).is_ok(), "the oldest one is forgotten");
        for id in [4, MAX_REMOVED as u64] {
            assert_eq!(
                cluster.run(Command::AddMember { node: node(id) }),
                Err(Reject::NodeRemoved { node: NodeId(id) })
            );
        }
    }

    #[test]
    fn refuses_an_unknown_node_and_the_last_one() {
        let mut cluster = Cluster::of(1);
        let unknown = Command::RemoveMember { node: NodeId(5) };
        assert_eq!(cluster.run(unknown), Err(Reject::NodeNotFound { node: NodeId(5) }));
        let last = Command::RemoveMember { node: NodeId(1) };
        assert_eq!(cluster.run(last), Err(Reject::LastNode { node: NodeId(1) }));
    }
}
