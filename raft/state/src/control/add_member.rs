//! `AddMember`: a node joins, or comes back under another address.

use super::Control;
use super::command::{Effect, Reply};
use super::members::{MemberRecord, NodeRecord};
use super::step::Step;
use crate::Reject;

/// The most members of a cluster.
const MAX_MEMBERS: usize = 1_024;

impl Control {
    pub(super) fn add_member(&mut self, step: &mut Step, node: NodeRecord) -> Result<Reply, Reject> {
        if step.meta.cluster.is_none() {
            return Err(Reject::NotInitialized);
        }
        node.check()?;
        let id = node.node;
        let (control_replica, leaving) = match self.members.get(&id) {
            Some(member) if member.node == node => {
                return Ok(Reply::Member { control_replica: member.control_replica });
            }
            Some(member) => (member.control_replica, member.leaving),
            None if self.removed.contains(&id) => return Err(Reject::NodeRemoved { node: id }),
            None if self.members.len() >= MAX_MEMBERS => {
                return Err(Reject::LimitReached { what: "members".to_owned(), limit: MAX_MEMBERS as u64 });
            }
            None => (step.mint_replica(), false),
        };
        step.meta.epoch += 1;
        self.members.put(id, MemberRecord { node, control_replica, leaving }, &mut step.changes);
        step.effects.push(Effect::MembersChanged);
        Ok(Reply::Member { control_replica })
    }
}

#[cfg(test)]
mod tests {
    use crate::control::testing::{Cluster, node};
    use crate::control::{Command, NodeRecord, Reply};
    use crate::{NodeId, Reject};

    #[test]
    fn mints_a_replica_id_once_for_each_node() {
        let mut cluster = Cluster::of(1);
        assert_eq!(cluster.run(Command::AddMember { node: node(2) }), Ok(Reply::Member { control_replica: 2 }));
        assert_eq!(cluster.run(Command::AddMember { node: node(3) }), Ok(Reply::Member { control_replica: 3 }));
        let epoch = cluster.state.epoch();
        assert_eq!(cluster.run(Command::AddMember { node: node(2) }), Ok(Reply::Member { control_replica: 2 }));
        assert_eq!(cluster.state.epoch(), epoch, "nothing has changed");
    }

    #[test]
    fn takes_note_of_a_changed_address() {
        let mut cluster = Cluster::of(2);
        let moved = NodeRecord { peer_address: "elsewhere:7".to_owned(), ..node(2) };
        assert_eq!(cluster.run(Command::AddMember { node: moved.clone() }), Ok(Reply::Member { control_replica: 2 }));
        assert_eq!(cluster.state.member(NodeId(2)).expect("a member").node, moved);
    }

    #[test]
    fn a_node_that_was_removed_never_comes_back_under_its_id() {
        let mut cluster = Cluster::of(2);
        cluster.run(Command::RemoveMember { node: NodeId(2) }).expect("it holds nothing");
        let late = cluster.run(Command::AddMember { node: node(2) });
        assert_eq!(late, Err(Reject::NodeRemoved { node: NodeId(2) }));
        assert_eq!(cluster.run(Command::AddMember { node: node(3) }), Ok(Reply::Member { control_replica: 3 }));
    }

    #[test]
    fn refuses_before_the_cluster_is_made_and_without_addresses() {
        assert_eq!(Cluster::empty().run(Command::AddMember { node: node(1) }), Err(Reject::NotInitialized));
        let mute = NodeRecord { client_address: String::new(), ..node(2) };
        let refused = Cluster::of(1).run(Command::AddMember { node: mute });
        assert!(matches!(refused, Err(Reject::InvalidArgument { .. })));
    }
}
