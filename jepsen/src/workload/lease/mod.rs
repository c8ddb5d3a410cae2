//! Leases and fencing: slow attempts whose effects fall on a resource that is guarded by tokens.
//!
//! Two kinds of agent share the queue. Those of the SDK believe that they hold an attempt until the SDK tells them
//! otherwise. Those of [`agent`] speak the wire themselves and do on purpose what a bad day does to a program. An effect
//! says whether its agent believed to hold the lease; nobody else may have been given the task by then. The resource says
//! whether it took the effect; a stale one it must never need to take.

mod agent;
mod resource;
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use parking_lot::Mutex;
use quorate_client::{AgentHandle, Attempt, Output};
use rand::Rng;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::resource::Resource;
use super::audit;
use super::pending::Pending;
use super::process::{End, Pace, Process};
use super::queue::{patient_task, value_of};
use super::{WorkContext, Workload};
use crate::event::{Operation, Token};

const QUEUE: &str = "lease";
const PRODUCERS: usize = 2;
const WIRE_AGENTS: usize = 6;
const SDK_AGENTS: usize = 2;
/// Longer than that of the wire agents: the SDK's margin grows with it, and the harness's own threads are not to blame.
const SDK_TTL: Duration = Duration::from_secs(5);
/// Tasks a second that the agents can do.
pub(super) const MOST_RATE: f64 = 5.0;
/// Tasks that are not completed; beyond it nothing is enqueued.
const MOST_OPEN: u64 = 40;

/// How many tasks wait, roughly.
#[derive(Debug, Clone, Default)]
struct Backlog(Arc<AtomicU64>);

impl Backlog {
    fn enqueued(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn completed(&self) {
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| open.checked_sub(1));
    }

    fn is_full(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= MOST_OPEN
    }
}

/// The lease load.
pub(super) struct Lease {
    resource: Resource,
    backlog: Backlog,
    tasks: Mutex<Vec<(u64, u64)>>,
    sdk_agents: Mutex<Vec<AgentHandle>>,
    wire_agents: Mutex<Vec<JoinHandle<()>>>,
    quit: CancellationToken,
}

impl Lease {
    pub(super) fn new() -> Lease {
        Lease {
            resource: Resource::default(),
            backlog: Backlog::default(),
            tasks: Mutex::new(Vec::new()),
            sdk_agents: Mutex::new(Vec::new()),
            wire_agents: Mutex::new(Vec::new()),
            quit: CancellationToken::new(),
        }
    }

    async fn produce(&self, ctx: &WorkContext, ordinal: usize) {
        let mut process = Process::new(ctx, ordinal);
        let mut pace = Pace::new(ctx, PRODUCERS, &mut process.random);
        while pace.turn().await {
            if self.backlog.is_full() {
                continue;
            }
            let value = ctx.value();
            process.begin(&Operation::Enqueue { value, task: None });
            let end = match process.client.enqueue(patient_task(QUEUE, value)).await {
                Ok(task) => {
                    self.tasks.lock().push((value, task));
                    self.backlog.enqueued();
                    End::Ok(Operation::Enqueue { value, task: Some(task) })
                }
                Err(error) => End::of_write(&error),
            };
            process.end(end);
        }
    }

    fn sdk_agent(&self, ctx: &WorkContext, number: usize) -> Result<AgentHandle> {
        let (recorder, resource, backlog) = (ctx.recorder.clone(), self.resource.clone(), self.backlog.clone());
        let pending = Pending::default();
        let completed = pending.clone();
        let handler = move |attempt| labour(recorder.process(), resource.clone(), pending.clone(), attempt);
        let builder = quorate_client::Agent::builder(ctx.clients.all(), format!("lease-sdk-{number}"));
        let done = move |task: u64, _: &[u64]| {
            completed.acknowledged(task);
            backlog.completed();
        };
        Ok(builder.role(QUEUE).slots(2).ttl(SDK_TTL).handler(handler).on_completed(done).start()?)
    }
}

/// An attempt of an SDK agent. It is dropped at an await when the SDK gives the attempt up.
async fn labour(
    mut process: crate::history::Process,
    resource: Resource,
    pending: Pending,
    attempt: Attempt,
) -> Result<Output, quorate_client::TaskError> {
    let token = Token { position: attempt.token.0, ordinal: attempt.token.1 };
    let (task, value) = (attempt.task_id, value_of(&attempt.payload));
    process.instant(Operation::Deliver { value, task, token: token.to_string(), attempt: attempt.number });
    let steps = rand::rng().random_range(2..10);
    for _ in 0..steps {
        resource.effect(&mut process, task, token, || !attempt.cancelled().is_cancelled());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let operation = Operation::Complete { value, task, token: token.to_string(), child: None };
    pending.begin(process, task, operation);
    Ok(Output::new(token.to_string()))
}

#[async_trait]
impl Workload for Lease {
    fn name(&self) -> &'static str {
        "lease"
    }

    async fn prepare(&self, ctx: &WorkContext) -> Result<()> {
        for number in 0..SDK_AGENTS {
            let agent = self.sdk_agent(ctx, number)?;
            self.sdk_agents.lock().push(agent);
        }
        for number in 0..WIRE_AGENTS {
            let agent = agent::Agent {
                name: format!("lease-wire-{number}"),
                endpoints: ctx.clients.endpoints().to_vec(),
                recorder: ctx.recorder.clone(),
                resource: self.resource.clone(),
                backlog: self.backlog.clone(),
                random: agent::Agent::seeded(ctx.seed, number),
                calm: ctx.stop.clone(),
                quit: self.quit.clone(),
            };
            self.wire_agents.lock().push(tokio::spawn(agent.run()));
        }
        Ok(())
    }

    async fn run(&self, ctx: &WorkContext) -> Result<()> {
        let mut ctx = ctx.clone();
        ctx.rate = ctx.rate.min(MOST_RATE);
        audit::together((0..PRODUCERS).map(|ordinal| self.produce(&ctx, ordinal))).await;
        Ok(())
    }

    async fn finish(&self, ctx: &WorkContext) -> Result<()> {
        audit::rest(ctx, QUEUE).await;
        self.quit.cancel();
        let agents = std::mem::take(&mut *self.sdk_agents.lock());
        futures::future::join_all(agents.into_iter().map(AgentHandle::shutdown)).await;
        let agents = std::mem::take(&mut *self.wire_agents.lock());
        for agent in agents {
            agent.await?;
        }
        let known = self.tasks.lock().clone();
        audit::tasks(ctx, known).await;
        Ok(())
    }
}
