//! The machine behind a shard's group: entries go to the state, changed records to the batch of rows, and what changed in
//! the collections to their indexes, once the rows are readable.
//!
//! FAISS is never run here: an insert only appends to the index's exact head. The rows are the truth; an index is opened
//! from its own files and the rows, and after a snapshot was installed it is brought up by the difference of the two
//! states. That is enough because a row number is given once in the life of a collection: the same number is the same
//! vector, whoever holds it.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_index::{Index, Settings};
use quorate_raft::{Fault, LogPosition, Machine, Reply, RowBatch, StateStore};
use quorate_state::shard::{CollectionView, Effect, Loader, POINTS, Shard, decode_point};
use quorate_state::{CollectionId, Position, codec};

use super::replica::{Hosted, Replica, fetch};

/// Rows fetched at once when an index catches up with a snapshot.
const FETCH_ROWS: usize = 1_024;

/// Drives one [`Replica`].
pub(super) struct ShardMachine {
    replica: Arc<Replica>,
    /// What changed in the collections since the last batch was published, in order.
    changes: Vec<Effect>,
}

impl ShardMachine {
    pub(super) fn new(replica: Arc<Replica>) -> ShardMachine {
        ShardMachine { replica, changes: Vec::new() }
    }

    fn fault(&self, reason: impl std::fmt::Display) -> Fault {
        Fault { reason: format!("shard {}: {reason}", self.replica.shard.0) }
    }
}

impl Machine for ShardMachine {
    fn apply(&mut self, at: LogPosition, payload: &[u8], rows: &mut RowBatch) -> Result<Reply, Fault> {
        let entry = codec::decode(payload).map_err(|error| self.fault(error))?;
        self.replica.batches.begin();
        let mut held = self.replica.held.write();
        let outcome = held.shard.apply(Position(at.position), entry).map_err(|error| self.fault(error))?;
        for row in &outcome.rows {
            match &row.value {
                Some(value) if row.table == POINTS => {
                    held.unwritten.insert(row.key.clone(), value.clone());
                }
                _ => {}
            }
        }
        drop(held);
        rows.changes.extend(outcome.rows.into_iter().map(|row| (row.table, row.key, row.value)));
        self.changes.extend(outcome.effects);
        Ok(Reply::new(outcome.replies))
    }

    fn applied(&mut self, _at: LogPosition) {
        let changes = std::mem::take(&mut self.changes);
        // A replica that is closed has no indexes any more; they are opened from the rows when it comes back.
        // Read past a closing that waits: it waits for reads, and these may wait for this batch to be published.
        let open = self.replica.open.read_recursive();
        if open.is_some() {
            // What replaces a row is found before the row itself goes, and searches that ran meanwhile run again.
            let (removed, rest): (Vec<_>, Vec<_>) =
                changes.into_iter().partition(|change| matches!(change, Effect::Removed { .. }));
            rest.into_iter().for_each(|change| self.feed(change));
            if !removed.is_empty() {
                self.replica.removals.fetch_add(1, Ordering::Release);
                fence(Ordering::Release);
            }
            removed.into_iter().for_each(|change| self.feed(change));
        }
        drop(open);
        // Only now may readers go to the store alone: a get that finds nothing here must find the row there.
        self.replica.held.write().unwritten.clear();
        self.replica.batches.publish();
    }

    fn hash(&self) -> u64 {
        self.replica.held.read().shard.hash()
    }

    fn load(&mut self, store: Arc<dyn StateStore>, _at: Option<LogPosition>) -> Result<(), Fault> {
        let shard = read_state(&*store).map_err(|error| self.fault(error))?;
        self.changes.clear();
        // No read may see the new state with the old indexes, or the other way round.
        let mut open = self.replica.open.write();
        let indexes = self.indexes_for(&shard, &store)?;
        *self.replica.indexes.write() = indexes;
        let mut held = self.replica.held.write();
        held.shard = shard;
        held.unwritten.clear();
        drop(held);
        *open = Some(Arc::downgrade(&store));
        drop(open);
        self.replica.batches.publish();
        Ok(())
    }
}

impl ShardMachine {
    /// Tells the index of a collection about one change.
    fn feed(&self, change: Effect) {
        match change {
            Effect::Inserted { collection, row, vector } => {
                if let Some(hosted) = self.hosted(collection) {
                    insert(&hosted, row, &vector);
                }
            }
            Effect::Removed { collection, row } => {
                if let Some(hosted) = self.hosted(collection) {
                    hosted.index.remove(row);
                }
            }
            Effect::CollectionPut { collection: id, generation, dimension, metric } => {
                let collection = CollectionView { id, generation, dimension, metric, count: 0 };
                match self.open_index(&collection, &[], None) {
                    Ok(hosted) => {
                        self.replica.indexes.write().insert(id, hosted);
                    }
                    // The rows are kept all the same; searches of the collection go to other replicas until a restart.
                    Err(error) => {
                        tracing::error!(shard = self.replica.shard.0, collection = id.0, %error, "no index");
                    }
                }
            }
            Effect::CollectionDropped { collection } => {
                let hosted = self.replica.indexes.write().remove(&collection);
                if let Some(hosted) = hosted {
                    self.destroy(&hosted);
                }
            }
        }
    }

    fn hosted(&self, collection: CollectionId) -> Option<Arc<Hosted>> {
        self.replica.indexes.read().get(&collection).cloned()
    }

    fn destroy(&self, hosted: &Hosted) {
        if let Err(error) = hosted.index.destroy() {
            tracing::warn!(shard = self.replica.shard.0, %error, "the files of a dropped collection's index stay behind");
        }
    }

    /// The indexes of a state that was just loaded: those that run already are brought up to it, the others are opened.
    fn indexes_for(
        &self,
        shard: &Shard,
        store: &Arc<dyn StateStore>,
    ) -> Result<BTreeMap<CollectionId, Arc<Hosted>>, Fault> {
        let mut running = std::mem::take(&mut *self.replica.indexes.write());
        let mut indexes = BTreeMap::new();
        for collection in shard.collections() {
            let live: Vec<u64> = shard.live_rows(collection.id).collect();
            let kept = running.remove(&collection.id).filter(|hosted| hosted.generation == collection.generation);
            let hosted = match kept.filter(|hosted| hosted.broken.lock().is_none()) {
                Some(hosted) => {
                    self.catch_up(&hosted, collection.id, &live, &**store).map_err(|error| self.fault(error))?;
                    hosted
                }
                None => self.open_index(&collection, &live, Some(store)).map_err(|error| self.fault(error))?,
            };
            indexes.insert(collection.id, hosted);
        }
        for hosted in running.values() {
            self.destroy(hosted);
        }
        self.remove_strangers(&indexes);
        Ok(indexes)
    }

    /// Opens the index of a collection from its files and the rows. Files that do not open are thrown away once: they
    /// are a cache.
    fn open_index(
        &self,
        collection: &CollectionView,
        live: &[u64],
        store: Option<&Arc<dyn StateStore>>,
    ) -> Result<Arc<Hosted>, quorate_index::Error> {
        let settings = self.replica.plan.settings(collection);
        let directory = self.replica.directory().join(index_name(collection.id, collection.generation));
        let fetch_vectors = |rows: &[u64]| match store {
            Some(store) => vectors(&**store, collection.id, &settings, rows),
            None => Ok(vec![None; rows.len()]),
        };
        let open = || {
            let builder = self.replica.plan.builder.clone();
            Index::open(&directory, settings.clone(), builder, &mut live.iter().copied(), &fetch_vectors)
        };
        let index = match open() {
            Ok(index) => index,
            Err(error) => {
                tracing::warn!(shard = self.replica.shard.0, %error, "an index is rebuilt from its rows");
                // What cannot be removed makes the second attempt fail, and that failure is reported.
                let _ = fs_err::remove_dir_all(&directory);
                open()?
            }
        };
        Ok(Arc::new(Hosted { generation: collection.generation, index, broken: Mutex::new(None) }))
    }

    /// Brings a running index from the state that this replica had to the one that a snapshot brought.
    fn catch_up(
        &self,
        hosted: &Hosted,
        collection: CollectionId,
        live: &[u64],
        store: &dyn StateStore,
    ) -> io::Result<()> {
        let before: Vec<u64> = self.replica.held.read().shard.live_rows(collection).collect();
        let missing: Vec<u64> = live.iter().copied().filter(|row| before.binary_search(row).is_err()).collect();
        for rows in missing.chunks(FETCH_ROWS) {
            let found = vectors(store, collection, hosted.index.settings(), rows)?;
            for (row, vector) in rows.iter().zip(found) {
                if let Some(vector) = vector {
                    insert(hosted, *row, &vector);
                }
            }
        }
        for row in before.iter().filter(|row| live.binary_search(row).is_err()) {
            hosted.index.remove(*row);
        }
        Ok(())
    }

    /// Deletes index files of collections that are gone: a crash between a drop and the deletion leaves them behind.
    fn remove_strangers(&self, indexes: &BTreeMap<CollectionId, Arc<Hosted>>) {
        let known: Vec<String> = indexes.iter().map(|(id, hosted)| index_name(*id, hosted.generation)).collect();
        let Ok(entries) = fs_err::read_dir(self.replica.directory()) else { return };
        for entry in entries.flatten() {
            if !known.iter().any(|name| entry.file_name() == name.as_str())
                && let Err(error) = fs_err::remove_dir_all(entry.path())
            {
                tracing::warn!(shard = self.replica.shard.0, %error, "files of a dropped collection's index stay behind");
            }
        }
    }
}

impl super::replica::IndexPlan {
    /// The settings of a collection's index.
    pub(super) fn settings(&self, collection: &CollectionView) -> Settings {
        let defaults = Settings::new(collection.dimension as usize, metric_of(collection.metric));
        Settings { seal_rows: self.seal_rows, flat_below: self.seal_rows / 2, ..defaults }
    }
}

/// The metric in the words of the index.
pub(super) fn metric_of(metric: quorate_state::Metric) -> quorate_index::Metric {
    match metric {
        quorate_state::Metric::Cosine => quorate_index::Metric::Cosine,
        quorate_state::Metric::InnerProduct => quorate_index::Metric::InnerProduct,
        quorate_state::Metric::L2 => quorate_index::Metric::L2,
    }
}

fn index_name(collection: CollectionId, generation: u64) -> String {
    format!("{}-{generation}", collection.0)
}

/// Adds a vector to an index. What the index refuses by the vector alone the gateway has refused before, so it is the same
/// on every replica and only reported; any other failure makes the index untrustworthy.
fn insert(hosted: &Hosted, row: u64, vector: &[f32]) {
    match hosted.index.insert(row, vector) {
        Ok(()) | Err(quorate_index::Error::Destroyed) => {}
        Err(error @ (quorate_index::Error::Io { .. } | quorate_index::Error::Engine { .. })) => {
            tracing::error!(row, %error, "an index lost a row; searches of the collection go to other replicas");
            *hosted.broken.lock() = Some(error.to_string());
        }
        Err(error) => tracing::error!(row, %error, "a stored vector is not searchable"),
    }
}

/// The vectors of rows, `None` for those that are gone or that no index takes.
fn vectors(
    store: &dyn StateStore,
    collection: CollectionId,
    settings: &Settings,
    rows: &[u64],
) -> io::Result<Vec<Option<Vec<f32>>>> {
    let stored = fetch(store, collection, rows.iter().copied())?;
    let vector = |bytes: Option<Bytes>| {
        let Some(bytes) = bytes else { return Ok(None) };
        let point = decode_point(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(Some(point.vector()).filter(|vector| settings.check_vector(vector).is_ok()))
    };
    stored.into_iter().map(vector).collect()
}

/// Builds the state from its rows, one by one: they are more than should be in memory at once.
fn read_state(store: &dyn StateStore) -> Result<Shard, Box<dyn std::error::Error>> {
    let mut loader = Loader::new();
    let mut refused = None;
    for table in Shard::TABLES {
        store.scan(table, &[], &mut |key, value| match loader.row(table, key, value) {
            Ok(()) => ControlFlow::Continue(()),
            Err(fault) => {
                refused = Some(fault);
                ControlFlow::Break(())
            }
        })?;
    }
    match refused {
        Some(fault) => Err(fault.into()),
        None => Ok(loader.finish()?),
    }
}
