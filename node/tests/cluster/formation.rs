//! Joining.

use quorate_api::v1::{ErrorReason, JoinRequest};

use crate::harness::{TestNode, cluster, stop};

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_grows_from_one_to_two_to_three() {
    let first = TestNode::start().await;
    let id = first.init(4).await.expect("init");
    let task = first.enqueue(b"early").await.expect("enqueued");

    let second = TestNode::start().await;
    assert_eq!(second.join(&first).await.expect("join"), id);
    let status = first.wait_healthy(2).await;
    let voters =
        |status: &quorate_api::v1::StatusResponse| status.nodes.iter().filter(|node| node.control_voter).count();
    assert_eq!(voters(&status), 1, "an even number of voters survives no more: {status:#?}");
    assert_eq!(second.payload_of(task).await.expect("any node answers"), b"early");

    let third = TestNode::start().await;
    assert_eq!(third.join(&second).await.expect("join by any member"), id);
    let status = third.wait_healthy(3).await;
    assert_eq!(voters(&status), 3);
    for shard in &status.shards {
        assert_eq!(shard.replicas.iter().filter(|replica| replica.voter).count(), 3, "{shard:?}");
    }
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
