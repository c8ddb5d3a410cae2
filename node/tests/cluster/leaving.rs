//! Leaving, and what refuses a leave.

use std::time::Duration;

use quorate_api::v1::ErrorReason;
use tokio::time::timeout;

use crate::harness::{PATIENCE, cluster, cluster_with, stop};
use crate::points::{SHARDS, check_stage, write_points};

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_shrink_to_two_and_one_and_keep_everything() {
    let mut nodes = cluster_with(3, SHARDS).await;
    let task = nodes[0].enqueue(b"kept").await.expect("enqueued");
    write_points(&nodes[0]).await;
    check_stage(&nodes[2], 3, 3).await;
    let leaver = nodes.remove(0);
    // The one that leaves may be the leader, and may be the one that is asked.
    leaver.leave(&leaver.id(), true).await.expect("the first node leaves");
    let status = nodes[0].wait_healthy(2).await;
    assert!(status.nodes.iter().all(|node| node.node_id != leaver.id()), "{status:#?}");
    check_stage(&nodes[1], 2, 1).await;
    timeout(PATIENCE, leaver.handle.removed()).await.expect("the node learns of its removal");
    assert_eq!(nodes[1].payload_of(task).await.expect("found"), b"kept");

    let second = nodes.remove(0);
    nodes[0].leave(&second.id(), true).await.expect("the second node leaves");
    let status = nodes[0].wait_healthy(1).await;
    assert!(status.shards.iter().all(|shard| shard.leader_node_id == nodes[0].id()), "{status:#?}");
    check_stage(&nodes[0], 1, 1).await;
    assert_eq!(nodes[0].payload_of(task).await.expect("found"), b"kept");
    let written = timeout(Duration::from_secs(10), nodes[0].enqueue(b"new")).await;
    written.expect("in time").expect("one node can write");
    let last = nodes[0].leave(&nodes[0].id(), true).await.expect_err("the last one stays");
    assert_eq!(last.reason, ErrorReason::WouldBreakQuorum);
    stop(vec![leaver, second]).await;
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leave_is_refused_for_an_unknown_node_and_without_the_word_for_fewer_replicas() {
    let nodes = cluster(3).await;
    let unknown = nodes[0].leave("00000000000000aa", true).await.expect_err("refused");
    assert_eq!(unknown.reason, ErrorReason::NodeNotFound);
    let nonsense = nodes[0].leave("nobody", true).await.expect_err("refused");
    assert_eq!(nonsense.reason, ErrorReason::NodeNotFound);
    let fewer = nodes[0].leave(&nodes[2].id(), false).await.expect_err("refused");
    assert_eq!(fewer.reason, ErrorReason::FewerReplicas);
    nodes[0].wait_healthy(3).await;
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leave_that_would_break_the_quorum_is_refused_and_a_dead_node_may_leave() {
    let mut nodes = cluster(3).await;
    let dead = nodes.remove(2);
    let dead_id = dead.id();
    dead.handle.shutdown().await;
    let refused = nodes[0].leave(&nodes[1].id(), true).await.expect_err("refused");
    assert_eq!(refused.reason, ErrorReason::WouldBreakQuorum, "{refused}");
    nodes[0].leave(&dead_id, true).await.expect("the dead node leaves");
    nodes[0].wait_healthy(2).await;
    stop(nodes).await;
}
