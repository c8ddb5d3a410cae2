//! Freshness of searches: a point whose write was acknowledged is found by every later linearizable search for its
//! vector, and one whose deletion was acknowledged is not.
//!
//! A point is written once and deleted at most once; its vector is random, so that it is its own nearest neighbour.
//!
//! There is no call that lists a collection, and a search has a most number of hits. So the points are in clouds, each of fewer
//! than that many and far from all others: an exact search for the middle of a cloud finds all of it, and whatever else is
//! there where it should not be. In the end the clouds are searched one after the other, which lists the collection.

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
/// Points that the final searches for single points ask for at most, and the share of them that are deleted ones. All others
/// are looked for in the listing.
const FINAL: usize = 600;
/// How often a final search is tried.
const FINAL_TRIES: u32 = 5;
const HITS: u32 = 3;
/// The numbers of the points of a cloud: each of the two collections has half of it.
const CLOUD: u64 = 1_000;
/// Clouds stand this far apart, so many of them in a row, and so many rows deep. A point is at most sqrt([`DIMENSION`]) from
/// the middle of its own cloud, and its numbers stay so small that their squares are told apart by 32 bits.
const APART: f32 = 8.0;
const ROW: u64 = 8;
const DEPTH: u32 = 4;
/// Hits of the search that lists a cloud: as many as there can be.
const LISTED: u32 = 1_000;

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

/// The number in an id; that of no point if it is not one of ours.
fn point_of(id: &str) -> u64 {
    let number = id.strip_prefix('p').and_then(|number| number.parse().ok());
    number.filter(|number| point_id(*number) == id).unwrap_or(u64::MAX)
}

/// The vector of a point, always the same.
fn vector_of(point: u64) -> Vec<f32> {
    let mut random = StdRng::seed_from_u64(point);
    middle_of(point / CLOUD).into_iter().map(|middle| middle + random.random_range(-1.0..1.0)).collect()
}

/// The middle of a cloud.
fn middle_of(cloud: u64) -> Vec<f32> {
    let digit = |place: u32| if place < DEPTH { cloud / ROW.pow(place) % ROW } else { 0 };
    (0..DIMENSION).map(|place| digit(place) as f32 * APART).collect()
}

/// Lists the points of one cloud that one collection has; whether there was a whole answer.
async fn list(process: &mut Process, rest: u64, cloud: u64) -> bool {
    let (from, to) = (cloud * CLOUD, (cloud + 1) * CLOUD);
    let search = Search::new(collection_of(rest), middle_of(cloud), LISTED).exact();
    process.begin(&Operation::List { from, to, rest, points: None, missing: 0 });
    let mut whole = false;
    let end = match process.client.search(&search).await {
        Err(error) => End::of_read(&error),
        Ok(response) => {
            // Beyond the cloud are the nearest ones of others, which are listed with those.
            let is_here = |point: &u64| (from..to).contains(point) || *point == u64::MAX;
            let points = response.hits.iter().map(|hit| point_of(&hit.id)).filter(is_here).collect();
            let missing = u32::try_from(response.degraded_shards.len()).unwrap_or(u32::MAX);
            whole = missing == 0;
            End::Ok(Operation::List { from, to, rest, points: Some(points), missing })
        }
    };
    process.end(end);
    whole
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

    /// Lists all that is there, and searches for the last points that should be there and that should not.
    async fn finish(&self, ctx: &WorkContext) -> Result<()> {
        let clouds = ctx.value() / CLOUD + 1;
        let listings: Vec<(u64, u64)> = (0..clouds).flat_map(|cloud| [(0, cloud), (1, cloud)]).collect();
        at_last(ctx, &listings, async |process, (rest, cloud)| list(process, *rest, *cloud).await).await;
        let points: Vec<u64> = {
            let points = self.points.lock();
            points.live.iter().rev().take(FINAL).chain(points.deleted.iter().rev().take(FINAL / 3)).copied().collect()
        };
        at_last(ctx, &points, async |process, point| search(process, *point).await).await;
        Ok(())
    }
}

/// Asks for each of some things through all clients, each until it has a whole answer.
async fn at_last<T>(ctx: &WorkContext, things: &[T], ask: impl AsyncFn(&mut Process, &T) -> bool) {
    let readers = ctx.clients.processes();
    let share = things.len().div_ceil(readers).max(1);
    let ask = &ask;
    let read = things.chunks(share).enumerate().map(|(reader, part)| async move {
        let mut process = Process::new(ctx, reader);
        for thing in part {
            for _ in 0..FINAL_TRIES {
                if ask(&mut process, thing).await {
                    break;
                }
            }
        }
    });
    audit::together(read).await;
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
        assert_eq!((point_of("p17"), point_of("q17"), point_of("p017")), (17, u64::MAX, u64::MAX));
    }

    #[test]
    fn a_cloud_is_nearer_to_its_middle_than_everything_else() {
        let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
        let clouds = ROW.pow(DEPTH);
        for cloud in [0, 1, ROW, clouds / 2, clouds - 1] {
            let middle = middle_of(cloud);
            let own = (cloud * CLOUD..(cloud + 1) * CLOUD).map(|point| distance(&vector_of(point), &middle));
            let farthest = own.fold(0.0, f32::max);
            let others = (0..clouds).filter(|other| *other != cloud).map(|other| distance(&middle_of(other), &middle));
            // A point may be a whole sqrt(DIMENSION) nearer than the middle of its cloud, in the row of the middle just 1.
            let nearest = others.fold(f32::INFINITY, f32::min).sqrt() - (DIMENSION as f32).sqrt();
            assert!(farthest.sqrt() < nearest, "cloud {cloud}: {farthest}, {nearest}");
        }
        assert!(CLOUD / COLLECTIONS.len() as u64 <= u64::from(LISTED), "one search finds all of a cloud");
    }
}
