//! Election safety: a vote on disk is never taken back, and who leads has the votes of a quorum on disk.

use std::collections::{BTreeMap, BTreeSet};

use quorate_raft::GroupId;
use quorate_raft::memory::VoteView;

use super::{Disks, Id, Voters, Wrong, is_quorum};

/// The votes of all replicas.
#[derive(Debug, Default)]
pub(crate) struct Votes {
    last: BTreeMap<(GroupId, u64), VoteView>,
}

impl Votes {
    /// A replica's vote has become durable.
    pub(crate) fn voted(&mut self, node: usize, group: GroupId, replica: u64, vote: VoteView) -> Wrong {
        let before = self.last.insert((group, replica), vote);
        match before {
            Some(before) if (vote.term, vote.leader) < (before.term, before.leader) => vec![format!(
                "election safety: replica {replica} of group {group} on node-{} votes {vote:?} after {before:?}",
                node + 1
            )],
            _ => Wrong::new(),
        }
    }

    /// The first entry of a leader has become durable on its own disk: a quorum must have voted for it, or for a later one.
    pub(crate) fn leads(&self, disks: &dyn Disks, group: GroupId, first: Id, voters: &Voters) -> Wrong {
        let granted = |vote: Option<VoteView>| vote.is_some_and(|vote| (vote.term, vote.leader) >= first.lead());
        let granted: BTreeSet<u64> = (0..disks.count())
            .filter(|node| granted(disks.vote(*node, group)))
            .filter_map(|node| disks.owner(node, group))
            .chain(disks.lost(group).into_iter().filter(|lost| granted(lost.vote)).map(|lost| lost.replica))
            .collect();
        if is_quorum(voters, &granted) {
            return Wrong::new();
        }
        vec![format!(
            "election safety: replica {} leads group {group} in term {} with the votes of {granted:?} among {voters:?}",
            first.leader, first.term
        )]
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fake, GROUP, voters};
    use super::*;

    fn vote(term: u64, leader: u64) -> VoteView {
        VoteView { term, leader, committed: false }
    }

    #[test]
    fn a_vote_that_is_taken_back_is_seen() {
        let mut votes = Votes::default();
        assert_eq!(votes.voted(0, GROUP, 1, vote(3, 2)), Wrong::new());
        assert_eq!(votes.voted(0, GROUP, 1, vote(3, 3)), Wrong::new(), "a later candidate of the term");
        assert_eq!(votes.voted(0, GROUP, 2, vote(3, 1)), Wrong::new(), "another replica");
        assert!(votes.voted(0, GROUP, 1, vote(3, 2))[0].contains("election safety"));
    }

    #[test]
    fn a_leader_without_a_quorum_is_seen() {
        let mut disks = Fake::of(3);
        disks.0[0].vote = Some(vote(4, 1));
        let first = Id { position: 9, term: 4, leader: 1 };
        let votes = Votes::default();
        assert!(votes.leads(&disks, GROUP, first, &voters())[0].contains("election safety"));
        disks.0[2].vote = Some(vote(3, 9));
        assert!(!votes.leads(&disks, GROUP, first, &voters()).is_empty(), "a vote of an earlier term");
        disks.0[2].vote = Some(vote(5, 2));
        assert_eq!(votes.leads(&disks, GROUP, first, &voters()), Wrong::new(), "it has voted again since");
    }
}
