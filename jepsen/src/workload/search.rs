//! Freshness of searches: a point whose write was acknowledged is found by every later linearizable search for its
//! vector, and one whose deletion was acknowledged is not.
//!
//! A point is written once and deleted at most once; its vector is random, so that it is its own nearest neighbour.

use std::collections::VecDeque;

use anyhow::Result;
use async_trait::async_trait;
use parking_lot::Mutex;
use quorate_client::v1::Metric;
use quorate_client::{NewCollection, Search, v1};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::audit;
use super::process::{End, Pace, Process};
use super::{WorkContext, Workload};
use crate::event::Operation;

/// The collections, and over how many shards their points are spread. A point belongs to one of them by its number.
const COLLECTIONS: [(&str, u32); 2] = [("fresh-1", 1), ("fresh-8", 8)];
const DIMENSION: u32 = 8;
const PROCESSES: usize = 6;
/// Points that live at once; beyond it the oldest is deleted. Far below where a graph stands in for comparing all.
const LIVE: usize = 3_000;
/// Points that the final searches ask for at most.
const FINAL: usize = 1_500;
/// How often a final search is tried.
const FINAL_TRIES: u32 = 5;
const HITS: u32 = 3;

/// The search load.
pub(super) struct Freshness {
    points: Mutex<Points>,
}

#[derive(Default)]
struct Points {
    /// Points that may be there, oldest first.
    live: VecDeque<u64>,
    /// Points whose deletion was asked for, newest last.
    deleted: VecDeque<u64>,
}

impl Freshness {
    pub(super) fn new() -> Freshness {
        Freshness { points: Mutex::new(Points::default()) }
    }

    async fn process(&self, ctx: &WorkContext, ordinal: usize) {
        let mut process = Process::new(ctx, ordinal);
        let mut pace = Pace::new(ctx, PROCESSES, &mut process.random);
        while pace.turn().await {
            let draw = process.random.random_range(0..100);
            match draw {
                0..40 => self.upsert(ctx, &mut process).await,
                40..55 => self.delete(&mut process).await,
                _ => {
                    let place: f64 = process.random.random();
                    if let Some(point) = self.pick(draw < 65, place) {
                        search(&mut process, point).await;
                    }
                }
            }
        }
    }

    /// A point to search for: the newest ones more often, because they are what a stale replica lacks.
    fn pick(&self, deleted: bool, place: f64) -> Option<u64> {
        let points = self.points.lock();
        let from = if deleted { &points.deleted } else { &points.live };
        let back = (place.powi(3) * from.len() as f64) as usize;
        from.len().checked_sub(1 + back).and_then(|at| from.get(at)).copied()
    }

    async fn upsert(&self, ctx: &WorkContext, process: &mut Process) {
        let point = ctx.value();
        let operation = Operation::Upsert { point };
        let input = v1::PointInput { id: point_id(point), vector: vector_of(point), ..v1::PointInput::default() };
        process.begin(&operation);
        let end = match process.client.upsert(collection_of(point), vec![input]).await {
            Err(error) => End::of_write(&error),
            Ok(response) => match response.outcomes.first() {
                Some(v1::WriteOutcome { error: Some(error), .. }) => End::of_part(error),
                Some(_) => End::Ok(operation.clone()),
                None => End::Info("the answer has no outcome".into()),
            },
        };
        process.end(end);
        self.points.lock().live.push_back(point);
    }

    async fn delete(&self, process: &mut Process) {
        let Some(point) = ({
            let mut points = self.points.lock();
            let place = process.random.random_range(0..points.live.len().max(1));
            let place = if points.live.len() > LIVE { 0 } else { place };
            points.live.remove(place)
        }) else {
            return;
        };
        let operation = Operation::Delete { point };
        process.begin(&operation);
        let end = match process.client.delete_points(collection_of(point), vec![point_id(point)]).await {
            Err(error) => End::of_write(&error),
            Ok(_) => End::Ok(operation.clone()),
        };
        process.end(end);
        self.points.lock().deleted.push_back(point);
    }
}

/// Returns whether there was a whole answer.
async fn search(process: &mut Process, point: u64) -> bool {
    let operation = Operation::Search { point, found: None, missing: 0 };
    let search = Search::new(collection_of(point), vector_of(point), HITS);
    let search = if process.random.random_bool(0.3) { search.exact() } else { search };
    process.begin(&operation);
    let mut whole = false;
    let end = match process.client.search(&search).await {
        Err(error) => End::of_read(&error),
        Ok(response) => {
            let found = response.hits.iter().any(|hit| hit.id == point_id(point));
            let missing = u32::try_from(response.degraded_shards.len()).unwrap_or(u32::MAX);
            whole = missing == 0;
            End::Ok(Operation::Search { point, found: Some(found), missing })
        }
    };
    process.end(end);
    whole
}

fn collection_of(point: u64) -> &'static str {
    COLLECTIONS[usize::from(point % 2 == 1)].0
}

fn point_id(point: u64) -> String {
    format!("p{point}")
}

/// The vector of a point, always the same.
fn vector_of(point: u64) -> Vec<f32> {
    let mut random = StdRng::seed_from_u64(point);
    (0..DIMENSION).map(|_| random.random_range(-1.0..1.0)).collect()
}

#[async_trait]
impl Workload for Freshness {
    fn name(&self) -> &'static str {
        "search"
    }

    async fn prepare(&self, ctx: &WorkContext) -> Result<()> {
        for (name, shards) in COLLECTIONS {
            audit::create(ctx, NewCollection::new(name, DIMENSION).metric(Metric::L2).shards(shards)).await?;
        }
        Ok(())
    }

    async fn run(&self, ctx: &WorkContext) -> Result<()> {
        audit::together((0..PROCESSES).map(|ordinal| self.process(ctx, ordinal))).await;
        Ok(())
    }

    /// Searches for every point that should be there, and for the last ones that should not.
    async fn finish(&self, ctx: &WorkContext) -> Result<()> {
        let points: Vec<u64> = {
            let points = self.points.lock();
            points.live.iter().rev().take(FINAL).chain(points.deleted.iter().rev().take(FINAL / 3)).copied().collect()
        };
        let readers = ctx.clients.processes();
        let share = points.len().div_ceil(readers).max(1);
        let read = points.chunks(share).enumerate().map(|(reader, part)| async move {
            let mut process = Process::new(ctx, reader);
            for point in part {
                for _ in 0..FINAL_TRIES {
                    if search(&mut process, *point).await {
                        break;
                    }
                }
            }
        });
        audit::together(read).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_has_one_vector_and_no_other_has_it() {
        assert_eq!(vector_of(3), vector_of(3));
        assert_ne!(vector_of(3), vector_of(5));
        assert_eq!(vector_of(3).len(), DIMENSION as usize);
        assert_ne!(collection_of(1), collection_of(2));
    }
}
