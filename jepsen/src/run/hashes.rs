//! The state hashes of all replicas, asked for when all is at rest.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use quorate_client::v1::{GroupStatus, StatusResponse};
use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::event::Operation;
use crate::history::Recorder;

/// For how long replicas are asked until all are equal.
const PATIENCE: Duration = Duration::from_secs(20);
const EVERY: Duration = Duration::from_millis(250);
/// How long a member may take to answer.
const ANSWER: Duration = Duration::from_secs(2);
/// Numbers of nodes that are none.
const NOBODY: usize = 1_000;

/// What one replica says of itself: position and hash, once it has any.
type Told = Option<(u64, u64)>;

/// Asks until all replicas of each group tell the same position and hash, or patience ends, and records every answer: a round
/// names each replica of each group once, in order, those that tell nothing too.
///
/// Only members are asked. What a node says that is none, or none any more, says nothing about the cluster.
pub(super) async fn record(cluster: &Cluster, recorder: &Recorder) {
    let deadline = Instant::now() + PATIENCE;
    let mut tick = tokio::time::interval(EVERY);
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
        if all_equal(&told) {
            return;
        }
    }
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
fn told(status: &StatusResponse, numbers: &HashMap<String, usize>) -> BTreeMap<(u32, usize), Told> {
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

fn all_equal(told: &BTreeMap<(u32, usize), Told>) -> bool {
    let mut groups: HashMap<u32, Told> = HashMap::new();
    told.iter().all(|(&(group, _), &at)| at.is_some() && *groups.entry(group).or_insert(at) == at)
}

#[cfg(test)]
mod tests {
    use quorate_client::v1::ReplicaStatus;

    use super::*;

    #[test]
    fn replicas_are_equal_when_each_group_has_one_answer() {
        let told = |third| {
            BTreeMap::from([((0, 0), Some((5, 1))), ((0, 1), Some((5, 1))), ((1, 0), Some((9, 2))), ((1, 1), third)])
        };
        assert!(all_equal(&told(Some((9, 2)))));
        assert!(!all_equal(&told(Some((9, 3)))));
        assert!(!all_equal(&told(None)));
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
