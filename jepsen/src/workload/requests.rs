//! Request ids: what was sent once is sent again under its id, through other nodes, at once and much later, and must be
//! answered as the first time.
//!
//! Only what was acknowledged or is unknown is sent again: a request that certainly failed may well take effect when it
//! is sent again, and then its history would say both. Two agents complete the tasks, because an id must be remembered
//! when its task is long done, and because a second task for one request would be delivered.

use anyhow::Result;
use async_trait::async_trait;
use parking_lot::Mutex;
use quorate_client::AgentHandle;
use rand::Rng;
use uuid::Uuid;

use super::process::{End, Pace, Process};
use super::queue::patient_task;
use super::{WorkContext, Workload, audit, consumer};
use crate::event::Operation;

const QUEUE: &str = "requests";
const PROCESSES: usize = 6;
const AGENTS: usize = 2;
/// Requests that are sent again once more at the end.
const FINAL: usize = 2_000;

/// The load of request ids.
pub(super) struct Requests {
    sent: Mutex<Vec<Sent>>,
    agents: Mutex<Vec<AgentHandle>>,
}

#[derive(Clone, Copy)]
struct Sent {
    value: u64,
    id: Uuid,
    task: Option<u64>,
}

impl Requests {
    pub(super) fn new() -> Requests {
        Requests { sent: Mutex::new(Vec::new()), agents: Mutex::new(Vec::new()) }
    }

    async fn process(&self, ctx: &WorkContext, ordinal: usize) {
        let mut process = Process::new(ctx, ordinal);
        let mut pace = Pace::new(ctx, PROCESSES, &mut process.random);
        while pace.turn().await {
            if process.random.random_bool(0.4) {
                self.first(ctx, &mut process).await;
            } else {
                self.again(&mut process).await;
            }
        }
    }

    async fn first(&self, ctx: &WorkContext, process: &mut Process) {
        let (value, id) = (ctx.value(), Uuid::now_v7());
        let operation = Operation::Enqueue { value, task: None };
        process.begin(&operation);
        let end = match enqueue(process, value, id).await {
            Ok(task) => End::Ok(Operation::Enqueue { value, task: Some(task) }),
            Err(error) => End::of_write(&error),
        };
        match &end {
            End::Ok(Operation::Enqueue { task, .. }) => self.sent.lock().push(Sent { value, id, task: *task }),
            End::Info(_) => self.sent.lock().push(Sent { value, id, task: None }),
            _ => {}
        }
        process.end(end);
    }

    /// Sends one again: the last few more often, the others at any age.
    async fn again(&self, process: &mut Process) {
        let draw: f64 = process.random.random();
        let chosen = {
            let sent = self.sent.lock();
            let back = (draw.powi(2) * sent.len() as f64) as usize;
            sent.len().checked_sub(1 + back).map(|at| (at, sent[at]))
        };
        if let Some((at, sent)) = chosen {
            self.repeat(process, at, sent).await;
        }
    }

    async fn repeat(&self, process: &mut Process, at: usize, sent: Sent) -> bool {
        let Sent { value, id, .. } = sent;
        let operation = Operation::Repeat { value, task: None };
        process.begin(&operation);
        let end = match enqueue(process, value, id).await {
            Ok(task) => {
                self.sent.lock()[at].task.get_or_insert(task);
                End::Ok(Operation::Repeat { value, task: Some(task) })
            }
            Err(error) => End::of_write(&error),
        };
        let is_answered = matches!(end, End::Ok(_));
        process.end(end);
        is_answered
    }
}

async fn enqueue(process: &mut Process, value: u64, id: Uuid) -> Result<u64, quorate_client::Error> {
    let task = patient_task(QUEUE, value);
    let client = process.client.retry_as(id);
    if process.random.random_bool(0.7) {
        return client.enqueue(task).await;
    }
    client.enqueue_many([task]).await.map(|ids| ids.first().copied().unwrap_or_default())
}

#[async_trait]
impl Workload for Requests {
    fn name(&self) -> &'static str {
        "requests"
    }

    async fn prepare(&self, ctx: &WorkContext) -> Result<()> {
        for number in 0..AGENTS {
            let agent = consumer::start(ctx, QUEUE, number)?;
            self.agents.lock().push(agent);
        }
        Ok(())
    }

    async fn run(&self, ctx: &WorkContext) -> Result<()> {
        audit::together((0..PROCESSES).map(|ordinal| self.process(ctx, ordinal))).await;
        Ok(())
    }

    async fn finish(&self, ctx: &WorkContext) -> Result<()> {
        let sent: Vec<(usize, Sent)> = {
            let sent = self.sent.lock();
            let step = sent.len().div_ceil(FINAL).max(1);
            sent.iter().copied().enumerate().step_by(step).collect()
        };
        let share = sent.len().div_ceil(PROCESSES).max(1);
        let again = sent.chunks(share).enumerate().map(|(ordinal, part)| async move {
            let mut process = Process::new(ctx, ordinal);
            for (at, sent) in part {
                if !self.repeat(&mut process, *at, *sent).await {
                    self.repeat(&mut process, *at, *sent).await;
                }
            }
        });
        audit::together(again).await;
        audit::rest(ctx, QUEUE).await;
        let agents = std::mem::take(&mut *self.agents.lock());
        futures::future::join_all(agents.into_iter().map(AgentHandle::shutdown)).await;
        let known = self.sent.lock().iter().filter_map(|sent| Some((sent.value, sent.task?))).collect();
        audit::tasks(ctx, known).await;
        Ok(())
    }
}
