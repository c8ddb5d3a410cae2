//! Disks for the tests of checkers.

use std::collections::BTreeMap;

use super::{Disks, Lost, Voters};
use quorate_raft::memory::{RecordView, VoteView};
use quorate_raft::{GroupId, LogPosition, ReplicaId};

/// The group of the tests.
pub(crate) const GROUP: GroupId = GroupId(1);

/// A record; records of the same leader at the same position are equal unless `content` says otherwise.
pub(crate) fn record(position: u64, term: u64, leader: ReplicaId) -> RecordView {
    let content = (position * 1_000 + term * 10 + leader) as u32;
    RecordView { at: LogPosition { term, position }, leader, content, payload: None, voters: None }
}

/// The voters 1, 2 and 3.
pub(crate) fn voters() -> Voters {
    vec![[1, 2, 3].into()]
}

#[derive(Debug, Default, Clone)]
pub(crate) struct Disk {
    pub(crate) owner: Option<ReplicaId>,
    pub(crate) records: BTreeMap<u64, RecordView>,
    pub(crate) purged: Option<u64>,
    pub(crate) flushed: Option<u64>,
    pub(crate) vote: Option<VoteView>,
    /// Up to where the replica had the log before its disk was damaged.
    pub(crate) damaged: Option<u64>,
}

/// Disks of one group.
#[derive(Debug, Default)]
pub(crate) struct Fake(pub(crate) Vec<Disk>);

impl Fake {
    /// Replica 1 on node 0, and so on.
    pub(crate) fn of(count: u64) -> Fake {
        Fake((1..=count).map(|replica| Disk { owner: Some(replica), ..Disk::default() }).collect())
    }

    /// Puts a record on a node's disk.
    pub(crate) fn put(&mut self, node: usize, record: RecordView) {
        self.0[node].records.insert(record.at.position, record);
    }
}

impl Disks for Fake {
    fn count(&self) -> usize {
        self.0.len()
    }
    fn owner(&self, node: usize, _: GroupId) -> Option<ReplicaId> {
        self.0[node].owner
    }
    fn record(&self, node: usize, _: GroupId, position: u64) -> Option<RecordView> {
        self.0[node].records.get(&position).cloned()
    }
    fn lost(&self, _: GroupId) -> Vec<Lost> {
        let lost = |disk: &Disk| Some(Lost { replica: disk.owner?, upto: Some(disk.damaged?), vote: disk.vote });
        self.0.iter().filter_map(lost).collect()
    }
    fn last(&self, node: usize, _: GroupId) -> Option<u64> {
        self.0[node].records.keys().next_back().copied()
    }
    fn purged(&self, node: usize, _: GroupId) -> Option<u64> {
        self.0[node].purged
    }
    fn flushed(&self, node: usize, _: GroupId) -> Option<u64> {
        self.0[node].flushed
    }
    fn vote(&self, node: usize, _: GroupId) -> Option<VoteView> {
        self.0[node].vote
    }
}
