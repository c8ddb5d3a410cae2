//! Who belongs to the cluster, who leads it, and whether it is well.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::future::join_all;
use quorate_client::v1::{self as api, ErrorReason};
use quorate_client::{Client, Error};
use tokio::time::Instant;

use super::Cluster;
use crate::event::{self, Operation};
use crate::history::{Process, Recorder};

/// How long one look at a node may take. It asks the others first, and waits a while for those that do not answer.
const LOOK: Duration = Duration::from_secs(4);
/// How long a node that was removed may take to end by itself.
const REMOVED: Duration = Duration::from_secs(10);

/// A change of one node's membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Join,
    Leave { allow_fewer_replicas: bool },
}

/// A change of the members while it is recorded, if it is.
struct Recorded(Option<Process>, Operation);

impl Recorded {
    /// How it ended. `may_be`: an earlier try of it may have taken effect, so that a refusal of this one says nothing.
    fn end(&mut self, result: &Result<(), Error>, may_be: bool) {
        let Some(process) = &mut self.0 else { return };
        match result {
            Ok(()) => process.ok(self.1.clone()),
            Err(Error::Refused(refusal)) if may_be && refusal.reason == ErrorReason::NodeNotFound => {
                process.ok(self.1.clone());
            }
            Err(error @ (Error::Refused(_) | Error::Unreachable { .. })) if !may_be => process.fail(error.to_string()),
            Err(error) => process.info(error.to_string()),
        }
    }
}

impl Cluster {
    /// From now on changes of the members are recorded.
    pub fn record_changes(&self, recorder: Recorder) {
        *self.changes.lock() = Some(recorder);
    }

    fn recorded(&self, what: event::Change, node: usize) -> Recorded {
        let operation = Operation::Membership { what, node, id: self.node_id(node).unwrap_or_default() };
        let process = self.changes.lock().as_ref().map(|recorder| {
            let mut process = recorder.process();
            process.invoke(operation.clone(), None);
            process
        });
        Recorded(process, operation)
    }

    /// The nodes that belong to the cluster, as far as we made them join and leave.
    pub fn members(&self) -> Vec<usize> {
        (0..self.size()).filter(|node| *self.node(*node).member.lock()).collect()
    }

    /// Lets a running node with an empty disk join the cluster. May be asked again after an error.
    pub async fn join(&self, number: usize) -> Result<()> {
        let seed = self.members().into_iter().find(|other| *other != number && self.is_running(*other));
        let seed = seed.context("no member runs that could be asked")?;
        let address = self.endpoint(seed);
        let address = address.trim_start_matches("http://");
        let node = self.node(number);
        let again = node.change.lock().replace(Change::Join).is_some();
        let mut recorded = self.recorded(event::Change::Join, number);
        let joined = self.client_of(number).cluster_join(address).await.map(|_| ());
        recorded.end(&joined, again);
        joined.with_context(|| format!("node {number} joins by node {seed}"))?;
        *node.change.lock() = None;
        *node.member.lock() = true;
        Ok(())
    }

    /// Removes a member by its id, and what is left of it on our side: the process ends, the disk is emptied. May be asked
    /// again after an error that is no refusal.
    pub async fn leave(&self, number: usize, allow_fewer_replicas: bool) -> Result<()> {
        let id = self.node_id(number).with_context(|| format!("node {number} never said its id"))?;
        let others: Vec<_> = self.members().into_iter().filter(|other| *other != number).collect();
        let client = Client::connect(others.iter().map(|other| self.endpoint(*other)))?;
        let node = self.node(number);
        let again = node.change.lock().replace(Change::Leave { allow_fewer_replicas }).is_some();
        // It ends by itself when it learns that it was removed.
        self.may_end(number);
        let mut recorded = self.recorded(event::Change::Leave, number);
        let left = client.cluster_leave(&id, allow_fewer_replicas).await;
        recorded.end(&left, again);
        match left {
            Ok(()) => {}
            // An earlier try did it.
            Err(Error::Refused(refusal)) if again && refusal.reason == ErrorReason::NodeNotFound => {}
            Err(error) => {
                if matches!(error, Error::Refused(_)) && !again {
                    *node.change.lock() = None;
                    self.lives_on(number);
                }
                return Err(error).with_context(|| format!("node {number} ({id}) leaves"));
            }
        }
        *node.member.lock() = false;
        if self.is_running(number) && self.wait_exit(number, REMOVED).await.is_none() {
            self.kill(number).await?;
        }
        *node.damaged.lock() = false;
        node.disk.wipe()?;
        *node.change.lock() = None;
        Ok(())
    }

    pub(super) fn is_leaving(&self, node: usize) -> bool {
        matches!(*self.node(node).change.lock(), Some(Change::Leave { .. }))
    }

    /// Brings joins and leaves to their end that were hindered.
    pub(super) async fn finish_changes(&self) -> Result<()> {
        for node in 0..self.size() {
            let change = *self.node(node).change.lock();
            match change {
                None => {}
                Some(Change::Join) => {
                    if !self.is_running(node) {
                        self.start_node(node).await?;
                    }
                    self.join(node).await?;
                }
                Some(Change::Leave { allow_fewer_replicas }) => self.leave(node, allow_fewer_replicas).await?,
            }
        }
        Ok(())
    }

    /// Starts a node with an empty disk that is no member yet: a place that a member left, or a new one.
    pub async fn start_fresh(&self) -> Result<usize> {
        let node = self.fresh_place().await?;
        self.start_node(node).await?;
        Ok(node)
    }

    /// The same with one that ends by itself where it passes a failpoint for the first time.
    pub async fn start_fresh_ending(&self, failpoint: &str) -> Result<usize> {
        let node = self.fresh_place().await?;
        self.start_ending(node, failpoint).await?;
        Ok(node)
    }

    /// A place with an empty disk where nothing runs.
    async fn fresh_place(&self) -> Result<usize> {
        let unused = (0..self.size()).find(|number| {
            let node = self.node(*number);
            let (member, changing) = (*node.member.lock(), node.change.lock().is_some());
            !member && !changing && !self.is_running(*number)
        });
        let node = match unused {
            Some(node) => node,
            None => self.add_node().await?,
        };
        self.node(node).disk.wipe()?;
        Ok(node)
    }

    /// What an operator does with a node that refuses its own disk: remove it, empty it, let it join as a new one. Goes on
    /// where an earlier try of it stopped.
    pub async fn replace(&self, node: usize) -> Result<()> {
        self.kill(node).await?;
        if self.members().contains(&node) {
            self.leave(node, true).await?;
        }
        self.start_node(node).await?;
        self.join(node).await
    }

    /// The node that leads the control group. Of several that say so (one of them was cut off and does not know yet) the one
    /// with the highest term.
    pub async fn leader(&self) -> Option<usize> {
        let answers = |node: &usize| self.is_running(*node) && !self.thread_states(*node).contains(&'T');
        let looks = self.members().into_iter().filter(answers).map(|node| async move {
            let status = self.look(node).await.ok()?;
            let own = self.node_id(node)?;
            let leads = status.nodes.iter().any(|row| row.control_leader && row.node_id == own);
            (leads && status.answering_node_id == own).then(|| (status.control.map_or(0, |control| control.term), node))
        });
        join_all(looks).await.into_iter().flatten().max().map(|(_, node)| node)
    }

    async fn look(&self, node: usize) -> Result<api::StatusResponse, Error> {
        self.client_of(node).with_deadline(LOOK).cluster_status().await
    }

    /// One look at every member: all run, all say healthy, and all know exactly the members that there are, by their ids.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub async fn healthy(&self) -> Result<(), String> {
        self.looks().await.map(|_| ())
    }

    async fn looks(&self) -> Result<Vec<api::StatusResponse>, String> {
        let members = self.members();
        let ids: BTreeSet<String> = members.iter().filter_map(|node| self.node_id(*node)).collect();
        let ids = &ids;
        let looks = members.into_iter().map(|node| async move {
            if !self.is_running(node) {
                return Err(format!("node {node} does not run"));
            }
            let status = self.look(node).await.map_err(|error| format!("node {node}: {error}"))?;
            if status.health() != api::Health::Healthy {
                return Err(format!("node {node} says: {}", status.problems.join(" ")));
            }
            let known: BTreeSet<String> = status.nodes.iter().map(|row| row.node_id.clone()).collect();
            if known == *ids {
                Ok(status)
            } else {
                Err(format!("node {node} knows the members {known:?}, there are {ids:?}"))
            }
        });
        join_all(looks).await.into_iter().collect()
    }

    /// Waits until the cluster is healthy, as it says itself, and until every replica of every group has what its leader
    /// had when it first said so. Says how long that took.
    ///
    /// # Errors
    /// If that is not so in time: what is wrong.
    pub async fn wait_healthy(&self, limit: Duration) -> Result<Duration> {
        let begun = Instant::now();
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        let mut wanted = None;
        loop {
            tick.tick().await;
            let well = self.looks().await.and_then(|statuses| {
                let groups = groups(&statuses)?;
                let wanted = wanted.get_or_insert_with(|| last_positions(&groups));
                behind(&groups, wanted).map_or(Ok(()), Err)
            });
            match well {
                Ok(()) => return Ok(begun.elapsed()),
                Err(why) if begun.elapsed() > limit => {
                    bail!("not healthy within {limit:?}: {why}; logs in {}", self.config.directory.display())
                }
                Err(_) => {}
            }
        }
    }
}

/// Every group as its leader describes it, or which has no leader that says so.
fn groups(statuses: &[api::StatusResponse]) -> Result<BTreeMap<u32, api::GroupStatus>, String> {
    let mut found = BTreeMap::new();
    let mut all = BTreeSet::new();
    for status in statuses {
        for group in status.control.iter().chain(&status.shards) {
            all.insert(group.group);
            if group.leader_node_id == status.answering_node_id {
                found.insert(group.group, group.clone());
            }
        }
    }
    match all.into_iter().find(|group| !found.contains_key(group)) {
        Some(group) => Err(format!("nobody says that it leads group {group}")),
        None => Ok(found),
    }
}

fn last_positions(groups: &BTreeMap<u32, api::GroupStatus>) -> BTreeMap<u32, u64> {
    groups.iter().map(|(group, status)| (*group, status.last_position)).collect()
}

/// A replica that has less than is wanted of its group.
///
/// The leader's word for it is from the last time it heard of the replica, which may be down since. Where replicas tell
/// the position of their state themselves, that counts too.
fn behind(groups: &BTreeMap<u32, api::GroupStatus>, wanted: &BTreeMap<u32, u64>) -> Option<String> {
    groups.iter().find_map(|(group, status)| {
        let wanted = *wanted.get(group)?;
        let told = status.replicas.iter().any(|replica| replica.hash_position > 0);
        status.replicas.iter().find_map(|replica| {
            let own = if told { replica.hash_position } else { replica.matched_position };
            let has = own.min(replica.matched_position);
            let (id, node) = (replica.replica_id, &replica.node_id);
            (has < wanted).then(|| {
                format!("replica {id} of group {group} on node {node} has position {has}, the leader had {wanted}")
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(matched_position: u64, hash_position: u64) -> api::ReplicaStatus {
        api::ReplicaStatus { matched_position, hash_position, ..api::ReplicaStatus::default() }
    }

    #[test]
    fn a_replica_that_says_nothing_of_itself_is_behind_where_others_do() {
        let wanted = BTreeMap::from([(1, 10)]);
        let is_behind = |replicas: Vec<api::ReplicaStatus>| {
            let group = api::GroupStatus { group: 1, replicas, ..api::GroupStatus::default() };
            behind(&BTreeMap::from([(1, group)]), &wanted).is_some()
        };
        assert!(!is_behind(vec![replica(10, 12), replica(11, 10)]));
        assert!(!is_behind(vec![replica(10, 0), replica(11, 0)]), "an older program tells no positions");
        assert!(is_behind(vec![replica(10, 12), replica(11, 0)]));
        assert!(is_behind(vec![replica(9, 12), replica(11, 10)]));
    }
}
