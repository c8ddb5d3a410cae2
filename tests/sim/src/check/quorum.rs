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
    let here = (0..disks.count()).filter(holds).filter_map(|node| disks.owner(node, group));
    let lost = disks.lost(group).into_iter().filter(|lost| lost.upto.is_some_and(|upto| upto >= entry.position));
    here.chain(lost.map(|lost| lost.replica)).collect()
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
        self.membership_at(group, position).map(|(_, voters)| voters)
    }

    /// The same, with the position of the membership.
    fn membership_at(&self, group: GroupId, position: u64) -> Option<(u64, &Voters)> {
        let mut memberships = self.voters.range((group, 0)..=(group, position));
        memberships.next_back().map(|((_, at), voters)| (*at, voters))
    }

    fn check(&self, disks: &dyn Disks, logs: &Logs, group: GroupId, entry: Id, promise: &str) -> Wrong {
        let Some((set_at, voters)) = self.membership_at(group, entry.position) else {
            return vec![format!("{promise}: {entry} of group {group} is applied and there are no voters")];
        };
        let holders = holders(disks, group, entry);
        // A later membership counts from its append on, so an earlier entry may be committed by its quorum.
        let later = || logs.later_voters(group, entry.position).any(|voters| is_quorum(voters, &holders));
        // The leader may have appended what ends a joint membership, and counts by it, before any disk has that: the new
        // voters alone decide then. Whoever leads next, by the joint membership too, needs one of their majority.
        let new = || voters.last().filter(|_| voters.len() > 1 && set_at < entry.position).cloned();
        let by_new = || new().is_some_and(|new| is_quorum(&vec![new], &holders));
        if is_quorum(voters, &holders) || later() || by_new() {
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

    #[test]
    fn behind_a_committed_joint_membership_the_new_voters_may_decide() {
        let (mut disks, mut logs, mut quorums) = made();
        let joint = RecordView { voters: Some(vec![voters()[0].clone(), [2, 3, 4].into()]), ..record(1, 1, 1) };
        let entry = record(2, 1, 1);
        disks.0.push(Fake::of(4).0.remove(3));
        for node in [2, 3] {
            disks.put(node, joint.clone());
            logs.appended(node, GROUP, &joint);
            disks.put(node, entry.clone());
        }
        assert!(!quorums.applied(&disks, &logs, GROUP, Id::of(&joint)).is_empty(), "it needs both majorities itself");
        disks.put(1, joint.clone());
        assert_eq!(quorums.applied(&disks, &logs, GROUP, Id::of(&joint)), Wrong::new());
        assert_eq!(quorums.applied(&disks, &logs, GROUP, Id::of(&entry)), Wrong::new());
        disks.0[3].records.remove(&2);
        assert!(!quorums.applied(&disks, &logs, GROUP, Id::of(&entry)).is_empty());
    }
}
