//! Sessions and attempts: grants, finishes, broken streams, cancels, the end.

use std::sync::Arc;
use std::time::Duration;

use quorate_client::v1::work_request::Frame as Out;
use quorate_client::v1::work_response::Frame as In;
use quorate_client::v1::{self, ErrorReason, finish::Outcome};
use quorate_client::{Agent, AgentBuilder, AgentHandle, LeaseKeeper, NewTask, Output, TaskError};
use tokio::sync::{Notify, mpsc};
use tonic::Status;

use crate::fake::{Network, Node, Seen, WorkStream, either, error, soon, token};

const TTL: Duration = Duration::from_secs(10);

pub(crate) fn writer(network: &Network, names: &[&str]) -> AgentBuilder {
    Agent::builder(network.client(names), "w1").role("writer").slots(64).ttl(TTL).lease_keeper(LeaseKeeper::Task)
}

/// An agent whose handlers wait for the bell and then answer with their payload; what was dropped unfinished is told.
pub(crate) struct Waiting {
    pub(crate) agent: AgentHandle,
    pub(crate) bell: Arc<Notify>,
    pub(crate) started: mpsc::UnboundedReceiver<u64>,
    pub(crate) dropped: mpsc::UnboundedReceiver<u64>,
}

struct TellDrop {
    task_id: u64,
    tell: mpsc::UnboundedSender<u64>,
    finished: bool,
}

impl Drop for TellDrop {
    fn drop(&mut self) {
        if !self.finished {
            let _ = self.tell.send(self.task_id);
        }
    }
}

pub(crate) fn waiting(builder: AgentBuilder) -> Waiting {
    let bell = Arc::new(Notify::new());
    let (start, started) = mpsc::unbounded_channel();
    let (tell, dropped) = mpsc::unbounded_channel();
    let ring = Arc::clone(&bell);
    let agent = builder
        .handler(move |attempt| {
            let (ring, start, tell) = (Arc::clone(&ring), start.clone(), tell.clone());
            async move {
                let mut guard = TellDrop { task_id: attempt.task_id, tell, finished: false };
                let _ = start.send(attempt.task_id);
                ring.notified().await;
                guard.finished = true;
                Ok(Output::new(attempt.payload))
            }
        })
        .start()
        .unwrap();
    Waiting { agent, bell, started, dropped }
}

async fn opened(node: &mut Node) -> WorkStream {
    let mut stream = soon(node.work()).await;
    stream.open(77).await;
    stream
}

fn result(finish: &v1::Finish) -> &[u8] {
    match &finish.outcome {
        Some(Outcome::Completed(completed)) => &completed.result,
        other => panic!("no completion: {other:?}"),
    }
}

/// Lets everything that is ready run.
pub(crate) async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn an_attempt_is_performed_and_its_children_go_with_the_result() {
    let network = Network::default();
    let mut node = network.node("a:1");
    let agent = writer(&network, &["a:1"])
        .handler(async |attempt| {
            assert_eq!((attempt.task_id, attempt.number, attempt.token), (5, 1, (5, 0)));
            assert_eq!((attempt.queue.as_str(), attempt.role.as_str()), ("mail", "writer"));
            Ok(Output::new("done").child(NewTask::new("review", "look")))
        })
        .start()
        .unwrap();
    let mut stream = soon(node.work()).await;
    let open = stream.open(77).await;
    assert_eq!((open.agent.as_str(), open.slots, open.ttl_ms), ("w1", 64, 10_000));
    assert_eq!(open.roles, ["writer"]);
    assert_eq!(soon(agent.ready()).await, Some(77));
    stream.grant([5]);
    let (finishes, _) = stream.finishes(1).await;
    assert_eq!((finishes[0].task_id, finishes[0].token), (5, Some(token(5))));
    assert_eq!(result(&finishes[0]), b"done");
    let Some(Outcome::Completed(completed)) = &finishes[0].outcome else { panic!("no completion") };
    assert_eq!(completed.children[0].queue, "review");
    stream.ack(&finishes);
    settle().await;
    let stats = agent.stats();
    assert_eq!((stats.started, stats.completed, stats.running), (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn finishes_of_one_moment_travel_in_one_frame() {
    let network = Network::default();
    let mut node = network.node("a:1");
    let mut waiting = waiting(writer(&network, &["a:1"]));
    let mut stream = opened(&mut node).await;
    stream.grant(1..=64);
    for _ in 0..64 {
        soon(waiting.started.recv()).await.unwrap();
    }
    waiting.bell.notify_waiters();
    let (finishes, frames) = stream.finishes(64).await;
    assert_eq!(finishes.len(), 64);
    assert!(frames <= 3, "{frames} frames for 64 finishes");
}

#[tokio::test(start_paused = true)]
async fn a_broken_stream_is_resumed_on_another_node_with_what_still_runs() {
    let network = Network::default();
    let (mut a, mut b) = (network.node("a:1"), network.node("b:1"));
    let mut waiting = waiting(writer(&network, &["a:1", "b:1"]));
    let (first, Seen::Work(mut stream)) = soon(either(&mut a, &mut b)).await else { panic!("a stream") };
    stream.open(77).await;
    stream.grant([1, 2]);
    soon(waiting.started.recv()).await.unwrap();
    soon(waiting.started.recv()).await.unwrap();
    stream.break_with(Status::unavailable("the node died"));
    let (second, Seen::Work(mut stream)) = soon(either(&mut a, &mut b)).await else { panic!("a stream") };
    assert_ne!(first, second, "another node");
    let resume = stream.resume(vec![token(2)]).await;
    assert_eq!((resume.session_id, resume.holding), (77, vec![token(1), token(2)]));
    assert_eq!(soon(waiting.dropped.recv()).await, Some(2), "what is lost stops");
    waiting.bell.notify_waiters();
    let (finishes, _) = stream.finishes(1).await;
    assert_eq!((finishes[0].task_id, result(&finishes[0])), (1, b"1".as_slice()));
    stream.ack(&finishes);
    settle().await;
    let stats = waiting.agent.stats();
    assert_eq!((stats.sessions, stats.resumes, stats.completed, stats.lost), (1, 1, 1, 1));

    // The next resumption must be newer than this one.
    stream.break_with(Status::unavailable("again"));
    let (_, Seen::Work(mut stream)) = soon(either(&mut a, &mut b)).await else { panic!("a stream") };
    let again = stream.resume(Vec::new()).await;
    assert!(again.attachment > resume.attachment);
    assert_eq!(again.holding, []);
}

#[tokio::test(start_paused = true)]
async fn a_finish_whose_acknowledgement_was_lost_is_sent_again_as_it_was() {
    let network = Network::default();
    let mut node = network.node("a:1");
    let waiting = waiting(writer(&network, &["a:1"]));
    waiting.bell.notify_one();
    let mut stream = opened(&mut node).await;
    stream.grant([1]);
    let (finishes, _) = stream.finishes(1).await;
    stream.break_with(Status::unavailable("before the acknowledgement"));
    let mut stream = soon(node.work()).await;
    // The completion took effect, so the cluster does not know the attempt any more.
    let resume = stream.resume(vec![token(1)]).await;
    assert_eq!(resume.holding, [token(1)]);
    let (again, _) = stream.finishes(1).await;
    assert_eq!(again, finishes);
    stream.ack(&again);
    settle().await;
    assert_eq!(waiting.agent.stats().completed, 1);
}

#[tokio::test(start_paused = true)]
async fn a_finish_that_finds_no_leader_is_sent_again_and_a_stale_one_is_not() {
    let network = Network::default();
    let mut node = network.node("a:1");
    let waiting = waiting(writer(&network, &["a:1"]));
    let mut stream = opened(&mut node).await;
    waiting.bell.notify_one();
    stream.grant([1]);
    let (finishes, _) = stream.finishes(1).await;
    stream.refuse(&finishes[0], ErrorReason::NoLeader);
    let (again, _) = stream.finishes(1).await;
    assert_eq!(again, finishes);
    stream.refuse(&again[0], ErrorReason::StaleToken);
    waiting.bell.notify_one();
    stream.grant([2]);
    let (next, _) = stream.finishes(1).await;
    assert_eq!(next[0].task_id, 2, "the stale one is over");
    assert_eq!(waiting.agent.stats().refused, 1);
}

#[tokio::test(start_paused = true)]
async fn an_outcome_that_the_cluster_refuses_becomes_a_failure() {
    let network = Network::default();
    let mut node = network.node("a:1");
    let waiting = waiting(writer(&network, &["a:1"]));
    let mut stream = opened(&mut node).await;
    waiting.bell.notify_one();
    stream.grant([1]);
    let (finishes, _) = stream.finishes(1).await;
    stream.refuse(&finishes[0], ErrorReason::InvalidArgument);
    let (instead, _) = stream.finishes(1).await;
    assert_eq!(instead[0].token, finishes[0].token);
    assert!(matches!(&instead[0].outcome, Some(Outcome::Failed(failed)) if failed.permanent));
}

#[tokio::test(start_paused = true)]
async fn failures_and_panics_are_told() {
    let network = Network::default();
    let mut node = network.node("a:1");
    let _agent = writer(&network, &["a:1"])
        .handler(async |attempt| match attempt.task_id {
            1 => Err(TaskError::permanent("never")),
            2 => Err(TaskError::retry("later")),
            _ => panic!("what a mess"),
        })
        .start()
        .unwrap();
    let mut stream = opened(&mut node).await;
    stream.grant([1, 2, 3]);
    let (mut finishes, _) = stream.finishes(3).await;
    finishes.sort_by_key(|finish| finish.task_id);
    let failures: Vec<_> = finishes
        .into_iter()
        .map(|finish| match finish.outcome {
            Some(Outcome::Failed(failed)) => (failed.error, failed.permanent),
            other => panic!("no failure: {other:?}"),
        })
        .collect();
    assert_eq!(failures[0], ("never".to_owned(), true));
    assert_eq!(failures[1], ("later".to_owned(), false));
    assert_eq!(failures[2], ("the handler panicked: what a mess".to_owned(), false));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_attempt_is_dropped_without_a_word() {
    let network = Network::default();
    let mut node = network.node("a:1");
    let mut waiting = waiting(writer(&network, &["a:1"]));
    let mut stream = opened(&mut node).await;
    stream.grant([1, 2]);
    soon(waiting.started.recv()).await.unwrap();
    soon(waiting.started.recv()).await.unwrap();
    stream.say(In::Cancel(v1::CancelAttempt { task_id: 1, token: Some(token(1)) }));
    assert_eq!(soon(waiting.dropped.recv()).await, Some(1));
    waiting.bell.notify_waiters();
    let (finishes, _) = stream.finishes(1).await;
    assert_eq!(finishes[0].task_id, 2);
    assert_eq!(waiting.agent.stats().cancelled, 1);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_gone_is_followed_by_a_new_one() {
    let network = Network::default();
    let mut node = network.node("a:1");
    let mut waiting = waiting(writer(&network, &["a:1"]));
    let stream = opened(&mut node).await;
    stream.grant([1]);
    soon(waiting.started.recv()).await.unwrap();
    let gone = v1::SessionGone { error: Some(error(ErrorReason::SessionNotFound).into()) };
    stream.say(In::Gone(gone));
    assert_eq!(soon(waiting.dropped.recv()).await, Some(1));
    let mut stream = soon(node.work()).await;
    stream.open(78).await;
    settle().await;
    assert_eq!(waiting.agent.session_id(), Some(78));

    // The same when the session is found to be gone while it is resumed.
    stream.break_with(Status::unavailable("reset"));
    soon(node.work()).await.break_with(error(ErrorReason::SessionNotFound));
    soon(node.work()).await.open(79).await;
    settle().await;
    assert_eq!(waiting.agent.session_id(), Some(79));
}

#[tokio::test(start_paused = true)]
async fn a_drain_lets_attempts_end_and_takes_no_more() {
    let network = Network::default();
    let mut node = network.node("a:1");
    let Waiting { agent, bell, mut started, dropped: _dropped } = waiting(writer(&network, &["a:1"]));
    let mut stream = opened(&mut node).await;
    stream.grant([1]);
    soon(started.recv()).await.unwrap();
    let end = tokio::spawn(agent.shutdown());
    let draining = async {
        loop {
            match stream.any_frame().await {
                Out::Heartbeat(beat) if beat.draining => return stream.acknowledge(beat.seq),
                Out::Heartbeat(beat) => stream.acknowledge(beat.seq),
                other => panic!("not draining: {other:?}"),
            }
        }
    };
    soon(draining).await;
    stream.grant([2]);
    settle().await;
    assert!(started.try_recv().is_err(), "what comes now is not started");
    bell.notify_waiters();
    let (finishes, _) = stream.finishes(1).await;
    assert!(!end.is_finished(), "the acknowledgement is awaited");
    stream.ack(&finishes);
    assert!(matches!(stream.frame().await, Out::Close(_)));
    assert_eq!(soon(stream.next()).await, None);
    drop(stream);
    soon(end).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_handle_that_is_dropped_gives_the_attempts_back() {
    let network = Network::default();
    let mut node = network.node("a:1");
    let Waiting { agent, bell: _bell, mut started, mut dropped } = waiting(writer(&network, &["a:1"]));
    let mut stream = opened(&mut node).await;
    stream.grant([1]);
    soon(started.recv()).await.unwrap();
    drop(agent);
    assert!(matches!(stream.frame().await, Out::Close(_)));
    assert_eq!(dropped.try_recv(), Ok(1), "nothing runs any more when the session may end");
}

#[tokio::test(start_paused = true)]
async fn an_agent_beyond_a_limit_does_not_start() {
    let network = Network::default();
    let handler = async |_| Ok(Output::default());
    let refused = |builder: AgentBuilder| builder.handler(handler).start().unwrap_err().reason();
    let agent = || writer(&network, &["a:1"]);
    assert_eq!(refused(agent().slots(0)), Some(ErrorReason::InvalidArgument));
    assert_eq!(refused(agent().slots(1_025)), Some(ErrorReason::InvalidArgument));
    assert_eq!(refused(agent().ttl(Duration::from_millis(999))), Some(ErrorReason::InvalidArgument));
    assert_eq!(refused(agent().role("x".repeat(129))), Some(ErrorReason::TooLarge));
    assert_eq!(refused(Agent::builder(network.client(&["a:1"]), "w1")), Some(ErrorReason::InvalidArgument));
    assert!(agent().start().is_err(), "no handler");
}
