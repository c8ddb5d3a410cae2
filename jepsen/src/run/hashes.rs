//! The state hashes of all replicas, asked for from the heal on and when all is at rest.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use quorate_client::v1::{GroupStatus, StatusResponse};
use tokio::time::{Instant, MissedTickBehavior};

use crate::cluster::Cluster;
use crate::event::Operation;
use crate::history::Recorder;

/// For how long replicas are asked at the end until all are equal: longer than one may be behind another by the rules, so that
/// one that is stuck is told from one that was not waited for.
const PATIENCE: Duration = Duration::from_secs(20);
const EVERY: Duration = Duration::from_millis(100);
/// How long a member may take to answer.
const ANSWER: Duration = Duration::from_secs(2);
/// Numbers of nodes that are none.
const NOBODY: usize = 1_000;

/// What one replica says of itself: position and hash, once it has any.
type Told = Option<(u64, u64)>;

/// What the replicas of all groups told in one round of asking.
type Round = BTreeMap<(u32, usize), Told>;

/// Asks until all replicas of each group tell the same position and hash in one round, or patience ends; whether they did.
/// Nobody writes.
pub(super) async fn record(cluster: &Cluster, recorder: &Recorder) -> bool {
    let is_enough = |round: &Round| groups(round).into_iter().all(|group| is_equal(round, group));
    ask_until(cluster, recorder, PATIENCE, is_enough).await
}

/// The groups that there are, as the first member says that answers; none if nobody does.
pub(super) async fn all_groups(cluster: &Cluster) -> BTreeSet<u32> {
    ask(cluster).await.map(|status| groups(&told(&status, &numbers(cluster)))).unwrap_or_default()
}

/// Asks until each of these groups was equal in some round, or patience ends. Others may write meanwhile: then groups are
/// seldom all equal at one moment, and one after the other they are. Who has just come back may not know of all groups.
pub(super) async fn record_catching_up(
    cluster: &Cluster,
    recorder: &Recorder,
    all: &BTreeSet<u32>,
    patience: Duration,
) {
    let mut equal = BTreeSet::new();
    ask_until(cluster, recorder, patience, |round| {
        let groups = groups(round);
        equal.extend(groups.iter().copied().filter(|group| is_equal(round, *group)));
        groups.union(all).all(|group| equal.contains(group))
    })
    .await;
}

/// Asks until it is enough, or patience ends, and records every answer; whether it was enough. A round names each replica
/// of each group once, in order, those that tell nothing too.
///
/// Only members are asked. What a node says that is none, or none any more, says nothing about the cluster.
async fn ask_until(
    cluster: &Cluster,
    recorder: &Recorder,
    patience: Duration,
    mut is_enough: impl FnMut(&Round) -> bool,
) -> bool {
    let deadline = Instant::now() + patience;
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while Instant::now() < deadline {
        tick.tick().await;
        let Some(status) = ask(cluster).await else { continue };
        let told = told(&status, &numbers(cluster));
        for (&(group, node), &at) in &told {
            let mut process = recorder.process();
            process.invoke(Operation::Hash { group, node, at: None }, None);
            match at {
                Some(at) => process.ok(Operation::Hash { group, node, at: Some(at) }),
                None => process.fail("the replica has not told its hash"),
            }
        }
        if !told.is_empty() && is_enough(&told) {
            return true;
        }
    }
    false
}

/// What the first member says that answers.
async fn ask(cluster: &Cluster) -> Option<StatusResponse> {
    for node in cluster.members() {
        let client = cluster.client_of(node).with_deadline(ANSWER);
        if let Ok(status) = client.cluster_status().await.inspect_err(|error| tracing::warn!(node, %error, "no status"))
        {
            return Some(status);
        }
    }
    None
}

/// The nodes' numbers by their ids.
fn numbers(cluster: &Cluster) -> HashMap<String, usize> {
    (0..cluster.size()).filter_map(|node| Some((cluster.node_id(node)?, node))).collect()
}

/// What each replica tells. One on a node that we never started is given a number that no node has: it must be asked too.
fn told(status: &StatusResponse, numbers: &HashMap<String, usize>) -> Round {
    let mut told = BTreeMap::new();
    let groups: Vec<&GroupStatus> = status.control.iter().chain(&status.shards).collect();
    for group in groups {
        for (ordinal, replica) in group.replicas.iter().enumerate() {
            let node = numbers.get(&replica.node_id).copied().unwrap_or(NOBODY + ordinal);
            let at = (replica.hash_position > 0).then_some((replica.hash_position, replica.state_hash));
            told.insert((group.group, node), at);
        }
    }
    told
}

fn groups(round: &Round) -> BTreeSet<u32> {
    round.keys().map(|(group, _)| *group).collect()
}

/// Whether all replicas of a group told the same.
fn is_equal(round: &Round, group: u32) -> bool {
    let mut told = round.range((group, 0)..=(group, usize::MAX)).map(|(_, at)| *at);
    told.next().flatten().is_some_and(|first| told.all(|other| other == Some(first)))
}

#[cfg(test)]
mod tests {
    use quorate_client::v1::ReplicaStatus;

    use super::*;

    #[test]
    fn replicas_are_equal_when_their_group_has_one_answer() {
        let told = |third| {
            BTreeMap::from([((0, 0), Some((5, 1))), ((0, 1), Some((5, 1))), ((1, 0), Some((9, 2))), ((1, 1), third)])
        };
        assert_eq!(groups(&told(None)), BTreeSet::from([0, 1]));
        assert!(is_equal(&told(None), 0) && is_equal(&told(Some((9, 2))), 1));
        assert!(!is_equal(&told(Some((9, 3))), 1));
        assert!(!is_equal(&told(None), 1));
    }

    #[test]
    fn a_replica_that_is_stuck_is_waited_for_long_enough_to_say_so() {
        let within = Duration::from_micros(crate::check::Rules::default().rest_within);
        assert!(within + 2 * ANSWER < PATIENCE, "{within:?}");
    }

    #[test]
    fn every_replica_that_is_listed_is_asked() {
        let replica = |node: &str, hash_position| ReplicaStatus {
            node_id: node.into(),
            hash_position,
            state_hash: 7,
            ..ReplicaStatus::default()
        };
        let control =
            GroupStatus { replicas: vec![replica("a", 5), replica("b", 0), replica("?", 5)], ..GroupStatus::default() };
        let status = StatusResponse { control: Some(control), ..StatusResponse::default() };
        let numbers = HashMap::from([("a".to_owned(), 0), ("b".to_owned(), 1)]);
        let told: Vec<_> = told(&status, &numbers).into_iter().collect();
        assert_eq!(told, [((0, 0), Some((5, 7))), ((0, 1), None), ((0, NOBODY + 2), Some((5, 7)))]);
    }
}
