//! What keeps a node from starting, and what it says before it belongs to a cluster.

use quorate_api::v1::ErrorReason;
use quorate_node::StartError;
use tokio::net::TcpListener;

use crate::harness::{TestNode, config, start};

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_port_is_named_with_its_key() {
    let busy = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = busy.local_addr().expect("bound").to_string();
    let dir = tempfile::tempdir().expect("a directory");
    let mut config = config(dir.path());
    config.peer_listen = address.clone();
    let error = start(config).await.err().expect("refused");
    assert!(matches!(error, StartError::Listen { .. }), "{error}");
    assert!(error.to_string().contains(&address) && error.to_string().contains("peer_listen"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_serves_one_process() {
    let node = TestNode::start().await;
    let error = start(config(node.dir.path())).await.err().expect("refused");
    assert!(matches!(error, StartError::InUse { .. }), "{error}");
    node.handle.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_cluster_lives_and_says_what_to_do() {
    let node = TestNode::start().await;
    let (alive, _) = node.http_get("/health").await;
    assert_eq!(alive, 200);
    let (ready, why) = node.http_get("/ready").await;
    assert_eq!(ready, 503);
    assert!(why.contains("quorate cluster init"), "{why}");
    let status = node.status().await;
    assert_eq!(status.cluster_id, "");
    assert!(status.next_steps[0].contains("quorate cluster join"), "{status:?}");
    let refused = node.enqueue(b"x").await.expect_err("refused");
    assert_eq!(refused.reason, ErrorReason::NotInitialized);
    node.handle.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_makes_a_cluster_and_serves_it() {
    let node = TestNode::start().await;
    let cluster = node.init(3).await.expect("init");
    let status = node.wait_healthy(1).await;
    assert_eq!(status.cluster_id, cluster);
    assert_eq!(status.shards.len(), 3);
    assert!(status.shards.iter().all(|shard| shard.leader_node_id == node.id()), "{status:#?}");
    let task = node.enqueue(b"hello").await.expect("enqueued");
    assert_eq!(node.payload_of(task).await.expect("found"), b"hello");
    let again = node.init(3).await.expect_err("once");
    assert_eq!(again.reason, ErrorReason::AlreadyInitialized);
    let (ready, _) = node.http_get("/ready").await;
    assert_eq!(ready, 200);
    let (_, metrics) = node.http_get("/metrics").await;
    for name in ["quorate_entries_total", "quorate_process_anonymous_bytes", "quorate_process_cpu_milliseconds"] {
        assert!(metrics.contains(name), "{name} is missing");
    }
    assert!(metrics.lines().all(|line| line.is_empty() || line.contains("quorate_")), "{metrics}");
    node.handle.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_shards_are_refused_before_anything_is_made() {
    let node = TestNode::start().await;
    let refused = node.init(65).await.expect_err("refused");
    assert_eq!(refused.reason, ErrorReason::InvalidArgument);
    assert_eq!(node.status().await.cluster_id, "");
    node.handle.shutdown().await;
}

#[cfg(feature = "rocksdb")]
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_starts_again_has_everything_again() {
    let node = TestNode::start().await;
    let cluster = node.init(2).await.expect("init");
    let task = node.enqueue(b"kept").await.expect("enqueued");
    let id = node.id();
    let node = node.restart().await;
    assert_eq!(node.id(), id);
    let status = node.wait_healthy(1).await;
    assert_eq!(status.cluster_id, cluster);
    assert_eq!(node.payload_of(task).await.expect("found"), b"kept");
    node.handle.shutdown().await;
}
