//! Log matching: an entry of one leader at one position is one entry, and all logs that hold it are equal up to it.
//!
//! By induction: the same entry has the same content and the same entry before it in every log.

use std::collections::BTreeMap;

use quorate_raft::GroupId;
use quorate_raft::memory::RecordView;

use super::{Disks, Id, Voters, Wrong};

/// Everything that was ever durable anywhere.
#[derive(Debug, Default)]
pub(crate) struct Logs {
    seen: BTreeMap<(GroupId, Id), u32>,
    /// The entry before each, where a log has one.
    before: BTreeMap<(GroupId, Id), Id>,
    /// The last entry of each log, if it is known.
    last: BTreeMap<(usize, GroupId), Id>,
    /// The memberships among them.
    voters: BTreeMap<(GroupId, Id), Voters>,
}

impl Logs {
    /// A record has become durable on a node.
    pub(crate) fn appended(&mut self, node: usize, group: GroupId, record: &RecordView) -> Wrong {
        let id = Id::of(record);
        let mut wrong = Wrong::new();
        let content = *self.seen.entry((group, id)).or_insert(record.content);
        if content != record.content {
            wrong.push(format!(
                "log matching: node-{} has at {id} of group {group} a record with content {:08x}, another node one with {content:08x}",
                node + 1,
                record.content
            ));
        }
        let last = self.last.insert((node, group), id);
        if let Some(mine) = last.filter(|last| last.position + 1 == id.position) {
            let before = *self.before.entry((group, id)).or_insert(mine);
            if before != mine {
                wrong.push(format!(
                    "log matching: before {id} of group {group} stands {mine} on node-{} and {before} on another node",
                    node + 1
                ));
            }
        }
        if let Some(voters) = &record.voters {
            self.voters.insert((group, id), voters.clone());
        }
        wrong
    }

    /// The end of a log has changed otherwise.
    pub(crate) fn cut(&mut self, node: usize, group: GroupId) {
        self.last.remove(&(node, group));
    }

    /// The voters that an entry sets, if it is a membership.
    pub(crate) fn voters(&self, group: GroupId, id: Id) -> Option<&Voters> {
        self.voters.get(&(group, id))
    }

    /// The last membership below a position in the log of a node, as far as it is not purged there.
    pub(crate) fn voters_below(&self, disks: &dyn Disks, node: usize, group: GroupId, below: u64) -> Option<&Voters> {
        let first = (group, Id { position: 0, term: 0, leader: 0 });
        let end = (group, Id { position: below, term: 0, leader: 0 });
        let mut found = self.voters.range(first..end).rev();
        let (_, voters) = found
            .find(|((_, id), _)| disks.record(node, group, id.position).is_some_and(|record| Id::of(&record) == *id))?;
        Some(voters)
    }

    /// The memberships at greater positions, committed or not.
    pub(crate) fn later_voters(&self, group: GroupId, position: u64) -> impl Iterator<Item = &Voters> {
        let after = Id { position: position + 1, term: 0, leader: 0 };
        let end = (group, Id { position: u64::MAX, term: u64::MAX, leader: u64::MAX });
        self.voters.range((group, after)..=end).map(|(_, voters)| voters)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fake, GROUP, record};
    use super::*;

    #[test]
    fn the_same_record_everywhere_is_right_and_another_one_is_not() {
        let mut logs = Logs::default();
        assert_eq!(logs.appended(0, GROUP, &record(5, 2, 1)), Wrong::new());
        assert_eq!(logs.appended(1, GROUP, &record(5, 2, 1)), Wrong::new());
        assert_eq!(logs.appended(1, GROUP, &record(5, 3, 2)), Wrong::new(), "another leader may overwrite it");
        let other = RecordView { content: 7, ..record(5, 2, 1) };
        assert!(logs.appended(2, GROUP, &other)[0].contains("log matching"));
    }

    #[test]
    fn logs_that_differ_before_the_same_record_are_seen() {
        let mut logs = Logs::default();
        for (node, term) in [(0, 1), (1, 2), (2, 2)] {
            assert_eq!(logs.appended(node, GROUP, &record(5, term, 1)), Wrong::new());
        }
        assert_eq!(logs.appended(0, GROUP, &record(6, 3, 1)), Wrong::new());
        logs.cut(2, GROUP);
        assert_eq!(logs.appended(2, GROUP, &record(6, 3, 1)), Wrong::new(), "what is before it is not known");
        assert!(logs.appended(1, GROUP, &record(6, 3, 1))[0].contains("log matching: before"));
    }

    #[test]
    fn memberships_are_found_again() {
        let mut logs = Logs::default();
        let membership = RecordView { voters: Some(vec![[1, 2].into()]), ..record(4, 1, 1) };
        logs.appended(0, GROUP, &membership);
        assert!(logs.voters(GROUP, Id::of(&membership)).is_some());
        assert_eq!(logs.later_voters(GROUP, 3).count(), 1);
        assert_eq!(logs.later_voters(GROUP, 4).count(), 0);
        let mut disks = Fake::of(2);
        disks.put(0, membership);
        assert!(logs.voters_below(&disks, 0, GROUP, 5).is_some());
        assert!(logs.voters_below(&disks, 0, GROUP, 4).is_none());
        assert!(logs.voters_below(&disks, 1, GROUP, 5).is_none(), "another log");
    }
}
