//! Log time: a leader's stamps follow its monotonic clock, slewed by at most 5%. No jump of a wall clock, and no change of the
//! leader, may move log time faster than that, for timers would fire.
//!
//! When an entry was stamped is not seen. It was then handed to the leader's log writer, whose batches are: so it is known to
//! lie in an [`Interval`], which is short unless the disk is slow.

use std::collections::BTreeMap;

use quorate_raft::GroupId;

use super::{Id, Wrong};
use crate::clock::MONOTONIC_PPM_MOST;

/// The slew, in parts of a million.
const SLEW_PPM: u64 = 50_000;
/// What rounding and the turns of tasks may come to, in microseconds.
const SLACK_US: u64 = 20_000;

/// When something happened: not before and not after these microseconds of simulated time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Interval {
    /// Not before.
    pub(crate) from_us: u64,
    /// Not after.
    pub(crate) to_us: u64,
}

/// The stamps of all groups.
#[derive(Debug, Default)]
pub(crate) struct LogTimes {
    written: BTreeMap<(GroupId, Id), Interval>,
    last: BTreeMap<GroupId, (Id, u64, Option<Interval>)>,
}

fn at_rate(us: u64, million: u64) -> u64 {
    us.saturating_mul(million) / 1_000_000
}

impl LogTimes {
    /// An entry has become durable on its leader's disk, in a batch that was taken in this interval.
    pub(crate) fn written(&mut self, group: GroupId, entry: Id, when: Interval) {
        self.written.entry((group, entry)).or_insert(when);
    }

    /// A committed entry, in the order of the log, with its stamp.
    pub(crate) fn committed(&mut self, group: GroupId, entry: Id, time_us: u64) -> Wrong {
        let when = self.written.remove(&(group, entry));
        let Some((before, before_us, before_when)) = self.last.insert(group, (entry, time_us, when)) else {
            return Wrong::new();
        };
        let (Some(when), Some(before_when)) = (when, before_when) else { return Wrong::new() };
        let fastest = 1_000_000 + SLEW_PPM + MONOTONIC_PPM_MOST;
        let most = at_rate(when.to_us.saturating_sub(before_when.from_us), fastest + SLEW_PPM / 20) + SLACK_US;
        let passed = time_us.saturating_sub(before_us);
        if passed > most {
            return vec![format!(
                "log time: it goes on by {passed} us from {before} to {entry} of group {group}, where {most} us is the most"
            )];
        }
        let slowest = 1_000_000 - SLEW_PPM - MONOTONIC_PPM_MOST;
        let least = at_rate(when.from_us.saturating_sub(before_when.to_us), slowest).saturating_sub(SLACK_US);
        if before.lead() == entry.lead() && (passed < least || time_us < before_us) {
            return vec![format!(
                "log time: it goes on by {passed} us (to {time_us} us) from {before} to {entry} of group {group}, where {least} us is the least"
            )];
        }
        Wrong::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId(0);

    fn at(us: u64) -> Interval {
        Interval { from_us: us, to_us: us + 1_000 }
    }

    fn entry(position: u64, leader: u64) -> Id {
        Id { position, term: leader, leader }
    }

    fn two(first: (u64, u64), second: (u64, u64), leader: u64) -> Wrong {
        let mut times = LogTimes::default();
        times.written(GROUP, entry(1, 1), at(first.0));
        times.written(GROUP, entry(2, leader), at(second.0));
        assert_eq!(times.committed(GROUP, entry(1, 1), first.1), Wrong::new());
        times.committed(GROUP, entry(2, leader), second.1)
    }

    #[test]
    fn time_that_jumps_is_seen() {
        assert_eq!(two((0, 5_000_000), (1_000_000, 6_050_000), 1), Wrong::new(), "slewed forward");
        assert_eq!(two((0, 5_000_000), (1_000_000, 5_950_000), 1), Wrong::new(), "slewed back");
        assert!(two((0, 5_000_000), (1_000_000, 6_150_000), 1)[0].contains("the most"));
        assert!(two((0, 5_000_000), (1_000_000, 6_150_000), 2)[0].contains("the most"), "by another leader too");
    }

    #[test]
    fn time_that_stands_or_turns_is_seen() {
        assert!(two((0, 5_000_000), (1_000_000, 5_000_000), 1)[0].contains("the least"));
        assert!(two((0, 5_000_000), (1_000, 4_999_000), 1)[0].contains("the least"));
        assert_eq!(two((0, 5_000_000), (1_000_000, 5_000_000), 2), Wrong::new(), "while nobody led it stood still");
    }
}
