//! Memory points: the real client writes, reads and searches a small collection.
//!
//! A key is used for a while and then another one takes its place, so that each has a history that can be judged whole. A
//! search asks for more hits than there are points, so it reads all of them at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use quorate_client::v1::{Consistency, ErrorReason, GetPointsRequest, Metric, Point, PointInput, ShardPosition};
use quorate_client::{Error, NewCollection, Search};
use quorate_state::RequestId;
use quorate_state::shard::{PointReject, Reply};
use tokio::time::sleep;
use uuid::Uuid;

use crate::check::names::Reading;
use crate::check::points::Moment;
use crate::check::registers::{Action, Operation};
use crate::clients::{Ways, is_certain, is_final};
use crate::history::History;
use crate::world::World;

const COLLECTION: &str = "points";
/// Workers, each near to another node.
const WORKERS: usize = 6;
/// Keys at a time.
const KEYS: usize = 8;
/// Operations on a key until another one takes its place.
const USES: u32 = 48;
/// More than there ever are.
const ALL_POINTS: u32 = 1_000;
const WRITE_DEADLINE: Duration = Duration::from_secs(2);
const READ_DEADLINE: Duration = Duration::from_millis(900);
const AGAIN: Duration = Duration::from_millis(20);

/// The keys in use, which outlive the process of the clients, and operations whose outcome nobody has learnt.
#[derive(Default)]
pub(crate) struct Keys {
    uses: [u32; KEYS],
    unknown: Vec<Unknown>,
}

/// An operation without an answer.
#[derive(Debug, Clone)]
struct Unknown {
    id: String,
    request: Uuid,
    from: u64,
    expected: Option<u64>,
}

fn name(key: usize, uses: u32) -> String {
    format!("p{key}-{}", uses / USES)
}

impl Keys {
    fn take(&mut self, key: usize) -> String {
        self.uses[key] += 1;
        name(key, self.uses[key] - 1)
    }

    fn all(&self) -> Vec<String> {
        (0..KEYS).map(|key| name(key, self.uses[key])).collect()
    }
}

/// Tells the checker what became of the operations without an answer: the log knows.
pub(crate) fn settle(keys: &Mutex<Keys>, history: &mut History) {
    for unknown in std::mem::take(&mut keys.lock().unknown) {
        let Some((to, reply)) = history.points.outcome(RequestId(unknown.request.as_u128())).cloned() else { continue };
        let action = match reply {
            Reply::Upserted(outcomes) => match outcomes.first() {
                Some(Ok(version)) => Action::Put { expected: unknown.expected, version: version.0 },
                Some(Err(PointReject::VersionConflict { actual })) => {
                    Action::Conflict { expected: unknown.expected.unwrap_or_default(), actual: *actual }
                }
                _ => continue,
            },
            Reply::Deleted { existed } => Action::Delete { existed: existed.first() == Some(&true) },
            Reply::Done => continue,
        };
        history.registers.add(&unknown.id, Operation { from: unknown.from, to, action });
    }
}

/// Starts the workers.
pub(crate) fn spawn(world: &Arc<World>) -> Result<(), Error> {
    for worker in 0..WORKERS {
        let worker = Worker {
            world: world.clone(),
            writes: Ways::near(worker + 1, WRITE_DEADLINE)?,
            reads: Ways::near(worker + 1, READ_DEADLINE)?,
            seen: BTreeMap::new(),
            own: BTreeMap::new(),
            session: Vec::new(),
        };
        tokio::spawn(worker.run());
    }
    Ok(())
}

struct Worker {
    world: Arc<World>,
    writes: Ways,
    reads: Ways,
    /// The versions that were read or made last, for conditions.
    seen: BTreeMap<String, u64>,
    /// When this worker's own writes took effect.
    own: BTreeMap<String, Moment>,
    session: Vec<ShardPosition>,
}

impl Worker {
    async fn run(mut self) {
        self.make_collection().await;
        while !self.world.is_closing() {
            let id = self.world.keys.lock().take(self.world.choose(0..KEYS as u64) as usize);
            match self.world.choose(0..20) {
                0..7 => self.put(&id, None).await,
                7..10 => {
                    let expected = self.seen.get(&id).copied().unwrap_or_default();
                    self.put(&id, Some(expected)).await;
                }
                10 => self.delete(&id).await,
                11..15 => self.get(&id, Consistency::Linearizable).await,
                15 => self.get(&id, Consistency::Session).await,
                16 => self.get(&id, Consistency::Any).await,
                _ => self.search().await,
            }
            sleep(self.world.pause(5..60)).await;
        }
    }

    async fn make_collection(&self) {
        let client = self.writes.client(&self.world, false).retry_as(Uuid::now_v7());
        while !self.world.has_collection.load(Ordering::Relaxed) {
            let new = NewCollection::new(COLLECTION, 2).metric(Metric::L2).shards(self.world.shards);
            match client.create_collection(new).await {
                Ok(_) => self.world.has_collection.store(true, Ordering::Relaxed),
                Err(error) if error.reason() == Some(ErrorReason::CollectionExists) => {
                    self.world.has_collection.store(true, Ordering::Relaxed);
                }
                Err(error) => tracing::debug!(%error, "no collection yet"),
            }
            sleep(AGAIN).await;
        }
    }

    /// Whether to give a write up after an error, and what its client then knows.
    fn gives_up(&self, error: &Error, is_first: bool) -> Option<bool> {
        (is_first && self.world.one_in(3)).then(|| is_certain(error))
    }

    async fn put(&mut self, id: &str, expected: Option<u64>) {
        let call = self.world.calls(format!("put of {id}"));
        let (request, from) = (Uuid::now_v7(), self.world.with_history(|history| history.step));
        let value = format!("{{\"v\":{}}}", self.world.number());
        let point = PointInput {
            id: id.to_owned(),
            vector: vec![(request.as_u128() % 1_000) as f32, id.len() as f32],
            payload: value.clone().into(),
            expected_version: expected,
        };
        self.world.keys.lock().unknown.push(Unknown { id: id.to_owned(), request, from, expected });
        let mut is_first = true;
        loop {
            let client = self.writes.client(&self.world, is_first).retry_as(request);
            match client.upsert(COLLECTION, vec![point.clone()]).await {
                Ok(answer) => {
                    self.session.extend(answer.positions.iter().copied());
                    if self.put_answered(id, request, from, expected, &value, answer.outcomes.first()) {
                        break;
                    }
                }
                Err(error) => {
                    if is_final(&error) {
                        self.refused_for_good(id, &error);
                        break;
                    }
                    tracing::debug!(%error, id, "a put has no answer");
                    match self.gives_up(&error, is_first) {
                        None => {}
                        Some(false) => break,
                        Some(true) => {
                            self.world.with_history(|history| {
                                let wrong = history.points.refused(id, value.as_bytes());
                                history.note(wrong);
                            });
                            break;
                        }
                    }
                    is_first = false;
                }
            }
            sleep(AGAIN).await;
        }
        drop(call);
    }

    /// Takes the answer to a put in. Returns false if it must be sent again.
    fn put_answered(
        &mut self,
        id: &str,
        request: Uuid,
        from: u64,
        expected: Option<u64>,
        value: &str,
        outcome: Option<&quorate_client::v1::WriteOutcome>,
    ) -> bool {
        let Some(outcome) = outcome else {
            self.violation(format!("clients: the put of {id} was answered without an outcome"));
            return true;
        };
        let action = match &outcome.error {
            None => Action::Put { expected, version: outcome.version },
            Some(error) if error.reason == ErrorReason::VersionConflict.name() => {
                let actual = error.metadata.get("actual").and_then(|actual| actual.parse().ok()).unwrap_or_default();
                Action::Conflict { expected: expected.unwrap_or_default(), actual }
            }
            Some(_) => return false,
        };
        self.forget_unknown(request);
        let own = self.world.with_history(|history| {
            history.memory_operation();
            let to = history.step;
            history.trace.note(to, format_args!("{id}: {action:?}"));
            history.registers.add(id, Operation { from, to, action });
            let Action::Put { version, .. } = action else { return None };
            let wrong = history.points.acknowledged(id, value.as_bytes(), version);
            history.note(wrong);
            history.points.moment_of(id, version)
        });
        match action {
            Action::Put { version, .. } => self.seen.insert(id.to_owned(), version),
            Action::Conflict { actual, .. } => self.seen.insert(id.to_owned(), actual),
            _ => None,
        };
        if let Some(own) = own {
            self.own.insert(id.to_owned(), own);
        }
        true
    }

    async fn delete(&mut self, id: &str) {
        let call = self.world.calls(format!("delete of {id}"));
        let (request, from) = (Uuid::now_v7(), self.world.with_history(|history| history.step));
        self.world.keys.lock().unknown.push(Unknown { id: id.to_owned(), request, from, expected: None });
        let mut is_first = true;
        loop {
            let client = self.writes.client(&self.world, is_first).retry_as(request);
            match client.delete_points(COLLECTION, vec![id.to_owned()]).await {
                Ok(answer) => {
                    self.forget_unknown(request);
                    let existed = answer.deleted > 0;
                    self.world.with_history(|history| {
                        history.memory_operation();
                        let (to, action) = (history.step, Action::Delete { existed });
                        history.trace.note(to, format_args!("{id}: {action:?}"));
                        history.registers.add(id, Operation { from, to, action });
                        if history.points.outcome(RequestId(request.as_u128())).is_none() {
                            history.violation(format!(
                                "points: a delete of {id} was acknowledged and nobody has applied it"
                            ));
                        }
                    });
                    self.seen.remove(id);
                    break;
                }
                Err(error) => {
                    if is_final(&error) {
                        self.refused_for_good(id, &error);
                        break;
                    }
                    if self.gives_up(&error, is_first).is_some() {
                        break;
                    }
                    is_first = false;
                }
            }
            sleep(AGAIN).await;
        }
        drop(call);
    }

    async fn get(&mut self, id: &str, consistency: Consistency) {
        let (from, floor) = self.world.with_history(|history| (history.step, history.points.floor(id)));
        let (reading, floor) = match consistency {
            Consistency::Linearizable => (Reading::Get, Some(floor)),
            Consistency::Session => (Reading::SessionGet, Some(self.own.get(id).copied().unwrap_or_default())),
            _ => (Reading::StaleGet, None),
        };
        let request = GetPointsRequest {
            collection: COLLECTION.to_owned(),
            ids: vec![id.to_owned()],
            with_vector: false,
            consistency: consistency.into(),
            session_positions: self.session.clone(),
        };
        match self.reads.client(&self.world, true).get_points(&request).await {
            Ok(points) => {
                let shown = points.first().map(|Point { version, payload, .. }| (*version, payload.to_vec()));
                let version = shown.as_ref().map_or(0, |(version, _)| *version);
                self.world.with_history(|history| {
                    history.memory_operation();
                    let to = history.step;
                    history.trace.note(to, format_args!("{id}: {} {version}", reading.name()));
                    let wrong = history.points.read(id, shown.as_ref(), floor, reading);
                    history.note(wrong);
                    if consistency == Consistency::Linearizable {
                        history.registers.add(id, Operation { from, to, action: Action::Read { version } });
                    }
                });
                self.seen.insert(id.to_owned(), version);
            }
            Err(error) if is_final(&error) => self.refused_for_good(id, &error),
            Err(error) => tracing::debug!(%error, id, "a get has no answer"),
        }
    }

    async fn search(&mut self) {
        let ids = self.world.keys.lock().all();
        let (from, floors) = self.world.with_history(|history| {
            let floors: Vec<Moment> = ids.iter().map(|id| history.points.floor(id)).collect();
            (history.step, floors)
        });
        let vector = vec![self.world.choose(0..1_000) as f32, 4.0];
        let search = Search::new(COLLECTION, vector, ALL_POINTS).with_payload().exact();
        let answer = match self.reads.client(&self.world, true).search(&search).await {
            Ok(answer) if answer.degraded_shards.is_empty() => answer,
            Ok(_) => return,
            Err(error) if is_final(&error) => return self.refused_for_good("a search", &error),
            Err(error) => {
                tracing::debug!(%error, "a search has no answer");
                return;
            }
        };
        let mut twice = BTreeSet::new();
        let doubled = answer.hits.iter().find(|hit| !twice.insert(hit.id.as_str()));
        let unordered = !answer.hits.is_sorted_by(|a, b| a.score >= b.score);
        self.world.with_history(|history| {
            history.memory_operation();
            let to = history.step;
            history.trace.note(to, format_args!("a search finds {}", answer.hits.len()));
            history.note(doubled.map(|hit| format!("search: {} is found twice", hit.id)));
            history.note(unordered.then(|| "search: the hits are not in order".to_owned()));
            for (id, floor) in ids.iter().zip(floors) {
                let hit = answer.hits.iter().find(|hit| hit.id == *id);
                let shown = hit.map(|hit| (hit.version, hit.payload.to_vec()));
                let version = hit.map_or(0, |hit| hit.version);
                let wrong = history.points.read(id, shown.as_ref(), Some(floor), Reading::Search);
                history.note(wrong);
                history.registers.add(id, Operation { from, to, action: Action::Read { version } });
            }
        });
    }

    fn forget_unknown(&self, request: Uuid) {
        self.world.keys.lock().unknown.retain(|unknown| unknown.request != request);
    }

    fn refused_for_good(&self, id: &str, error: &Error) {
        self.violation(format!("clients: an operation on {id} was refused for good: {error}"));
    }

    fn violation(&self, what: String) {
        self.world.with_history(|history| history.violation(what));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_replaced_after_its_uses() {
        let mut keys = Keys::default();
        let first = keys.take(2);
        let names: BTreeSet<String> = (1..2 * USES).map(|_| keys.take(2)).collect();
        assert_eq!(names.len(), 2);
        assert!(names.contains(&first));
        assert!(!keys.all().contains(&first));
    }
}
