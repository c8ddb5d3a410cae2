//! Commit on quorum: what a replica applies is durable on a majority of the voters, asked of the disks themselves; and it
//! stays there, so that no crash loses what was acknowledged.

use std::collections::{BTreeMap, BTreeSet};

use quorate_raft::{GroupId, ReplicaId};

use super::logs::Logs;
use super::{Disks, Id, Voters, Wrong, is_quorum};

/// Committed entries of each group that are looked at again when a node was lost.
const TAIL: usize = 48;

/// The voters in force at the committed entries.
#[derive(Debug, Default)]
pub(crate) struct Quorums {
    /// The memberships that were committed, by position.
    voters: BTreeMap<(GroupId, u64), Voters>,
    /// The last committed entries.
    tail: BTreeMap<GroupId, BTreeMap<u64, Id>>,
}

/// The replicas whose disks have the entry, or a state that reflects it.
pub(crate) fn holders(disks: &dyn Disks, group: GroupId, entry: Id) -> BTreeSet<ReplicaId> {
    let holds = |node: &usize| {
        let covered = |upto: Option<u64>| upto.is_some_and(|upto| upto >= entry.position);
        disks.record(*node, group, entry.position).is_some_and(|record| Id::of(&record) == entry)
            || covered(disks.purged(*node, group))
            || covered(disks.flushed(*node, group))
    };
    (0..disks.count()).filter(holds).filter_map(|node| disks.owner(node, group)).collect()
}

impl Quorums {
    /// An entry is applied for the first time anywhere.
    pub(crate) fn applied(&mut self, disks: &dyn Disks, logs: &Logs, group: GroupId, entry: Id) -> Wrong {
        if let Some(voters) = logs.voters(group, entry) {
            self.voters.insert((group, entry.position), voters.clone());
        }
        let tail = self.tail.entry(group).or_default();
        tail.insert(entry.position, entry);
        if tail.len() > TAIL {
            tail.pop_first();
        }
        self.check(disks, logs, group, entry, "commit on quorum")
    }

    /// A node was lost: what was committed of late must still be on a quorum.
    pub(crate) fn look_again(&self, disks: &dyn Disks, logs: &Logs) -> Wrong {
        let entries = self.tail.iter().flat_map(|(group, tail)| tail.values().map(|entry| (*group, *entry)));
        entries.flat_map(|(group, entry)| self.check(disks, logs, group, entry, "durability")).take(3).collect()
    }

    /// The voters that were in force at an entry; `None` before the first membership.
    pub(crate) fn voters_at(&self, group: GroupId, position: u64) -> Option<&Voters> {
        self.voters.range((group, 0)..=(group, position)).next_back().map(|(_, voters)| voters)
    }

    fn check(&self, disks: &dyn Disks, logs: &Logs, group: GroupId, entry: Id, promise: &str) -> Wrong {
        let Some(voters) = self.voters_at(group, entry.position) else {
            return vec![format!("{promise}: {entry} of group {group} is applied and there are no voters")];
        };
        let holders = holders(disks, group, entry);
        // A later membership counts from its append on, so an earlier entry may be committed by its quorum.
        let later = || logs.later_voters(group, entry.position).any(|voters| is_quorum(voters, &holders));
        if is_quorum(voters, &holders) || later() {
            return Wrong::new();
        }
        vec![format!("{promise}: {entry} of group {group} is applied and only {holders:?} of {voters:?} hold it")]
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fake, GROUP, record, voters};
    use super::*;
    use quorate_raft::memory::RecordView;

    fn made() -> (Fake, Logs, Quorums) {
        let mut disks = Fake::of(3);
        let mut logs = Logs::default();
        let mut quorums = Quorums::default();
        let membership = RecordView { voters: Some(voters()), ..record(0, 1, 1) };
        for node in 0..3 {
            disks.put(node, membership.clone());
            logs.appended(node, GROUP, &membership);
        }
        assert_eq!(quorums.applied(&disks, &logs, GROUP, Id::of(&membership)), Wrong::new());
        (disks, logs, quorums)
    }

    #[test]
    fn an_entry_on_a_minority_is_seen() {
        let (mut disks, logs, mut quorums) = made();
        let entry = record(1, 1, 1);
        disks.put(0, entry.clone());
        disks.put(1, record(1, 2, 2));
        let wrong = quorums.applied(&disks, &logs, GROUP, Id::of(&entry));
        assert!(wrong[0].contains("commit on quorum"), "{wrong:?}");
        disks.put(1, entry.clone());
        assert_eq!(quorums.applied(&disks, &logs, GROUP, Id::of(&entry)), Wrong::new());
    }

    #[test]
    fn an_entry_that_a_crash_takes_is_seen() {
        let (mut disks, logs, mut quorums) = made();
        let entry = record(1, 1, 1);
        disks.put(0, entry.clone());
        disks.put(1, entry.clone());
        assert_eq!(quorums.applied(&disks, &logs, GROUP, Id::of(&entry)), Wrong::new());
        disks.0[1].records.remove(&1);
        assert!(quorums.look_again(&disks, &logs)[0].contains("durability"));
        disks.0[1].flushed = Some(1);
        assert_eq!(quorums.look_again(&disks, &logs), Wrong::new(), "its state reflects it");
    }

    #[test]
    fn a_joint_membership_needs_both_majorities() {
        let joint: Voters = vec![[1, 2, 3].into(), [3, 4, 5].into()];
        assert!(!is_quorum(&joint, &[1, 2].into()));
        assert!(!is_quorum(&joint, &[3, 4].into()));
        assert!(is_quorum(&joint, &[1, 3, 4].into()));
        assert!(!is_quorum(&Voters::new(), &[1].into()));
    }
}
