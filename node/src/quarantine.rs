//! The replicas of this node that are not in service, why, and how far their replacement is.
//!
//! A replica that was found damaged, or whose state differs from that of a majority, is *quarantined*: it neither votes
//! nor answers. What makes that hold across restarts is in the log's floor (`quorate-raft`); here is what this process
//! knows of it, for those who replace replicas ([`crate::cluster::hosting`] those of shards, [`crate::cluster::formation`]
//! that of control) and for the status. A case goes
//!
//! ```text
//!   found ─► quarantined (durably) ─► succeeded: the old one is deleted, another one catches up ─► healed: no case any more
//!   halted: its group has no majority that agrees; a person must decide
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use quorate_raft::{GroupId, ReplicaId};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::metrics::Metrics;

/// How far a case is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Damage was found; that is not durable yet.
    Found,
    /// It is, and the replica waits for its successor.
    Quarantined,
    /// This replica has its place and catches up. Nothing is left of the old one.
    Succeeded(ReplicaId),
    /// The group has stopped here, because its replicas disagree and none has a majority on its side. Nothing is deleted.
    Halted,
}

/// A replica that is not in service.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// The replica; `None` where even the log that said its id is gone.
    pub replica: Option<ReplicaId>,
    /// What was found.
    pub reason: String,
    /// How far it is.
    pub stage: Stage,
    /// When this process learned of it.
    pub since: Instant,
    /// Since when it has certainly acknowledged nothing any more, once it has stopped.
    pub out_since: Instant,
    /// Why it does not go on now, if so, and what would help.
    pub held_up: Option<String>,
}

/// All cases of a node, at most one for each group.
pub struct Quarantine {
    cases: Mutex<BTreeMap<GroupId, Case>>,
    changes: watch::Sender<u64>,
    metrics: Arc<Metrics>,
}

impl Quarantine {
    /// No case.
    pub fn new(metrics: Arc<Metrics>) -> Quarantine {
        Quarantine { cases: Mutex::default(), changes: watch::Sender::new(0), metrics }
    }

    /// A replica was found damaged or diverged. A case of the same replica that is open already stays as it is.
    pub fn found(&self, group: GroupId, replica: ReplicaId, reason: &str) {
        self.open(group, Some(replica), reason, Stage::Found);
    }

    /// A replica is known to be quarantined, or (without an id) to be gone.
    pub fn known(&self, group: GroupId, replica: Option<ReplicaId>, reason: &str) {
        self.open(group, replica, reason, Stage::Quarantined);
    }

    /// The group has stopped here: see [`Stage::Halted`].
    pub fn halted(&self, group: GroupId, replica: ReplicaId, reason: &str) {
        self.open(group, Some(replica), reason, Stage::Halted);
    }

    fn open(&self, group: GroupId, replica: Option<ReplicaId>, reason: &str, stage: Stage) {
        let mut cases = self.cases.lock();
        // The end of a group says late what is known already, also when the replica's successor is there.
        if cases.get(&group).is_some_and(|case| case.replica == replica) {
            return;
        }
        tracing::error!(%group, replica, reason, "a replica of this node is taken out of service");
        let now = Instant::now();
        let case = Case { replica, reason: reason.to_owned(), stage, since: now, out_since: now, held_up: None };
        cases.insert(group, case);
        if stage != Stage::Halted {
            self.metrics.replicas_quarantined.inc();
        }
        self.told(&cases);
    }

    /// Which replica it was, where its log no longer said so: the one that the cluster has on record.
    pub fn identified(&self, group: GroupId, replica: ReplicaId) {
        self.change(group, |case| case.replica = case.replica.or(Some(replica)));
    }

    /// The quarantine of this replica is durable.
    pub fn settled(&self, group: GroupId, replica: ReplicaId) {
        self.change(group, |case| {
            if case.replica == Some(replica) && case.stage == Stage::Found {
                (case.stage, case.out_since) = (Stage::Quarantined, Instant::now());
            }
        });
    }

    /// The old replica is deleted and `successor` has its place.
    pub fn succeeded(&self, group: GroupId, successor: ReplicaId) {
        tracing::info!(%group, successor, "a replica takes the place of a quarantined one");
        self.change(group, |case| (case.stage, case.held_up) = (Stage::Succeeded(successor), None));
    }

    /// Why a case does not go on, or that it does.
    pub fn held_up(&self, group: GroupId, why: Option<String>) {
        let news = self.cases.lock().get(&group).is_some_and(|case| case.held_up != why);
        if !news {
            return;
        }
        if let Some(why) = &why {
            tracing::warn!(%group, why, "a quarantined replica is not replaced yet");
        }
        self.change(group, |case| case.held_up = why);
    }

    /// The successor is in full service.
    pub fn healed(&self, group: GroupId) {
        let mut cases = self.cases.lock();
        if let Some(case) = cases.remove(&group) {
            let took = case.since.elapsed();
            tracing::info!(%group, ?took, "a replica that took the place of a quarantined one is in full service");
            self.metrics.replicas_healed.inc();
            self.metrics.heal_seconds.observe(took.as_secs_f64());
        }
        self.told(&cases);
    }

    /// There is nothing to replace any more: the cluster has given up the replica.
    pub fn dropped(&self, group: GroupId) {
        let mut cases = self.cases.lock();
        cases.remove(&group);
        self.told(&cases);
    }

    /// The case of a group.
    pub fn case(&self, group: GroupId) -> Option<Case> {
        self.cases.lock().get(&group).cloned()
    }

    /// All cases.
    pub fn cases(&self) -> Vec<(GroupId, Case)> {
        self.cases.lock().iter().map(|(group, case)| (*group, case.clone())).collect()
    }

    /// Counts the changes of the cases.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn change(&self, group: GroupId, change: impl FnOnce(&mut Case)) {
        let mut cases = self.cases.lock();
        if let Some(case) = cases.get_mut(&group) {
            change(case);
            self.told(&cases);
        }
    }

    fn told(&self, cases: &BTreeMap<GroupId, Case>) {
        let halted = cases.values().filter(|case| case.stage == Stage::Halted).count();
        self.metrics.groups_halted.set(halted as i64);
        self.changes.send_modify(|count| *count += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId(3);

    #[tokio::test]
    async fn a_case_goes_from_found_to_healed_and_is_counted() {
        let metrics = Metrics::new();
        let quarantine = Quarantine::new(metrics.clone());
        let mut changes = quarantine.changes();
        quarantine.found(GROUP, 5, "flipped");
        assert!(changes.has_changed().expect("it lives"));
        changes.mark_unchanged();
        quarantine.found(GROUP, 5, "found once more");
        assert!(!changes.has_changed().expect("it lives"), "the same case");
        quarantine.settled(GROUP, 4);
        assert_eq!(quarantine.case(GROUP).map(|case| case.stage), Some(Stage::Found), "another replica");
        quarantine.settled(GROUP, 5);
        quarantine.held_up(GROUP, Some("no quorum".into()));
        quarantine.succeeded(GROUP, 9);
        quarantine.found(GROUP, 5, "said late");
        let case = quarantine.case(GROUP).expect("open");
        assert_eq!((case.stage, case.reason.as_str(), case.held_up), (Stage::Succeeded(9), "flipped", None));
        quarantine.found(GROUP, 9, "the successor too");
        assert_eq!(quarantine.case(GROUP).map(|case| (case.replica, case.stage)), Some((Some(9), Stage::Found)));
        quarantine.succeeded(GROUP, 11);
        quarantine.healed(GROUP);
        assert_eq!(quarantine.case(GROUP), None);
        assert_eq!((metrics.replicas_quarantined.get(), metrics.replicas_healed.get()), (2, 1));
    }

    /// Others count a replica out some time after they have heard from it last, so that time begins when it has stopped.
    #[tokio::test(start_paused = true)]
    async fn a_replica_is_out_from_when_its_quarantine_is_settled_and_not_from_when_it_was_found() {
        let quarantine = Quarantine::new(Metrics::new());
        quarantine.found(GROUP, 5, "flipped");
        let found = Instant::now();
        tokio::time::advance(std::time::Duration::from_secs(30)).await;
        quarantine.settled(GROUP, 5);
        let case = quarantine.case(GROUP).expect("open");
        assert_eq!((case.since, case.out_since.elapsed()), (found, std::time::Duration::ZERO));
    }

    #[tokio::test]
    async fn what_halts_is_no_quarantine() {
        let metrics = Metrics::new();
        let quarantine = Quarantine::new(metrics.clone());
        quarantine.halted(GROUP, 5, "two and two");
        assert_eq!((metrics.replicas_quarantined.get(), metrics.groups_halted.get()), (0, 1));
        quarantine.settled(GROUP, 5);
        assert_eq!(quarantine.case(GROUP).map(|case| case.stage), Some(Stage::Halted));
        quarantine.dropped(GROUP);
        assert_eq!(metrics.groups_halted.get(), 0);
    }
}
