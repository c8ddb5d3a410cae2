//! Leader completeness: a leader's log has every entry that was committed under an earlier leader.

use quorate_raft::GroupId;

use super::{Disks, Id, Wrong};

/// The leader of `first`, its first entry, has it durable on `node`, and so everything before it: the committed entries among
/// that must be there, unless they were purged.
pub(crate) fn leads(
    disks: &dyn Disks,
    node: usize,
    group: GroupId,
    first: Id,
    committed: impl Iterator<Item = Id>,
) -> Wrong {
    let purged = disks.purged(node, group);
    let missing = |entry: &Id| {
        if entry.lead() >= first.lead() || purged.is_some_and(|purged| entry.position <= purged) {
            return false;
        }
        entry.position >= first.position
            || disks.record(node, group, entry.position).is_none_or(|record| Id::of(&record) != *entry)
    };
    committed
        .filter(missing)
        .take(1)
        .map(|entry| {
            format!(
                "leader completeness: node-{} leads group {group} from {first} on and does not have the committed {entry}",
                node + 1
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fake, GROUP, record};
    use super::*;

    #[test]
    fn a_committed_entry_that_a_leader_lacks_is_seen() {
        let mut disks = Fake::of(3);
        let committed: Vec<Id> = (5..=7).map(|position| Id { position, term: 1, leader: 2 }).collect();
        let first = Id { position: 8, term: 2, leader: 1 };
        let leads = |disks: &Fake, first| leads(disks, 0, GROUP, first, committed.iter().copied());
        for position in 5..=7 {
            disks.put(0, record(position, 1, 2));
        }
        assert_eq!(leads(&disks, first), Wrong::new());
        disks.put(0, record(7, 1, 3));
        assert!(leads(&disks, first)[0].contains("leader completeness"), "another entry stands there");
        disks.0[0].records.remove(&7);
        assert!(!leads(&disks, first).is_empty(), "nothing stands there");
        assert!(!leads(&disks, Id { position: 7, ..first }).is_empty(), "it begins before a committed entry");
        disks.0[0].purged = Some(7);
        assert_eq!(leads(&disks, first), Wrong::new());
    }
}
