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

/// What one replica says of itself: position and hash, once it has any.
type Told = Option<(u64, u64)>;

/// Asks until all replicas of each group tell the same position and hash, or patience ends, and records every answer.
/// A program that knows no hashes tells none, and then nothing is recorded.
pub(super) async fn record(cluster: &Cluster, recorder: &Recorder) {
    let client = cluster.client().with_deadline(Duration::from_secs(2));
    let deadline = Instant::now() + PATIENCE;
    let mut tick = tokio::time::interval(EVERY);
    while Instant::now() < deadline {
        tick.tick().await;
        let Ok(status) = client.cluster_status().await else { continue };
        let told = told(&status, &numbers(cluster));
        if told.values().all(Option::is_none) {
            continue;
        }
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

/// The nodes' numbers by their ids.
fn numbers(cluster: &Cluster) -> HashMap<String, usize> {
    (0..cluster.size()).filter_map(|node| Some((cluster.node_id(node)?, node))).collect()
}

fn told(status: &StatusResponse, numbers: &HashMap<String, usize>) -> BTreeMap<(u32, usize), Told> {
    let mut told = BTreeMap::new();
    let groups: Vec<&GroupStatus> = status.control.iter().chain(&status.shards).collect();
    for group in groups {
        for replica in &group.replicas {
            let Some(&node) = numbers.get(&replica.node_id) else { continue };
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
}
