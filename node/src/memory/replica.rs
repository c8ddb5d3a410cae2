//! One replica of a shard as its readers see it: the state, the rows and the index of each collection.
//!
//! The machine writes (see `machine.rs`), searches and gets read, at the same time. Three moments matter to them:
//! an entry is *applied* (the state knows it), its rows are *written* (the state store knows them), and the batch is
//! *published* (the indexes know it). What keeps the answers right in between:
//!
//! - A get asks the state for the row of an id and then reads that row. Rows that are applied and not written yet are in
//!   [`Held::unwritten`], so the newest row is always found there or in the store. A row that is in neither was replaced
//!   after the state was asked: the get asks again.
//! - A search asks the index and then reads the rows of the hits. A row that is gone was replaced or deleted by a batch
//!   that is not published yet; its successor would be missing from the answer, so the search waits for the batch to be
//!   published and runs again.
//!
//! The store is held weakly: after a snapshot was received its files are replaced, and nobody but the group may hold the
//! old ones open. The guard of `open` is held by every read for as long as it takes, so that closing waits for them.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard};
use quorate_api::v1;
use quorate_index::{Builder, Index, Neighbour, SearchParams};
use quorate_raft::StateStore;
use quorate_state::shard::{POINT_TABLE, PointRow, Shard, decode_point, point_key};
use quorate_state::{CollectionId, ShardId};

use super::wire::{CollectionStats, GetCall, SearchCall};
use crate::error::{Error, ErrorReason};

/// Hits asked of the index beyond `k`, to replace those that were deleted while the search ran.
const SPARE_HITS: usize = 8;
/// How often a search runs again because a batch was being published.
const SEARCH_ROUNDS: usize = 4;
/// How often a get asks again for rows that were being replaced.
const GET_ROUNDS: usize = 64;
/// How long to wait for a batch to be published before looking again all the same.
const PUBLISH_WAIT: Duration = Duration::from_millis(50);

/// How the indexes of this node are made.
#[derive(Clone)]
pub(super) struct IndexPlan {
    /// Below it each shard has a directory for its indexes.
    pub(super) directory: PathBuf,
    /// The build threads of the process.
    pub(super) builder: Builder,
    /// Rows at which a head is sealed; `None` takes the default of the index.
    pub(super) seal_rows: Option<usize>,
    /// Rows below which a segment gets no graph; `None` takes the default of the index.
    pub(super) flat_below: Option<usize>,
}

/// The index of one collection's slice.
pub(super) struct Hosted {
    pub(super) generation: u64,
    pub(super) index: Arc<Index>,
    /// Why the index can no longer be trusted, if so: then this replica answers no search of the collection.
    pub(super) broken: Mutex<Option<String>>,
}

/// The state, with the rows that it knows before the store does.
pub(super) struct Held {
    pub(super) shard: Shard,
    pub(super) unwritten: HashMap<Bytes, Bytes>,
}

/// A replica on this node, shared by its machine and its readers.
pub(super) struct Replica {
    pub(super) shard: ShardId,
    pub(super) plan: IndexPlan,
    pub(super) held: RwLock<Held>,
    pub(super) open: RwLock<Option<Weak<dyn StateStore>>>,
    pub(super) indexes: RwLock<BTreeMap<CollectionId, Arc<Hosted>>>,
    pub(super) published: Published,
}

/// Counts the batches that were published, for those who wait for the one under way.
#[derive(Default)]
pub(super) struct Published {
    batches: Mutex<u64>,
    more: Condvar,
}

impl Published {
    /// Tells those who wait.
    pub(super) fn advance(&self) {
        *self.batches.lock() += 1;
        self.more.notify_all();
    }

    fn now(&self) -> u64 {
        *self.batches.lock()
    }

    /// Waits until more than `seen` batches were published, or for a short time.
    fn wait_past(&self, seen: u64) {
        let mut batches = self.batches.lock();
        let until = Instant::now() + PUBLISH_WAIT;
        while *batches <= seen && !self.more.wait_until(&mut batches, until).timed_out() {}
    }
}

/// A read under way: while it lives the replica cannot be closed or reloaded.
struct Reading<'a> {
    store: Arc<dyn StateStore>,
    _guard: RwLockReadGuard<'a, Option<Weak<dyn StateStore>>>,
}

impl Replica {
    /// A replica that has not been loaded yet.
    pub(super) fn new(shard: ShardId, plan: IndexPlan) -> Replica {
        Replica {
            shard,
            plan,
            held: RwLock::new(Held { shard: Shard::new(), unwritten: HashMap::new() }),
            open: RwLock::new(None),
            indexes: RwLock::new(BTreeMap::new()),
            published: Published::default(),
        }
    }

    /// Where the indexes of this replica have their files.
    pub(super) fn directory(&self) -> PathBuf {
        self.plan.directory.join(format!("shard-{}", self.shard.0))
    }

    /// Waits for the reads under way, then lets go of the store and the indexes. Later reads are refused.
    pub(super) fn close(&self) {
        *self.open.write() = None;
        self.indexes.write().clear();
        let mut held = self.held.write();
        held.shard = Shard::new();
        held.unwritten = HashMap::new();
    }

    fn read(&self) -> Result<Reading<'_>, Error> {
        let guard = self.open.read();
        match guard.as_ref().and_then(Weak::upgrade) {
            Some(store) => Ok(Reading { store, _guard: guard }),
            None => Err(self.not_ready("is being loaded")),
        }
    }

    fn not_ready(&self, what: &str) -> Error {
        Error::new(
            ErrorReason::ShardUnavailable,
            format!("this node's replica of shard {} {what}; retry, or ask another node", self.shard.0),
        )
        .with("shard", self.shard.0)
        .retry_after(Duration::from_millis(100))
    }

    /// The collection is not here: either the reader or this replica is behind.
    fn stale(&self, collection: CollectionId) -> Error {
        Error::new(
            ErrorReason::StaleRoute,
            format!("shard {} does not have that generation of collection {}; retry", self.shard.0, collection.0),
        )
        .with("shard", self.shard.0)
    }

    fn check_generation(&self, shard: &Shard, collection: CollectionId, generation: u64) -> Result<(), Error> {
        match shard.collection(collection) {
            Some(found) if found.generation == generation => Ok(()),
            _ => Err(self.stale(collection)),
        }
    }

    /// The points that exist, in the order asked. Blocks on the disk: run it on the search pool.
    pub(super) fn get(&self, call: &GetCall) -> Result<Vec<v1::Point>, Error> {
        let reading = self.read()?;
        let collection = CollectionId(call.collection);
        let mut found: Vec<Option<(u64, PointRow)>> = vec![None; call.ids.len()];
        let mut open: Vec<usize> = (0..call.ids.len()).collect();
        for _ in 0..GET_ROUNDS {
            let seen = self.published.now();
            let rows = self.rows_of(call, &open)?;
            let stored = fetch(&*reading.store, collection, rows.iter().map(|wanted| wanted.row))
                .map_err(|error| self.unreadable(&error))?;
            open = Vec::new();
            for (wanted, stored) in rows.into_iter().zip(stored) {
                match wanted.unwritten.or(stored) {
                    Some(bytes) => found[wanted.place] = Some((wanted.row, self.decode(&bytes)?)),
                    None => open.push(wanted.place),
                }
            }
            if open.is_empty() {
                let points = found.into_iter().flatten().map(|(row, point)| to_point(row, point, call.with_vector));
                return Ok(points.collect());
            }
            self.published.wait_past(seen);
        }
        Err(self.not_ready("changes faster than it can be read"))
    }

    /// The rows of the ids at `places` as the state knows them now; ids that do not exist are left out.
    fn rows_of(&self, call: &GetCall, places: &[usize]) -> Result<Vec<Wanted>, Error> {
        let collection = CollectionId(call.collection);
        let held = self.held.read();
        self.check_generation(&held.shard, collection, call.generation)?;
        let rows = places.iter().filter_map(|&place| {
            let row = held.shard.row_of(collection, &call.ids[place])?;
            let unwritten = held.unwritten.get(point_key(collection, row).as_ref() as &[u8]).cloned();
            Some(Wanted { place, row, unwritten })
        });
        Ok(rows.collect())
    }

    /// The best hits, best first. Takes a core for a while: run it on the search pool.
    pub(super) fn search(&self, call: &SearchCall) -> Result<Vec<v1::Hit>, Error> {
        let reading = self.read()?;
        let collection = CollectionId(call.collection);
        let hosted = self.hosted(collection, call.generation)?;
        let k = call.k as usize;
        let params = SearchParams {
            k: k + SPARE_HITS,
            ef: (call.ef > 0).then_some(call.ef as usize),
            exact: call.exact,
        };
        let mut hits = Vec::new();
        for _ in 0..SEARCH_ROUNDS {
            let seen = self.published.now();
            let neighbours = hosted.index.search(&call.vector, params).map_err(|error| self.search_error(error))?;
            let (best, spare) = neighbours.split_at(k.min(neighbours.len()));
            let gone;
            (hits, gone) = self.resolve(&*reading.store, call, best)?;
            if gone == 0 {
                return Ok(hits);
            }
            let (more, _) = self.resolve(&*reading.store, call, spare)?;
            hits.extend(more.into_iter().take(gone));
            self.published.wait_past(seen);
        }
        Ok(hits)
    }

    fn hosted(&self, collection: CollectionId, generation: u64) -> Result<Arc<Hosted>, Error> {
        let hosted = self.indexes.read().get(&collection).cloned();
        let hosted = hosted.filter(|hosted| hosted.generation == generation).ok_or_else(|| self.stale(collection))?;
        if let Some(why) = &*hosted.broken.lock() {
            return Err(self.not_ready(&format!("has no trustworthy index of the collection ({why})")));
        }
        Ok(hosted)
    }

    /// Reads the rows of the neighbours. Also says how many of them are gone.
    fn resolve(
        &self,
        store: &dyn StateStore,
        call: &SearchCall,
        neighbours: &[Neighbour],
    ) -> Result<(Vec<v1::Hit>, usize), Error> {
        let rows = neighbours.iter().map(|neighbour| neighbour.row);
        let stored = fetch(store, CollectionId(call.collection), rows).map_err(|error| self.unreadable(&error))?;
        let mut hits = Vec::with_capacity(neighbours.len());
        for (neighbour, bytes) in neighbours.iter().zip(stored) {
            let Some(bytes) = bytes else { continue };
            let point = self.decode(&bytes)?;
            hits.push(v1::Hit {
                id: point.id,
                score: neighbour.score,
                version: neighbour.row,
                payload: if call.with_payload { point.payload.into() } else { Bytes::new() },
                vector: if call.with_vector { point.vector } else { Vec::new() },
            });
        }
        let gone = neighbours.len() - hits.len();
        Ok((hits, gone))
    }

    /// Counts of every collection of the shard.
    pub(super) fn stats(&self) -> Vec<CollectionStats> {
        let counted: Vec<(CollectionId, u64, u64)> = {
            let held = self.held.read();
            held.shard.collections().map(|c| (c.id, c.generation, held.shard.count(c.id))).collect()
        };
        let indexes = self.indexes.read();
        let stats = counted.into_iter().map(|(id, generation, points)| {
            let hosted = indexes.get(&id).filter(|hosted| hosted.generation == generation);
            let index = hosted.map(|hosted| hosted.index.stats()).unwrap_or_default();
            CollectionStats {
                collection: id.0,
                generation,
                points,
                sealed_points: index.sealed_rows,
                segments: index.segments as u64,
                building: index.building,
            }
        });
        stats.collect()
    }

    fn decode(&self, bytes: &[u8]) -> Result<PointRow, Error> {
        decode_point(bytes).map_err(|error| {
            Error::internal(format!("a point of shard {} does not decode: {error}; replace this replica", self.shard.0))
        })
    }

    fn unreadable(&self, error: &io::Error) -> Error {
        Error::internal(format!("the rows of shard {} cannot be read: {error}; check the disk", self.shard.0))
            .with("shard", self.shard.0)
    }

    fn search_error(&self, error: quorate_index::Error) -> Error {
        match error {
            quorate_index::Error::Destroyed => self.not_ready("drops the collection"),
            quorate_index::Error::Io { .. } | quorate_index::Error::Engine { .. } => Error::internal(error.to_string()),
            refused => Error::new(ErrorReason::InvalidArgument, refused.to_string()),
        }
    }
}

/// A row to read for the id at `place`.
struct Wanted {
    place: usize,
    row: u64,
    unwritten: Option<Bytes>,
}

/// Rows of points, in the order asked.
pub(super) fn fetch(
    store: &dyn StateStore,
    collection: CollectionId,
    rows: impl Iterator<Item = u64>,
) -> io::Result<Vec<Option<Bytes>>> {
    let keys: Vec<_> = rows.map(|row| point_key(collection, row)).collect();
    let keys: Vec<&[u8]> = keys.iter().map(AsRef::as_ref).collect();
    if keys.is_empty() { Ok(Vec::new()) } else { store.get_many(POINT_TABLE, &keys) }
}

fn to_point(row: u64, point: PointRow, with_vector: bool) -> v1::Point {
    v1::Point {
        id: point.id,
        version: row,
        vector: if with_vector { point.vector } else { Vec::new() },
        payload: point.payload.into(),
    }
}
