//! Leader completeness: a leader's log has every entry that an earlier leader has committed. Leaders of one term follow each
//! other too, by their ids: who was left for a later one of its term may hear late that it was elected, and can commit nothing.

use quorate_raft::{GroupId, ReplicaId};

use super::{Disks, Id, Wrong};

/// A term, and the leader in it.
type Lead = (u64, ReplicaId);

/// The leader of `first`, its first entry, has it durable on `node`, and so everything before it: the committed entries among
/// that must be there (each comes with the leader that has committed it), unless they were purged, or damaged under the replica,
/// which cannot know that before it reads them: it held them until then, and is out of service from then on.
pub(crate) fn leads(
    disks: &dyn Disks,
    node: usize,
    group: GroupId,
    first: Id,
    committed: impl Iterator<Item = (Id, Lead)>,
) -> Wrong {
    let purged = disks.purged(node, group);
    let owner = disks.owner(node, group);
    let damaged = disks.lost(group).into_iter().find(|lost| Some(lost.replica) == owner).and_then(|lost| lost.upto);
    let missing = |(entry, by): &(Id, Lead)| {
        if *by >= first.lead() || purged.is_some_and(|purged| entry.position <= purged) {
            return false;
        }
        let is_rotten = || damaged.min(disks.last(node, group)) >= Some(entry.position);
        entry.position >= first.position
            || disks
                .record(node, group, entry.position)
                .map_or_else(|| !is_rotten(), |record| Id::of(&record) != *entry)
    };
    committed
        .filter(missing)
        .take(1)
        .map(|(entry, _)| {
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
        let leads_after =
            |disks: &Fake, first, by: Lead| leads(disks, 0, GROUP, first, committed.iter().map(|entry| (*entry, by)));
        let leads = |disks: &Fake, first| leads_after(disks, first, (1, 2));
        for position in 5..=7 {
            disks.put(0, record(position, 1, 2));
        }
        assert_eq!(leads(&disks, first), Wrong::new());
        disks.put(0, record(7, 1, 3));
        assert!(leads(&disks, first)[0].contains("leader completeness"), "another entry stands there");
        disks.0[0].records.remove(&7);
        assert!(!leads(&disks, first).is_empty(), "nothing stands there");
        assert_eq!(leads_after(&disks, first, (2, 3)), Wrong::new(), "a later leader of its term has committed it");
        assert!(!leads(&disks, Id { position: 7, ..first }).is_empty(), "it begins before a committed entry");
        disks.0[0].damaged = Some(7);
        assert!(!leads(&disks, first).is_empty(), "its log ends before that");
        disks.put(0, record(8, 2, 1));
        assert_eq!(leads(&disks, first), Wrong::new(), "it has rotted there");
        disks.0[0].damaged = Some(6);
        assert!(!leads(&disks, first).is_empty(), "it never had that");
        disks.0[0].purged = Some(7);
        assert_eq!(leads(&disks, first), Wrong::new());
    }
}
