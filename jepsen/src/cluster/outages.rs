//! When the harness kept a node from its disk, so that what the node says and does over it is not held against it.

use std::ops::Range;
use std::time::Instant;

use parking_lot::Mutex;

use super::Cluster;

/// What kept a node from its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outage {
    /// Its power was cut: nothing can be read or written.
    Cut,
    /// Syncs fail.
    FailedSyncs,
    /// Nothing more can be written.
    Full,
}

/// All outages of one node's disk.
#[derive(Debug, Default)]
pub(super) struct Outages(Mutex<Vec<Lasted>>);

/// An outage: when it was, and what the node logged meanwhile. Its own clock may be moved, so that the time in its log says
/// nothing here; how long the log was does.
#[derive(Debug)]
struct Lasted {
    outage: Outage,
    until: Option<Instant>,
    logged: Range<u64>,
}

impl Outages {
    /// Begins one, where the log has this length; one that goes on goes on.
    fn begin(&self, outage: Outage, logged: u64) {
        let mut all = self.0.lock();
        if !all.iter().any(|lasted| lasted.outage == outage && lasted.until.is_none()) {
            all.push(Lasted { outage, until: None, logged: logged..u64::MAX });
        }
    }

    /// Ends it, if it goes on.
    fn end(&self, outage: Outage, logged: u64) {
        for lasted in self.0.lock().iter_mut().filter(|lasted| lasted.outage == outage && lasted.until.is_none()) {
            lasted.until = Some(Instant::now());
            lasted.logged.end = logged;
        }
    }

    /// Whether there was one at any moment since then.
    fn any_since(&self, since: Instant) -> bool {
        self.0.lock().iter().any(|lasted| lasted.until.is_none_or(|until| until >= since))
    }

    /// Whether the power was off when the log was so long.
    fn was_cut_at(&self, logged: u64) -> bool {
        self.0.lock().iter().any(|lasted| lasted.outage == Outage::Cut && lasted.logged.contains(&logged))
    }
}

impl Cluster {
    pub(super) fn begin_outage(&self, node: usize, outage: Outage) {
        self.node(node).outages.begin(outage, self.log_length(node));
    }

    pub(super) fn end_outage(&self, node: usize, outage: Outage) {
        self.node(node).outages.end(outage, self.log_length(node));
    }

    fn log_length(&self, node: usize) -> u64 {
        std::fs::metadata(self.log_path(node)).map_or(0, |log| log.len())
    }

    /// Whether a node may have ended over its disk since then: it was taken away or failed at some moment, or is damaged.
    /// An outage that was over before is no reason: what was started after it found a disk that works.
    pub fn may_have_ended_over_its_disk(&self, node: usize, since: Instant) -> bool {
        let node = self.node(node);
        node.outages.any_since(since) || *node.damaged.lock()
    }

    /// Whether the power of a node's disk was off when its log was so long.
    pub fn was_cut_at(&self, node: usize, logged: u64) -> bool {
        self.node(node).outages.was_cut_at(logged)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_outage_counts_while_it_lasts_and_not_after() {
        let outages = Outages::default();
        let before = Instant::now();
        assert!(!outages.any_since(before));
        outages.begin(Outage::Full, 10);
        // A disk is filled again and again: that is one outage, which one end ends.
        outages.begin(Outage::Full, 20);
        assert!(outages.any_since(Instant::now()), "it goes on");
        outages.end(Outage::FailedSyncs, 30);
        assert!(outages.any_since(Instant::now()), "what has ended is another");
        outages.end(Outage::Full, 30);
        assert!(outages.any_since(before), "it was there since");
        assert!(!outages.any_since(Instant::now() + Duration::from_secs(1)), "it was over by then");
    }

    #[test]
    fn the_power_is_off_for_what_is_logged_in_between() {
        let outages = Outages::default();
        outages.begin(Outage::FailedSyncs, 0);
        outages.begin(Outage::Cut, 100);
        assert_eq!([99, 100, 5000].map(|at| outages.was_cut_at(at)), [false, true, true]);
        outages.end(Outage::Cut, 200);
        assert_eq!([99, 199, 200].map(|at| outages.was_cut_at(at)), [false, true, false]);
    }
}
