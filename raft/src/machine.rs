//! The machine behind a group, and the seams through which a machine's rows reach a disk.

use std::any::Any;
use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::ids::LogPosition;

/// What `apply` answers to the caller that proposed. It never leaves the process, so it is not encoded.
pub struct Reply(pub Box<dyn Any + Send + Sync>);

impl Reply {
    /// A reply that carries nothing, for blank and membership entries.
    pub fn none() -> Self {
        Reply(Box::new(()))
    }
    /// Wraps a value.
    pub fn new<T: Any + Send + Sync>(value: T) -> Self {
        Reply(Box::new(value))
    }
    /// The value again, if it is a `T`.
    pub fn downcast<T: Any>(self) -> Option<T> {
        self.0.downcast::<T>().ok().map(|value| *value)
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}

/// A local failure under which a replica must not go on: the process (or the quarantined replica) stops.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Fault {
    /// What was found, for the operator.
    pub reason: String,
}

/// A table of a machine's rows: the machine's own numbering, below 200.
pub type Table = u8;

/// The changes of a batch of entries. Within a batch a later change of a key replaces an earlier one.
#[derive(Debug, Default, Clone)]
pub struct RowBatch {
    /// (table, key, value); `None` deletes.
    pub changes: Vec<(Table, Bytes, Option<Bytes>)>,
}

/// The deterministic machine behind a group. `raft` drives it; `node` implements it over `raft/state`.
pub trait Machine: Send + 'static {
    /// Applies one committed entry. Must be a pure function of the machine's state and its arguments.
    /// Changed records are appended to `rows`. The reply goes to the local proposer, if there is one.
    fn apply(&mut self, at: LogPosition, payload: &[u8], rows: &mut RowBatch) -> Result<Reply, Fault>;

    /// Called once the rows of a batch are readable in the state store (and before replies are sent): the place
    /// to publish to waiters and to feed caches such as the vector index. `at` is the last applied position.
    fn applied(&mut self, at: LogPosition);

    /// Rebuilds the machine from a store, at start and after a snapshot was installed (then `store` is a new one, and the
    /// machine must drop the old). `at` is the position the rows reflect.
    fn load(&mut self, store: Arc<dyn StateStore>, at: Option<LogPosition>) -> Result<(), Fault>;

    /// A hash of the state after what was applied last. Replicas that applied the same entries must have the same one, and
    /// it must be cheap, for it is asked after every batch.
    fn hash(&self) -> u64;
}

/// Called by [`StateStore::scan`] for each row in key order.
pub type RowVisitor<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// A part of a store that was read to see whether it reads back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reread {
    /// Bytes of the rows in it.
    pub bytes: u64,
    /// Where to go on, in the store's own terms; `None` at the end.
    pub next: Option<Bytes>,
}

/// A machine's rows with the applied position in the same atomic batch. Not durable by itself: the Raft log is its WAL.
pub trait StateStore: Send + Sync + 'static {
    /// One row.
    fn get(&self, table: Table, key: &[u8]) -> io::Result<Option<Bytes>>;
    /// Many rows of one table at once, in the order of the keys.
    fn get_many(&self, table: Table, keys: &[&[u8]]) -> io::Result<Vec<Option<Bytes>>>;
    /// Visits rows of a table with `key >= from`, in key order, until the visitor breaks. Sees one consistent moment.
    fn scan(&self, table: Table, from: &[u8], visit: &mut RowVisitor<'_>) -> io::Result<()>;
    /// Writes rows and the applied mark atomically. `applied` is opaque to the store (the adapter's own encoding of
    /// the position and the membership).
    fn write(&self, rows: &RowBatch, applied: &[u8]) -> io::Result<()>;
    /// The last applied mark written, if any.
    fn applied(&self) -> io::Result<Option<Bytes>>;
    /// Makes everything written so far durable, atomically over all tables.
    fn flush(&self) -> io::Result<()>;
    /// Flushes, then writes a consistent copy into the new directory `dir` and syncs it. The applied mark in the copy
    /// is what [`StateStore::applied`] of the opened copy says.
    fn checkpoint(&self, dir: &Path) -> io::Result<()>;
    /// Reads about `max_bytes` of everything that is stored, of all tables, from the disk and past caches where that can be:
    /// for who looks for damage. `from` is empty at the beginning, then the [`Reread::next`] of the part before. Keeps no rows
    /// in caches, and what is written meanwhile may be read or not.
    fn reread(&self, from: &[u8], max_bytes: usize) -> io::Result<Reread>;
    /// Takes the word of who has read rows that were not written so: the replica is damaged, and says how.
    fn report_damage(&self, _reason: &str) {}
}

/// Opens and replaces the state stores of groups. Implemented on RocksDB and in memory for the simulation.
pub trait StateStores: Send + Sync + 'static {
    /// Opens (or creates) the store of a group's replica.
    fn open(&self, group: crate::ids::GroupId) -> io::Result<Arc<dyn StateStore>>;
    /// Where the files of a snapshot being received are put: a new, empty directory.
    fn staging(&self, group: crate::ids::GroupId) -> io::Result<std::path::PathBuf>;
    /// Replaces the group's store by the verified checkpoint in `from` (by rename, crash safe) and opens it. The machine and
    /// readers may still hold `old`; its files go when the last of them drops it.
    fn replace(
        &self,
        group: crate::ids::GroupId,
        old: Arc<dyn StateStore>,
        from: &Path,
    ) -> io::Result<Arc<dyn StateStore>>;
    /// Reads everything in a checkpoint. An error of kind `InvalidData` says that the checkpoint is damaged, and with it the
    /// database that it was made of.
    fn verify(&self, checkpoint: &Path) -> io::Result<()>;
    /// Reads the applied mark of a checkpoint without making it the group's store.
    fn applied_of(&self, checkpoint: &Path) -> io::Result<Option<Bytes>>;
    /// Whether there is anything of a group.
    fn holds(&self, group: crate::ids::GroupId) -> bool;
    /// Deletes everything of a group.
    fn destroy(&self, group: crate::ids::GroupId) -> io::Result<()>;
}
