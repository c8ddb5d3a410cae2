//! The queue: producers, agents whose completions enqueue children, and an audit of every task's end.
//!
//! The result of a task is the token of the attempt that completed it, so the audit can tell which one did.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use quorate_client::{Agent, AgentHandle, Attempt, Client, NewTask, Output, TaskError};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::audit;
use super::pending::Pending;
use super::process::{End, Pace, Process};
use super::{WorkContext, Workload};
use crate::event::{Operation, Token};

const QUEUE: &str = "work";
const PRODUCERS: usize = 6;
const AGENTS: usize = 5;
const SLOTS: u32 = 4;
/// The shortest that the cluster allows is 1 s; a short one makes sessions end during faults.
const TTL: Duration = Duration::from_secs(2);
/// No task has it.
const NO_TASK: u64 = 0;
/// The part of the tasks that wait long for another attempt, so that some wait whenever a node is killed.
const LONG_WAITS: f64 = 0.2;
/// The most that the cluster takes; faults cannot use them up.
const ATTEMPTS: u32 = 1_000;

/// The queue load.
pub(super) struct Queue {
    shared: Arc<Book>,
    agents: Mutex<Vec<AgentHandle>>,
}

/// What agents and producers know of tasks.
#[derive(Default)]
struct Book {
    /// Tasks whose id is known, by payload.
    tasks: Mutex<BTreeMap<u64, u64>>,
    /// Children of acknowledged completions of which the acknowledgement named no id.
    nameless: Mutex<BTreeSet<u64>>,
}

impl Book {
    /// What is to be read at the end: (payload, task). A child that was never named and came to no agent, though the queue has
    /// nothing left, is read under the id of no task.
    fn known(&self, is_at_rest: bool) -> Vec<(u64, u64)> {
        let mut tasks = self.tasks.lock().clone();
        if is_at_rest {
            for child in &*self.nameless.lock() {
                tasks.entry(*child).or_insert(NO_TASK);
            }
        }
        tasks.into_iter().collect()
    }
}

pub(super) fn payload(value: u64) -> Bytes {
    Bytes::copy_from_slice(&value.to_le_bytes())
}

pub(super) fn value_of(payload: &[u8]) -> u64 {
    payload.first_chunk::<8>().map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes))
}

pub(super) fn token_text((position, ordinal): (u64, u32)) -> String {
    Token { position, ordinal }.to_string()
}

/// A task that is tried again soon and for ever.
pub(super) fn patient_task(queue: &str, value: u64) -> NewTask {
    NewTask::new(queue, payload(value))
        .max_attempts(ATTEMPTS)
        .backoff(Duration::from_millis(20), Duration::from_millis(500))
}

impl Queue {
    pub(super) fn new() -> Queue {
        Queue { shared: Arc::new(Book::default()), agents: Mutex::new(Vec::new()) }
    }

    async fn produce(&self, ctx: &WorkContext, ordinal: usize) {
        let mut process = Process::new(ctx, ordinal);
        let mut pace = Pace::new(ctx, PRODUCERS, &mut process.random);
        while pace.turn().await {
            let value = ctx.value();
            let operation = Operation::Enqueue { value, task: None };
            let task = match process.random.random_bool(LONG_WAITS) {
                true => patient_task(QUEUE, value).backoff(Duration::from_secs(2), Duration::from_secs(4)),
                false => patient_task(QUEUE, value),
            };
            process.begin(&operation);
            // Most go by the stream that gathers calls, some by the call for batches.
            let answer = if process.random.random_bool(0.8) {
                process.client.enqueue(task).await
            } else {
                process.client.enqueue_many([task]).await.map(|ids| ids.first().copied().unwrap_or_default())
            };
            let end = match answer {
                Ok(task) => {
                    self.shared.tasks.lock().insert(value, task);
                    End::Ok(Operation::Enqueue { value, task: Some(task) })
                }
                Err(error) => End::of_write(&error),
            };
            process.end(end);
        }
    }

    fn agent(&self, ctx: &WorkContext, client: &Client, number: usize) -> Result<AgentHandle> {
        let pending = Pending::default();
        let (handling, completed) = (pending.clone(), pending);
        let ctx = ctx.clone();
        let (book, known) = (self.shared.clone(), self.shared.clone());
        let random = Mutex::new(StdRng::seed_from_u64(ctx.seed ^ ((number as u64) << 32)));
        Ok(Agent::builder(client, format!("jepsen-{number}"))
            .role(QUEUE)
            .slots(SLOTS)
            .ttl(TTL)
            .handler(move |attempt| {
                let draw: (f64, u64) = random.lock().random();
                handle(ctx.clone(), book.clone(), handling.clone(), attempt, draw)
            })
            .on_completed(move |task, children| {
                let Some(Operation::Complete { child: Some(child), .. }) = completed.acknowledged(task) else { return };
                match children.first() {
                    Some(id) => drop(known.tasks.lock().insert(child, *id)),
                    None => drop(known.nameless.lock().insert(child)),
                }
            })
            .start()?)
    }
}

/// One attempt: a little work, now and then a failure or a child.
async fn handle(
    ctx: WorkContext,
    book: Arc<Book>,
    pending: Pending,
    attempt: Attempt,
    (draw, wait): (f64, u64),
) -> Result<Output, TaskError> {
    let mut process = ctx.recorder.process();
    let (task, token) = (attempt.task_id, token_text(attempt.token));
    let value = value_of(&attempt.payload);
    book.tasks.lock().entry(value).or_insert(task);
    let delivered = Operation::Deliver { value, task, token: token.clone(), attempt: attempt.number };
    process.instant(delivered);
    tokio::time::sleep(Duration::from_millis(wait % 30)).await;
    if draw < 0.05 && attempt.number <= 2 {
        return Err(TaskError::retry("it is to be tried again"));
    }
    let child = (draw > 0.8 && !ctx.stop.is_cancelled()).then(|| ctx.value());
    let operation = Operation::Complete { value, task, token: token.clone(), child };
    let output = Output::new(token);
    let output = match child {
        Some(child) => output.child(patient_task(QUEUE, child)),
        None => output,
    };
    pending.begin(process, task, operation);
    Ok(output)
}

#[async_trait]
impl Workload for Queue {
    fn name(&self) -> &'static str {
        "queue"
    }

    async fn prepare(&self, ctx: &WorkContext) -> Result<()> {
        let mut agents = Vec::new();
        for number in 0..AGENTS {
            agents.push(self.agent(ctx, ctx.clients.all(), number)?);
        }
        self.agents.lock().extend(agents);
        Ok(())
    }

    /// A task is enqueued, delivered and completed: three operations.
    async fn run(&self, ctx: &WorkContext) -> Result<()> {
        let ctx = ctx.part(0.4, 1);
        audit::together((0..PRODUCERS).map(|ordinal| self.produce(&ctx, ordinal))).await;
        Ok(())
    }

    async fn finish(&self, ctx: &WorkContext) -> Result<()> {
        let is_at_rest = audit::rest(ctx, QUEUE).await;
        let agents = std::mem::take(&mut *self.agents.lock());
        futures::future::join_all(agents.into_iter().map(AgentHandle::shutdown)).await;
        audit::tasks(ctx, self.shared.known(is_at_rest)).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_nobody_named_or_got_is_read_as_no_task_once_the_queue_is_at_rest() {
        let book = Book::default();
        book.tasks.lock().insert(1, 10);
        book.nameless.lock().extend([1, 2]);
        assert_eq!(book.known(false), [(1, 10)]);
        assert_eq!(book.known(true), [(1, 10), (2, NO_TASK)]);
    }

    #[test]
    fn a_payload_is_its_value() {
        assert_eq!(value_of(&payload(7)), 7);
        assert_eq!(value_of(b"short"), u64::MAX);
        assert_eq!(token_text((40, 2)), "40.2");
    }
}
