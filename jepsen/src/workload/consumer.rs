//! An agent that completes every task of a queue, and tells what was delivered to it.

use std::time::Duration;

use anyhow::Result;
use quorate_client::{Agent, AgentHandle, Attempt, Output};

use super::WorkContext;
use super::pending::Pending;
use super::queue::{token_text, value_of};
use crate::event::Operation;

const TTL: Duration = Duration::from_secs(2);
const SLOTS: u32 = 8;

/// Starts one.
pub(super) fn start(ctx: &WorkContext, queue: &str, number: usize) -> Result<AgentHandle> {
    let client = ctx.clients.all().clone();
    let recorder = ctx.recorder.clone();
    let pending = Pending::default();
    let completed = pending.clone();
    let handler = move |attempt: Attempt| {
        let (task, token) = (attempt.task_id, token_text(attempt.token));
        let value = value_of(&attempt.payload);
        let mut process = recorder.process();
        process.instant(Operation::Deliver { value, task, token: token.clone(), attempt: attempt.number });
        pending.begin(process, task, Operation::Complete { value, task, token: token.clone(), child: None });
        std::future::ready(Ok(Output::new(token)))
    };
    let done = move |task: u64, _: &[u64]| drop(completed.acknowledged(task));
    let agent = Agent::builder(client, format!("{queue}-{number}")).role(queue).slots(SLOTS).ttl(TTL);
    Ok(agent.handler(handler).on_completed(done).start()?)
}
