//! Writes that begin at fixed times whatever became of those before: how soon a connected majority writes is seen by them.
//!
//! The clients of a load wait for an answer before they ask again, so a fault may catch all of them in calls that take
//! seconds to be given up, though another write would have succeeded at once. And they write everywhere, so that the groups
//! which go on hide the one that does not. Hence *lanes*: lane 0 enqueues, which is a write of the control group; each other
//! lane writes registers of a collection of its own that has one shard. Lanes are on different groups, whose leaders are on
//! different nodes as a rule.
//!
//! Each write of a lane goes through the next node, with a client that is new and knows that node alone: it has no notion of
//! who led before the fault, and it is not itself a part of what failed. Clients that know all nodes, or have known a leader
//! for long, are those of the loads.
//!
//! Probes are held against promises like everything else: each register is written once, and the final reads look for all of
//! them; each task is completed, and its end is read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use futures::future::{join_all, try_join_all};
use parking_lot::Mutex;
use quorate_client::{AgentHandle, Client, NewCollection, v1};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::clients::DEADLINE;
use super::process::{End, Process};
use super::queue::patient_task;
use super::{WorkContext, audit, consumer};
use crate::event::{Operation, Part};

/// The lane of control, and how many there are of shards.
const CONTROL: u8 = 0;
const SHARD_LANES: u8 = 3;
const QUEUE: &str = "probes";
/// How often a lane writes.
const EVERY: Duration = Duration::from_millis(200);
/// Writes of a lane without an answer; beyond it none is begun. More than begin before one is given up.
const MOST_OPEN: usize = 40;
/// Registers that one call of the final reads asks for.
const READ_AT_ONCE: u64 = 100;
const FINAL_TRIES: u32 = 5;

/// The probes of a run.
#[derive(Clone, Default)]
pub struct Probe(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// How many writes each lane of a shard has begun, by its number less one.
    written: [AtomicU64; SHARD_LANES as usize],
    /// Tasks whose id is known: (payload, task).
    tasks: Mutex<Vec<(u64, u64)>>,
    agent: Mutex<Option<AgentHandle>>,
}

impl Probe {
    /// Makes what the probes write to, and who completes their tasks.
    ///
    /// # Errors
    /// If it cannot be made.
    pub async fn prepare(&self, ctx: &WorkContext) -> Result<()> {
        let made = (1..=SHARD_LANES).map(|lane| audit::create(ctx, NewCollection::new(collection(lane), 2).shards(1)));
        try_join_all(made).await?;
        *self.0.agent.lock() = Some(consumer::start(&ctx.labelled(Part::Probe(CONTROL)), QUEUE, 0)?);
        Ok(())
    }

    /// Writes until `ctx.stop`, and waits for what is under way.
    pub async fn run(&self, ctx: &WorkContext) {
        join_all((CONTROL..=SHARD_LANES).map(|lane| self.run_lane(ctx.labelled(Part::Probe(lane)), lane))).await;
    }

    async fn run_lane(&self, ctx: WorkContext, lane: u8) {
        // The lanes take turns, so that they do not all write at one moment.
        let offset = EVERY * u32::from(lane) / u32::from(SHARD_LANES + 1);
        let mut tick = tokio::time::interval_at(Instant::now() + offset, EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut open = JoinSet::new();
        let mut turn = usize::from(lane);
        loop {
            tokio::select! {
                () = ctx.stop.cancelled() => break,
                _ = tick.tick() => {}
            }
            while open.try_join_next().is_some() {}
            turn += 1;
            if open.len() < MOST_OPEN
                && let Some((node, client)) = next_client(&ctx, turn)
            {
                let (probe, process) = (self.clone(), Process::with(&ctx, Some(node), client));
                match lane {
                    CONTROL => open.spawn(probe.enqueue(ctx.clone(), process)),
                    lane => open.spawn(probe.write(ctx.clone(), process, lane)),
                };
            }
        }
        open.join_all().await;
    }

    async fn enqueue(self, ctx: WorkContext, mut process: Process) {
        let value = ctx.value();
        process.begin(&Operation::Enqueue { value, task: None });
        let end = match process.client.enqueue_many([patient_task(QUEUE, value)]).await {
            Err(error) => End::of_write(&error),
            Ok(ids) => {
                let task = ids.first().copied().unwrap_or_default();
                self.0.tasks.lock().push((value, task));
                End::Ok(Operation::Enqueue { value, task: Some(task) })
            }
        };
        process.end(end);
    }

    async fn write(self, ctx: WorkContext, mut process: Process, lane: u8) {
        let number = self.0.written[usize::from(lane) - 1].fetch_add(1, Ordering::Relaxed);
        let value = ctx.value();
        let operation = Operation::Write { key: key(lane, number), value };
        let point = v1::PointInput {
            id: point_id(number),
            vector: vec![1.0, 0.0],
            payload: format!("{{\"v\":{value}}}").into(),
            expected_version: None,
        };
        process.begin(&operation);
        let end = match process.client.upsert(&collection(lane), vec![point]).await {
            Err(error) => End::of_write(&error),
            Ok(response) => match response.outcomes.first() {
                Some(v1::WriteOutcome { error: Some(error), .. }) => End::of_part(error),
                Some(_) => End::Ok(operation),
                None => End::Info("the answer has no outcome".into()),
            },
        };
        process.end(end);
    }

    /// Reads all registers that were written, and the ends of all tasks.
    pub async fn finish(&self, ctx: &WorkContext) {
        for lane in 1..=SHARD_LANES {
            let ctx = ctx.labelled(Part::Probe(lane));
            let written = self.0.written[usize::from(lane) - 1].load(Ordering::Relaxed);
            for from in (0..written).step_by(usize::try_from(READ_AT_ONCE).unwrap_or(100)) {
                read(&ctx, lane, from..(from + READ_AT_ONCE).min(written)).await;
            }
        }
        let ctx = ctx.labelled(Part::Probe(CONTROL));
        audit::rest(&ctx, QUEUE).await;
        let agent = self.0.agent.lock().take();
        if let Some(agent) = agent {
            agent.shutdown().await;
        }
        let known = self.0.tasks.lock().clone();
        audit::tasks(&ctx, known).await;
    }
}

/// A new client of the next member that runs. Of members, because others do not belong to what must write.
fn next_client(ctx: &WorkContext, turn: usize) -> Option<(usize, Client)> {
    let mut members = ctx.cluster.members();
    members.retain(|node| ctx.cluster.is_running(*node));
    let node = *members.get(turn % members.len().max(1))?;
    Some((node, ctx.cluster.client_of(node).with_deadline(DEADLINE)))
}

fn collection(lane: u8) -> String {
    format!("probes-{lane}")
}

/// Registers of the loads have small numbers.
fn key(lane: u8, number: u64) -> u64 {
    (u64::from(lane) << 32) + number
}

fn point_id(number: u64) -> String {
    format!("probe-{number}")
}

/// One call reads many registers; each is an operation of its own.
async fn read(ctx: &WorkContext, lane: u8, numbers: std::ops::Range<u64>) {
    let request = v1::GetPointsRequest {
        collection: collection(lane),
        ids: numbers.clone().map(point_id).collect(),
        consistency: v1::Consistency::Linearizable.into(),
        ..v1::GetPointsRequest::default()
    };
    let mut processes: Vec<(u64, Process)> = numbers.map(|number| (number, Process::new(ctx, 1))).collect();
    for (number, process) in &mut processes {
        process.begin(&Operation::Read { key: key(lane, *number), value: None });
    }
    let mut answer = ctx.clients.all().get_points(&request).await;
    for _ in 1..FINAL_TRIES {
        if answer.is_err() {
            answer = ctx.clients.all().get_points(&request).await;
        }
    }
    for (number, mut process) in processes {
        process.end(match &answer {
            Err(error) => End::of_read(error),
            Ok(points) => {
                let point = points.iter().find(|point| point.id == point_id(number));
                let value = point.map(|point| super::register::number_in(&point.payload).unwrap_or(u64::MAX));
                End::Ok(Operation::Read { key: key(lane, number), value: Some(value) })
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_lanes_write_one_register() {
        let keys: std::collections::BTreeSet<u64> =
            (1..=SHARD_LANES).flat_map(|lane| [key(lane, 0), key(lane, 1_000_000)]).collect();
        assert_eq!(keys.len(), 2 * usize::from(SHARD_LANES));
        assert!(keys.first().is_some_and(|first| *first > 1 << 31), "those of the loads are smaller");
    }
}
