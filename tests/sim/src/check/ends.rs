//! The end of a log: a record is written behind the last one, or in the place of one that was truncated first. Otherwise
//! a crash leaves a log that no leader ever had.

use std::collections::BTreeMap;

use quorate_raft::{GroupId, LogChange};

use super::Disks;

/// Where the logs on the disks end.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    last: BTreeMap<(usize, GroupId), u64>,
}

impl Ends {
    /// A change has become durable on a node.
    pub(crate) fn durable(&mut self, node: usize, change: &LogChange) -> Option<String> {
        match *change {
            LogChange::Append { group, position, .. } => {
                let last = self.last.insert((node, group), position);
                last.filter(|last| *last >= position).map(|last| {
                    format!(
                        "log matching: node-{} writes position {position} of group {group} while its log goes on to {last}: \
                         what follows was not truncated",
                        node + 1
                    )
                })
            }
            LogChange::Truncate { group, from } => {
                self.last.retain(|key, last| *key != (node, group) || *last < from);
                // What is before it is still there.
                if let Some(before) = from.checked_sub(1) {
                    self.last.entry((node, group)).and_modify(|last| *last = before.min(*last));
                }
                None
            }
            LogChange::Destroy { group } => {
                self.last.remove(&(node, group));
                None
            }
            LogChange::Purge { .. } | LogChange::Mark { .. } => None,
        }
    }

    /// A node was lost: what its disk has lost with it is not written over.
    pub(crate) fn look_again(&mut self, disks: &dyn Disks) {
        self.last.retain(|(node, group), last| {
            let there = Disks::last(disks, *node, *group);
            *last = there.map_or(*last, |there| there.min(*last));
            there.is_some()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fake, record};
    use super::*;

    fn append(position: u64) -> LogChange {
        LogChange::Append { group: GroupId(1), position, record: Vec::new().into() }
    }

    #[test]
    fn a_record_over_another_is_seen_unless_that_was_truncated() {
        let mut ends = Ends::default();
        for position in 4..=6 {
            assert_eq!(ends.durable(0, &append(position)), None);
        }
        assert_eq!(ends.durable(1, &append(5)), None, "another disk");
        assert_eq!(ends.durable(0, &LogChange::Truncate { group: GroupId(1), from: 5 }), None);
        assert_eq!(ends.durable(0, &append(5)), None);
        assert!(ends.durable(0, &append(5)).is_some());
        let mut disks = Fake::of(2);
        disks.put(0, record(4, 1, 1));
        ends.look_again(&disks);
        assert!(ends.durable(0, &append(4)).is_some());
        assert_eq!(ends.durable(0, &append(5)), None, "it was lost");
    }
}
