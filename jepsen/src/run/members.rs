//! Who belongs to the cluster, as each member says by itself.

use std::time::Duration;

use quorate_client::v1::StatusResponse;

use crate::cluster::Cluster;
use crate::event::Operation;
use crate::history::Recorder;

/// How often a member is asked that does not answer.
const TRIES: u32 = 3;
/// How long it may take.
const ANSWER: Duration = Duration::from_secs(4);

/// Asks each member who the members are, and records what it says. All must have what has been decided until now: nobody
/// changes anything, and the replicas of control are equal.
pub(super) async fn record(cluster: &Cluster, recorder: &Recorder) {
    for node in cluster.members() {
        let mut process = recorder.process();
        for _ in 0..TRIES {
            process.invoke(Operation::Members { node, ids: None }, Some(node));
            match cluster.client_of(node).with_deadline(ANSWER).cluster_status().await {
                Ok(status) => {
                    process.ok(Operation::Members { node, ids: Some(ids(&status)) });
                    break;
                }
                Err(error) => process.fail(error.to_string()),
            }
        }
    }
}

fn ids(status: &StatusResponse) -> Vec<String> {
    status.nodes.iter().map(|row| row.node_id.clone()).collect()
}
