//! The types with which openraft is built here, and their forms on the wire and on disk.
//!
//! One configuration serves all groups: an entry carries opaque bytes, and the machine behind a group gives them a meaning.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::OptionalSend;
use openraft::RaftTypeConfig;
use openraft::impls::{BoxedErrorSource, InlineBatch, OneshotResponder, TokioRuntime};

use crate::ids::{LogPosition, NodeId, ReplicaId};
use crate::machine::Reply;
use crate::proto;

/// A proposal: bytes that only the machine behind the group understands. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Proposal(pub Bytes);

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// Where a replica lives: its node and the peer address, `host:port`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// The node.
    pub node: NodeId,
    /// Where its peers reach it. Only a label: the node is known by its id.
    pub address: String,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.node, self.address)
    }
}

/// The type configuration of all groups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TC;

/// A leader: its term and replica id. Two candidates of one term are ordered, so a split vote needs no new term.
pub type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, ReplicaId>;
/// A vote.
pub type Vote = openraft::impls::Vote<LeaderId>;
/// The identity of an entry.
pub type LogId = openraft::LogId<LeaderId>;
/// What an entry carries.
pub type Payload = EntryPayload<Proposal, ReplicaId, Member>;
/// An entry.
pub type Entry = openraft::Entry<LeaderId, Payload>;
/// Voters and learners of a group.
pub type Membership = openraft::Membership<ReplicaId, Member>;
/// A membership with the entry that made it.
pub type StoredMembership = openraft::StoredMembership<LeaderId, ReplicaId, Member>;

impl RaftTypeConfig for TC {
    type D = Proposal;
    type R = Reply;
    type NodeId = ReplicaId;
    type Node = Member;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = Vote;
    type Payload = Payload;
    type Entry = Entry;
    type AsyncRuntime = TokioRuntime;
    type Responder<T>
        = OneshotResponder<Self, T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = BoxedErrorSource;
}

/// The log id of a position proposed by `leader` in `term`.
pub fn log_id(term: u64, leader: ReplicaId, position: u64) -> LogId {
    LogId { leader_id: LeaderId { term, node_id: leader }, index: position }
}

/// The position of a log id in the words of this crate.
pub fn position_of(id: &LogId) -> LogPosition {
    LogPosition { term: id.leader_id.term, position: id.index }
}

/// A message that was read but does not describe what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed {what}: {detail}; the peer or the disk does not hold what this version writes")]
pub struct Malformed {
    /// The kind of message.
    pub what: &'static str,
    /// What is wrong with it.
    pub detail: String,
}

fn malformed(what: &'static str, detail: impl Into<String>) -> Malformed {
    Malformed { what, detail: detail.into() }
}

impl From<&Vote> for proto::Vote {
    fn from(vote: &Vote) -> Self {
        proto::Vote { term: vote.leader_id.term, leader: vote.leader_id.node_id, committed: vote.committed }
    }
}

impl From<proto::Vote> for Vote {
    fn from(vote: proto::Vote) -> Self {
        Vote { leader_id: LeaderId { term: vote.term, node_id: vote.leader }, committed: vote.committed }
    }
}

impl From<&LogId> for proto::LogId {
    fn from(id: &LogId) -> Self {
        proto::LogId { term: id.leader_id.term, leader: id.leader_id.node_id, position: id.index }
    }
}

impl From<proto::LogId> for LogId {
    fn from(id: proto::LogId) -> Self {
        log_id(id.term, id.leader, id.position)
    }
}

impl From<&Member> for proto::Member {
    fn from(member: &Member) -> Self {
        proto::Member { node: member.node.0, address: member.address.clone() }
    }
}

impl From<proto::Member> for Member {
    fn from(member: proto::Member) -> Self {
        Member { node: NodeId(member.node), address: member.address }
    }
}

impl From<&Membership> for proto::Membership {
    fn from(membership: &Membership) -> Self {
        let configs = membership
            .get_joint_config()
            .iter()
            .map(|voters| proto::Voters { replicas: voters.iter().copied().collect() })
            .collect();
        let members = membership
            .nodes()
            .map(|(replica, member)| proto::Replica { replica: *replica, member: Some(member.into()) })
            .collect();
        proto::Membership { configs, members }
    }
}

impl TryFrom<proto::Membership> for Membership {
    type Error = Malformed;

    /// Refuses a membership with a voter that is no member, or with an empty set of voters.
    fn try_from(message: proto::Membership) -> Result<Self, Malformed> {
        let configs: Vec<BTreeSet<ReplicaId>> =
            message.configs.into_iter().map(|voters| voters.replicas.into_iter().collect()).collect();
        let mut members = BTreeMap::new();
        for replica in message.members {
            let member = replica.member.ok_or_else(|| malformed("membership", "a replica without a member"))?;
            members.insert(replica.replica, Member::from(member));
        }
        // openraft refuses a membership without voters, but it is the one that a pristine replica reports.
        if configs.is_empty() && members.is_empty() {
            return Ok(Membership::default());
        }
        Membership::new(configs, members).map_err(|error| malformed("membership", error.to_string()))
    }
}

impl From<&StoredMembership> for proto::StoredMembership {
    fn from(stored: &StoredMembership) -> Self {
        proto::StoredMembership {
            at: stored.log_id().as_ref().map(Into::into),
            membership: Some(stored.membership().into()),
        }
    }
}

impl TryFrom<proto::StoredMembership> for StoredMembership {
    type Error = Malformed;

    fn try_from(message: proto::StoredMembership) -> Result<Self, Malformed> {
        let membership = message.membership.map(Membership::try_from).transpose()?.unwrap_or_default();
        Ok(StoredMembership::new(message.at.map(Into::into), membership))
    }
}

impl From<&Entry> for proto::Entry {
    /// The proposal's bytes are shared, not copied.
    fn from(entry: &Entry) -> Self {
        let payload = match &entry.payload {
            EntryPayload::Blank => None,
            EntryPayload::Normal(proposal) => Some(proto::entry::Payload::Proposal(proposal.0.clone())),
            EntryPayload::Membership(membership) => Some(proto::entry::Payload::Membership(membership.into())),
        };
        proto::Entry {
            term: entry.log_id.leader_id.term,
            leader: entry.log_id.leader_id.node_id,
            position: entry.log_id.index,
            payload,
        }
    }
}

impl TryFrom<proto::Entry> for Entry {
    type Error = Malformed;

    fn try_from(message: proto::Entry) -> Result<Self, Malformed> {
        let payload = match message.payload {
            None => EntryPayload::Blank,
            Some(proto::entry::Payload::Proposal(bytes)) => EntryPayload::Normal(Proposal(bytes)),
            Some(proto::entry::Payload::Membership(membership)) => EntryPayload::Membership(membership.try_into()?),
        };
        Ok(Entry { log_id: log_id(message.term, message.leader, message.position), payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members() -> BTreeMap<ReplicaId, Member> {
        (1..=4).map(|id| (id, Member { node: NodeId(id * 10), address: format!("host-{id}:7000") })).collect()
    }

    #[test]
    fn vote_and_log_id_survive_the_wire() {
        let vote = Vote { leader_id: LeaderId { term: 7, node_id: 3 }, committed: true };
        assert_eq!(Vote::from(proto::Vote::from(&vote)), vote);
        let id = log_id(7, 3, 99);
        assert_eq!(LogId::from(proto::LogId::from(&id)), id);
    }

    #[test]
    fn joint_membership_with_a_learner_survives_the_wire() {
        let configs = vec![BTreeSet::from([1, 2]), BTreeSet::from([2, 3])];
        let membership = Membership::new(configs, members()).expect("valid");
        let stored = StoredMembership::new(Some(log_id(1, 1, 5)), membership);
        let back = StoredMembership::try_from(proto::StoredMembership::from(&stored)).expect("valid");
        assert_eq!(back, stored);
    }

    #[test]
    fn the_membership_of_a_pristine_replica_survives_the_wire() {
        let stored = StoredMembership::default();
        assert_eq!(StoredMembership::try_from(proto::StoredMembership::from(&stored)).expect("valid"), stored);
    }

    #[test]
    fn a_voter_that_is_no_member_is_refused() {
        let message = proto::Membership { configs: vec![proto::Voters { replicas: vec![9] }], members: vec![] };
        let error = Membership::try_from(message).expect_err("voter 9 is nowhere");
        assert_eq!(error.what, "membership");
    }

    #[test]
    fn entries_survive_the_wire() {
        let membership = Membership::new(vec![BTreeSet::from([1])], members()).expect("valid");
        for payload in [
            EntryPayload::Blank,
            EntryPayload::Normal(Proposal(Bytes::from_static(b"x"))),
            EntryPayload::Normal(Proposal(Bytes::new())),
            EntryPayload::Membership(membership),
        ] {
            let entry = Entry { log_id: log_id(2, 1, 8), payload };
            assert_eq!(Entry::try_from(proto::Entry::from(&entry)).expect("valid"), entry);
        }
    }
}
