//! Registers: memory points whose payload is a number.
//!
//! A compare-and-set is a conditional put on the point's version. Versions are never given twice and neither are values,
//! so "if it has this version" is "if it has this value". A key serves a few hundred operations and is then left alone
//! until the final read, so that searching for a linear order stays cheap and an old acknowledged write can still be
//! missed.

use std::collections::HashMap;

use anyhow::Result;
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use quorate_client::{NewCollection, v1};
use rand::Rng;

use super::audit;
use super::process::{End, Pace, Process};
use super::{WorkContext, Workload};
use crate::event::Operation;

const COLLECTION: &str = "registers";
const SHARDS: u32 = 8;
/// The vector of every register.
const VECTOR: [f32; 2] = [1.0, 0.0];
/// How often a final read is tried.
const FINAL_TRIES: u32 = 5;
const PROCESSES: usize = 8;
/// Keys in use at once.
const WINDOW: usize = 8;
/// Operations on one key before the next takes its place.
const KEY_OPERATIONS: u32 = 250;

/// The register load.
pub(super) struct Register {
    keys: Mutex<Keys>,
}

#[derive(Default)]
struct Keys {
    /// The keys in use, and how many operations each has had.
    window: Vec<(u64, u32)>,
    next: u64,
}

impl Keys {
    fn pick(&mut self, place: usize) -> u64 {
        while self.window.len() < WINDOW {
            self.window.push((self.next, 0));
            self.next += 1;
        }
        let (key, count) = self.window[place % WINDOW];
        if count < KEY_OPERATIONS {
            self.window[place % WINDOW].1 += 1;
            return key;
        }
        let fresh = self.next;
        self.next += 1;
        self.window[place % WINDOW] = (fresh, 1);
        fresh
    }
}

/// What a process knows of a register: its version and its value.
type Known = HashMap<u64, (u64, Option<u64>)>;

impl Register {
    pub(super) fn new() -> Register {
        Register { keys: Mutex::new(Keys::default()) }
    }

    async fn process(&self, ctx: &WorkContext, ordinal: usize) {
        let mut process = Process::new(ctx, ordinal);
        let mut pace = Pace::new(ctx, PROCESSES, &mut process.random);
        let mut known = Known::new();
        while pace.turn().await {
            let key = self.keys.lock().pick(process.random.random_range(0..WINDOW));
            // What is known of keys that are not used any more is of no use.
            if known.len() > 4 * WINDOW {
                known.clear();
            }
            match (process.random.random_range(0..100), known.get(&key).copied()) {
                (0..30, _) => write(&mut process, ctx, key, None, &mut known).await,
                (30..55, Some(seen)) => write(&mut process, ctx, key, Some(seen), &mut known).await,
                _ => {
                    read(&mut process, key, &mut known).await;
                }
            }
        }
    }
}

async fn write(
    process: &mut Process,
    ctx: &WorkContext,
    key: u64,
    expected: Option<(u64, Option<u64>)>,
    known: &mut Known,
) {
    let value = ctx.value();
    let operation = match expected {
        Some((_, expected)) => Operation::Cas { key, expected, value },
        None => Operation::Write { key, value },
    };
    let point = v1::PointInput {
        id: point_id(key),
        vector: VECTOR.to_vec(),
        payload: Bytes::from(format!("{{\"v\":{value}}}")),
        expected_version: expected.map(|(version, _)| version),
    };
    process.begin(&operation);
    let answer = process.client.upsert(COLLECTION, vec![point]).await;
    let end = match answer {
        Err(error) => End::of_write(&error),
        Ok(response) => match response.outcomes.first() {
            Some(v1::WriteOutcome { error: Some(error), .. }) => {
                known.remove(&key);
                End::of_part(error)
            }
            Some(outcome) => {
                known.insert(key, (outcome.version, Some(value)));
                End::Ok(operation.clone())
            }
            None => End::Info("the answer has no outcome".into()),
        },
    };
    process.end(end);
}

/// Returns whether there was an answer.
async fn read(process: &mut Process, key: u64, known: &mut Known) -> bool {
    let operation = Operation::Read { key, value: None };
    let request = v1::GetPointsRequest {
        collection: COLLECTION.into(),
        ids: vec![point_id(key)],
        with_vector: true,
        consistency: v1::Consistency::Linearizable.into(),
        ..v1::GetPointsRequest::default()
    };
    process.begin(&operation);
    let end = match process.client.get_points(&request).await {
        Err(error) => End::of_read(&error),
        Ok(points) => match points.first() {
            Some(point) => {
                let value = value_of(point);
                known.insert(key, (point.version, Some(value)));
                End::Ok(Operation::Read { key, value: Some(Some(value)) })
            }
            None => {
                // Version 0 asks that there be none.
                known.insert(key, (0, None));
                End::Ok(Operation::Read { key, value: Some(None) })
            }
        },
    };
    let is_read = matches!(end, End::Ok(_));
    process.end(end);
    is_read
}

fn point_id(key: u64) -> String {
    format!("r{key}")
}

/// The number in a payload that we wrote.
pub(super) fn number_in(payload: &[u8]) -> Option<u64> {
    serde_json::from_slice::<serde_json::Value>(payload).ok()?.get("v")?.as_u64()
}

/// The value of a point. A point that is not what was written has a value that was never written, which the checker sees.
fn value_of(point: &v1::Point) -> u64 {
    number_in(&point.payload).filter(|_| point.vector == VECTOR).unwrap_or(u64::MAX)
}

#[async_trait]
impl Workload for Register {
    fn name(&self) -> &'static str {
        "register"
    }

    async fn prepare(&self, ctx: &WorkContext) -> Result<()> {
        audit::create(ctx, NewCollection::new(COLLECTION, 2).shards(SHARDS)).await
    }

    async fn run(&self, ctx: &WorkContext) -> Result<()> {
        futures::future::join_all((0..PROCESSES).map(|ordinal| self.process(ctx, ordinal))).await;
        Ok(())
    }

    /// Reads every register once, through every client.
    async fn finish(&self, ctx: &WorkContext) -> Result<()> {
        let keys = self.keys.lock().next;
        let readers = ctx.clients.processes();
        let read_share = |reader: usize| async move {
            let mut process = Process::new(ctx, reader);
            let mut known = Known::new();
            for key in (0..keys).filter(|key| *key as usize % readers == reader) {
                for _ in 0..FINAL_TRIES {
                    if read(&mut process, key, &mut known).await {
                        break;
                    }
                }
            }
        };
        futures::future::join_all((0..readers).map(read_share)).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_replaced_after_its_share() {
        let mut keys = Keys::default();
        let first = keys.pick(0);
        for _ in 1..KEY_OPERATIONS {
            assert_eq!(keys.pick(0), first);
        }
        let second = keys.pick(0);
        assert!(second >= WINDOW as u64, "{second}");
        assert_eq!(keys.next, second + 1);
    }

    #[test]
    fn a_point_that_is_not_ours_has_a_value_that_was_never_written() {
        let point = |payload: &'static str, vector: &[f32]| v1::Point {
            payload: payload.into(),
            vector: vector.to_vec(),
            ..v1::Point::default()
        };
        assert_eq!(value_of(&point("{\"v\":7}", &VECTOR)), 7);
        assert_eq!(value_of(&point("{\"v\":7}", &[1.0, 0.5])), u64::MAX);
        assert_eq!(value_of(&point("{}", &VECTOR)), u64::MAX);
        assert_eq!(value_of(&point("x", &VECTOR)), u64::MAX);
    }
}
