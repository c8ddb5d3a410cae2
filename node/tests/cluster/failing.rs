//! A node whose disk fails under it, and those who ask it meanwhile.

use quorate_node::ErrorReason;

use crate::harness::TestNode;

/// The simulation found it (seed 655 at 63be093): a client took the disk of one node for an answer of the cluster.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_read_its_state_sends_the_caller_elsewhere() {
    let (node, disk) = TestNode::start_with_disk().await;
    node.init(1).await.expect("init");
    let task = node.enqueue(b"what is asked for").await.expect("enqueued");
    assert_eq!(node.payload_of(task).await.expect("it reads back"), b"what is asked for");
    disk.cut_off();
    let refused = node.payload_of(task).await.expect_err("there is nothing to read it from");
    assert_eq!(refused.reason, ErrorReason::ShuttingDown, "{}", refused.message);
    assert!(refused.is_retryable());
    node.handle.shutdown().await;
}

/// The simulation found it (seed 652 at 63be093): the supervisor lets go of a damaged replica of control before each try to
/// make its quarantine durable, and took that for a change of leadership, hence for a reason to try again at once.
#[tokio::test(flavor = "multi_thread")]
async fn letting_go_of_control_twice_is_news_once() {
    let node = TestNode::start().await;
    node.init(1).await.expect("init");
    let control = &node.handle.context().control;
    let mut leadership = control.leadership();
    leadership.wait_for(|now| now.mine).await.expect("the handle lives");
    control.detach();
    assert!(leadership.has_changed().expect("the handle lives"), "nobody leads any more");
    leadership.mark_unchanged();
    control.detach();
    assert!(!leadership.has_changed().expect("the handle lives"));
    node.handle.shutdown().await;
}
