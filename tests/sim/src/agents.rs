//! Agents: the real agent SDK.

use std::sync::Arc;
use std::time::Duration;

use quorate_client::{Agent, Attempt, LeaseKeeper, NewTask, Output, TaskError};
use quorate_state::{TaskId, Token};
use tokio::time::sleep;

use crate::clients::{client, retried};
use crate::work;
use crate::world::{SLOTS, World};

/// Agents of a run, each on a host of its own.
pub(crate) const AGENTS: usize = 3;
const SLOTS_EACH: u32 = 4;
/// The shortest loses its tasks when it is cut off for a moment, the others ride out longer interruptions.
const TTL: [Duration; AGENTS] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];

/// The name of the host of an agent.
pub(crate) fn agent_host(agent: usize) -> String {
    format!("agent-{}", agent + 1)
}

/// The process of an agent, until it is killed.
pub(crate) async fn run_agent(world: Arc<World>, agent: usize) -> turmoil::Result {
    let client = client(agent, SLOTS)?;
    let (told, performed) = (world.clone(), world.clone());
    let running = Agent::builder(&client, agent_host(agent))
        .role(work::QUEUE)
        .role(work::CHILDREN)
        .slots(SLOTS_EACH)
        .ttl(TTL[agent])
        .lease_keeper(LeaseKeeper::Task)
        .handler(move |attempt| perform(performed.clone(), agent, attempt))
        .on_completed(move |task, children| {
            told.with_history(|history| history.acknowledged_completion(task, children));
        })
        .start()?;
    let ended = std::future::pending::<turmoil::Result>().await;
    running.stop().await;
    ended
}

/// An attempt that is performed, until it is dropped.
struct Performed {
    world: Arc<World>,
    task: TaskId,
    token: Token,
}

impl Performed {
    fn begin(world: Arc<World>, agent: usize, attempt: &Attempt) -> Performed {
        let (position, ordinal) = attempt.token;
        let (task, token) = (TaskId(attempt.task_id), Token { position, ordinal });
        world.with_history(|history| {
            let wrong = history.leases.begins(agent, task, token);
            history.note(wrong);
        });
        Performed { world, task, token }
    }
}

impl Drop for Performed {
    fn drop(&mut self) {
        self.world.with_history(|history| history.leases.ends(self.task, self.token));
    }
}

async fn perform(world: Arc<World>, agent: usize, attempt: Attempt) -> Result<Output, TaskError> {
    let _performed = Performed::begin(world, agent, &attempt);
    sleep(work::takes(&attempt.payload)).await;
    if work::dies(&attempt.payload) {
        return Err(TaskError::permanent("no attempt can succeed"));
    }
    if attempt.number == 1 && work::fails_first(&attempt.payload) {
        return Err(TaskError::retry("the first attempt fails"));
    }
    let output = Output::new(work::result(&attempt.payload));
    Ok(match work::child(&attempt.payload) {
        Some(payload) => output.child(retried(NewTask::new(work::CHILDREN, payload))),
        None => output,
    })
}
