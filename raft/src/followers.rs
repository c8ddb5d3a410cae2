//! Who follows this replica while it leads, and since when: the ground of its lease and of its reads.
//!
//! openraft keeps such times too, but credits an answer to the latest request that it covers, and a request without entries,
//! by which a follower hears of commits, is covered by the answer to the one before it. A leader that was suspended while
//! another one was elected reads the answers from before when it wakes, and would take itself for followed. Here an answer
//! counts for the request that it answers, and for the moment at which that one was sent.
//!
//! The lease is that of the Raft dissertation, section 6.4.1: whoever has answered a request votes for nobody else until an
//! election maximum after it. A leadership that is handed over ends that promise, so the lease ends before the successor is
//! told ([`Followers::forfeit`]); and a replica that was restarted does not know what it has answered, so it rests as long
//! (`start`).

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::ids::ReplicaId;
use crate::types::Membership;

/// The last request of each replica that it answered as a follower.
#[derive(Default)]
pub(crate) struct Followers {
    /// The term of the request, and when it was sent.
    answered: Mutex<BTreeMap<ReplicaId, (u64, Instant)>>,
    news: Notify,
    /// How often the leadership is being given up just now: then no term has a lease.
    ending: AtomicUsize,
    /// The last term whose lease was given up.
    forfeited: AtomicU64,
}

impl Followers {
    /// A replica has answered, as a follower, what this leader of `term` sent it at `sent`.
    pub(crate) fn answered(&self, replica: ReplicaId, term: u64, sent: Instant) {
        let mut answered = self.answered.lock();
        let last = answered.entry(replica).or_insert((term, sent));
        *last = (*last).max((term, sent));
        drop(answered);
        self.news.notify_waiters();
    }

    /// Whether a majority, in both sets of voters while they change, follows `leader` in `term` by requests sent when `counts`
    /// says.
    pub(crate) fn are_majority(
        &self,
        leader: ReplicaId,
        term: u64,
        membership: &Membership,
        counts: impl Fn(Instant) -> bool,
    ) -> bool {
        let answered = self.answered.lock();
        let follows = |voter: &ReplicaId| {
            *voter == leader || answered.get(voter).is_some_and(|(of, sent)| *of == term && counts(*sent))
        };
        membership
            .get_joint_config()
            .iter()
            .all(|voters| 2 * voters.iter().filter(|v| follows(v)).count() > voters.len())
    }

    /// Resolves at the next answer after this was called.
    pub(crate) fn news(&self) -> impl Future<Output = ()> {
        self.news.notified()
    }

    /// Ends every lease until the returned guard goes, and those up to `term` for good.
    pub(crate) fn forfeit(&self, term: u64) -> Forfeit<'_> {
        self.ending.fetch_add(1, Ordering::SeqCst);
        Forfeit { followers: self, term }
    }

    /// Whether the leader of `term` can have no lease any more.
    pub(crate) fn is_forfeited(&self, term: u64) -> bool {
        self.ending.load(Ordering::SeqCst) > 0 || term <= self.forfeited.load(Ordering::SeqCst)
    }
}

/// A leadership is being given up.
pub(crate) struct Forfeit<'a> {
    followers: &'a Followers,
    term: u64,
}

impl Drop for Forfeit<'_> {
    fn drop(&mut self) {
        // In this order, so that there is no moment at which the term seems to have its lease again.
        self.followers.forfeited.fetch_max(self.term, Ordering::SeqCst);
        self.followers.ending.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;
    use crate::ids::NodeId;
    use crate::types::Member;

    fn membership(configs: &[&[ReplicaId]]) -> Membership {
        let configs: Vec<BTreeSet<ReplicaId>> = configs.iter().map(|voters| voters.iter().copied().collect()).collect();
        let member = |replica: &ReplicaId| (*replica, Member { node: NodeId(*replica), address: String::new() });
        let members: BTreeMap<ReplicaId, Member> = configs.iter().flatten().map(member).collect();
        Membership::new(configs, members).expect("every voter is a member")
    }

    #[test]
    fn a_majority_of_each_set_of_voters_has_to_follow_in_the_term() {
        let followers = Followers::default();
        let now = Instant::now();
        let (three, joint) = (membership(&[&[1, 2, 3]]), membership(&[&[1, 2, 3], &[1, 4, 5]]));
        let since = |sent: Instant| sent >= now;
        assert!(followers.are_majority(1, 7, &membership(&[&[1]]), since), "alone it is the majority");
        assert!(!followers.are_majority(1, 7, &three, since));
        followers.answered(2, 6, now);
        assert!(!followers.are_majority(1, 7, &three, since), "it answered in an earlier term");
        followers.answered(2, 7, now - Duration::from_secs(1));
        assert!(!followers.are_majority(1, 7, &three, since), "it was asked too early");
        followers.answered(2, 7, now);
        followers.answered(2, 7, now - Duration::from_secs(1));
        assert!(followers.are_majority(1, 7, &three, since), "a late answer takes nothing back");
        assert!(!followers.are_majority(1, 7, &joint, since));
        followers.answered(5, 7, now);
        assert!(followers.are_majority(1, 7, &joint, since));
        assert!(!followers.are_majority(9, 7, &three, since), "a leader that has no vote does not count itself");
    }

    #[test]
    fn a_leadership_that_is_handed_over_has_no_lease_any_more() {
        let followers = Followers::default();
        assert!(!followers.is_forfeited(3));
        let handing_over = followers.forfeit(3);
        assert!(followers.is_forfeited(3) && followers.is_forfeited(4), "which term it is in is only seen afterwards");
        drop(followers.forfeit(2));
        drop(handing_over);
        assert!(followers.is_forfeited(3) && !followers.is_forfeited(4));
        drop(followers.forfeit(2));
        assert!(followers.is_forfeited(3), "what was given up stays so");
    }
}
