//! Joining.

use quorate_api::v1::{ErrorReason, JoinRequest};

use crate::harness::{TestNode, cluster, stop};
use crate::points::{SHARDS, check_stage, write_points};

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_grows_from_one_to_two_to_three_and_keeps_everything() {
    let first = TestNode::start().await;
    let id = first.init(SHARDS).await.expect("init");
    let task = first.enqueue(b"early").await.expect("enqueued");
    write_points(&first).await;
    check_stage(&first, 1, 1).await;

    let second = TestNode::start().await;
    assert_eq!(second.join(&first).await.expect("join"), id);
    check_stage(&second, 2, 1).await;
    assert_eq!(second.payload_of(task).await.expect("any node answers"), b"early");

    let third = TestNode::start().await;
    assert_eq!(third.join(&second).await.expect("join by any member"), id);
    check_stage(&third, 3, 3).await;
    let late = third.enqueue(b"late").await.expect("writes go through any node");
    assert_eq!(first.payload_of(late).await.expect("found"), b"late");
    stop(vec![first, second, third]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn joining_twice_changes_nothing() {
    let nodes = cluster(2).await;
    let before = nodes[0].status().await.control.expect("control").replicas.len();
    let again = nodes[1].join(&nodes[0]).await.expect("again");
    assert_eq!(again, nodes[0].status().await.cluster_id);
    let after = nodes[0].wait_healthy(2).await.control.expect("control").replicas.len();
    assert_eq!(before, after);
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_of_another_cluster_is_refused() {
    let ours = cluster(1).await;
    let theirs = cluster(1).await;
    let refused = ours[0].join(&theirs[0]).await.expect_err("refused");
    assert_eq!(refused.reason, ErrorReason::OtherCluster);
    assert!(refused.message.contains("data directory of another cluster"), "{refused}");
    assert_eq!(theirs[0].status().await.nodes.len(), 1, "nothing was changed there");
    stop(ours).await;
    stop(theirs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_that_is_not_there_or_not_in_a_cluster_is_said_so() {
    let node = TestNode::start().await;
    let empty = TestNode::start().await;
    let refused = node.join(&empty).await.expect_err("refused");
    assert_eq!(refused.reason, ErrorReason::NotInitialized);
    let seed = empty.client_address();
    empty.handle.shutdown().await;
    let absent = node.cluster().await.join(JoinRequest { seed: seed.clone() }).await.expect_err("refused");
    assert!(absent.message().contains(&seed), "{absent}");
    let wrong = node.cluster().await.join(JoinRequest { seed: "no address".into() }).await.expect_err("refused");
    assert_eq!(wrong.code(), tonic::Code::InvalidArgument);
    node.handle.shutdown().await;
}
