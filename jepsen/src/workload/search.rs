//! Freshness of searches: a point whose write was acknowledged is found by every later linearizable search for its
//! vector, and one whose deletion was acknowledged is not.
//!
//! A point is written once and deleted at most once; its vector is random, so that it is its own nearest neighbour.
//!
//! There is no call that lists a collection, and a search has a most number of hits. So in the end a collection is searched,
//! exactly, from far away in several directions. Each search lists all that is nearer than its last hit, and together they list
//! all, or it is said how many points were in no reach.

use std::collections::{BTreeSet, VecDeque};

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
/// Points that live at once; beyond it the oldest is deleted. Many times what nodes of a run compare one by one before they
/// seal it into a segment with a graph.
const LIVE: usize = 3_000;
/// Points that the final searches for single points ask for at most, and the share of them that are deleted ones. All others
/// are looked for in the listing.
const FINAL: usize = 600;
/// How often a final search is tried.
const FINAL_TRIES: u32 = 5;
const HITS: u32 = 3;
/// From how far away a collection is listed: so far that points are in the order of one coordinate, and so near that 32 bits
/// tell their squared distances apart.
const FAR: f32 = 50.0;
/// What squared distances of that size may be off.
const BLUR: f32 = 0.05;
/// Hits of a search that lists: as many as there can be.
const LISTED: usize = 1_000;

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
                0..40 if !self.is_full() => self.upsert(ctx, &mut process).await,
                0..55 => self.delete(&mut process).await,
                _ => {
                    let place: f64 = process.random.random();
                    if let Some(point) = self.pick(draw < 65, place) {
                        search(&mut process, point).await;
                    }
                }
            }
        }
    }

    /// Whether as many points live as may. More than twice [`LISTED`] in a collection could not be listed.
    fn is_full(&self) -> bool {
        self.points.lock().live.len() >= LIVE
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
            let place = if points.live.len() >= LIVE { 0 } else { place };
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
    (0..DIMENSION).map(|_| random.random_range(-1.0..1.0)).collect()
}

/// From where a collection is listed: both sides of each axis.
fn places() -> impl Iterator<Item = Vec<f32>> {
    let place = |axis: u32, side: f32| (0..DIMENSION).map(|at| if at == axis { side * FAR } else { 0.0 }).collect();
    (0..DIMENSION).flat_map(move |axis| [place(axis, 1.0), place(axis, -1.0)])
}

/// What searches from far away found of a collection.
struct Listing {
    /// Each point once, but for those that one answer had twice.
    there: Vec<u64>,
    /// Points that nobody would have found yet, were they there.
    open: Vec<u64>,
    /// Shards that did not answer.
    degraded: usize,
}

impl Listing {
    fn add(&mut self, place: &[f32], answer: &v1::SearchResponse) {
        self.degraded += answer.degraded_shards.len();
        let known: BTreeSet<u64> = self.there.iter().copied().collect();
        let found = answer.hits.iter().map(|hit| point_of(&hit.id));
        self.there.extend(found.filter(|point| !known.contains(point)));
        let last = answer.hits.get(LISTED - 1);
        let reach = last.map_or(f32::INFINITY, |hit| -hit.score - BLUR);
        self.open.retain(|point| squared_distance(&vector_of(*point), place) >= reach);
    }

    fn missing(&self) -> u32 {
        u32::try_from(self.degraded + self.open.len()).unwrap_or(u32::MAX)
    }
}

fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum()
}

/// Lists one collection, of which these points were ever asked for; whether there was a whole answer.
async fn list(process: &mut Process, rest: u64, points: &[u64]) -> bool {
    let asked = Operation::List { from: 0, to: u64::MAX, rest, points: None, missing: 0 };
    process.begin(&asked);
    let mut listing = Listing { there: Vec::new(), open: points.to_vec(), degraded: 0 };
    for place in places() {
        let search = Search::new(collection_of(rest), place.clone(), LISTED as u32).exact();
        match process.client.search(&search).await {
            Err(error) => {
                process.end(End::of_read(&error));
                return false;
            }
            Ok(answer) => listing.add(&place, &answer),
        }
        if listing.open.is_empty() {
            break;
        }
    }
    let missing = listing.missing();
    process.end(End::Ok(Operation::List { from: 0, to: u64::MAX, rest, points: Some(listing.there), missing }));
    missing == 0
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
        let ever: Vec<u64> = {
            let points = self.points.lock();
            points.live.iter().chain(&points.deleted).copied().collect()
        };
        let of = |rest| ever.iter().copied().filter(|point| point % 2 == rest).collect::<Vec<_>>();
        let listings = [(0, of(0)), (1, of(1))];
        at_last(ctx, &listings, async |process, (rest, points)| list(process, *rest, points).await).await;
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
    fn a_listing_says_what_no_search_would_have_found() {
        // As an exact search of a collection of so many points answers.
        let listed = |there: &[u64], ever: Vec<u64>, searches: usize| {
            let mut listing = Listing { there: Vec::new(), open: ever, degraded: 0 };
            for place in places().take(searches) {
                let mut hits: Vec<(f32, u64)> =
                    there.iter().map(|point| (squared_distance(&vector_of(*point), &place), *point)).collect();
                hits.sort_by(|(a, _), (b, _)| a.total_cmp(b));
                let hit =
                    |(far, point): &(f32, u64)| v1::Hit { id: point_id(*point), score: -far, ..v1::Hit::default() };
                let hits = hits.iter().take(LISTED).map(hit).collect();
                listing.add(&place, &v1::SearchResponse { hits, ..v1::SearchResponse::default() });
            }
            listing
        };
        let few: Vec<u64> = (0..400).collect();
        let listing = listed(&few, (0..500).collect(), 1);
        assert_eq!((listing.there.len(), listing.missing()), (400, 0), "it had fewer hits than it asked for");
        let many: Vec<u64> = (0..LIVE as u64 / 2 + 200).collect();
        let once = listed(&many, many.clone(), 1);
        assert!(once.there.len() == LISTED && once.missing() > 600, "{}", once.missing());
        let twice = listed(&many, many.clone(), 2);
        assert_eq!((twice.there.len(), twice.missing()), (many.len(), 0));
        let all = listed(&(0..6_000).collect::<Vec<_>>(), (0..6_000).collect(), 2 * DIMENSION as usize);
        assert!((1..3_000).contains(&all.missing()) && all.there.len() + all.open.len() >= 6_000);
        let mut double = listed(&few, few.clone(), 1);
        double.add(
            &places().next().expect("one"),
            &v1::SearchResponse {
                hits: ["p900", "p900", "x"].map(|id| v1::Hit { id: id.into(), ..v1::Hit::default() }).to_vec(),
                degraded_shards: vec![3],
            },
        );
        assert_eq!((&double.there[400..], double.missing()), (&[900, 900, u64::MAX][..], 1));
    }
}
