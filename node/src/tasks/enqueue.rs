//! The stream of enqueues, for producers with many calls in flight: the direct way to the leader.
//!
//! All calls of a frame are proposed together and answered together. A node that does not lead answers each call with
//! where the leader is, so that the client moves there.

use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, Stream, StreamExt as _};
use quorate_api::{limits, v1};
use quorate_state::Operation;
use quorate_state::control::{Command, Reply};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use v1::enqueue_answer::Outcome;

use super::{Tasks, wire};
use crate::error::Error;
use crate::limits::ENTRY_BYTES;

/// Frames of one stream that are under way. Beyond it the stream is not read.
const FRAMES_IN_FLIGHT: usize = 64;
/// Counted for a task beside its payload, so that one entry never has more tasks than it has ids for.
const TASK_BYTES: usize = 96;
/// Answers that wait for the client to read them.
const ANSWERS: usize = 64;

/// Checks an enqueue and makes its operation.
pub(super) fn operation(request: &v1::EnqueueRequest, now_us: u64) -> Result<Operation<Command>, Error> {
    wire::check_enqueue(&request.tasks)?;
    let id = wire::request_id(&request.request_id, now_us)?;
    let tasks = request.tasks.iter().map(wire::task_from_wire).collect();
    Ok(Operation { request: Some(id), command: Command::Enqueue { tasks } })
}

/// The answer to an enqueue that was not refused.
pub(super) fn response(reply: Reply) -> Result<v1::EnqueueResponse, Error> {
    match reply {
        Reply::Tasks(tasks) => Ok(v1::EnqueueResponse { task_ids: tasks.into_iter().map(|task| task.0).collect() }),
        other => Err(Error::internal(format!("an enqueue was answered with {other:?}"))),
    }
}

/// Serves one stream.
pub(super) fn serve(
    tasks: Arc<Tasks>,
    inbound: Streaming<v1::EnqueueStreamRequest>,
) -> impl Stream<Item = Result<v1::EnqueueStreamResponse, Status>> + Send {
    let (answers, outbound) = mpsc::channel(ANSWERS);
    tokio::spawn(run(tasks, inbound, answers));
    ReceiverStream::new(outbound)
}

type Answers = Vec<v1::EnqueueAnswer>;

async fn run(
    tasks: Arc<Tasks>,
    mut inbound: Streaming<v1::EnqueueStreamRequest>,
    outbound: mpsc::Sender<Result<v1::EnqueueStreamResponse, Status>>,
) {
    let mut under_way = FuturesUnordered::new();
    let mut open = true;
    while open || !under_way.is_empty() {
        let answers: Answers = tokio::select! {
            biased;
            () = tasks.context.shutdown.cancelled() => {
                // The client may have gone already.
                let _ = outbound.send(Err(Error::shutting_down().into())).await;
                return;
            }
            Some(first) = under_way.next(), if !under_way.is_empty() => {
                let mut answers: Answers = first;
                while let Some(Some(more)) = under_way.next().now_or_never() {
                    answers.extend(more);
                }
                answers
            }
            frame = inbound.next(), if open && under_way.len() < FRAMES_IN_FLIGHT => match frame {
                Some(Ok(frame)) => {
                    let (proposals, refused) = accept(&tasks, frame.calls);
                    under_way.extend(proposals);
                    refused
                }
                // Whoever breaks the stream does not read the answers; what was proposed goes on without it.
                Some(Err(_)) => return,
                None => {
                    open = false;
                    Answers::new()
                }
            },
        };
        if !answers.is_empty() && outbound.send(Ok(v1::EnqueueStreamResponse { answers })).await.is_err() {
            return;
        }
    }
}

/// Proposes the calls of a frame. Returns what resolves to their answers, and the answers of those that were refused.
fn accept(tasks: &Arc<Tasks>, calls: Vec<v1::EnqueueCall>) -> (Vec<BoxFuture<'static, Answers>>, Answers) {
    let mut refused = Answers::new();
    let mut proposals = Vec::new();
    let (mut seqs, mut operations, mut bytes) = (Vec::new(), Vec::new(), 0);
    let too_many = limits::check_size("calls", calls.len(), limits::FRAME_ITEMS).err().map(Error::from);
    let now_us = tasks.context.now_us();
    for call in calls {
        let request = call.request.unwrap_or_default();
        let size: usize = request.tasks.iter().map(|task| TASK_BYTES + task.payload.len()).sum();
        match too_many.clone().map_or_else(|| operation(&request, now_us), Err) {
            Ok(operation) => {
                // What goes into an entry of its own does not hold up the rest.
                if bytes + size > ENTRY_BYTES && !operations.is_empty() {
                    proposals.push(propose(tasks, std::mem::take(&mut seqs), std::mem::take(&mut operations)));
                    bytes = 0;
                }
                bytes += size;
                seqs.push((call.seq, request.tasks.len()));
                operations.push(operation);
            }
            Err(error) => refused.push(answer(call.seq, Err(error))),
        }
    }
    if !operations.is_empty() {
        proposals.push(propose(tasks, seqs, operations));
    }
    (proposals, refused)
}

/// Queues the operations at once; the future waits for their replies.
fn propose(
    tasks: &Arc<Tasks>,
    calls: Vec<(u64, usize)>,
    operations: Vec<Operation<Command>>,
) -> BoxFuture<'static, Answers> {
    let replies = tasks.context.control.propose(operations);
    let tasks = tasks.clone();
    async move {
        match replies.await {
            Ok(replies) => calls
                .into_iter()
                .zip(replies)
                .map(|((seq, count), reply)| {
                    tasks.metrics.enqueued(if reply.is_ok() { count } else { 0 });
                    answer(seq, reply.map_err(Error::from).and_then(response))
                })
                .collect(),
            Err(error) => {
                let error = tasks.hint(error);
                calls.into_iter().map(|(seq, _)| answer(seq, Err(error.clone()))).collect()
            }
        }
    }
    .boxed()
}

fn answer(seq: u64, outcome: Result<v1::EnqueueResponse, Error>) -> v1::EnqueueAnswer {
    let outcome = match outcome {
        Ok(response) => Outcome::Response(response),
        Err(error) => Outcome::Error(error.to_wire()),
    };
    v1::EnqueueAnswer { seq, outcome: Some(outcome) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorReason;
    use crate::request::new_request_id;
    use quorate_state::TaskId;

    #[test]
    fn an_operation_carries_the_callers_request_id() {
        let task = v1::NewTask { queue: "q".into(), ..v1::NewTask::default() };
        let now_us = 1_795_000_000_000_000;
        let id = new_request_id(now_us);
        let request_id = uuid::Uuid::from_u128(id.0).to_string();
        let made = operation(&v1::EnqueueRequest { request_id, tasks: vec![task] }, now_us).expect("valid");
        assert_eq!(made.request, Some(id));
        assert!(matches!(made.command, Command::Enqueue { tasks } if tasks.len() == 1));
    }

    #[test]
    fn a_reply_of_another_kind_is_a_defect_and_no_panic() {
        assert_eq!(response(Reply::Tasks(vec![TaskId(7)])).expect("tasks").task_ids, vec![7]);
        assert_eq!(response(Reply::Done).expect_err("not tasks").reason, ErrorReason::Internal);
    }
}
