//! `ReplaceControlReplica`: a node whose replica of the control group is damaged gets another one.

use super::Control;
use super::command::{Effect, Reply};
use super::step::Step;
use crate::{NodeId, Reject, ReplicaId};

impl Control {
    pub(super) fn replace_control_replica(
        &mut self,
        step: &mut Step,
        node: NodeId,
        replica: ReplicaId,
    ) -> Result<Reply, Reject> {
        let member = self.members.get(&node).ok_or(Reject::NodeNotFound { node })?;
        if member.control_replica != replica {
            return Ok(Reply::Member { control_replica: member.control_replica });
        }
        if self.members.len() == 1 {
            return Err(Reject::LastNode { node });
        }
        let control_replica = step.mint_replica();
        step.meta.epoch += 1;
        self.members.change(node, &mut step.changes, |member| member.control_replica = control_replica);
        step.effects.push(Effect::MembersChanged);
        Ok(Reply::Member { control_replica })
    }
}

#[cfg(test)]
mod tests {
    use crate::control::testing::Cluster;
    use crate::control::{Command, Reply};
    use crate::{NodeId, Operation, Reject, RequestId};

    fn replace(node: u64, replica: u64) -> Command {
        Command::ReplaceControlReplica { node: NodeId(node), replica }
    }

    #[test]
    fn the_node_stays_a_member_under_a_new_replica_id() {
        let mut cluster = Cluster::of(3);
        let before = cluster.state.member(NodeId(2)).expect("a member").node.clone();
        assert_eq!(cluster.run(replace(2, 2)), Ok(Reply::Member { control_replica: 4 }));
        let member = cluster.state.member(NodeId(2)).expect("a member");
        assert_eq!((member.control_replica, &member.node), (4, &before));
        let again = Command::AddMember { node: before };
        assert_eq!(cluster.run(again), Ok(Reply::Member { control_replica: 4 }), "it announces itself as ever");
    }

    #[test]
    fn asked_again_it_answers_with_what_has_the_place() {
        let mut cluster = Cluster::of(3);
        assert_eq!(cluster.run(replace(2, 2)), Ok(Reply::Member { control_replica: 4 }));
        let epoch = cluster.state.epoch();
        assert_eq!(cluster.run(replace(2, 2)), Ok(Reply::Member { control_replica: 4 }));
        assert_eq!(cluster.state.epoch(), epoch, "nothing has changed");
        assert_eq!(cluster.run(replace(2, 4)), Ok(Reply::Member { control_replica: 5 }), "the new one is damaged too");
    }

    #[test]
    fn a_request_that_is_sent_again_mints_nothing() {
        let mut cluster = Cluster::of(3);
        let request = Some(RequestId((1_750_000_000_000 << 80) | (7 << 76) | 1));
        let operation = Operation { request, command: replace(2, 2) };
        let both = cluster.operate(vec![operation.clone(), operation]).replies;
        assert_eq!(both, vec![Ok(Reply::Member { control_replica: 4 }); 2]);
    }

    #[test]
    fn a_leaving_node_is_helped_too_and_the_only_one_is_not() {
        let mut cluster = Cluster::of(3);
        cluster.run(Command::StartLeave { node: NodeId(3), allow_fewer: true }).expect("two stay");
        assert_eq!(cluster.run(replace(3, 3)), Ok(Reply::Member { control_replica: 4 }));
        assert_eq!(Cluster::of(1).run(replace(1, 1)), Err(Reject::LastNode { node: NodeId(1) }));
        assert_eq!(cluster.run(replace(9, 1)), Err(Reject::NodeNotFound { node: NodeId(9) }));
    }
}
