//! What every load needs before and after: collections that exist, and what became of each task.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use quorate_client::v1::{ErrorReason, TaskState};
use quorate_client::{Error, NewCollection};
use tokio::time::Instant;

use super::WorkContext;
use super::process::{End, Process};
use crate::event::Operation;

/// How long making a collection may take.
const CREATE: Duration = Duration::from_secs(30);
/// How long a queue may take to come to rest after the cluster has been healed.
const REST: Duration = Duration::from_secs(60);
/// Reads of tasks under way at once.
const READERS: usize = 16;
/// How often the state of one task is asked for.
const TRIES: u32 = 5;

/// Makes a collection, and waits until it can be read.
pub(super) async fn create(ctx: &WorkContext, collection: NewCollection) -> Result<()> {
    let deadline = Instant::now() + CREATE;
    let client = ctx.clients.all();
    loop {
        match client.create_collection(collection.clone()).await {
            Ok(_) => return Ok(()),
            Err(error) if error.reason() == Some(ErrorReason::CollectionExists) => return Ok(()),
            Err(Error::OutcomeUnknown { .. } | Error::Unreachable { .. }) if Instant::now() < deadline => {}
            Err(error) if Instant::now() >= deadline => bail!("the collection cannot be made: {error}"),
            Err(Error::Refused(refusal)) if refusal.is_retryable() => {}
            Err(error) => return Err(error).context("making a collection"),
        }
    }
}

/// Waits until no task of the queue is ready, waiting or granted, and says whether it came to that. What is not finished in
/// time shows in its final state.
pub(super) async fn rest(ctx: &WorkContext, queue: &str) -> bool {
    let deadline = Instant::now() + REST;
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    while Instant::now() < deadline {
        tick.tick().await;
        let Ok(queues) = ctx.clients.all().list_queues().await else { continue };
        let open = queues.iter().find(|row| row.name == queue).map_or(0, |row| row.ready + row.waiting + row.granted);
        if open == 0 {
            return true;
        }
    }
    false
}

/// Reads the final state of each task: (payload, task).
pub(super) async fn tasks(ctx: &WorkContext, known: Vec<(u64, u64)>) {
    let share = known.len().div_ceil(READERS).max(1);
    let readers = known.chunks(share).enumerate().map(|(reader, part)| async move {
        let mut process = Process::new(ctx, reader);
        for (value, task) in part {
            read_task(&mut process, *value, *task).await;
        }
    });
    futures::future::join_all(readers).await;
}

async fn read_task(process: &mut Process, value: u64, task: u64) {
    let operation = Operation::Final { value, task, state: None, result: None };
    process.begin(&operation);
    let mut end = End::Fail("it was not asked for".into());
    for _ in 0..TRIES {
        end = match process.client.get_task(task).await {
            Ok(found) => {
                let state = state_name(found.state());
                let result = String::from_utf8_lossy(&found.result).into_owned();
                let result = (!result.is_empty()).then_some(result);
                End::Ok(Operation::Final { value, task, state: Some(state), result })
            }
            // An answer, and a bad one: the task was acknowledged.
            Err(error) if error.reason() == Some(ErrorReason::TaskNotFound) => {
                End::Ok(Operation::Final { value, task, state: Some("NOT_FOUND".into()), result: None })
            }
            Err(error) => End::of_read(&error),
        };
        if matches!(end, End::Ok(_)) {
            break;
        }
    }
    process.end(end);
}

/// The name of a state as the API has it, without the prefix.
fn state_name(state: TaskState) -> String {
    state.as_str_name().trim_start_matches("TASK_STATE_").to_owned()
}

/// Runs each of the futures, all at once, until all have ended.
pub(super) async fn together<F: Future<Output = ()>>(parts: impl IntoIterator<Item = F>) {
    let mut parts: futures::stream::FuturesUnordered<F> = parts.into_iter().collect();
    while parts.next().await.is_some() {}
}
