//! Writes that begin at fixed times whatever became of those before.
//!
//! The clients of a load wait for an answer before they ask again, so a fault may catch all of them in calls that take
//! seconds to be given up, though another write would have succeeded at once. How soon a connected majority writes is
//! seen by these. Each writes a register of its own, once; the final reads look for all of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use quorate_client::{NewCollection, v1};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::process::{End, Process};
use super::{WorkContext, audit};
use crate::event::Operation;

const COLLECTION: &str = "probes";
const SHARDS: u32 = 8;
const EVERY: Duration = Duration::from_millis(100);
/// Writes without an answer; beyond it none is begun.
const MOST_OPEN: usize = 60;
/// Registers of probes have numbers from here on.
const FIRST_KEY: u64 = 1 << 32;
/// Registers that one call of the final reads asks for.
const READ_AT_ONCE: u64 = 100;
const FINAL_TRIES: u32 = 5;

/// The probes of a run.
#[derive(Debug, Clone, Default)]
pub struct Probe {
    written: Arc<AtomicU64>,
}

impl Probe {
    /// Makes what the probes write to.
    ///
    /// # Errors
    /// If it cannot be made.
    pub async fn prepare(&self, ctx: &WorkContext) -> Result<()> {
        audit::create(ctx, NewCollection::new(COLLECTION, 2).shards(SHARDS)).await
    }

    /// Writes until `ctx.stop`, and waits for what is under way.
    pub async fn run(&self, ctx: &WorkContext) {
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut open = JoinSet::new();
        loop {
            tokio::select! {
                () = ctx.stop.cancelled() => break,
                _ = tick.tick() => {}
            }
            while open.try_join_next().is_some() {}
            if open.len() < MOST_OPEN {
                let number = self.written.fetch_add(1, Ordering::Relaxed);
                open.spawn(write(ctx.clone(), number));
            }
        }
        open.join_all().await;
    }

    /// Reads all registers that were written.
    pub async fn finish(&self, ctx: &WorkContext) {
        let written = self.written.load(Ordering::Relaxed);
        for from in (0..written).step_by(usize::try_from(READ_AT_ONCE).unwrap_or(100)) {
            read(ctx, from..(from + READ_AT_ONCE).min(written)).await;
        }
    }
}

fn point_id(number: u64) -> String {
    format!("probe-{number}")
}

async fn write(ctx: WorkContext, number: u64) {
    let ordinal = usize::try_from(number).unwrap_or(0);
    let mut process = Process::new(&ctx, ordinal);
    let value = ctx.value();
    let operation = Operation::Write { key: FIRST_KEY + number, value };
    let point = v1::PointInput {
        id: point_id(number),
        vector: vec![1.0, 0.0],
        payload: format!("{{\"v\":{value}}}").into(),
        expected_version: None,
    };
    process.begin(&operation);
    let end = match process.client.upsert(COLLECTION, vec![point]).await {
        Err(error) => End::of_write(&error),
        Ok(response) => match response.outcomes.first() {
            Some(v1::WriteOutcome { error: Some(error), .. }) => End::of_part(error),
            Some(_) => End::Ok(operation),
            None => End::Info("the answer has no outcome".into()),
        },
    };
    process.end(end);
}

/// One call reads many registers; each is an operation of its own.
async fn read(ctx: &WorkContext, numbers: std::ops::Range<u64>) {
    let request = v1::GetPointsRequest {
        collection: COLLECTION.into(),
        ids: numbers.clone().map(point_id).collect(),
        consistency: v1::Consistency::Linearizable.into(),
        ..v1::GetPointsRequest::default()
    };
    let mut processes: Vec<(u64, Process)> = numbers.map(|number| (number, Process::new(ctx, 1))).collect();
    for (number, process) in &mut processes {
        process.begin(&Operation::Read { key: FIRST_KEY + *number, value: None });
    }
    let mut answer = ctx.clients.all().get_points(&request).await;
    for _ in 1..FINAL_TRIES {
        if answer.is_err() {
            answer = ctx.clients.all().get_points(&request).await;
        }
    }
    for (number, mut process) in processes {
        let key = FIRST_KEY + number;
        process.end(match &answer {
            Err(error) => End::of_read(error),
            Ok(points) => {
                let point = points.iter().find(|point| point.id == point_id(number));
                let value = point.map(|point| super::register::number_in(&point.payload).unwrap_or(u64::MAX));
                End::Ok(Operation::Read { key, value: Some(value) })
            }
        });
    }
}
