//! Producers, readers and agents: the real client and the real agent SDK.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use quorate_client::v1::{ErrorReason, TaskState};
use quorate_client::{Agent, Attempt, Client, Error, LeaseKeeper, NewTask, Output, TaskError};
use tokio::time::sleep;
use uuid::Uuid;

use crate::network::SimulatedTcp;
use crate::work;
use crate::world::{NODES, World, endpoints};

/// Producers of a run. The last one knows all nodes; each of the others knows one, so that enqueues go on wherever there is
/// a majority.
const PRODUCERS: usize = NODES + 1;
/// Agents of a run, each on a host of its own.
pub(crate) const AGENTS: usize = 2;
const SLOTS: u32 = 4;
/// The shortest: an agent that is cut off for a while loses its tasks.
const TTL: Duration = Duration::from_secs(1);
const ENQUEUE_DEADLINE: Duration = Duration::from_secs(2);
const READ_DEADLINE: Duration = Duration::from_millis(700);

/// The name of the host of an agent.
pub(crate) fn agent_host(agent: usize) -> String {
    format!("agent-{}", agent + 1)
}

fn retried(task: NewTask) -> NewTask {
    task.max_attempts(1_000).backoff(Duration::from_millis(20), Duration::from_millis(200))
}

/// The host of all producers and readers.
pub(crate) async fn run_clients(world: Arc<World>) -> turmoil::Result {
    let sent = Arc::new(Mutex::new(Vec::new()));
    for producer in 0..PRODUCERS {
        let known = if producer < NODES { 1 } else { NODES };
        let client = Client::connect_with(endpoints(producer % NODES).into_iter().take(known), SimulatedTcp)?;
        tokio::spawn(produce(world.clone(), client, producer, sent.clone()));
    }
    let client = Client::connect_with(endpoints(1), SimulatedTcp)?;
    tokio::spawn(repeat(world.clone(), client, sent));
    for node in 0..NODES {
        // Each reader knows one node, so that a node which should know that it does not lead is asked too.
        let client = Client::connect_with(endpoints(node).into_iter().take(1), SimulatedTcp)?;
        tokio::spawn(read(world.clone(), client.with_deadline(READ_DEADLINE)));
    }
    std::future::pending().await
}

/// A request that was acknowledged: its id, its payload and the answer.
type Sent = Arc<Mutex<Vec<(Uuid, String, u64)>>>;

async fn produce(world: Arc<World>, client: Client, producer: usize, sent: Sent) {
    let client = client.with_deadline(ENQUEUE_DEADLINE);
    for number in 0.. {
        if world.closing.load(Ordering::Relaxed) {
            return;
        }
        let payload = format!("task {number} of producer {producer}");
        let request = Uuid::now_v7();
        world.in_flight.fetch_add(1, Ordering::Relaxed);
        let task = enqueue(&world, &client, request, &payload).await;
        world.in_flight.fetch_sub(1, Ordering::Relaxed);
        world.history.lock().acknowledged_enqueue(payload.as_bytes(), task);
        sent.lock().push((request, payload, task));
        sleep(world.pause(5..110)).await;
    }
}

/// Sends until there is an answer, always under the same request id.
async fn enqueue(world: &World, client: &Client, request: Uuid, payload: &str) -> u64 {
    loop {
        let task = retried(NewTask::new(work::QUEUE, payload.to_owned()));
        match client.retry_as(request).enqueue(task).await {
            Ok(task) => return task,
            Err(error) if is_final(&error) => {
                world.history.lock().violation(format!("the enqueue of {payload} was refused for good: {error}"));
                return std::future::pending().await;
            }
            Err(error) => tracing::debug!(%error, payload, "an enqueue has no answer; sending it again"),
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Whether sending the same again would give the same answer.
fn is_final(error: &Error) -> bool {
    let before_init = Some(ErrorReason::NotInitialized);
    matches!(error, Error::Refused(refusal) if !refusal.is_retryable()) && error.reason() != before_init
}

/// Sends what was answered before again, as a client does that lost the answer.
async fn repeat(world: Arc<World>, client: Client, sent: Sent) {
    let client = client.with_deadline(ENQUEUE_DEADLINE);
    while !world.closing.load(Ordering::Relaxed) {
        sleep(world.pause(40..120)).await;
        let count = sent.lock().len() as u64;
        if count == 0 {
            continue;
        }
        let chosen = world.choose(0..count) as usize;
        let (request, payload, first) = sent.lock()[chosen].clone();
        let task = retried(NewTask::new(work::QUEUE, payload.clone()));
        if let Ok(task) = client.retry_as(request).enqueue(task).await {
            let mut history = world.history.lock();
            history.operations += 1;
            if task != first {
                history.violation(format!(
                    "{payload} was acknowledged as task {first}, and as task {task} when it was sent again"
                ));
            }
        }
    }
}

/// Reads tasks of which something was acknowledged before: the read must show it.
async fn read(world: Arc<World>, client: Client) {
    loop {
        sleep(world.pause(10..40)).await;
        let (of_completed, turn) = (world.choose(0..2) == 0, world.choose(0..6) as usize);
        let (task, completed) = {
            let history = world.history.lock();
            let Some(task) = history.audit.recent(of_completed, turn) else { continue };
            (task, history.audit.is_told_completed(task))
        };
        match client.get_task(task.0).await {
            Ok(found) => {
                let mut history = world.history.lock();
                history.operations += 1;
                if completed && found.state() != TaskState::Completed {
                    history
                        .violation(format!("stale read: task {task} is completed and was read as {:?}", found.state()));
                }
            }
            Err(error) if error.reason() == Some(ErrorReason::TaskNotFound) => {
                world.history.lock().violation(format!("stale read: task {task} was acknowledged and is not found"));
            }
            Err(error) => tracing::debug!(%error, "a read has no answer"),
        }
    }
}

/// The process of an agent, until it is killed.
pub(crate) async fn run_agent(world: Arc<World>, agent: usize) -> turmoil::Result {
    let client = Client::connect_with(endpoints(agent), SimulatedTcp)?;
    let told = world.clone();
    let running = Agent::builder(&client, agent_host(agent))
        .role(work::QUEUE)
        .role(work::CHILDREN)
        .slots(SLOTS)
        .ttl(TTL)
        .lease_keeper(LeaseKeeper::Task)
        .handler(perform)
        .on_completed(move |task, children| told.history.lock().acknowledged_completion(task, children))
        .start()?;
    let ended = std::future::pending::<turmoil::Result>().await;
    running.stop().await;
    ended
}

async fn perform(attempt: Attempt) -> Result<Output, TaskError> {
    sleep(work::takes(&attempt.payload)).await;
    if attempt.number == 1 && work::fails_first(&attempt.payload) {
        return Err(TaskError::retry("the first attempt fails"));
    }
    let output = Output::new(work::result(&attempt.payload));
    Ok(match work::child(&attempt.payload) {
        Some(payload) => output.child(retried(NewTask::new(work::CHILDREN, payload))),
        None => output,
    })
}
