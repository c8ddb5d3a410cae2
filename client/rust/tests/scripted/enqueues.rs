//! Single enqueues over the shared stream, against scripted nodes.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::fake::{EnqueueStream, Network, Seen, either, error, soon};
use futures::future::join_all;
use quorate_client::v1::enqueue_answer::Outcome;
use quorate_client::v1::{EnqueueAnswer, EnqueueCall, EnqueueResponse, EnqueueStreamResponse, ErrorReason};
use quorate_client::{ApiError, Client, Error, NewTask};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::Status;

fn numbered(number: u64) -> NewTask {
    NewTask::new("mail", number.to_string())
}

fn start(client: &Client, numbers: std::ops::Range<u64>) -> JoinHandle<Vec<Result<u64, Error>>> {
    let calls: Vec<_> = numbers
        .map(|number| {
            let client = client.clone();
            async move { client.enqueue(numbered(number)).await }
        })
        .collect();
    tokio::spawn(join_all(calls))
}

/// The number in the payload is the id that the script gives.
fn granted(call: &EnqueueCall) -> EnqueueAnswer {
    let payload = &call.request.as_ref().unwrap().tasks[0].payload;
    let id = std::str::from_utf8(payload).unwrap().parse().unwrap();
    EnqueueAnswer { seq: call.seq, outcome: Some(Outcome::Response(EnqueueResponse { task_ids: vec![id] })) }
}

fn refused(call: &EnqueueCall, error: ApiError) -> EnqueueAnswer {
    EnqueueAnswer { seq: call.seq, outcome: Some(Outcome::Error(error.into())) }
}

fn request_id(call: &EnqueueCall) -> String {
    call.request.as_ref().unwrap().request_id.clone()
}

/// Reads frames until `count` calls have come; returns them and the number of frames.
async fn read(stream: &mut EnqueueStream, count: usize) -> (Vec<EnqueueCall>, usize) {
    let mut calls = Vec::new();
    let mut frames = 0;
    while calls.len() < count {
        calls.extend(soon(stream.next()).await.expect("a frame").calls);
        frames += 1;
    }
    (calls, frames)
}

fn answer(stream: &EnqueueStream, answers: Vec<EnqueueAnswer>) {
    stream.send(EnqueueStreamResponse { answers });
}

#[tokio::test(start_paused = true)]
async fn calls_travel_together_and_each_gets_its_own_answer() {
    let network = Network::default();
    let mut node = network.node("a:1");
    let client = network.client(&["a:1"]);
    let callers = start(&client, 0..1_000);
    let mut stream = soon(node.enqueue_stream()).await;
    let (mut calls, frames) = read(&mut stream, 1_000).await;
    // A task may take in only so many calls before it has to let others run; each time that closes a frame.
    assert!(frames <= 20, "{frames} frames for 1,000 calls");
    calls.reverse();
    answer(&stream, calls.iter().map(granted).collect());
    let ids: Result<Vec<_>, _> = callers.await.unwrap().into_iter().collect();
    assert_eq!(ids.unwrap(), (0..1_000).collect::<Vec<_>>());
    assert!(node.seen.try_recv().is_err(), "one stream serves all");
}

#[tokio::test(start_paused = true)]
async fn only_what_was_not_answered_is_sent_again_with_the_same_request_id() {
    let network = Network::default();
    let (mut a, mut b) = (network.node("a:1"), network.node("b:1"));
    let client = network.client(&["a:1", "b:1"]);
    let callers = start(&client, 0..10);
    let (first, Seen::EnqueueStream(mut broken)) = soon(either(&mut a, &mut b)).await else { panic!("a stream") };
    let (calls, _) = read(&mut broken, 10).await;
    answer(&broken, calls[..4].iter().map(granted).collect());
    broken.break_with(Status::unavailable("connection reset"));
    let (second, Seen::EnqueueStream(mut stream)) = soon(either(&mut a, &mut b)).await else { panic!("a stream") };
    assert_ne!(first, second, "the other node is asked");
    let (again, _) = read(&mut stream, 6).await;
    let ids = |calls: &[EnqueueCall]| calls.iter().map(request_id).collect::<Vec<_>>();
    assert_eq!(ids(&again), ids(&calls[4..]), "in order, under the same ids");
    answer(&stream, again.iter().map(granted).collect());
    let outcomes: Result<Vec<_>, _> = soon(callers).await.unwrap().into_iter().collect();
    assert_eq!(outcomes.unwrap(), (0..10).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn calls_that_reach_a_follower_move_to_the_leader() {
    let network = Network::default();
    let (mut follower, mut leader) = (network.node("a:1"), network.node("b:1"));
    let client = network.client(&["a:1"]);
    let callers = start(&client, 0..3);
    let mut stream = soon(follower.enqueue_stream()).await;
    let (calls, _) = read(&mut stream, 3).await;
    let hint = || ApiError::not_leader(Some(("n2", "http://b:1")));
    answer(&stream, calls.iter().map(|call| refused(call, hint())).collect());
    let mut stream = soon(leader.enqueue_stream()).await;
    let (again, _) = read(&mut stream, 3).await;
    assert_eq!(again.iter().map(request_id).collect::<Vec<_>>(), calls.iter().map(request_id).collect::<Vec<_>>());
    answer(&stream, again.iter().map(granted).collect());
    assert!(soon(callers).await.unwrap().iter().all(Result::is_ok));
    // The leader is known: the next calls use the stream that is open.
    let callers = start(&client, 3..6);
    let (calls, _) = read(&mut stream, 3).await;
    answer(&stream, calls.iter().map(granted).collect());
    assert!(soon(callers).await.unwrap().iter().all(Result::is_ok));
}

#[tokio::test(start_paused = true)]
async fn a_follower_that_refuses_the_stream_is_left_at_once() {
    let network = Network::default();
    let (mut follower, mut leader) = (network.node("a:1"), network.node("b:1"));
    let client = network.client(&["a:1"]);
    let callers = start(&client, 0..2);
    soon(follower.enqueue_stream()).await.break_with(ApiError::not_leader(Some(("n2", "b:1"))));
    let begin = Instant::now();
    let mut stream = soon(leader.enqueue_stream()).await;
    assert!(begin.elapsed() < Duration::from_millis(5), "{:?}", begin.elapsed());
    let (calls, _) = read(&mut stream, 2).await;
    answer(&stream, calls.iter().map(granted).collect());
    assert!(soon(callers).await.unwrap().iter().all(Result::is_ok));
}

#[tokio::test(start_paused = true)]
async fn a_full_node_pauses_the_stream_and_keeps_it() {
    let network = Network::default();
    let mut node = network.node("a:1");
    let client = network.client(&["a:1"]);
    let callers = start(&client, 0..2);
    let mut stream = soon(node.enqueue_stream()).await;
    let (calls, _) = read(&mut stream, 2).await;
    let pause = Duration::from_millis(700);
    let full = error(ErrorReason::Overloaded).with_retry_after(pause);
    answer(&stream, vec![granted(&calls[0]), refused(&calls[1], full)]);
    let begin = Instant::now();
    let (again, _) = read(&mut stream, 1).await;
    assert!(begin.elapsed() >= pause, "{:?}", begin.elapsed());
    assert_eq!(request_id(&again[0]), request_id(&calls[1]));
    answer(&stream, again.iter().map(granted).collect());
    assert!(soon(callers).await.unwrap().iter().all(Result::is_ok));
}

#[tokio::test(start_paused = true)]
async fn a_final_refusal_concerns_one_call_only() {
    let network = Network::default();
    let mut node = network.node("a:1");
    let client = network.client(&["a:1"]);
    let callers = start(&client, 0..3);
    let mut stream = soon(node.enqueue_stream()).await;
    let (calls, _) = read(&mut stream, 3).await;
    let expired = refused(&calls[1], error(ErrorReason::RequestExpired));
    answer(&stream, vec![granted(&calls[0]), expired, granted(&calls[2])]);
    let outcomes = soon(callers).await.unwrap();
    assert_eq!(outcomes[0], Ok(0));
    assert_eq!(outcomes[1].as_ref().unwrap_err().reason(), Some(ErrorReason::RequestExpired));
    assert_eq!(outcomes[2], Ok(2));
}

#[tokio::test(start_paused = true)]
async fn at_the_deadline_a_sent_call_is_unknown_and_an_unsent_one_is_not() {
    let network = Network::default();
    let client = network.client(&["a:1"]).with_deadline(Duration::from_secs(2));
    let unsent = soon(client.enqueue(numbered(1))).await.unwrap_err();
    assert!(matches!(unsent, Error::Unreachable { .. }), "{unsent}");

    let mut node = network.node("a:1");
    let caller = start(&client, 2..3);
    let mut stream = soon(node.enqueue_stream()).await;
    let (calls, _) = read(&mut stream, 1).await;
    let sent = soon(caller).await.unwrap().remove(0).unwrap_err();
    assert_eq!(sent.request_id(), Some(request_id(&calls[0]).as_str()));
}

#[tokio::test(start_paused = true)]
async fn a_stream_without_answers_is_given_up_for_another_node() {
    let network = Network::default();
    let (mut a, mut b) = (network.node("a:1"), network.node("b:1"));
    let client = network.client(&["a:1", "b:1"]);
    let callers = start(&client, 0..1);
    let (first, Seen::EnqueueStream(mut silent)) = soon(either(&mut a, &mut b)).await else { panic!("a stream") };
    let (calls, _) = read(&mut silent, 1).await;
    let begin = Instant::now();
    let (second, Seen::EnqueueStream(mut stream)) = soon(either(&mut a, &mut b)).await else { panic!("a stream") };
    assert_ne!(first, second);
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    let (again, _) = read(&mut stream, 1).await;
    assert_eq!(request_id(&again[0]), request_id(&calls[0]));
    answer(&stream, again.iter().map(granted).collect());
    assert_eq!(soon(callers).await.unwrap(), [Ok(0)]);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_is_not_sent_for() {
    let network = Network::default();
    let client = network.client(&["a:1"]);
    let left = start(&client, 0..1);
    let stays = start(&client, 1..2);
    // No node listens yet, so both calls wait.
    tokio::time::advance(Duration::from_millis(1)).await;
    left.abort();
    assert!(left.await.unwrap_err().is_cancelled());
    let mut node = network.node("a:1");
    let mut stream = soon(node.enqueue_stream()).await;
    let (calls, _) = read(&mut stream, 1).await;
    assert_eq!(calls.len(), 1);
    answer(&stream, calls.iter().map(granted).collect());
    assert_eq!(soon(stays).await.unwrap(), [Ok(1)]);
}

#[tokio::test(start_paused = true)]
async fn outside_of_any_cluster_the_callers_are_told_at_once() {
    let network = Network::default();
    let mut node = network.node("a:1");
    let client = network.client(&["a:1"]);
    let begin = Instant::now();
    let callers = start(&client, 0..2);
    soon(node.enqueue_stream()).await.break_with(error(ErrorReason::NotInitialized));
    for outcome in soon(callers).await.unwrap() {
        assert_eq!(outcome.unwrap_err().reason(), Some(ErrorReason::NotInitialized));
    }
    assert!(begin.elapsed() < Duration::from_secs(1));
}

/// The chaos suite found it, see the calls.
#[tokio::test(start_paused = true)]
async fn one_node_outside_of_any_cluster_does_not_refuse_for_those_out_of_reach() {
    let network = Network::default();
    let mut stranger = network.node("a:1");
    let client = network.client(&["a:1", "b:1"]);
    let caller = start(&client, 0..1);
    for _ in 0..4 {
        soon(stranger.enqueue_stream()).await.break_with(error(ErrorReason::NotInitialized));
    }
    let mut answering = soon(stranger.enqueue_stream()).await;
    let (calls, _) = read(&mut answering, 1).await;
    answer(&answering, calls.iter().map(|call| refused(call, error(ErrorReason::NotInitialized))).collect());
    let mut member = network.node("b:1");
    let mut stream = loop {
        match soon(either(&mut stranger, &mut member)).await {
            (1, Seen::EnqueueStream(stream)) => break stream,
            (_, Seen::EnqueueStream(stream)) => stream.break_with(error(ErrorReason::NotInitialized)),
            _ => panic!("a stream"),
        }
    };
    let (again, _) = read(&mut stream, 1).await;
    assert_eq!(request_id(&again[0]), request_id(&calls[0]));
    answer(&stream, again.iter().map(granted).collect());
    assert_eq!(soon(caller).await.unwrap(), [Ok(0)]);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_all_leaves_open_what_an_earlier_stream_may_have_applied() {
    let network = Network::default();
    let mut node = network.node("a:1");
    let client = network.client(&["a:1"]);
    let sent = start(&client, 0..1);
    let mut broken = soon(node.enqueue_stream()).await;
    let (calls, _) = read(&mut broken, 1).await;
    broken.break_with(Status::unavailable("connection reset"));
    let mut refusing = soon(node.enqueue_stream()).await;
    let late = start(&client, 1..2);
    read(&mut refusing, 2).await;
    refusing.break_with(error(ErrorReason::NotInitialized));
    let open = soon(sent).await.unwrap().remove(0).unwrap_err();
    assert_eq!(open.request_id(), Some(request_id(&calls[0]).as_str()), "{open}");
    let refused = soon(late).await.unwrap().remove(0).unwrap_err();
    assert_eq!(refused.reason(), Some(ErrorReason::NotInitialized), "a refused stream took nothing: {refused}");
}

#[tokio::test(start_paused = true)]
async fn what_a_stream_took_before_it_was_refused_is_open() {
    let network = Network::default();
    let mut node = network.node("a:1");
    let client = network.client(&["a:1"]);
    let callers = start(&client, 0..2);
    let mut stream = soon(node.enqueue_stream()).await;
    let (calls, _) = read(&mut stream, 2).await;
    answer(&stream, vec![granted(&calls[0])]);
    stream.break_with(error(ErrorReason::Internal));
    let outcomes = soon(callers).await.unwrap();
    assert_eq!(outcomes[0], Ok(0));
    let open = outcomes[1].as_ref().unwrap_err();
    assert_eq!(open.request_id(), Some(request_id(&calls[1]).as_str()), "{open}");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_refused_after_its_answer_was_lost_is_open() {
    let network = Network::default();
    let mut node = network.node("a:1");
    let client = network.client(&["a:1"]);
    let sent = start(&client, 0..1);
    let mut broken = soon(node.enqueue_stream()).await;
    let (calls, _) = read(&mut broken, 1).await;
    broken.break_with(Status::unavailable("connection reset"));
    let mut stream = soon(node.enqueue_stream()).await;
    let late = start(&client, 1..2);
    let (again, _) = read(&mut stream, 2).await;
    answer(&stream, again.iter().map(|call| refused(call, error(ErrorReason::RequestExpired))).collect());
    let open = soon(sent).await.unwrap().remove(0).unwrap_err();
    assert_eq!(open.request_id(), Some(request_id(&calls[0]).as_str()), "{open}");
    assert!(open.to_string().contains("the script says so"), "the refusal is told too: {open}");
    let refused = soon(late).await.unwrap().remove(0).unwrap_err();
    assert_eq!(refused.reason(), Some(ErrorReason::RequestExpired));
}

#[test]
fn a_client_outlives_the_runtime_that_drove_its_stream() {
    let network = Network::default();
    let client = network.client(&["a:1"]);
    let mut seen_ids = BTreeMap::new();
    for round in 0..2 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut node = network.node("a:1");
            let callers = start(&client, round..round + 1);
            let mut stream = soon(node.enqueue_stream()).await;
            let (calls, _) = read(&mut stream, 1).await;
            seen_ids.insert(request_id(&calls[0]), round);
            answer(&stream, calls.iter().map(granted).collect());
            assert_eq!(soon(callers).await.unwrap(), [Ok(round)]);
        });
    }
    assert_eq!(seen_ids.len(), 2);
}
