//! The next change of a group's voters, as a pure function.
//!
//! A group has an odd number of voters wherever that is possible, because an even one survives no more failures and
//! needs one more acknowledgement. So voters change from one odd set to the next in one joint change.

use std::collections::BTreeSet;
use std::time::Duration;

use quorate_raft::{GroupView, ReplicaId};

/// How far behind the leader's log a learner may be and still count as caught up: it gets the rest during the change.
const CAUGHT_UP_WITHIN: u64 = 200;

/// A replica that has answered the leader within this time is taken to be there: several heartbeats of the slowest timers.
const HEARD_WITHIN: Duration = Duration::from_secs(1);

/// What the leader of a group is to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// All is as it should be, or something must happen elsewhere first.
    Nothing,
    /// Make these the voters; also finishes a joint membership that was left behind.
    Change(BTreeSet<ReplicaId>),
    /// Hand leadership to this voter, because the leader is to go.
    Transfer(ReplicaId),
}

/// The voters that a group should have now: of `eligible` (in order of preference) the voters of today and the learners
/// that are caught up, the largest odd number up to `most`. A voter of today is preferred to a learner, and of the voters
/// those that were heard of lately; a learner that was not is none to count on. A voter is never replaced only because it
/// was not heard of: it may be back in a moment.
///
/// Returns the voters of today if nothing eligible is there yet, or if fewer would remain than the eligible ones allow
/// once they are caught up.
pub fn wanted_voters(view: &GroupView, me: ReplicaId, eligible: &[ReplicaId], most: usize) -> BTreeSet<ReplicaId> {
    let target = largest_odd(eligible.len().min(most));
    let voting = |replica: &&ReplicaId| view.voters.contains(*replica);
    let mut voters: Vec<&ReplicaId> = eligible.iter().filter(voting).collect();
    voters.sort_by_key(|replica| !is_heard(view, me, **replica));
    let learners = eligible.iter().filter(|replica| {
        !view.voters.contains(*replica) && is_caught_up(view, **replica) && is_heard(view, me, **replica)
    });
    let ready: Vec<ReplicaId> = voters.into_iter().chain(learners).copied().collect();
    let staying = ready.iter().filter(|replica| view.voters.contains(*replica)).count();
    let count = largest_odd(ready.len().min(target));
    // Fewer than the target is right only while it takes nothing away: a learner that catches up comes later, and
    // whoever is to go waits for it.
    if count == 0 || (count < target && count < staying.max(view.voters.len())) {
        return view.voters.clone();
    }
    ready.into_iter().take(count).collect()
}

/// The voter to which `me`, the leader, should hand over, of `among`: of those that were heard of lately the one that has
/// most of the log. A handover to one that is not there stops all writes until the others hold an election.
pub fn heir(view: &GroupView, me: ReplicaId, among: &BTreeSet<ReplicaId>) -> Option<ReplicaId> {
    let there = |replica: &&ReplicaId| **replica != me && is_heard(view, me, **replica);
    among.intersection(&view.voters).filter(there).max_by_key(|replica| view.matched.get(replica)).copied()
}

/// Whether the voters other than `me`, the leader, are a majority by themselves, as far as they were heard of lately: they can
/// elect one of them without it.
pub fn others_decide(view: &GroupView, me: ReplicaId) -> bool {
    let there = view.voters.iter().filter(|replica| **replica != me && is_heard(view, me, **replica));
    there.count() >= majority(view.voters.len())
}

/// Whether the leader `me` has heard of the replica lately.
fn is_heard(view: &GroupView, me: ReplicaId, replica: ReplicaId) -> bool {
    let since = view.heard.get(&replica).copied().flatten();
    replica == me || since.is_some_and(|since| since < HEARD_WITHIN)
}

/// The step from the voters of today towards `wanted`, seen by the leader `me`.
pub fn next_step(view: &GroupView, me: ReplicaId, wanted: &BTreeSet<ReplicaId>) -> Step {
    if wanted.is_empty() {
        return Step::Nothing;
    }
    if view.joint {
        let mut target = wanted.clone();
        target.insert(me);
        return Step::Change(target);
    }
    if *wanted == view.voters {
        return Step::Nothing;
    }
    if wanted.contains(&me) {
        return Step::Change(wanted.clone());
    }
    // The leader is to go. It hands over first, so that no write waits for an election.
    match heir(view, me, wanted) {
        Some(heir) => Step::Transfer(heir),
        // Whoever is to take over does not answer now: writes go on until it does.
        None if wanted.intersection(&view.voters).next().is_some() => Step::Nothing,
        None => {
            let mut target = wanted.clone();
            target.insert(me);
            if target == view.voters { Step::Nothing } else { Step::Change(target) }
        }
    }
}

/// Whether the leader knows that the replica has almost all of its log.
pub fn is_caught_up(view: &GroupView, replica: ReplicaId) -> bool {
    view.matched.get(&replica).is_some_and(|matched| *matched > 0 && matched + CAUGHT_UP_WITHIN >= view.last_position)
}

/// The largest odd number that is not above `count`; 0 for 0.
pub fn largest_odd(count: usize) -> usize {
    if count.is_multiple_of(2) { count.saturating_sub(1) } else { count }
}

/// A majority of `count`.
pub fn majority(count: usize) -> usize {
    count / 2 + 1
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// As the leader 1 sees it: everybody has answered just now.
    fn view(voters: &[ReplicaId], matched: &[(ReplicaId, u64)]) -> GroupView {
        GroupView {
            voters: voters.iter().copied().collect(),
            matched: matched.iter().copied().collect::<BTreeMap<_, _>>(),
            heard: matched.iter().map(|(replica, _)| (*replica, Some(Duration::from_millis(40)))).collect(),
            last_position: 1_000,
            ..GroupView::default()
        }
    }

    fn silent(mut view: GroupView, replica: ReplicaId) -> GroupView {
        view.heard.insert(replica, Some(HEARD_WITHIN));
        view
    }

    fn set(replicas: &[ReplicaId]) -> BTreeSet<ReplicaId> {
        replicas.iter().copied().collect()
    }

    #[test]
    fn one_grows_to_three_only_when_two_learners_are_caught_up() {
        let one_ready = view(&[1], &[(1, 1_000), (2, 1_000), (3, 10)]);
        assert_eq!(wanted_voters(&one_ready, 1, &[1, 2, 3], 5), set(&[1]));
        let both = view(&[1], &[(1, 1_000), (2, 950), (3, 900)]);
        let wanted = wanted_voters(&both, 1, &[1, 2, 3], 5);
        assert_eq!(wanted, set(&[1, 2, 3]));
        assert_eq!(next_step(&both, 1, &wanted), Step::Change(set(&[1, 2, 3])));
    }

    #[test]
    fn two_eligible_make_one_voter_and_five_make_at_most_the_most() {
        let two = view(&[1], &[(1, 1_000), (2, 1_000)]);
        assert_eq!(wanted_voters(&two, 1, &[1, 2], 5), set(&[1]));
        let all: Vec<_> = (1..=7).map(|replica| (replica, 1_000)).collect();
        assert_eq!(wanted_voters(&view(&[1, 2, 3], &all), 1, &[1, 2, 3, 4, 5, 6, 7], 5).len(), 5);
        assert_eq!(wanted_voters(&view(&[1, 2, 3], &all), 1, &[1, 2, 3, 4, 5, 6, 7], 3), set(&[1, 2, 3]));
    }

    #[test]
    fn a_leader_that_goes_hands_over_to_the_voter_that_has_most() {
        let view = view(&[1, 2, 3], &[(1, 1_000), (2, 900), (3, 1_000)]);
        let wanted = wanted_voters(&view, 1, &[2, 3], 3);
        assert_eq!(wanted.len(), 1);
        assert_eq!(next_step(&view, 1, &set(&[2, 3])), Step::Transfer(3));
        assert_eq!(next_step(&view, 2, &set(&[2])), Step::Change(set(&[2])));
    }

    #[test]
    fn in_a_shrink_those_that_answer_stay_and_nobody_hands_over_to_the_dead() {
        let full = view(&[1, 2, 3], &[(1, 1_000), (2, 1_000), (3, 900)]);
        assert_eq!(wanted_voters(&full, 1, &[2, 3], 3), set(&[2]));
        let without_2 = silent(full.clone(), 2);
        let wanted = wanted_voters(&without_2, 1, &[2, 3], 3);
        assert_eq!(wanted, set(&[3]), "the designated heir has died: another one takes its part");
        assert_eq!(next_step(&without_2, 1, &wanted), Step::Transfer(3));
        assert_eq!(next_step(&without_2, 1, &set(&[2])), Step::Nothing, "writes go on until it answers");
        let mut never = full;
        never.heard.insert(2, None);
        assert_eq!(next_step(&never, 1, &set(&[2])), Step::Nothing, "it has not answered this leader yet");
        assert_eq!((heir(&without_2, 1, &set(&[1, 2, 3])), heir(&without_2, 1, &set(&[1, 2]))), (Some(3), None));
    }

    #[test]
    fn the_others_decide_only_where_a_majority_of_them_answers() {
        let full = view(&[1, 2, 3], &[(1, 1_000), (2, 1_000), (3, 900)]);
        assert!(others_decide(&full, 1));
        assert!(!others_decide(&silent(full.clone(), 3), 1), "2 alone elects nobody");
        assert!(!others_decide(&view(&[1], &[(1, 1_000), (2, 1_000)]), 1), "a learner elects nobody");
        let five: Vec<_> = (1..=5).map(|replica| (replica, 1_000)).collect();
        assert!(others_decide(&silent(view(&[1, 2, 3, 4, 5], &five), 5), 1));
    }

    #[test]
    fn who_does_not_answer_keeps_its_vote_and_gets_none() {
        let all = view(&[1, 2, 3], &[(1, 1_000), (2, 1_000), (3, 1_000), (4, 1_000)]);
        assert_eq!(wanted_voters(&silent(all.clone(), 3), 1, &[1, 2, 3, 4], 3), set(&[1, 2, 3]));
        assert_eq!(
            wanted_voters(&silent(all.clone(), 4), 1, &[1, 2, 4], 3),
            set(&[1, 2, 3]),
            "4 waits until it answers"
        );
        assert_eq!(wanted_voters(&all, 1, &[1, 2, 4], 3), set(&[1, 2, 4]));
    }

    #[test]
    fn a_single_leader_that_goes_takes_its_heir_in_first() {
        let alone = view(&[1], &[(1, 1_000), (2, 1_000)]);
        let wanted = wanted_voters(&alone, 1, &[2], 3);
        assert_eq!(wanted, set(&[2]));
        assert_eq!(next_step(&alone, 1, &wanted), Step::Change(set(&[1, 2])));
        let together = view(&[1, 2], &[(1, 1_000), (2, 1_000)]);
        assert_eq!(next_step(&together, 1, &wanted), Step::Transfer(2));
        assert_eq!(next_step(&together, 2, &wanted), Step::Change(set(&[2])));
    }

    #[test]
    fn nobody_goes_before_the_one_that_takes_its_place_is_caught_up() {
        let behind = view(&[1, 2, 3], &[(1, 1_000), (2, 1_000), (3, 1_000), (4, 5)]);
        assert_eq!(wanted_voters(&behind, 1, &[1, 2, 4], 3), set(&[1, 2, 3]));
        let ready = view(&[1, 2, 3], &[(1, 1_000), (2, 1_000), (3, 1_000), (4, 1_000)]);
        assert_eq!(wanted_voters(&ready, 1, &[1, 2, 4], 3), set(&[1, 2, 4]));
    }

    #[test]
    fn a_joint_membership_is_finished_even_if_nothing_else_is_to_do() {
        let mut joint = view(&[1, 2, 3], &[(1, 1_000), (2, 1_000), (3, 1_000)]);
        joint.joint = true;
        assert_eq!(next_step(&joint, 1, &set(&[1, 2, 3])), Step::Change(set(&[1, 2, 3])));
    }

    #[test]
    fn with_nothing_eligible_nothing_changes() {
        let view = view(&[1], &[(1, 1_000)]);
        let wanted = wanted_voters(&view, 1, &[], 3);
        assert_eq!(wanted, set(&[1]));
        assert_eq!(next_step(&view, 1, &wanted), Step::Nothing);
    }

    #[test]
    fn odd_numbers_and_majorities() {
        assert_eq!([0, 1, 2, 3, 4, 5].map(largest_odd), [0, 1, 1, 3, 3, 5]);
        assert_eq!([1, 2, 3, 4, 5].map(majority), [1, 2, 2, 3, 3]);
    }
}
