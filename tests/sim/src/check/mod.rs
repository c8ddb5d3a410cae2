//! The checkers: what must hold of what is seen, each in a file, each with a test that it can fail.
//!
//! | file | promise |
//! |---|---|
//! | [`logs`] | log matching: the same entry stands on the same log, wherever it is |
//! | [`votes`] | a vote is never taken back; a leader has the votes of a quorum on disk |
//! | [`completeness`] | a leader has every entry that was committed before it |
//! | [`quorum`] | what is applied is on the disks of a quorum, and stays there |
//! | [`machines`] | replicas apply the same entries and have the same state and rows |
//! | [`log_time`] | log time never runs ahead of the leader's clock by more than 5%, whatever wall clocks do |
//! | [`ends`] | a log is written at its end, or behind a truncation |
//! | [`leads`] | who acts as a leader has applied an entry of its own term |
//! | [`sessions`] | a session ends by a proposal, when its agent has given its lease up or closed it |
//! | [`leases`] | nobody performs a task while somebody else was granted it |
//! | [`points`] | memory points: what the log says, and what clients may read of it |
//! | [`registers`] | memory points again, by nothing but what clients saw: linearizable by key |

pub(crate) mod completeness;
pub(crate) mod ends;
pub(crate) mod leads;
pub(crate) mod leases;
pub(crate) mod log_time;
pub(crate) mod logs;
pub(crate) mod machines;
pub(crate) mod names;
pub(crate) mod points;
pub(crate) mod quorum;
pub(crate) mod registers;
pub(crate) mod sessions;
pub(crate) mod votes;

#[cfg(test)]
pub(crate) mod fake;

use std::collections::BTreeSet;

use quorate_raft::memory::{RecordView, VoteView};
use quorate_raft::{GroupId, LogPosition, ReplicaId};

/// What is wrong, a sentence each.
pub(crate) type Wrong = Vec<String>;

/// The disks of all nodes as a restart would find them. A node has a number; a replica that owns a log there has an id.
pub(crate) trait Disks {
    /// How many there are.
    fn count(&self) -> usize;
    /// Whose log of the group it is.
    fn owner(&self, node: usize, group: GroupId) -> Option<ReplicaId>;
    /// A whole record.
    fn record(&self, node: usize, group: GroupId, position: u64) -> Option<RecordView>;
    /// The last record's position.
    fn last(&self, node: usize, group: GroupId) -> Option<u64>;
    /// The last purged position.
    fn purged(&self, node: usize, group: GroupId) -> Option<u64>;
    /// What the durable state reflects.
    fn flushed(&self, node: usize, group: GroupId) -> Option<u64>;
    /// The vote.
    fn vote(&self, node: usize, group: GroupId) -> Option<VoteView>;
    /// What replicas of the group held whose disks were damaged, as long as they are out of service.
    fn lost(&self, _group: GroupId) -> Vec<Lost> {
        Vec::new()
    }
}

/// What a replica had on its disk before that was damaged: it took part in what was decided by then, and in nothing since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lost {
    /// The replica.
    pub(crate) replica: ReplicaId,
    /// The last position that it held.
    pub(crate) upto: Option<u64>,
    /// Its vote.
    pub(crate) vote: Option<VoteView>,
}

/// Who proposed an entry and where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id {
    /// Its position.
    pub(crate) position: u64,
    /// The term of its leader.
    pub(crate) term: u64,
    /// Its leader.
    pub(crate) leader: ReplicaId,
}

impl Id {
    /// The id of an entry.
    pub(crate) fn new(at: LogPosition, leader: ReplicaId) -> Id {
        Id { position: at.position, term: at.term, leader }
    }

    /// The id of a record.
    pub(crate) fn of(record: &RecordView) -> Id {
        Id::new(record.at, record.leader)
    }

    /// The leader with its term, in the order in which leaders follow each other.
    pub(crate) fn lead(self) -> (u64, ReplicaId) {
        (self.term, self.leader)
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "position {} of leader {} in term {}", self.position, self.leader, self.term)
    }
}

/// The voters of a configuration: one set, or two while it is joint.
pub(crate) type Voters = Vec<BTreeSet<ReplicaId>>;

/// Whether these replicas are a majority of each set.
pub(crate) fn is_quorum(voters: &Voters, replicas: &BTreeSet<ReplicaId>) -> bool {
    !voters.is_empty() && voters.iter().all(|set| 2 * set.intersection(replicas).count() > set.len())
}
