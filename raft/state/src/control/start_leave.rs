//! `StartLeave`: a node begins to leave.

use super::Control;
use super::command::{Effect, Reply};
use super::members::replica_target;
use super::step::Step;
use crate::{NodeId, Reject};

impl Control {
    pub(super) fn start_leave(&mut self, step: &mut Step, node: NodeId, allow_fewer: bool) -> Result<Reply, Reject> {
        let Some(member) = self.members.get(&node) else {
            return Err(Reject::NodeNotFound { node });
        };
        if member.leaving {
            return Ok(Reply::Done);
        }
        let staying = self.members().filter(|member| !member.leaving).count();
        if staying == 1 {
            return Err(Reject::LastNode { node });
        }
        let (before, after) = (replica_target(staying), replica_target(staying - 1));
        if after < before && !allow_fewer {
            return Err(Reject::FewerReplicas { node, before: before as u32, after: after as u32 });
        }
        step.meta.epoch += 1;
        self.members.change(node, &mut step.changes, |member| member.leaving = true);
        step.effects.push(Effect::MembersChanged);
        Ok(Reply::Done)
    }
}

#[cfg(test)]
mod tests {
    use crate::control::testing::Cluster;
    use crate::control::{Command, Reply};
    use crate::{NodeId, Reject};

    fn leave(node: u64, allow_fewer: bool) -> Command {
        Command::StartLeave { node: NodeId(node), allow_fewer }
    }

    #[test]
    fn asks_before_there_are_fewer_replicas() {
        let mut cluster = Cluster::of(3);
        let refused = Reject::FewerReplicas { node: NodeId(3), before: 3, after: 1 };
        assert_eq!(cluster.run(leave(3, false)), Err(refused));
        assert_eq!(cluster.run(leave(3, true)), Ok(Reply::Done));
        assert!(cluster.state.member(NodeId(3)).expect("still a member").leaving);
        assert_eq!(cluster.state.replica_target(), 1);
    }

    #[test]
    fn needs_no_word_when_the_replicas_stay_as_many() {
        assert_eq!(Cluster::of(4).run(leave(4, false)), Ok(Reply::Done));
        assert_eq!(Cluster::of(2).run(leave(1, false)), Ok(Reply::Done));
    }

    #[test]
    fn again_is_the_same() {
        let mut cluster = Cluster::of(4);
        assert_eq!(cluster.run(leave(4, false)), Ok(Reply::Done));
        assert_eq!(cluster.run(leave(4, false)), Ok(Reply::Done));
    }

    #[test]
    fn refuses_an_unknown_node_and_the_last_one() {
        let mut cluster = Cluster::of(2);
        assert_eq!(cluster.run(leave(7, true)), Err(Reject::NodeNotFound { node: NodeId(7) }));
        cluster.run(leave(1, true)).expect("one stays");
        assert_eq!(cluster.run(leave(2, true)), Err(Reject::LastNode { node: NodeId(2) }));
    }
}
