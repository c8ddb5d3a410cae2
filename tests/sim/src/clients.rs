//! Producers, readers and the operator: the real client.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use quorate_client::v1::{ErrorReason, TaskState};
use quorate_client::{Client, Error, NewTask};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::memory;
use crate::network::SimulatedTcp;
use crate::work;
use crate::world::{SLOTS, Sent, World, endpoints};

/// Producers of a run, each near to another node, so that enqueues go on wherever there is a majority.
const PRODUCERS: usize = SLOTS + 1;
const WRITE_DEADLINE: Duration = Duration::from_secs(2);
const READ_DEADLINE: Duration = Duration::from_millis(700);
/// How long the operator waits for a leave before it asks again.
const LEAVE_PATIENCE: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(20);

/// A task that is tried as often as it takes.
pub(crate) fn retried(task: NewTask) -> NewTask {
    task.max_attempts(1_000).backoff(Duration::from_millis(20), Duration::from_millis(200))
}

/// A client that knows a node, or all of them beginning with it.
pub(crate) fn client(first: usize, known: usize) -> Result<Client, Error> {
    Client::connect_with(endpoints(first).into_iter().take(known), SimulatedTcp)
}

/// The ways of a client into the cluster: it asks the node that is near now and then, and all of them where that fails.
pub(crate) struct Ways {
    near: Client,
    all: Client,
}

impl Ways {
    /// The ways of a client that is near a node.
    pub(crate) fn near(node: usize, deadline: Duration) -> Result<Ways, Error> {
        let node = node % SLOTS;
        let near = client(node, 1)?.with_deadline(deadline);
        Ok(Ways { near, all: client(node, SLOTS)?.with_deadline(deadline) })
    }

    /// The client for a call, which was tried before or not.
    pub(crate) fn client(&self, world: &World, is_first: bool) -> &Client {
        if is_first && world.one_in(2) { &self.near } else { &self.all }
    }
}

/// The host of all producers, readers and the operator, until it is killed.
pub(crate) async fn run_clients(world: Arc<World>) -> turmoil::Result {
    for producer in 0..PRODUCERS {
        tokio::spawn(produce(world.clone(), Ways::near(producer, WRITE_DEADLINE)?));
    }
    tokio::spawn(repeat(world.clone(), client(1, SLOTS)?.with_deadline(WRITE_DEADLINE)));
    tokio::spawn(operate(world.clone(), client(2, SLOTS)?));
    for node in 0..SLOTS {
        // Each reader knows one node, so that a node which should know that it does not lead is asked too.
        tokio::spawn(read(world.clone(), client(node, 1)?.with_deadline(READ_DEADLINE)));
    }
    memory::spawn(&world)?;
    std::future::pending().await
}

async fn produce(world: Arc<World>, ways: Ways) {
    while !world.is_closing() {
        let many = if world.one_in(8) { 3 } else { 1 };
        let payloads: Vec<String> = (0..many).map(|_| format!("task {}", world.number())).collect();
        let call = world.calls(format!("enqueue of {payloads:?}"));
        if let Some(tasks) = enqueue(&world, &ways, &payloads).await {
            for (payload, task) in payloads.iter().zip(tasks) {
                if work::is_called_off(payload.as_bytes()) {
                    sleep(world.pause(0..200)).await;
                    cancel(&world, &ways, payload, task).await;
                }
            }
        }
        drop(call);
        sleep(world.pause(5..140)).await;
    }
}

/// Enqueues under one request id until there is an answer, or gives up now and then. Returns the tasks.
async fn enqueue(world: &World, ways: &Ways, payloads: &[String]) -> Option<Vec<u64>> {
    let request = Uuid::now_v7();
    let mut is_first = true;
    loop {
        let client = ways.client(world, is_first).retry_as(request);
        let mut tasks = payloads.iter().map(|payload| retried(NewTask::new(work::QUEUE, payload.clone())));
        let sent = match (payloads.len(), tasks.next()) {
            (1, Some(task)) => client.enqueue(task).await.map(|task| vec![task]),
            (_, first) => client.enqueue_many(first.into_iter().chain(tasks)).await,
        };
        let error = match sent {
            Ok(tasks) => {
                acknowledged(world, request, payloads, &tasks);
                return Some(tasks);
            }
            Err(error) => error,
        };
        if is_final(&error) {
            world.with_history(|history| {
                history.violation(format!("clients: the enqueue of {payloads:?} was refused for good: {error}"));
            });
            return std::future::pending().await;
        }
        tracing::debug!(%error, ?payloads, "an enqueue has no answer");
        if is_first && world.one_in(4) {
            if is_certain(&error) {
                let refused = |payload: &String, history: &mut crate::history::History| {
                    let audited = history.audit.refused(payload.as_bytes());
                    history.audited(audited);
                };
                world.with_history(|history| payloads.iter().for_each(|payload| refused(payload, history)));
            }
            return None;
        }
        is_first = false;
        sleep(AGAIN).await;
    }
}

fn acknowledged(world: &World, request: Uuid, payloads: &[String], tasks: &[u64]) {
    world.with_history(|history| {
        if tasks.len() != payloads.len() {
            history.violation(format!("clients: {payloads:?} were acknowledged as the tasks {tasks:?}"));
        }
        for (payload, task) in payloads.iter().zip(tasks) {
            history.acknowledged_enqueue(payload.as_bytes(), *task);
        }
    });
    if let ([payload], [task]) = (payloads, tasks) {
        world.sent.lock().push(Sent { request, payload: payload.clone(), task: *task });
    }
}

/// Calls a task off under one request id until there is an answer.
async fn cancel(world: &World, ways: &Ways, payload: &str, task: u64) {
    let request = Uuid::now_v7();
    let mut is_first = true;
    loop {
        let client = ways.client(world, is_first).retry_as(request);
        is_first = false;
        match client.cancel_task(task).await {
            Ok(found) if found.state() == TaskState::Cancelled => {
                return world.with_history(|history| history.acknowledged_cancel(task));
            }
            Ok(found) => {
                return world.with_history(|history| {
                    history.violation(format!("clients: {payload} was cancelled and is {:?}", found.state()));
                });
            }
            Err(error) if error.reason() == Some(ErrorReason::TaskFinished) => return,
            Err(error) if is_final(&error) => {
                return world.with_history(|history| {
                    history.violation(format!("clients: cancelling {payload} was refused for good: {error}"));
                });
            }
            Err(error) => tracing::debug!(%error, payload, "a cancel has no answer"),
        }
        sleep(AGAIN).await;
    }
}

/// Whether sending the same again would give the same answer.
pub(crate) fn is_final(error: &Error) -> bool {
    let before_init = Some(ErrorReason::NotInitialized);
    matches!(error, Error::Refused(refusal) if !refusal.is_retryable()) && error.reason() != before_init
}

/// Whether the error says that nothing was done and nothing will be.
pub(crate) fn is_certain(error: &Error) -> bool {
    matches!(error, Error::Refused(_) | Error::Unreachable { .. })
}

/// Sends what was answered before again, as a client does that lost the answer.
async fn repeat(world: Arc<World>, client: Client) {
    while !world.is_closing() {
        sleep(world.pause(40..120)).await;
        let count = world.sent.lock().len() as u64;
        if count == 0 {
            continue;
        }
        let chosen = world.choose(0..count) as usize;
        let Sent { request, payload, task: first } = world.sent.lock()[chosen].clone();
        let task = retried(NewTask::new(work::QUEUE, payload.clone()));
        if let Ok(task) = client.retry_as(request).enqueue(task).await {
            world.with_history(|history| {
                history.operations += 1;
                if task != first {
                    history.violation(format!(
                        "clients: {payload} was acknowledged as task {first}, and as task {task} when it was sent again"
                    ));
                }
            });
        }
    }
}

/// Reads tasks of which something was acknowledged before: the read must show it.
async fn read(world: Arc<World>, client: Client) {
    loop {
        sleep(world.pause(10..60)).await;
        let (of_completed, turn) = (world.one_in(2), world.choose(0..6) as usize);
        let known = world.with_history(|history| {
            let task = history.audit.recent(of_completed, turn)?;
            Some((task, history.audit.told_end(task)))
        });
        let Some((task, end)) = known else { continue };
        let violation = match client.get_task(task.0).await {
            Ok(found) => {
                let wanted = match end {
                    Some(quorate_state::control::TaskState::Cancelled) => Some(TaskState::Cancelled),
                    Some(_) => Some(TaskState::Completed),
                    None => None,
                };
                world.with_history(|history| history.operations += 1);
                wanted
                    .filter(|wanted| found.state() != *wanted)
                    .map(|wanted| format!("stale read: task {task} is {wanted:?} and was read as {:?}", found.state()))
            }
            Err(error) if error.reason() == Some(ErrorReason::TaskNotFound) => {
                Some(format!("stale read: task {task} was acknowledged and is not found"))
            }
            Err(error) => {
                tracing::debug!(%error, "a read has no answer");
                None
            }
        };
        world.with_history(|history| history.note(violation));
    }
}

/// Takes nodes out of the cluster when the driver asks for it.
async fn operate(world: Arc<World>, client: Client) {
    loop {
        sleep(world.pause(30..60)).await;
        let Some(node) = *world.leave.lock() else { continue };
        let slot = &world.slots[node];
        let Some(id) = *slot.id.lock() else { continue };
        match timeout(LEAVE_PATIENCE, client.cluster_leave(&id.to_string(), false)).await {
            Ok(Ok(())) => {
                slot.left.store(true, Ordering::Relaxed);
                *world.leave.lock() = None;
                world.with_history(|history| history.operations += 1);
            }
            Ok(Err(error)) if error.reason() == Some(ErrorReason::NodeNotFound) => {
                // An earlier request, whose answer was lost, has done it.
                slot.left.store(true, Ordering::Relaxed);
                *world.leave.lock() = None;
            }
            Ok(Err(error)) => tracing::debug!(%error, node, "a node does not leave yet"),
            Err(_) => tracing::debug!(node, "a node takes its time to leave"),
        }
    }
}
