//! What a checker reads off a [`MemoryLog`]: the disk as a restart would find it, whoever owns it now.

use std::collections::BTreeSet;

use bytes::Bytes;
use openraft::EntryPayload;

use super::MemoryLog;
use crate::engine::{LogChange, MarkKind};
use crate::ids::{GroupId, LogPosition, ReplicaId};
use crate::log::{mark, record};
use crate::proto;
use crate::types::{Vote, position_of};

/// A whole record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordView {
    /// Where its entry is in the log.
    pub at: LogPosition,
    /// The leader that proposed it.
    pub leader: ReplicaId,
    /// A checksum of the entry alone: the same in every log that has it.
    pub content: u32,
    /// The proposal; `None` for an entry of Raft's own.
    pub payload: Option<Bytes>,
    /// The sets of voters, if the entry changes the members: two of them while it is joint.
    pub voters: Option<Vec<BTreeSet<ReplicaId>>>,
}

/// A vote. Ordered as Raft orders votes, but for `committed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct VoteView {
    /// The term.
    pub term: u64,
    /// For whom.
    pub leader: ReplicaId,
    /// Whether it is known that a quorum granted it.
    pub committed: bool,
}

fn view(group: GroupId, position: u64, bytes: &Bytes) -> Option<RecordView> {
    let record = record::decode(group, position, bytes).ok()?;
    let content = crc32c::crc32c(bytes.get(record::HEADER_BYTES..)?);
    let (payload, voters) = match record.entry.payload {
        EntryPayload::Blank => (None, None),
        EntryPayload::Normal(proposal) => (Some(proposal.0), None),
        EntryPayload::Membership(membership) => (None, Some(membership.get_joint_config().clone())),
    };
    let id = &record.entry.log_id;
    Some(RecordView { at: position_of(id), leader: id.leader_id.node_id, content, payload, voters })
}

/// The record that a change appends; `None` for another change and for a torn record.
pub fn view_change(change: &LogChange) -> Option<(GroupId, RecordView)> {
    match change {
        LogChange::Append { group, position, record } => Some((*group, view(*group, *position, record)?)),
        _ => None,
    }
}

impl MemoryLog {
    /// The record at a position, if there is a whole one.
    pub fn record(&self, group: GroupId, position: u64) -> Option<RecordView> {
        let disk = self.disk.lock();
        view(group, position, disk.platter().records.get(&(group, position))?)
    }

    /// The last position of a group that has a record.
    pub fn last_position(&self, group: GroupId) -> Option<u64> {
        let disk = self.disk.lock();
        let last = disk.platter().records.range((group, 0)..=(group, u64::MAX)).next_back();
        last.map(|((_, position), _)| *position)
    }

    /// The vote of a group's replica.
    pub fn vote(&self, group: GroupId) -> Option<VoteView> {
        let vote = Vote::from(self.mark_of::<proto::Vote>(group, MarkKind::Vote)?);
        Some(VoteView { term: vote.leader_id.term, leader: vote.leader_id.node_id, committed: vote.committed })
    }

    /// The last purged position of a group.
    pub fn purged(&self, group: GroupId) -> Option<u64> {
        self.mark_of::<proto::PurgedMark>(group, MarkKind::Purged)?.at.map(|at| at.position)
    }

    /// The replica that owns a group's log.
    pub fn owner(&self, group: GroupId) -> Option<ReplicaId> {
        self.mark_of::<proto::ReplicaMark>(group, MarkKind::Replica).map(|mark| mark.replica)
    }

    fn mark_of<M: prost::Message + Default>(&self, group: GroupId, kind: MarkKind) -> Option<M> {
        let disk = self.disk.lock();
        mark::decode(disk.platter().marks.get(&(group, kind))?).ok()
    }
}
