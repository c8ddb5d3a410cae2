//! Unary calls against scripted nodes: hints, retries, request ids, deadlines.

use std::time::Duration;

use crate::fake::{Network, Seen, either, error, soon};
use quorate_client::v1::{EnqueueResponse, ErrorReason, GetTaskResponse, Task};
use quorate_client::{ApiError, Client, Error, NewTask};
use tokio::time::Instant;
use tonic::Status;

fn task() -> NewTask {
    NewTask::new("mail", "hello")
}

async fn enqueue_two(client: Client) -> Result<Vec<u64>, Error> {
    client.enqueue_many([task(), task()]).await
}

#[tokio::test(start_paused = true)]
async fn a_hint_is_followed_with_the_same_request_id_and_remembered() {
    let network = Network::default();
    let (mut follower, mut leader) = (network.node("a:1"), network.node("b:1"));
    let client = network.client(&["a:1"]);
    let call = tokio::spawn(enqueue_two(client.clone()));
    let refused = soon(follower.enqueue()).await;
    let request_id = refused.request.request_id.clone();
    assert!(!request_id.is_empty());
    refused.refuse(ApiError::not_leader(Some(("n2", "b:1"))));
    let served = soon(leader.enqueue()).await;
    assert_eq!(served.request.request_id, request_id);
    served.ok(EnqueueResponse { task_ids: vec![4, 5] });
    assert_eq!(call.await.unwrap(), Ok(vec![4, 5]));

    let again = tokio::spawn(enqueue_two(client));
    let served = soon(leader.enqueue()).await;
    assert_ne!(served.request.request_id, request_id, "another call is another request");
    served.ok(EnqueueResponse { task_ids: vec![6, 7] });
    assert_eq!(again.await.unwrap(), Ok(vec![6, 7]));
    assert!(follower.seen.try_recv().is_err(), "the leader is known now");
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_retried_elsewhere_with_the_same_request_id() {
    let network = Network::default();
    let (mut a, mut b) = (network.node("a:1"), network.node("b:1"));
    let call = tokio::spawn(enqueue_two(network.client(&["a:1", "b:1"])));
    let (first, Seen::Enqueue(lost)) = soon(either(&mut a, &mut b)).await else { panic!("an enqueue") };
    let request_id = lost.request.request_id.clone();
    lost.refuse(Status::unavailable("connection reset"));
    let (second, Seen::Enqueue(retried)) = soon(either(&mut a, &mut b)).await else { panic!("an enqueue") };
    assert_ne!(first, second, "another node is asked");
    assert_eq!(retried.request.request_id, request_id);
    retried.ok(EnqueueResponse { task_ids: vec![1, 2] });
    assert_eq!(call.await.unwrap(), Ok(vec![1, 2]));
}

#[tokio::test(start_paused = true)]
async fn a_mutation_without_an_answer_has_an_unknown_outcome() {
    let network = Network::default();
    let mut node = network.node("a:1");
    let start = Instant::now();
    let call = tokio::spawn(enqueue_two(network.client(&["a:1"])));
    let swallowed = soon(node.enqueue()).await;
    let outcome = soon(call).await.unwrap();
    assert_eq!(start.elapsed().as_secs(), 10, "the default deadline");
    let error = outcome.unwrap_err();
    assert_eq!(error.request_id(), Some(swallowed.request.request_id.as_str()));
    assert!(error.to_string().contains("may have been applied"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_read_without_an_answer_is_only_unreachable() {
    let network = Network::default();
    let mut node = network.node("a:1");
    let client = network.client(&["a:1"]).with_deadline(Duration::from_secs(2));
    let call = tokio::spawn(async move { client.get_task(7).await });
    let swallowed = soon(node.get_task()).await;
    assert_eq!(swallowed.request.task_id, 7);
    let error = soon(call).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn without_any_node_nothing_was_sent() {
    let network = Network::default();
    let start = Instant::now();
    let error = soon(enqueue_two(network.client(&["a:1", "b:1"]))).await.unwrap_err();
    assert_eq!(start.elapsed().as_secs(), 10);
    let Error::Unreachable { endpoints, .. } = &error else { panic!("{error}") };
    assert!(endpoints.contains("a:1") && endpoints.contains("b:1"), "{endpoints}");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_lasts_is_what_the_caller_gets() {
    let network = Network::default();
    let mut node = network.node("a:1");
    tokio::spawn(async move {
        loop {
            node.enqueue().await.refuse(error(ErrorReason::NoLeader));
        }
    });
    let failed = soon(enqueue_two(network.client(&["a:1"]))).await.unwrap_err();
    assert_eq!(failed.reason(), Some(ErrorReason::NoLeader));
}

#[tokio::test(start_paused = true)]
async fn a_final_refusal_is_not_retried() {
    let network = Network::default();
    let mut node = network.node("a:1");
    let client = network.client(&["a:1"]);
    let call = tokio::spawn(async move { client.get_task(7).await });
    soon(node.get_task()).await.refuse(error(ErrorReason::TaskNotFound));
    let failed = soon(call).await.unwrap().unwrap_err();
    assert_eq!(failed.reason(), Some(ErrorReason::TaskNotFound));
    assert!(node.seen.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_after_a_lost_answer_leaves_a_mutation_open_and_a_read_refused() {
    let network = Network::default();
    let mut node = network.node("a:1");
    let client = network.client(&["a:1"]);
    let call = tokio::spawn(enqueue_two(client.clone()));
    let lost = soon(node.enqueue()).await;
    let request_id = lost.request.request_id.clone();
    lost.refuse(Status::unavailable("connection reset"));
    soon(node.enqueue()).await.refuse(error(ErrorReason::RequestExpired));
    let failed = soon(call).await.unwrap().unwrap_err();
    assert_eq!(failed.request_id(), Some(request_id.as_str()), "{failed}");
    assert!(failed.to_string().contains("the script says so"), "the refusal is told too: {failed}");

    let call = tokio::spawn(enqueue_two(client.clone()));
    soon(node.enqueue()).await.refuse(error(ErrorReason::NoLeader));
    soon(node.enqueue()).await.refuse(error(ErrorReason::RequestExpired));
    let failed = soon(call).await.unwrap().unwrap_err();
    assert_eq!(failed.reason(), Some(ErrorReason::RequestExpired), "no try was applied: {failed}");

    let read = tokio::spawn(async move { client.get_task(7).await });
    soon(node.get_task()).await.refuse(Status::unavailable("connection reset"));
    soon(node.get_task()).await.refuse(error(ErrorReason::TaskNotFound));
    let failed = soon(read).await.unwrap().unwrap_err();
    assert_eq!(failed.reason(), Some(ErrorReason::TaskNotFound), "a read changes nothing: {failed}");
}

#[tokio::test(start_paused = true)]
async fn a_leave_that_is_refused_after_a_lost_answer_is_open() {
    let network = Network::default();
    let mut node = network.node("a:1");
    let leave = |client: Client| tokio::spawn(async move { client.cluster_leave("b", false).await });
    let call = leave(network.client(&["a:1"]));
    soon(node.leave()).await.refuse(Status::unavailable("connection reset"));
    soon(node.leave()).await.refuse(error(ErrorReason::WouldBreakQuorum));
    let failed = soon(call).await.unwrap().unwrap_err();
    assert!(matches!(failed, Error::OutcomeUnknown { .. }), "{failed}");
    assert!(!failed.to_string().contains("request_id"), "there is none: {failed}");

    let call = leave(network.client(&["a:1"]));
    soon(node.leave()).await.refuse(Status::unavailable("connection reset"));
    soon(node.leave()).await.refuse(error(ErrorReason::NodeNotFound));
    soon(call).await.unwrap().expect("the first try did it");

    let call = leave(network.client(&["a:1"]));
    soon(node.leave()).await.refuse(error(ErrorReason::WouldBreakQuorum));
    let failed = soon(call).await.unwrap().unwrap_err();
    assert_eq!(failed.reason(), Some(ErrorReason::WouldBreakQuorum), "nothing was lost: {failed}");
}

#[tokio::test(start_paused = true)]
async fn a_full_node_is_left_alone_for_the_time_it_states() {
    let network = Network::default();
    let mut node = network.node("a:1");
    let call = tokio::spawn(enqueue_two(network.client(&["a:1"])));
    let pause = Duration::from_millis(1_500);
    soon(node.enqueue()).await.refuse(error(ErrorReason::Overloaded).with_retry_after(pause));
    let start = Instant::now();
    soon(node.enqueue()).await.ok(EnqueueResponse { task_ids: vec![1, 2] });
    assert!(start.elapsed() >= pause, "{:?}", start.elapsed());
    assert_eq!(call.await.unwrap(), Ok(vec![1, 2]));
}

#[tokio::test(start_paused = true)]
async fn a_retry_by_hand_carries_the_id_of_the_first_call() {
    let network = Network::default();
    let mut node = network.node("a:1");
    let client = network.client(&["a:1"]).with_deadline(Duration::from_secs(1));
    let call = tokio::spawn(enqueue_two(client.clone()));
    let swallowed = soon(node.enqueue()).await;
    let failed = soon(call).await.unwrap().unwrap_err();
    let request_id = failed.request_id().unwrap().parse().unwrap();
    let again = tokio::spawn(enqueue_two(client.retry_as(request_id)));
    let retried = loop {
        let seen = soon(node.enqueue()).await;
        assert_eq!(seen.request.request_id, swallowed.request.request_id);
        if !again.is_finished() {
            break seen;
        }
    };
    retried.ok(EnqueueResponse { task_ids: vec![8, 9] });
    assert_eq!(again.await.unwrap(), Ok(vec![8, 9]));
}

#[tokio::test(start_paused = true)]
async fn a_node_outside_of_any_cluster_is_passed_over() {
    let network = Network::default();
    let (mut a, mut b) = (network.node("a:1"), network.node("b:1"));
    let client = network.client(&["a:1", "b:1"]);
    let call = tokio::spawn(async move { client.get_task(7).await });
    let (first, Seen::GetTask(stranger)) = soon(either(&mut a, &mut b)).await else { panic!("a read") };
    stranger.refuse(error(ErrorReason::NotInitialized));
    let (second, Seen::GetTask(member)) = soon(either(&mut a, &mut b)).await else { panic!("a read") };
    assert_ne!(first, second);
    member.ok(GetTaskResponse { task: Some(Task { id: 7, ..Task::default() }) });
    assert_eq!(call.await.unwrap().unwrap().id, 7);
}

/// The chaos suite found it: one that was made anew was asked again and again while the others were out of reach, and counted
/// for each of them.
#[tokio::test(start_paused = true)]
async fn one_node_outside_of_any_cluster_does_not_speak_for_those_out_of_reach() {
    let network = Network::default();
    let mut a = network.node("a:1");
    let client = network.client(&["a:1", "b:1", "c:1"]);
    let call = tokio::spawn(async move { client.get_task(7).await });
    for _ in 0..4 {
        soon(a.get_task()).await.refuse(error(ErrorReason::NotInitialized));
    }
    let mut b = network.node("b:1");
    loop {
        match soon(either(&mut a, &mut b)).await {
            (0, Seen::GetTask(stranger)) => stranger.refuse(error(ErrorReason::NotInitialized)),
            (_, Seen::GetTask(member)) => {
                member.ok(GetTaskResponse { task: Some(Task { id: 7, ..Task::default() }) });
                break;
            }
            _ => panic!("a read"),
        }
    }
    assert_eq!(call.await.unwrap().unwrap().id, 7);
}

#[tokio::test(start_paused = true)]
async fn bad_input_is_refused_before_it_is_sent() {
    let client = Network::default().client(&["a:1"]);
    let large = NewTask::new("mail", vec![0; quorate_client::limits::PAYLOAD_BYTES + 1]);
    assert_eq!(client.enqueue(large).await.unwrap_err().reason(), Some(ErrorReason::TooLarge));
    let nameless = client.enqueue_many([NewTask::new("", "x")]).await.unwrap_err();
    assert_eq!(nameless.reason(), Some(ErrorReason::InvalidArgument));
    assert!(matches!(Client::connect(["nowhere"]), Err(Error::InvalidEndpoint { .. })));
}
