//! The proposer of control, through a node's own handle.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use quorate_node::{Error, ErrorReason, Matcher};
use quorate_state::control::{Command, Reply};
use quorate_state::{Operation, Reject, TaskId};
use tokio::sync::Notify;
use tokio::time::{pause, resume, sleep, timeout};

use crate::harness::{PATIENCE, TestNode, cluster, stop};

fn ticks(count: usize) -> Vec<Operation<Command>> {
    (0..count).map(|_| Operation::new(Command::Tick)).collect()
}

fn entries(node: &TestNode) -> u64 {
    node.handle.context().metrics.proposer("control").entries.get()
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_come_in_the_order_of_the_operations() {
    let nodes = cluster(1).await;
    let control = &nodes[0].handle.context().control;
    let mut operations = ticks(2);
    operations.insert(1, Operation::new(Command::Cancel { task: TaskId(1) }));
    let replies = control.propose(operations).await.expect("committed");
    assert!(matches!(replies[..], [Ok(Reply::Done), Err(Reject::TaskNotFound { .. }), Ok(Reply::Done)]), "{replies:?}");
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_gathered_into_few_entries() {
    let nodes = cluster(1).await;
    let control = &nodes[0].handle.context().control;
    let before = entries(&nodes[0]);
    // All are queued before the first one is polled.
    let calls: Vec<_> = (0..5_000).map(|_| control.propose(ticks(1))).collect();
    for replies in timeout(PATIENCE, join_all(calls)).await.expect("in time") {
        assert_eq!(replies.expect("committed").len(), 1);
    }
    let formed = entries(&nodes[0]) - before;
    assert!((2..500).contains(&formed), "{formed} entries for 5,000 operations");
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_can_wait_is_shed_and_the_rest_is_done() {
    let nodes = cluster(1).await;
    let control = &nodes[0].handle.context().control;
    let calls: Vec<_> = (0..60).map(|_| control.submit(ticks(3_000))).collect();
    let shed = calls.iter().filter_map(|call| call.as_ref().err()).collect::<Vec<_>>();
    assert!(!shed.is_empty(), "180,000 operations were all accepted at once");
    assert!(shed.iter().all(|error| error.reason == ErrorReason::Overloaded && error.retry_after.is_some()));
    for accepted in calls.into_iter().flatten() {
        let replies = timeout(PATIENCE, accepted).await.expect("in time").expect("answered").expect("committed");
        assert_eq!(replies.len(), 3_000);
    }
    let too_many = control.submit(ticks(4_000)).expect_err("refused");
    assert_eq!(too_many.reason, ErrorReason::InvalidArgument);
    stop(nodes).await;
}

#[derive(Default)]
struct Adder {
    wanted: AtomicUsize,
    settled: AtomicUsize,
    done: Notify,
}

impl Matcher for Adder {
    fn fill(&self, entry: &mut Vec<Operation<Command>>, room: usize) {
        let wanted = self.wanted.swap(0, Ordering::SeqCst).min(room);
        entry.extend(ticks(wanted));
    }

    fn settled(&self, pushed: &[Operation<Command>], outcome: Result<&[Result<Reply, Reject>], &Error>) {
        assert_eq!(outcome.expect("committed").len(), pushed.len());
        self.settled.fetch_add(pushed.len(), Ordering::SeqCst);
        self.done.notify_one();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_matcher_adds_its_own_and_is_told_of_their_fate() {
    let nodes = cluster(1).await;
    let control = &nodes[0].handle.context().control;
    let adder = Arc::new(Adder::default());
    control.set_matcher(Some(adder.clone()));
    adder.wanted.store(3, Ordering::SeqCst);
    control.wake_matcher();
    timeout(PATIENCE, adder.done.notified()).await.expect("an entry by the matcher alone");
    assert_eq!(adder.settled.load(Ordering::SeqCst), 3);
    adder.wanted.store(2, Ordering::SeqCst);
    let replies = control.propose(ticks(4)).await.expect("committed");
    assert_eq!(replies.len(), 4, "a caller gets only its own replies");
    timeout(PATIENCE, adder.done.notified()).await.expect("told");
    assert_eq!(adder.settled.load(Ordering::SeqCst), 5);
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_refuses_and_forwards() {
    let nodes = cluster(3).await;
    let followers: Vec<_> = nodes.iter().filter(|node| !node.handle.context().control.leads()).collect();
    assert_eq!(followers.len(), 2);
    let control = &followers[0].handle.context().control;
    let refused = control.propose(ticks(1)).await.expect_err("refused");
    assert_eq!(refused.reason, ErrorReason::NotLeader);
    assert!(refused.metadata.contains_key("leader_node"), "{refused:?}");
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let calls = (0..2_000).map(|_| control.propose_anywhere(Operation::new(Command::Tick), deadline));
    for reply in join_all(calls).await {
        assert_eq!(reply.expect("committed"), Ok(Reply::Done));
    }
    stop(nodes).await;
}

/// Log time is what entries say, and a leader that comes later counts from there: an idle group must not lose its idle time.
#[tokio::test]
async fn an_idle_leader_says_once_a_minute_what_time_it_is() {
    let node = TestNode::start_on_one_thread().await;
    node.init(1).await.expect("init");
    node.wait_healthy(1).await;
    let control = node.handle.context().control.group().expect("the node has a replica of control");
    let before = control.status().last_position;
    pause();
    sleep(Duration::from_secs(600)).await;
    resume();
    // Entries keep their order: once this one is answered those before it have their places.
    node.handle.context().control.propose(ticks(1)).await.expect("committed");
    let proposed = control.status().last_position - before - 1;
    assert!((9..=11).contains(&proposed), "{proposed} entries in ten idle minutes");
    node.handle.shutdown().await;
}
