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
//!   that was not published yet; its successor would be missing from the answer, so the search waits for the batch to be
//!   published and runs again.
//! - A read that has bad luck too often holds up the next batch for one last try, which is then certain.
//!
//! The store is held weakly: after a snapshot was received its files are replaced, and nobody but the group may hold the
//! old ones open. The guard of `open` is held by every read for as long as it takes, so that closing waits for them.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use quorate_api::v1;
use quorate_index::{Builder, Index, SearchParams};
use quorate_raft::StateStore;
use quorate_state::shard::{CollectionView, POINTS, PointRow, Shard, decode_point, point_key};
use quorate_state::{CollectionId, ShardId};

use super::batches::Batches;
use super::wire::{CollectionStats, Filled, GetCall, SearchCall};
use crate::error::{Error, ErrorReason};

/// How often a read tries beside the batches before it holds one up.
const FREE_TRIES: usize = 3;

/// How the indexes of this node are made.
#[derive(Clone)]
pub(super) struct IndexPlan {
    /// Below it each shard has a directory for its indexes.
    pub(super) directory: PathBuf,
    /// The build threads of the process.
    pub(super) builder: Builder,
    /// Rows at which a head is sealed. Half as many make a graph.
    pub(super) seal_rows: usize,
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
    /// How often rows were taken out of the indexes. An index is no snapshot: a search that was under way then may have
    /// passed the place of the new row before it was there and that of the old one after it was gone.
    pub(super) removals: AtomicU64,
    pub(super) batches: Batches,
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
            removals: AtomicU64::new(0),
            batches: Batches::default(),
        }
    }

    /// Where the indexes of this replica have their files.
    pub(super) fn directory(&self) -> PathBuf {
        directory(&self.plan, self.shard)
    }

    /// Waits for the reads under way, then lets go of the store and the indexes. Later reads are refused. The state stays:
    /// the group may apply some more entries before it stops, and their rows must come out right.
    pub(super) fn close(&self) {
        let mut open = self.open.write();
        *open = None;
        self.indexes.write().clear();
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
        self.steady(&*reading.store, || self.try_get(&*reading.store, call))
    }

    /// The best hits, best first. Takes a core for a while: run it on the search pool.
    pub(super) fn search(&self, call: &SearchCall) -> Result<Vec<v1::Hit>, Error> {
        let reading = self.read()?;
        self.steady(&*reading.store, || self.try_search(&*reading.store, call))
    }

    /// Runs a read until no batch has come in between. `read` answers `None` where one did.
    fn steady<T>(&self, store: &dyn StateStore, read: impl Fn() -> Result<Option<T>, Error>) -> Result<T, Error> {
        for _ in 0..FREE_TRIES {
            let published = self.batches.published();
            if let Some(answer) = read()? {
                return Ok(answer);
            }
            self.batches.wait_past(published);
        }
        let _pin = self.batches.pin().ok_or_else(|| self.not_ready("does not finish what it applies"))?;
        read()?.ok_or_else(|| {
            store.report_damage("a point that the state knows has no row");
            self.not_ready("has lost a row and is taken out of service")
        })
    }

    fn try_get(&self, store: &dyn StateStore, call: &GetCall) -> Result<Option<Vec<v1::Point>>, Error> {
        let collection = CollectionId(call.collection);
        let wanted: Vec<(u64, Option<Bytes>)> = {
            let held = self.held.read();
            self.check_generation(&held.shard, collection, call.generation)?;
            let rows = call.ids.iter().filter_map(|id| held.shard.row_of(collection, id));
            rows.map(|row| (row, held.unwritten.get(&point_key(collection, row)[..]).cloned())).collect()
        };
        let stored =
            fetch(store, collection, wanted.iter().map(|(row, _)| *row)).map_err(|error| self.unreadable(&error))?;
        let mut points = Vec::with_capacity(wanted.len());
        let mut filled = Filled::default();
        for ((row, unwritten), stored) in wanted.into_iter().zip(stored) {
            // Neither applied just now nor stored: it was replaced since the state was asked.
            let Some(bytes) = unwritten.or(stored) else { return Ok(None) };
            let point = self.decode(store, &bytes)?;
            let point = v1::Point {
                id: point.id.to_owned(),
                version: row,
                vector: if call.with_vector { point.vector() } else { Vec::new() },
                payload: Bytes::copy_from_slice(point.payload),
            };
            filled.add(&point)?;
            points.push(point);
        }
        Ok(Some(points))
    }

    fn try_search(&self, store: &dyn StateStore, call: &SearchCall) -> Result<Option<Vec<v1::Hit>>, Error> {
        let collection = CollectionId(call.collection);
        let hosted = self.hosted(collection, call.generation)?;
        let ef = (call.ef > 0).then_some(call.ef as usize);
        let params = SearchParams { k: call.k as usize, ef, exact: call.exact };
        let removals = self.removals.load(Ordering::Acquire);
        let neighbours = hosted.index.search(&call.vector, params).map_err(|error| self.search_error(error))?;
        fence(Ordering::Acquire);
        if self.removals.load(Ordering::Relaxed) != removals {
            return Ok(None);
        }
        let stored = fetch(store, collection, neighbours.iter().map(|neighbour| neighbour.row))
            .map_err(|error| self.unreadable(&error))?;
        let mut hits = Vec::with_capacity(neighbours.len());
        let mut filled = Filled::default();
        for (neighbour, bytes) in neighbours.iter().zip(stored) {
            let Some(bytes) = bytes else { return Ok(None) };
            let point = self.decode(store, &bytes)?;
            let hit = v1::Hit {
                id: point.id.to_owned(),
                score: neighbour.score,
                version: neighbour.row,
                payload: if call.with_payload { Bytes::copy_from_slice(point.payload) } else { Bytes::new() },
                vector: if call.with_vector { point.vector() } else { Vec::new() },
            };
            filled.add(&hit)?;
            hits.push(hit);
        }
        Ok(Some(hits))
    }

    fn hosted(&self, collection: CollectionId, generation: u64) -> Result<Arc<Hosted>, Error> {
        let hosted = self.indexes.read().get(&collection).cloned();
        let hosted = hosted.filter(|hosted| hosted.generation == generation).ok_or_else(|| self.stale(collection))?;
        if let Some(why) = &*hosted.broken.lock() {
            return Err(self.not_ready(&format!("has no trustworthy index of the collection ({why})")));
        }
        Ok(hosted)
    }

    /// Counts of every collection of the shard.
    pub(super) fn stats(&self) -> Vec<CollectionStats> {
        let collections: Vec<CollectionView> = self.held.read().shard.collections().collect();
        let indexes = self.indexes.read();
        let stats = collections.into_iter().map(|collection| {
            let hosted = indexes.get(&collection.id).filter(|hosted| hosted.generation == collection.generation);
            let index = hosted.map(|hosted| hosted.index.stats()).unwrap_or_default();
            CollectionStats {
                collection: collection.id.0,
                generation: collection.generation,
                points: collection.count,
                sealed_points: index.sealed_rows,
                segments: index.segments as u64,
                building: index.building,
            }
        });
        stats.collect()
    }

    fn decode<'a>(&self, store: &dyn StateStore, bytes: &'a [u8]) -> Result<PointRow<'a>, Error> {
        decode_point(bytes).map_err(|error| {
            store.report_damage(&format!("a point does not decode: {error}"));
            self.not_ready("has a damaged row and is taken out of service")
        })
    }

    fn unreadable(&self, error: &io::Error) -> Error {
        // A store that was closed under a read: the replica takes a snapshot, or stops.
        if error.kind() == io::ErrorKind::NotConnected {
            return self.not_ready("is being loaded");
        }
        self.not_ready(&format!("cannot read its rows ({error}; its disk wants a look)"))
    }

    fn search_error(&self, error: quorate_index::Error) -> Error {
        match error {
            quorate_index::Error::Destroyed => self.not_ready("drops the collection"),
            quorate_index::Error::Io { .. } | quorate_index::Error::Engine { .. } => Error::internal(error.to_string()),
            refused => Error::new(ErrorReason::InvalidArgument, refused.to_string()),
        }
    }
}

/// Where the indexes of a shard's replica have their files.
pub(super) fn directory(plan: &IndexPlan, shard: ShardId) -> PathBuf {
    plan.directory.join(format!("shard-{}", shard.0))
}

/// Rows of points, in the order asked.
pub(super) fn fetch(
    store: &dyn StateStore,
    collection: CollectionId,
    rows: impl Iterator<Item = u64>,
) -> io::Result<Vec<Option<Bytes>>> {
    let keys: Vec<_> = rows.map(|row| point_key(collection, row)).collect();
    let keys: Vec<&[u8]> = keys.iter().map(AsRef::as_ref).collect();
    if keys.is_empty() { Ok(Vec::new()) } else { store.get_many(POINTS, &keys) }
}
