//! A node whose disk fails under it, and those who ask it meanwhile.

use quorate_api::v1::agents_service_client::AgentsServiceClient;
use quorate_api::v1::work_request::Frame as Said;
use quorate_api::v1::work_response::Frame as Told;
use quorate_api::v1::{OpenSession, StatusResponse, WorkRequest};
use quorate_node::ErrorReason;
use quorate_raft::memory::CommitFault;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::UnboundedReceiverStream;
use uuid::Uuid;

use crate::harness::{PATIENCE, TestNode, stop};

/// The simulation found it (seed 655 at 63be093): a client took the disk of one node for an answer of the cluster.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_read_its_state_sends_the_caller_elsewhere() {
    let (node, disk) = TestNode::start_with_disk().await;
    node.init(1).await.expect("init");
    let task = node.enqueue(b"what is asked for").await.expect("enqueued");
    assert_eq!(node.payload_of(task).await.expect("it reads back"), b"what is asked for");
    disk.states.set_unreadable(true);
    let refused = node.payload_of(task).await.expect_err("there is nothing to read it from");
    assert_eq!(refused.reason, ErrorReason::ShuttingDown, "{}", refused.message);
    assert!(refused.is_retryable());
    disk.states.set_unreadable(false);
    assert_eq!(node.payload_of(task).await.expect("it reads back again"), b"what is asked for");
    node.handle.shutdown().await;
}

/// Found by reading: it kept the lead, and made all nodes show it their sessions anew ten times a second.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_cannot_hand_out_what_it_grants_does_not_lead_on() {
    let (node, disk) = TestNode::start_with_disk().await;
    node.init(1).await.expect("init");
    let (said, frames) = mpsc::unbounded_channel();
    let open = OpenSession {
        request_id: Uuid::now_v7().to_string(),
        agent: "a".into(),
        roles: vec!["work".into()],
        slots: 1,
        ttl_ms: 10_000,
    };
    said.send(WorkRequest { frame: Some(Said::Open(open)) }).expect("the stream is open");
    let mut agents = AgentsServiceClient::new(node.channel().await);
    let mut told = agents.work(UnboundedReceiverStream::new(frames)).await.expect("a stream").into_inner();
    let opened = told.message().await.expect("the stream goes on").expect("a frame");
    assert!(matches!(opened.frame, Some(Told::Opened(_))), "{opened:?}");
    disk.states.set_unreadable(true);
    node.enqueue(b"what nobody gets").await.expect("enqueued");
    let reason = timeout(PATIENCE, node.handle.failed()).await.expect("it says that it must not go on");
    assert!(reason.contains("cannot read the payloads"), "{reason}");
    node.handle.shutdown().await;
}

/// A node with a dead replica must not look alive.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_does_not_go_on_without_a_group_that_stopped_by_a_fault() {
    let (node, disk) = TestNode::start_with_disk().await;
    node.init(1).await.expect("init");
    disk.states.cut_off();
    let reason = tokio::select! {
        reason = node.handle.failed() => reason,
        enqueued = node.enqueue(b"what cannot be applied") => match enqueued {
            Ok(task) => panic!("task {task} was acknowledged and could not be applied"),
            Err(_) => timeout(PATIENCE, node.handle.failed()).await.expect("it says that it must not go on"),
        },
    };
    assert!(reason.contains("stopped by a fault"), "{reason}");
    node.handle.shutdown().await;
}

/// The chaos suite found it (`stalled-disk`): its heartbeats need no disk, so it led on, and nothing was acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_disk_stalls_hands_over_and_the_others_go_on() {
    let made =
        [TestNode::start_with_disk().await, TestNode::start_with_disk().await, TestNode::start_with_disk().await];
    let (nodes, disks): (Vec<_>, Vec<_>) = made.into_iter().unzip();
    nodes[0].init(2).await.expect("init");
    nodes[1].join(&nodes[0]).await.expect("join");
    nodes[2].join(&nodes[0]).await.expect("join");
    nodes[0].wait_healthy(3).await;
    let leads = |node: &TestNode| node.handle.context().control.leads();
    let stalled = nodes.iter().position(leads).expect("one leads");
    let (answers, disk) = std::sync::mpsc::channel::<()>();
    disks[stalled].log.set_hook(move |_, _| {
        // Answers when the other end is dropped.
        let _ = disk.recv();
        CommitFault::None
    });
    let other = &nodes[(stalled + 1) % 3];
    // Something to write. Whether it is acknowledged depends on who leads when its time is up.
    let _ = other.enqueue(b"what has to be written").await;
    let me = nodes[stalled].handle.node();
    let mut leadership = other.handle.context().control.leadership();
    let moved = leadership.wait_for(|now| now.leader.as_ref().is_some_and(|(_, member)| member.node != me));
    timeout(PATIENCE, moved).await.expect("another one leads").expect("the handle lives");
    let told = |status: &StatusResponse| status.problems.iter().any(|problem| problem.contains("has not answered for"));
    other.wait_for("the status names the disk", told).await;
    other.enqueue(b"what the others acknowledge").await.expect("the stalled node is not needed");
    drop(answers);
    other.wait_healthy(3).await;
    stop(nodes).await;
}

/// The simulation found it (seed 652 at 63be093): the supervisor lets go of a damaged replica of control before each try to
/// make its quarantine durable, and took that for a change of leadership, hence for a reason to try again at once.
#[tokio::test(flavor = "multi_thread")]
async fn letting_go_of_control_is_news_once_and_only_of_the_replica_that_is_meant() {
    let node = TestNode::start().await;
    node.init(1).await.expect("init");
    let control = &node.handle.context().control;
    let mut leadership = control.leadership();
    leadership.wait_for(|now| now.mine).await.expect("the handle lives");
    let replica = control.group().expect("it is attached").replica();
    control.detach_replica(replica + 1);
    assert!(control.group().is_some() && control.leads(), "another one is meant");
    control.detach_replica(replica);
    assert!(control.group().is_none() && !control.leads());
    assert!(leadership.has_changed().expect("the handle lives"), "nobody leads any more");
    leadership.mark_unchanged();
    control.detach_replica(replica);
    control.detach();
    assert!(!leadership.has_changed().expect("the handle lives"));
    node.handle.shutdown().await;
}
